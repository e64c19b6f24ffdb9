"""Workflow: what the commands do, from a data set's name to a table of scores.

Every step writes into one pipeline folder and is skipped when that folder already holds its
result, so a chain of steps can be stopped and started again anywhere.
"""

import math
import shutil
import tempfile
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm

from . import datasets, presets, sprites
from .classifier import Classifier
from .datasets import RESOLUTION, ImageSet
from .devices import default_device
from .errors import CheckpointError, DataError, InputError, check_choice, check_count
from .files import atomic_path, check_writable, read_json, write_json
from .hub import (
    check_manifest,
    digest,
    is_packed,
    load_weights,
    read_tensors,
    save_tensors,
    weights_digest,
    write_manifest,
)
from .metrics import (
    Extractor,
    GaussianStats,
    InceptionExtractor,
    Reference,
    Scores,
    evaluate,
    extract,
    frechet_distance,
)
from .pipeline import SHIPPED, Card, Pipeline, find_pipeline, read_card, write_card
from .presets import PARTS, SPINE
from .samples import load_samples, sample_batches, to_float, to_uint8
from .smoothing import SMOOTHERS, kept_kind
from .tasks import ClassifierTask, SmootherTask, Task, TokenizerTask, TransformerTask, tokenize
from .tokenizer import VQTokenizer, psnr
from .training import Recipe, fit, plain
from .transformer import MaskedTransformer

EARLIER = ("recipe", "seed", "seconds", "start", "smoothing")  # what a next round's report keeps
RESTS_ON = {  # whose weights a part was made for
    "transformer": ("tokenizer",),
    "weak": ("tokenizer",),
    "smoother": ("tokenizer", "transformer"),
}


def train(
    part: str,
    dataset: str,
    preset: str,
    folder: str | Path,
    seed: int = 0,
    device: str | None = None,
    name: str | None = None,
    steps: int | None = None,
    start: str | Path | None = None,
    **smoothing,
) -> dict:
    """Train one part of a pipeline into `folder`/`name`, or find that this is done already.

    Args:
        part: one of `PARTS`; "weak" is an undertrained transformer for autoguidance.
        name: the part's folder; the part's own name if not given.
        steps: another training length than the preset's.
        start: a trained part's folder, whose weights to begin with: a further round of training.
        smoothing: changes to the preset's `Smoothing`, for smoothers.

    Returns the part's report (see `training.fit`), for the tokenizer with its PSNR, rFID and
    codebook use.

    Raises:
        CheckpointError: an earlier part is missing (the sentence names the command to run), the
            folder belongs to another data set, the part was trained in another way, or the
            weights to begin with do not fit.
    """
    check_choice("part", part, PARTS)
    check_count("seed", seed, least=0)
    folder, device = Path(folder), device or default_device()
    place = folder / (name or part)
    if place.parent != folder or place.name == "..":
        raise InputError(f"{name!r} is no plain folder name.")
    card = read_card(folder) if (folder / "pipeline.json").is_file() else None
    if card and card.dataset != dataset:
        raise CheckpointError(f"{folder} holds models of {card.dataset}: choose another --out.")
    about: dict[str, Any] = {"dataset": dataset, "preset": preset, "start": None}
    if start is not None:
        about["start"] = earlier_round(Path(start))
    size = presets.get(dataset, preset, 2).images
    data = datasets.load(dataset, count=size if dataset == "sprites" else None)
    data = data.subset(min(len(data), size or len(data)))
    if dataset.startswith("folder:"):  # whose pictures may change
        about["data"] = data.fingerprint()
    plan = presets.get(dataset, preset, len(data.classes))
    recipe: Recipe = getattr(plan, f"{part.split('-')[0]}_recipe")
    recipe = replace(recipe, steps=recipe.steps if steps is None else steps)
    if part.startswith("smoother"):
        kind = part.partition("-")[2]
        options = plan.smoothing.but(**({"kind": kind} if kind else {})).but(**smoothing)
        about["smoothing"] = asdict(options)
    for earlier in RESTS_ON.get(part.split("-")[0], ()):
        if (folder / earlier / "model.safetensors").is_file():
            about[earlier] = weights_digest(folder / earlier / "model.safetensors")[:8]
    identity = plain({"recipe": asdict(recipe), "seed": seed} | about)
    if (place / "training.json").is_file():
        report = read_json(place / "training.json")
        if "smoothing" not in (report.get("start") or ()):  # once it was not kept of earlier rounds
            (identity["start"] or {}).pop("smoothing", None)
        unsaid = set(SPINE) - report.keys()  # the first models do not say what they rest on
        other = [k for k in identity if k not in unsaid and report.get(k) != identity[k]]
        if not other:
            return report
        raise CheckpointError(
            f"{place} was trained with another {', '.join(other)}; choose another --out, or "
            "delete it to train anew."
        )
    torch.manual_seed(seed)  # the first weights
    if part == "classifier":
        task: Task = ClassifierTask(Classifier(plan.classifier), data)
        judge = _classifier_judge(dataset)
    elif part == "tokenizer":
        eye = find_classifier(dataset, folder)
        task = TokenizerTask(VQTokenizer(plan.tokenizer), data, eye)
        judge = _tokenizer_judge(dataset, eye)
    else:
        tokenizer = _part(VQTokenizer, folder, "tokenizer", dataset, preset).to(device)
        tokens = kept_tokens(tokenizer, data, folder)
        judge = None
    if part in ("transformer", "weak"):
        model = MaskedTransformer(plan.transformer)
        model.adopt_codebook(tokenizer.quantize.embedding.weight.detach().cpu())
        task = TransformerTask(model, tokens, data.labels)
    elif part.startswith("smoother"):
        model = _part(MaskedTransformer, folder, "transformer", dataset, preset)
        smoother = SMOOTHERS[options.kind].fresh(model, options)
        codebook = tokenizer.quantize.embedding.weight.detach().cpu()
        choice = (options.rate, options.wrong, options.loss_on)
        task = SmootherTask(smoother, model, tokens, data.labels, codebook, *choice)
    if start is not None:
        load_weights(task.model, Path(start) / "model.safetensors")
    sampling = card.sampling if card else plan.sampling  # the best may have been adopted
    write_card(folder, Card(dataset, preset, list(data.classes), sampling))
    return fit(task, recipe, place, seed, device, about, judge)


def earlier_round(folder: Path) -> dict:
    """What the report of a part's next round keeps of this one, and a digest of its weights."""
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(f"{folder} holds no trained weights to begin with.")
    report = read_json(folder / "training.json")
    kept = {key: report[key] for key in EARLIER if key in report}
    return kept | {"weights": digest(folder / "model.safetensors")[:8]}


def kept_tokens(tokenizer: VQTokenizer, data: ImageSet, folder: Path) -> Tensor:
    """An image set as tokens (see `tokenize`), kept in the folder for the parts trained later."""
    path = folder / "tokens.safetensors"
    made_by = f"{digest(folder / 'tokenizer' / 'model.safetensors')} {data.fingerprint()}"
    try:
        kept, notes = read_tensors(path)
        if notes["made_by"] == made_by:
            return kept["tokens"]
    except (CheckpointError, KeyError):
        pass  # none yet, or a damaged file: they are only a minute's work
    tokens = tokenize(tokenizer, data)
    save_tensors(path, {"tokens": tokens}, {"made_by": made_by})
    return tokens


def _classifier_judge(dataset: str):
    return lambda model: {"test_accuracy": accuracy(model, datasets.load(dataset, "test"))}


def _tokenizer_judge(dataset: str, eye: Classifier):
    return lambda model: judge_tokenizer(model, eye, datasets.load(dataset, "test"))


def _part(kind, folder: Path, name: str, dataset: str, preset: str):
    if not (folder / name).is_dir():
        raise CheckpointError(
            f"{folder} has no {name}: first run `sgmgm train {name} --dataset {dataset} "
            f"--preset {preset} --out {folder}`."
        )
    return kind.from_pretrained(folder / name)


def find_classifier(dataset: str, folder: Path | None = None) -> Classifier:
    """The classifier in a pipeline folder, or else the shipped one of this data set.

    Its `name` carries a digest of its weights, so that scores of different eyes are not mixed up.
    """
    places = [p / "classifier" for p in (folder, SHIPPED / dataset) if p]
    for place in places:
        if (place / "model.safetensors").is_file():
            check_manifest(place.parent)
            classifier = Classifier.from_pretrained(place)
            classifier.name = f"classifier {digest(place / 'model.safetensors')[:8]}"
            # another data set's classes say nothing about these labels
            classifier.labels_known = read_card(place.parent).dataset == dataset
            return classifier
    raise CheckpointError(
        f"no classifier for {dataset}: run `sgmgm train classifier --dataset {dataset}` first "
        f"(looked in {', '.join(str(p) for p in places)})."
    )


def float_batches(images: ImageSet, progress: str):
    """An image set as float32 batches (B, 3, H, W) in [0, 1]; `progress` names the bar."""
    for start in tqdm(range(0, len(images), 250), desc=progress, leave=False):
        yield images.batch(slice(start, start + 250))[0]


@torch.no_grad()
def accuracy(classifier: Classifier, images: ImageSet) -> float:
    """Share of an image set that the classifier names rightly."""
    device = next(classifier.parameters()).device
    right = 0
    for start in range(0, len(images), 250):
        pixels, labels = images.batch(slice(start, start + 250))
        right += int((classifier(pixels.to(device)).logits.argmax(1).cpu() == labels).sum())
    return right / len(images)


@torch.no_grad()
def judge_tokenizer(tokenizer: VQTokenizer, eye: Extractor, images: ImageSet) -> dict:
    """PSNR in dB, rFID (Fréchet distance of reconstructions to originals) and codebook use.

    All three on the given images; codebook use is the share of codes that occur at all, and
    perplexity the number of codes that would be as hard to guess if they were equally likely.
    """
    device = next(tokenizer.parameters()).device
    quality, counts = [], torch.zeros(tokenizer.num_codes)
    real, rebuilt = GaussianStats(), GaussianStats()
    for pixels in float_batches(images, progress="judge tokenizer"):
        pixels = pixels.to(device)
        tokens = tokenizer.encode(pixels)
        again = tokenizer.decode(tokens)
        counts += torch.bincount(tokens.flatten().cpu(), minlength=tokenizer.num_codes)
        quality.append(psnr(pixels, again).cpu())
        real.update(eye(pixels).features.cpu())
        rebuilt.update(eye(again).features.cpu())
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return {
        "psnr": torch.cat(quality).mean().item(),
        "rfid": frechet_distance(real, rebuilt),
        "codes_used": (counts > 0).float().mean().item(),
        "perplexity": math.exp(entropy),
        "judged_on": f"{len(images)} {images.split} images, {eye.name}",
    }


def balanced_labels(count: int, classes: list[int]) -> Tensor:
    """`count` labels that go round the given classes, int64 (count,)."""
    return torch.tensor(classes)[torch.arange(count) % len(classes)]


def draw(
    pipeline: Pipeline, labels: Tensor, seed: int = 0, batch_size: int = 64, **settings
) -> tuple[np.ndarray, float]:
    """Many images as uint8 (N, H, W, 3), and network passes per image; image i has seed + i."""
    drawn, passes = [], 0.0
    with tqdm(total=len(labels), desc="sample", unit="image") as progress:
        for part in pipeline.stream(labels, first_seed=seed, batch_size=batch_size, **settings):
            drawn.append(to_uint8(part.images))
            passes = part.nfe
            progress.update(len(part.labels))
    return np.concatenate(drawn), passes


def save_grid(path: str | Path, images: Tensor, columns: int | None = None, zoom: int = 3) -> None:
    """Write images (B, 3, H, W) in [0, 1] as one picture file."""
    if Path(path).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"{path} is no picture: end it in .png, .jpg or .webp.")
    columns = columns or math.ceil(math.sqrt(len(images)))
    images = images.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    with atomic_path(path) as partial:
        save_image(images, partial, nrow=columns, padding=2, pad_value=1.0)


def make_extractor(
    kind: str, dataset: str, folder: Path | None, weights: str | None, device: str
) -> Extractor:
    """The extractor of this name: "classifier" (the data set's own) or "inception"."""
    check_choice("extractor", kind, ("classifier", "inception"))
    if kind == "inception":
        return InceptionExtractor(weights, device)
    return find_classifier(dataset, folder).to(device)


def _device_of(extractor) -> torch.device:
    return getattr(extractor, "device", None) or next(extractor.parameters()).device


def reference_for(
    dataset: str, extractor: Extractor, folder: Path | None = None, resolution: int = RESOLUTION
) -> Reference:
    """Statistics of a training set, or of a samples file if `dataset` ends in .npz.

    Those of a training set are kept in its own pipeline folder once they are computed. A packed
    folder is sealed by its manifest, and keeps what it has. InputError or DataError if the images
    are not `resolution` pixels wide and high.
    """
    device = _device_of(extractor)
    if dataset.endswith(".npz"):
        pixels, _ = load_samples(dataset, resolution)
        features, _ = extract(extractor, (b.to(device) for b in sample_batches(pixels, 250)))
        return Reference.from_features(features, dataset, extractor.name)
    usual = resolution == RESOLUTION
    places = [p / "reference.safetensors" for p in (folder, SHIPPED / dataset) if p and usual]
    images, data = None, ""
    if dataset.startswith("folder:") and not (folder and is_packed(folder)):
        with suppress(DataError):  # without its pictures the kept statistics have to do
            images = datasets.load(dataset, resolution=resolution)
            data = images.fingerprint()  # they may have changed
    for place in places:
        if place.is_file():
            reference = Reference.load(place)
            same = (reference.dataset, reference.extractor) == (dataset, extractor.name)
            if same and data in ("", reference.data):
                return reference
    if images is None:
        images = datasets.load(dataset, resolution=resolution)
    batches = float_batches(images, progress=f"features of {dataset}")
    features, _ = extract(extractor, (b.to(device) for b in batches))
    reference = Reference.from_features(features, dataset, extractor.name)
    reference.data = data
    if folder and usual and read_card(folder).dataset == dataset and not is_packed(folder):
        reference.save(places[0])
    return reference


def score(
    images: np.ndarray, labels: np.ndarray | None, reference: Reference, extractor: Extractor
) -> Scores:
    """All scores of images uint8 (N, H, W, 3) against a reference.

    Against sprites, coherence too: how often the two accents of a picture agree.
    """
    device = _device_of(extractor)
    batches = (b.to(device) for b in sample_batches(images, 250))
    features, logits = extract(extractor, batches)
    scores = evaluate(features, logits, labels if extractor.labels_known else None, reference)
    if reference.dataset == "sprites":
        scores = replace(scores, coherence=sprites.coherence(to_float(images)))
    return scores


def noise_floor(dataset: str, extractor: Extractor, reference: Reference) -> float:
    """Fréchet distance of the real test set to the training set: what a perfect model gets."""
    device = _device_of(extractor)
    stats = GaussianStats()
    for batch in float_batches(datasets.load(dataset, "test"), progress="noise floor"):
        stats.update(extractor(batch.to(device)).features.detach().cpu())
    return frechet_distance(stats, reference.stats)


def pack(folder: str | Path, out: str | Path, device: str | None = None) -> None:
    """Make a pipeline folder small enough to ship.

    Weights become float16 (the networks compute in float32 as before), LoRA adapters are copied,
    reference statistics are computed with the packed classifier, and a manifest notes the
    SHA-256 of every file.

    Raises:
        CheckpointError: `folder` is no pipeline, or `out` exists already.
    """
    folder, out = find_pipeline(folder), Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists: delete it or choose another place.")
    check_writable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # a folder without its manifest would pass for a whole one
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=out.parent) as partial:
        whole = Path(partial) / out.name
        _pack(folder, whole, device)
        whole.rename(out)


def _pack(folder: Path, out: Path, device: str | None) -> None:
    card = read_card(folder)
    kinds: dict[str, Any] = {
        "classifier": Classifier,
        "tokenizer": VQTokenizer,
        "weak": MaskedTransformer,
        "transformer": MaskedTransformer,
    }
    for place in sorted(p for p in folder.iterdir() if (p / "training.json").is_file()):
        report = read_json(place / "training.json")
        if place.name not in PARTS and "smoothing" not in report:
            continue  # an earlier round of a part
        if (place / "adapter_config.json").is_file():
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                (out / place.name).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place / name, out / place.name / name)
        else:
            kind = kinds.get(place.name) or SMOOTHERS[kept_kind(place)]
            model = kind.from_pretrained(place)
            model.save_pretrained(out / place.name, torch.float16)
        write_json(out / place.name / "training.json", report)
    write_card(out, card)
    eye = find_classifier(card.dataset, out).to(device or default_device())
    reference_for(card.dataset, eye, out).save(out / "reference.safetensors")
    write_manifest(out)
