"""Workflow: what the commands do, from a data set's name to a table of scores.

Every step writes into one pipeline folder and is skipped when that folder already holds its
result, so a chain of steps can be stopped and started again anywhere.
"""

import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import presets
from .classifier import Classifier
from .datasets import ImageSet
from .extractor import SecondExtractor
from .pipeline import Card, check_part, find_pipeline, read_card, write_card
from .presets import Preset, Smoothing
from .scoring import accuracy, evaluate_tokenizer, find_classifier, load_data, reference_for
from .settings import CORE_PARTS, TRAINABLE
from .smoothing import SMOOTHERS, smoother_kind
from .tasks import ClassifierTask, SmootherTask, Task, TokenizerTask, TransformerTask, tokenize
from .tokenizer import VQTokenizer
from .training import TrainingConfig, fit, plain, read_report
from .transformer import MaskedTransformer
from .utils import hub
from .utils.devices import default_device
from .utils.distributed import meet, rank_and_size
from .utils.errors import CheckpointError, DataError, InputError, check_choice, check_count, listed
from .utils.files import canonical, check_writable, sole_writer, write_json

EARLIER = ("training", "seed", "seconds", "start", "smoothing")  # what a next round's report keeps
UNUSED = {"toast": "rank", "lora": "keep_class"}  # options without effect on a kind of smoother
RESTS_ON = {  # whose weights a part was made for
    **dict.fromkeys(("transformer", "weak"), ("tokenizer",)),
    "smoother": ("tokenizer", "transformer"),
}


def train(
    part: str, dataset: str, preset: str, folder: str | Path, seed: int = 0,
    device: str | None = None, name: str | None = None, steps: int | None = None,
    start: str | Path | None = None, mirror: bool | None = None, minutes: float | None = None,
    schedule: str | None = None, **smoothing,
) -> dict:  # fmt: skip
    """Train one part of a pipeline into `folder`/`name`, or find that this is done already.

    Args:
        part: one of `TRAINABLE`; "weak" is a smaller, less trained transformer for autoguidance,
            "second" a feature extractor that only scores.
        name: the part's folder; the part's own name if not given.
        steps: another training length than the preset's.
        start: a trained part's folder, whose weights to begin with: a further round of training.
        mirror: whether images are mirrored at random. If not given, as for the parts that the
            folder has already, or else as the data set says (`ImageSet.flip`).
        minutes: how long the steps may take, in place of their number (see `training.fit`).
        schedule: how the learning rate falls, a name in `training.FALLS`; "cosine" if not given.
        smoothing: changes to the preset's `Smoothing`, for smoothers.

    Returns the part's report (see `training.fit`), for the tokenizer with its PSNR, rFID and
    codebook use.

    Raises:
        CheckpointError: an earlier part is missing (the sentence names the command to run), the
            folder belongs to another data set or preset, the part was trained in another way, or
            the weights to begin with do not fit.
        InputError: another process trains this part, or an option has no effect on it.
    """
    check_choice("part", part, TRAINABLE)
    seed = check_count("seed", seed, least=0)
    if steps is not None and minutes is not None:
        raise InputError("give a number of steps or of minutes, not both.")
    if minutes is not None and schedule is not None:
        raise InputError("training by the clock has a schedule of its own: leave that option out.")
    folder, device, dataset = Path(folder), device or default_device(), canonical(dataset)
    place = folder / (name or part)
    if place.parent != folder or place.name == "..":
        raise InputError(f"{name!r} is no plain folder name.")
    if not (done := (place / "training.json").is_file()):
        check_writable(place / "training.json")
    card = read_card(folder) if (folder / "pipeline.json").is_file() else None
    size = presets.get(dataset, preset, 2).images
    if card and (card.dataset, card.preset) != (dataset, preset):
        made = f"models of {card.dataset}, preset {card.preset}"
        add = f"--dataset {card.dataset} --preset {card.preset}"
        raise CheckpointError(f"{folder} holds {made}: add {add}, or choose another --out.")
    meet(device)
    data = load_data(dataset, count=size if dataset == "sprites" else None)
    data = data.subset(min(len(data), size or len(data)))
    if card and card.classes != list(data.classes):
        made, found = (listed(classes) for classes in (card.classes, data.classes))
        why = f"{folder} was made for the classes {made}, and {dataset} has {found}"
        raise CheckpointError(f"{why}: choose another --out.")
    if part in ("classifier", "second") and len(data.classes) == 1:
        why = f"{dataset} has one class only, so a {part} has nothing to learn"
        instead = "train the other parts; scores use the classifier that ships for cifar10"
        raise InputError(f"{why}: {instead}.")
    if mirror is None:
        trained = sorted(folder.glob("*/training.json"))
        mirror = read_report(trained[0].parent).get("mirror") if trained else data.flip
    data = replace(data, flip=bool(mirror))
    plan = presets.get(dataset, preset, len(data.classes))
    config: TrainingConfig = getattr(plan, f"{part.split('-')[0]}_training")
    config = config.lasting(steps, schedule or "cosine")
    begin = earlier_round(Path(start)) if start is not None else None
    metadata: dict[str, Any] = {"dataset": dataset, "preset": preset, "start": begin}
    metadata["mirror"] = data.flip
    if part == "tokenizer":
        metadata["feature_weight"] = plan.feature_weight
    if dataset.startswith("folder:"):  # whose pictures may change
        metadata["data"] = data.fingerprint()
    options: Smoothing | None = None
    if part.startswith("smoother"):
        kind = part.partition("-")[2]
        options = plan.smoothing.updated(**({"kind": kind} if kind else {})).updated(**smoothing)
        if (unused := UNUSED.get(options.kind)) in smoothing:
            raise InputError(f"a {options.kind} smoother has no {unused}: leave that option out.")
        metadata["smoothing"] = asdict(options)
    for earlier in RESTS_ON.get(part.split("-")[0], ()):
        if (folder / earlier / "model.safetensors").is_file():
            metadata[earlier] = hub.weights_digest(folder / earlier / "model.safetensors")[:8]
    if done:
        return _done(place, config, {"seed": seed} | metadata, minutes)
    sealed = hub.read_manifest(folder) if hub.is_packed(folder) else ()
    if any(file.startswith(place.name + "/") for file in sealed):
        raise CheckpointError(f"{folder} is sealed with its {place.name}: choose another --out.")
    with sole_writer(place) if rank_and_size()[0] == 0 else nullcontext():
        torch.manual_seed(seed)  # the first weights
        card = card or Card(dataset, preset, list(data.classes), plan.sampling)
        task, evaluate = _task(part, plan, data, folder, card, device, options)
        if start is not None:
            hub.load_weights(task.model, Path(start) / "model.safetensors")
            if isinstance(task, TokenizerTask):
                task.keep_codes = True
        if not (folder / "pipeline.json").is_file():
            write_card(folder, card)
        return fit(task, config, place, seed, device, metadata, evaluate, minutes)


def _task(part: str, plan: Preset, data: ImageSet, folder: Path, card: Card, device, options):
    """What is trained, and how it is evaluated: (a task, a function of its model or None)."""
    if part in ("classifier", "second", "tokenizer"):
        test = load_data(data.name, "test")  # what is wrong with it is known before the training
        if len(test) < 2:
            raise DataError(f"{data.name} has {len(test)} test image, and scores need 2 or more.")
    if part in ("classifier", "second"):
        second = part == "second"
        network = SecondExtractor(plan.second) if second else Classifier(plan.classifier)
        task: Task = ClassifierTask(network, data)
        return task, lambda model: {"test_accuracy": accuracy(model, test)}
    if part == "tokenizer":
        classifier = find_classifier(data.name, folder)
        task = TokenizerTask(VQTokenizer(plan.tokenizer), data, classifier, plan.feature_weight)
        return task, lambda model: evaluate_tokenizer(model, classifier, test)
    place = check_part(folder, "tokenizer", card)
    tokenizer = VQTokenizer.from_pretrained(place).to(device)
    codebook = tokenizer.quantize.embedding.weight.detach().cpu()
    if part.startswith("smoother"):
        model = MaskedTransformer.from_pretrained(check_part(folder, "transformer", card))
        tokens = cached_tokens(tokenizer, data, folder)
        smoother = SMOOTHERS[options.kind].fresh(model, options)
        choice = (options.rate, options.wrong, options.loss_on)
        return SmootherTask(smoother, model, tokens, data.labels, codebook, *choice), None
    model = MaskedTransformer(plan.weak if part == "weak" else plan.transformer)
    model.init_from_codebook(codebook)
    return TransformerTask(model, cached_tokens(tokenizer, data, folder), data.labels), None


def _done(place: Path, config: TrainingConfig, metadata: dict, minutes: float | None) -> dict:
    """The report of a part that is trained; CheckpointError if it was trained in another way."""
    report = read_report(place)
    if minutes is not None:
        metadata["minutes"] = minutes
        if report.get("minutes") == minutes:
            config = config.lasting(report["training"]["steps"], "wsd")
    identity = plain({"training": asdict(config)} | metadata)
    if "smoothing" not in (report.get("start") or ()):  # once it was not kept of earlier rounds
        (identity["start"] or {}).pop("smoothing", None)
    unsaid = set(CORE_PARTS) - report.keys()  # the first models do not say what they rest on
    other = [k for k in identity if k not in unsaid and report.get(k) != identity[k]]
    if other:
        instead = "choose another --out, or delete it to train anew"
        raise CheckpointError(f"{place} was trained with another {listed(other)}; {instead}.")
    return report


def default_folder(dataset: str, preset: str) -> Path:
    """Where a data set's models of a preset are kept unless another place is asked for."""
    return Path("runs") / f"{Path(canonical(dataset).removeprefix('folder:')).name}-{preset}"


def earlier_round(folder: Path) -> dict:
    """What the report of a part's next round keeps of this one, and a digest of its weights."""
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(f"{folder} holds no trained weights to begin with.")
    report = read_report(folder)
    kept = {key: report[key] for key in EARLIER if key in report}
    return kept | {"weights": hub.digest(folder / "model.safetensors")[:8]}


def cached_tokens(tokenizer: VQTokenizer, data: ImageSet, folder: Path) -> Tensor:
    """An image set as tokens (see `tokenize`), kept in the folder for the parts trained later."""
    path = folder / "tokens.safetensors"
    made_by = f"{hub.digest(folder / 'tokenizer' / 'model.safetensors')} {data.fingerprint()}"
    made_by += "" if data.flip else " plain"
    try:
        kept, notes = hub.read_tensors(path)
        if notes["made_by"] == made_by:
            return kept["tokens"]
    except (CheckpointError, KeyError):
        pass  # none yet, or a damaged file: they are only a minute's work
    tokens = tokenize(tokenizer, data)
    hub.save_tensors(path, {"tokens": tokens}, {"made_by": made_by})
    return tokens


def pack(folder: str | Path, out: str | Path, device: str | None = None) -> None:
    """Make a pipeline folder small enough to ship.

    Weights become float16 (the networks compute in float32 as before), LoRA adapters are copied,
    reference statistics are computed with the packed classifier, and a manifest notes the
    SHA-256 of every file. CheckpointError if `folder` is no pipeline, or `out` exists already.
    """
    folder, out = find_pipeline(folder), Path(out)
    if out.exists():
        raise CheckpointError(f"{out} exists: delete it or choose another place.")
    check_writable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # a folder without its manifest would pass for a whole one
    beside = tempfile.TemporaryDirectory(prefix=".pack-", dir=out.parent)
    with sole_writer(out), beside as unfinished:
        whole = Path(unfinished) / out.name
        _pack(folder, whole, device)
        whole.rename(out)


def _pack(folder: Path, out: Path, device: str | None) -> None:
    card = read_card(folder)
    kinds: dict[str, Any] = {"classifier": Classifier, "tokenizer": VQTokenizer}
    kinds |= dict.fromkeys(("transformer", "weak"), MaskedTransformer)
    kinds["second"] = SecondExtractor
    for place in sorted(p for p in folder.iterdir() if (p / "training.json").is_file()):
        report = read_report(place)
        if place.name not in TRAINABLE and "smoothing" not in report:
            continue  # an earlier round of a part
        if (place / "adapter_config.json").is_file():
            (out / place.name).mkdir(parents=True, exist_ok=True)
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copyfile(place / name, out / place.name / name)
        else:
            kind = kinds.get(place.name) or SMOOTHERS[smoother_kind(place)]
            kind.from_pretrained(place).save_pretrained(out / place.name, torch.float16)
        write_json(out / place.name / "training.json", report)
    write_card(out, card)
    classifier = find_classifier(card.dataset, out).to(device or default_device())
    reference_for(card.dataset, classifier, out).save(out / "reference.safetensors")
    hub.write_manifest(out)
