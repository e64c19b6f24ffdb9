"""Scoring: from images to the numbers that lessons and sweeps report.

Feature extractors, reference statistics of a data set, and all scores of generated images.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from . import datasets, folders, sprites
from .classifier import Classifier, Features
from .datasets import RESOLUTION, ImageSet, whole_set
from .extractor import SecondExtractor
from .metrics import GaussianStats, Reference, Scores, check_rows, evaluate, frechet_distance
from .pipeline import SHIPPED, Pipeline, read_card
from .tokenizer import VQTokenizer, psnr
from .utils.distributed import main_first, rank_and_size, total
from .utils.errors import CheckpointError, DataError, InputError, listed
from .utils.files import canonical
from .utils.hub import check_manifest, digest, is_packed
from .utils.samples import load_samples, sample_batches, to_float, to_uint8

EXTRACTORS = ("classifier", "second", "inception")


class Extractor(Protocol):
    """A callable: images float32 (B, 3, H, W) in [0, 1] -> Features."""

    name: str
    labels_known: bool  # the logits' classes are the data set's own: accuracy has a meaning

    def __call__(self, images: Tensor) -> Features: ...


class InceptionExtractor:
    """Inception-v3 of the published FIDs, from torch-fidelity ('inception-v3-compat').

    Features are the 2048 pooled activations, logits the 1008 without bias; images of any size
    are resized to 299 x 299 inside, as TensorFlow 1 did. `weights` is the file that
    torch-fidelity publishes; None takes torch.hub's cache and downloads into it if need be.
    DataError if torch-fidelity or the weights are absent or damaged.
    """

    name = "inception-v3-compat"
    labels_known = False  # its classes are ImageNet's

    def __init__(self, weights: str | Path | None = None, device: str = "cpu"):
        try:
            from torch_fidelity import feature_extractor_inceptionv3 as inception
        except ImportError:
            how = "in the course's folder, pip install -e '.[inception]'."
            raise DataError(f"Inception scores need torch-fidelity: {how}") from None
        url = inception.URL_INCEPTION_V3
        cache = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
        path = cache if weights is None else Path(weights)
        try:
            if weights is None and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(url, str(path))
            if not path.is_file():
                raise FileNotFoundError
        except OSError:
            raise DataError(f"no Inception weights at {path}: put {url} there.") from None
        try:
            torch.load(path, weights_only=True)  # torch-fidelity's own load would run any pickle
            what = self.name, ["2048", "logits_unbiased"], str(path)
            self.net = inception.FeatureExtractorInceptionV3(*what).to(device)
        except Exception as error:  # a damaged pickle can raise anything
            fault = f"{path} is damaged or holds no Inception weights"
            raise DataError(f"{fault}: replace it by {url}.") from error
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Images float32 (B, 3, H, W) in [0, 1]; they are rounded to 8 bits."""
        pixels = (images * 255).round().clamp(0, 255).to(torch.uint8)
        return Features(*self.net(pixels.to(self.device)))


@torch.no_grad()
def extract(extractor: Extractor, images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Features (N, D) float32 and logits (N, C) on the CPU of batches float32 (B, 3, H, W).

    Several processes share the batches, and each gets all rows. InputError, with the number of the
    batch, if images are not in [0, 1] or not of that shape, or features or logits not finite.
    """
    kept: dict[str, list[Tensor]] = {"features": [], "logits": []}
    me, processes = rank_and_size()
    for i, batch in enumerate(images):
        if batch.ndim != 4 or batch.shape[1] != 3 or not len(batch) or batch.dtype != torch.float32:
            found = f"{batch.dtype} {tuple(batch.shape)}"
            raise InputError(f"batch {i} must be float32 images (B, 3, H, W), not {found}.")
        if not (batch.min() >= 0 and batch.max() <= 1):  # in this form NaN fails, too
            raise InputError(f"batch {i} has pixels outside [0, 1].")
        mine, where = i % processes == me, batch.device
        if mine or i == 0:  # the first tells every process how wide the rows are
            out = extractor(batch)
            rows = {name: check_rows(f"{name} of batch {i}", getattr(out, name)) for name in kept}
        for name, row in rows.items():
            empty = torch.zeros(len(batch), row.shape[1])
            kept[name].append(row.float().cpu() if mine else empty)
    if not kept["features"]:
        raise InputError("there are no images to extract features from.")
    features, logits = (torch.cat(parts) for parts in kept.values())
    if processes > 1:
        return total(features.to(where)).cpu(), total(logits.to(where)).cpu()
    return features, logits


def load_data(*what, **more) -> ImageSet:
    """`datasets.load`, by a launch's first process before the others: one downloads for all."""
    with main_first():
        try:
            found: Any = datasets.load(*what, **more)
        except DataError as error:  # raised below, so that the others are not left waiting
            found = error
    if isinstance(found, DataError):
        raise found
    return found


def one_class(dataset: str) -> bool:
    """Whether a folder has one class only, so that a classifier has nothing to learn there."""
    known = dataset.startswith("folder:") and Path(canonical(dataset)[7:]).is_dir()
    return known and len(folders.survey(dataset).classes) == 1


def find_classifier(dataset: str, folder: Path | None = None) -> Classifier:
    """The classifier of a data set (see `find_extractor`)."""
    return find_extractor("classifier", dataset, folder)


def find_extractor(part: str, dataset: str, folder: Path | None = None) -> Any:
    """The "classifier" or "second" extractor in a pipeline folder, or else the shipped one.

    For a set of one class it is the one that ships for CIFAR-10, which knows nothing of its label.
    Its `name` carries a digest of its weights, so that scores of two networks are not mixed up.
    """
    dataset = canonical(dataset)
    places = extractor_places(part, dataset, folder)
    place = next((each for each in places if (each / "model.safetensors").is_file()), None)
    if place is None:
        looked = f"(looked in {listed(places)})"
        advice = f"run `sgmgm train {part} --dataset {dataset}` first {looked}."
        raise CheckpointError(f"no {part} for {dataset}: {advice}")
    check_manifest(place.parent)
    extractor = (SecondExtractor if part == "second" else Classifier).from_pretrained(place)
    extractor.name = f"{part} {digest(place / 'model.safetensors')[:8]}"
    alone = place.parent == SHIPPED / "second"
    made_for = place.name if alone else read_card(place.parent).dataset
    # another data set's classes say nothing about these labels
    extractor.labels_known = whole_set(made_for) == whole_set(dataset)
    if one_class(dataset):
        extractor.name += f" of {made_for}"
    return extractor


def find_extractors(dataset: str, folder: Path | None = None) -> dict[str, Any]:
    """ "classifier", and "second" where there is one: see `find_extractor`."""
    found = {"classifier": find_classifier(dataset, folder)}
    places = extractor_places("second", canonical(dataset), folder)
    if any((place / "model.safetensors").is_file() for place in places):
        found["second"] = find_extractor("second", dataset, folder)
    return found


def extractor_places(part: str, dataset: str, folder: Path | None) -> list[Path]:
    """The folders in which `find_extractor` looks, the first one first."""
    one = one_class(dataset)
    shipped = _shipped(part, "cifar10" if one else dataset)
    return [folder / part, shipped] if folder and not one else [shipped]


def _shipped(part: str, dataset: str) -> Path:
    """Where an extractor ships: second extractors have a folder of their own."""
    name = whole_set(dataset)
    return SHIPPED / part / name if part == "second" else SHIPPED / name / part


def _extract(extractor, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """`extract`, with the batches moved to the extractor's device."""
    device = getattr(extractor, "device", None) or next(extractor.parameters()).device
    return extract(extractor, (batch.to(device) for batch in batches))


def is_samples_file(reference: str) -> bool:
    """Whether a reference is a file of images rather than a data set."""
    return reference.lower().endswith(".npz") and not reference.startswith("folder:")


def reference_for(
    dataset: str, extractor: Extractor, folder: Path | None = None, resolution: int = RESOLUTION,
    split: str = "train",
) -> Reference:  # fmt: skip
    """Statistics of a training set, or of a samples file if `dataset` ends in .npz.

    Those of a training set are kept in its own pipeline folder, unless that is packed: a manifest
    seals it. InputError or DataError if the images are not `resolution` pixels wide and high.
    Of `folder:PATH`, split "all" takes the training and the test images. For a sample, the
    statistics of its whole set are taken where they ship; the reference's name tells which it is.
    """
    dataset = canonical(dataset)
    if is_samples_file(dataset):
        pixels, _ = load_samples(dataset, resolution)
        features, _ = _extract(extractor, sample_batches(pixels, 250))
        return Reference.from_features(features, dataset, extractor.name)
    usual = resolution == RESOLUTION and split == "train"
    second = extractor.name.startswith("second")  # each extractor keeps its own
    name = "reference-second.safetensors" if second else "reference.safetensors"
    shipped = _shipped("second", dataset) if second else SHIPPED / whole_set(dataset)
    places = [*([folder / name] if folder else []), shipped / "reference.safetensors"] * usual
    images, data = None, ""
    if dataset.startswith("folder:") and not (folder and is_packed(folder)):
        with suppress(DataError):  # without its images the kept statistics have to do
            images = load_data(dataset, split, resolution=resolution)
            data = images.fingerprint()  # they may have changed
    for place in places:
        if place.is_file():
            reference = Reference.load(place)
            same = reference.dataset in (dataset, whole_set(dataset))
            if same and reference.extractor == extractor.name and data in ("", reference.data):
                return reference
    if images is None:
        images = load_data(dataset, split, resolution=resolution)
    features, _ = _extract(extractor, images.batches(f"features of {dataset}"))
    called = dataset if split == "train" else f"{dataset} (all {len(images)} images)"
    reference = Reference.from_features(features, called, extractor.name)
    reference.data = data
    if folder and usual and read_card(folder).dataset == dataset and not is_packed(folder):
        reference.save(places[0])
    return reference


def score(
    images: np.ndarray, labels: np.ndarray | None, reference: Reference, extractor: Extractor
) -> Scores:
    """All scores of images uint8 (N, H, W, 3) against a reference.

    Against sprites, coherence too: how often the two accents of an image agree. Accuracy needs a
    class for each image: there is none if a label is C, "no class".
    """
    features, logits = _extract(extractor, sample_batches(images, 250))
    if not extractor.labels_known or (labels is not None and logits.shape[1] in labels):
        labels = None
    scores = evaluate(features, logits, labels, reference)
    if reference.dataset == "sprites":
        scores = replace(scores, coherence=sprites.coherence(to_float(images)))
    return scores


def noise_floor(dataset: str, extractor: Extractor, reference: Reference) -> float:
    """Fréchet distance of the real test set to the training set: what a perfect model gets."""
    features, _ = _extract(extractor, load_data(dataset, "test").batches("noise floor"))
    return frechet_distance(GaussianStats().update(features), reference.stats)


def accuracy(classifier: Classifier | SecondExtractor, images: ImageSet) -> float:
    """Share of an image set that the classifier assigns to the right class."""
    _, logits = _extract(classifier, images.batches("test accuracy"))
    return (logits.argmax(1) == images.labels).double().mean().item()


@torch.no_grad()
def evaluate_tokenizer(tokenizer: VQTokenizer, classifier: Extractor, images: ImageSet) -> dict:
    """PSNR in dB, rFID (Fréchet distance of reconstructions to originals) and codebook use.

    Codebook use is the share of codes that occur at all; perplexity is the number of equally
    likely codes that would be as hard to predict.
    """
    device = next(tokenizer.parameters()).device
    quality, counts = [], torch.zeros(tokenizer.num_codes)
    real, rebuilt = GaussianStats(), GaussianStats()
    for pixels in images.batches("evaluate tokenizer"):
        pixels = pixels.to(device)
        tokens = tokenizer.encode(pixels)
        again = tokenizer.decode(tokens)
        counts += torch.bincount(tokens.flatten().cpu(), minlength=tokenizer.num_codes)
        quality.append(psnr(pixels, again).cpu())
        real.update(classifier(pixels).features.cpu())
        rebuilt.update(classifier(again).features.cpu())
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return {
        "psnr": torch.cat(quality).mean().item(),
        "rfid": frechet_distance(real, rebuilt),
        "codes_used": (counts > 0).float().mean().item(),
        "perplexity": math.exp(entropy),
        "judged_on": f"{len(images)} {images.split} images, {classifier.name}",
    }


def balanced_labels(count: int, classes: list[int]) -> Tensor:
    """`count` labels, the given classes in turn, int64 (count,)."""
    return torch.tensor(classes)[torch.arange(count) % len(classes)]


def generate(
    pipeline: Pipeline, labels, seed: int = 0, batch_size: int = 64, **settings
) -> tuple[np.ndarray, int]:
    """Many images as uint8 (N, H, W, 3), and network passes per image; image i has seed + i."""
    images = []
    with tqdm(total=len(labels), desc="sample", unit="image") as progress:
        for part in pipeline.stream(labels, first_seed=seed, batch_size=batch_size, **settings):
            images.append(to_uint8(part.images))
            progress.update(len(part.labels))
    return np.concatenate(images), pipeline.passes(**settings)
