"""Pipeline: the trained parts of one system, found together and used together.

A pipeline is a folder: `pipeline.json`, and one folder each for classifier, tokenizer,
transformer and smoothers. `Pipeline.from_pretrained("sprites")` finds the shipped ones.

`Pipeline.__call__` is the way to an image: labels and a blank canvas -> guided predictions
(`transformer`, `smoothing`, `guidance`) -> tokens, step by step (`sampling.decode`) -> images
(`VQTokenizer.decode`). `scoring` compares them with real images. The other direction, images ->
tokens (`VQTokenizer.encode`), is for training (`tasks`) and for editing an image.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import fast
from .datasets import whole_set
from .guidance import GUIDANCES, Guidance, make_guidance
from .sampling import Trajectory, decode, generators_for
from .settings import PARTS, Sampling
from .smoothing import load_smoother
from .tokenizer import VQTokenizer
from .transformer import MaskedTransformer
from .utils.devices import check_device, default_device, has_bf16
from .utils.errors import CheckpointError, InputError, check_count, listed, reason
from .utils.files import ROOT, canonical, read_json, write_json
from .utils.hub import check_manifest, from_fields

SHIPPED = ROOT / "data" / "checkpoints"
NUMBER = re.compile("-?[0-9]{1,9}")


class Samples(NamedTuple):
    """What a pipeline generates."""

    images: Tensor  # (B, 3, H, W) float32 in [0, 1]
    labels: Tensor  # (B,) int64 in 0..C-1, or C: no class
    trajectory: Trajectory
    nfe: int  # network passes per image


@dataclass
class Card:
    """What `pipeline.json` says."""

    dataset: str
    preset: str
    classes: list[str]
    sampling: Sampling = field(default_factory=Sampling)


def as_list(labels) -> list:
    """Labels of any kind as a list; one alone is a list of one."""
    values = labels.tolist() if hasattr(labels, "tolist") else labels  # tensors and arrays
    try:
        return [values] if isinstance(values, str | int | float) else list(values)
    except TypeError:
        raise InputError(f"labels must be class numbers or names, not {labels!r}.") from None


def find_pipeline(name: str | Path) -> Path:
    """The folder of a shipped name ("sprites") or of a path; a sample has its whole set's."""
    for folder in (Path(name), SHIPPED / whole_set(str(name))):
        with suppress(OSError):  # a name that is too long is none either
            if (folder / "pipeline.json").is_file():
                return folder
    shipped = sorted(f.parent.name for f in SHIPPED.glob("*/pipeline.json"))
    none = "; none came with this installation: they are in data/checkpoints of its repository"
    others = f" or one of {listed(shipped)}" if shipped else none
    wrote = f"that `sgmgm train` wrote{others}"
    raise CheckpointError(f"no model {str(name)!r}: give a folder {wrote}.")


def check_part(folder: Path, name: str, card: Card) -> Path:
    """The folder of a part; a CheckpointError with the command that trains it if it is missing."""
    if not (folder / name).is_dir():
        part = name if name in PARTS else f"smoother --name {name}"
        train = f"train {part} --dataset {card.dataset} --preset {card.preset} --out {folder}"
        raise CheckpointError(f"{folder} has no {name}: first run `sgmgm {train}`.")
    return folder / name


def read_card(folder: Path) -> Card:
    """A folder's `pipeline.json`."""
    path = folder / "pipeline.json"
    data = read_json(path)
    try:
        card = from_fields(Card, data, path)
        card.dataset = canonical(card.dataset)  # earlier versions kept a folder's relative path
        card.sampling = from_fields(Sampling, data.get("sampling", {}), path)
        named = isinstance(card.classes, list) and card.classes
        if not named or not all(isinstance(name, str) for name in card.classes):
            raise ValueError("classes must be a list of names")
        return card
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a pipeline's: {reason(error)}.") from None


def write_card(folder: Path, card: Card) -> None:
    """Write a folder's `pipeline.json`."""
    write_json(folder / "pipeline.json", asdict(card))


class Pipeline:
    """Labels in, images out."""

    def __init__(
        self, card: Card, tokenizer: VQTokenizer, transformer: MaskedTransformer,
        folder: Path | None = None, device: str | torch.device = "cpu", bf16: bool = False,
    ):  # fmt: skip
        self.card, self.device = card, check_device(device)
        self.folder: Any = folder  # None if the parts come from elsewhere
        self.fast = bf16  # decode by `fast.decode`, in bfloat16 where the device has it
        self.tokenizer = tokenizer.eval().to(self.device)
        self.transformer = transformer.eval().to(self.device)
        c, sizes = transformer.config, "{} tokens, {} codes and {} classes".format
        made_for = sizes(c.num_vq_tokens, c.codebook_size, c.num_classes)
        found = sizes(tokenizer.config.num_tokens, tokenizer.num_codes, len(card.classes))
        if found != made_for:
            made_for = f"the transformer was made for {made_for}"
            raise CheckpointError(f"{made_for}, not {found}: the parts do not belong together.")
        if bf16 and self.device.type == "cuda":
            fast.prepare_decoder(self.tokenizer.decoder)
        self.guidance_parts: dict = {}  # smoothers and weaker models, loaded when first asked for
        self.fast_guidances: dict = {}  # the fast forms of guidances, made when first asked for

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str | None = None, bf16=False) -> "Pipeline":
        """Load a shipped pipeline by name, or one of your own by its folder.

        bf16 decodes by `fast.decode`, with networks in bfloat16 where the device has it: two to
        three times as fast for several images at once, but then an image may depend slightly on
        the batch it is sampled in. Elsewhere it is 1.2 to 1.7 times as fast, in float32 and with
        the same images. CheckpointError if a part of the pipeline is missing or damaged.
        """
        folder = find_pipeline(name)
        check_manifest(folder)
        card = read_card(folder)
        tokenizer = VQTokenizer.from_pretrained(check_part(folder, "tokenizer", card))
        transformer = MaskedTransformer.from_pretrained(check_part(folder, "transformer", card))
        return cls(card, tokenizer, transformer, folder, device or default_device(), bf16)

    def guidance_part(self, name: str):
        """A trained part that only guidance needs: a smoother, or the "weak" transformer."""
        if name not in self.guidance_parts:
            if self.folder is None:
                raise CheckpointError(f"this pipeline was not loaded from a folder with a {name}.")
            place = check_part(self.folder, name, self.card)
            if name == "weak":
                part = MaskedTransformer.from_pretrained(place)
            else:
                part = load_smoother(place, self.transformer)
            self.guidance_parts[name] = part.eval().to(self.device)
        return self.guidance_parts[name]

    def guidance(self, settings: Sampling) -> Guidance:
        """The guided-logits callable of these settings."""
        needs, name = GUIDANCES[settings.guidance][1], settings.guidance_part
        others = {needs: self.guidance_part(name)} if needs and name else {}
        how = settings.scale, settings.scale_schedule
        return make_guidance(settings.guidance, self.transformer, *how, **others)

    def passes(self, **settings) -> int:
        """Network passes per image with these changes to the pipeline's `Sampling`."""
        chosen = self.card.sampling.updated(**settings)
        return chosen.steps * GUIDANCES[chosen.guidance][0].passes

    def labels(self, labels) -> Tensor:
        """Class names or numbers as checked labels, int64 (B,); None or "none" is no class, C.

        A text is a name before it is a number. Where a class name is a number ("3"), texts are
        names only.
        """
        names = {name: i for i, name in enumerate(self.card.classes)}
        numeric = any(NUMBER.fullmatch(name) for name in names)
        numbers = []
        for value in as_list(labels):
            number = value.tolist() if hasattr(value, "tolist") else value  # of numpy and torch
            if isinstance(number, str):
                is_number = NUMBER.fullmatch(number) and not numeric
                number = names.get(number, int(number) if is_number else number)
            if number is None or number == "none":
                number = len(names)
            elif isinstance(number, bool) or not isinstance(number, int):
                known = f"0..{len(names) - 1} or one of {listed(names)}"
                raise InputError(f"unknown class {number!r}: give {known}.")
            elif not 0 <= number < len(names):
                raise InputError(f"class {number} is out of range: give 0..{len(names) - 1}.")
            numbers.append(number)
        if not numbers:
            raise InputError("give at least one label.")
        return torch.tensor(numbers)

    def first_canvas(self, canvas: Tensor | None, count: int) -> Tensor:
        """A checked first canvas (count, N); blank if none is given."""
        config = self.transformer.config
        if canvas is None:
            return self.transformer.blank.expand(count, -1)
        shapes = ((1, config.num_vq_tokens), (count, config.num_vq_tokens))
        if not isinstance(canvas, Tensor) or tuple(canvas.shape) not in shapes:
            shape = tuple(canvas.shape) if isinstance(canvas, Tensor) else type(canvas).__name__
            raise InputError(f"the canvas must have the shape {shapes[1]}, not {shape}.")
        codes = (canvas >= 0) & (canvas < config.codebook_size)
        if canvas.dtype != torch.int64 or not (codes | (canvas == config.mask_id)).all():
            known = f"0..{config.codebook_size - 1} or {config.mask_id} ([MASK])"
            raise InputError(f"the canvas must hold int64 tokens {known}.")
        return canvas.to(self.device).expand(count, -1)

    @torch.no_grad()
    def __call__(
        self, labels, *, seeds: Sequence[int] | None = None, canvas: Tensor | None = None,
        **settings,
    ) -> Samples:  # fmt: skip
        """Generate one image per label, all in one batch.

        Args:
            labels: class numbers or names, (B,).
            seeds: one whole number per image, default 0, 1, 2, ...; an image depends on its own
                seed and label only.
            canvas: int64 (B, N) or (1, N), a first canvas with [MASK] where to paint.
            settings: changes to the pipeline's `Sampling`, e.g. steps=8, guidance="cfg".

        Raises:
            InputError: labels out of range, unknown settings or names, wrong counts.
        """
        labels = self.labels(labels).to(self.device)
        chosen = self.card.sampling.updated(**settings)
        generators = generators_for(range(len(labels)) if seeds is None else seeds)
        if len(generators) != len(labels):
            raise InputError(f"give one seed for each label: {len(labels)}, not {len(generators)}.")
        canvas = self.first_canvas(canvas, len(labels))
        guidance, c = self.guidance(chosen), chosen
        how = c.steps, c.schedule, c.temperature, c.anneal, c.order, generators, c.remask_known
        if self.fast:
            trajectory = fast.decode(self.fast_guidance(chosen, guidance), labels, canvas, *how)
        else:
            trajectory = decode(guidance, labels, canvas, *how)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            images = self.tokenizer.decode(trajectory.tokens)
        return Samples(images, labels, trajectory, self.passes(**settings))

    @property
    def bf16(self) -> bool:
        """Whether matrix products are really computed in bfloat16: asked for, and possible here."""
        return self.fast and has_bf16(self.device.type)

    def fast_guidance(self, settings: Sampling, guidance: Guidance) -> fast.FastGuidance:
        """The fast form of a guidance; its weights are made once for all scales."""
        key = settings.guidance, settings.smoother
        others = [self.guidance_part(settings.guidance_part)] if settings.guidance_part else []
        weights = [p for model in (self.transformer, *others) for p in model.parameters()]
        versions = [(p.data_ptr(), p._version) for p in weights]  # they may have been trained on
        if self.fast_guidances.get(key, (None,))[0] != versions:
            # held, so that no other weights come to stand at their addresses
            self.fast_guidances[key] = versions, fast.FastGuidance(guidance), weights
        return self.fast_guidances[key][1].adopt(guidance)

    def stream(
        self, labels, *, first_seed: int = 0, batch_size: int = 64, **settings
    ) -> Iterator[Samples]:
        """Generate many images batch by batch; image i has seed `first_seed` + i."""
        batch_size = check_count("batch size", batch_size)
        first_seed = check_count("first seed", first_seed, least=0)
        values = as_list(labels)
        self.labels(values)  # all of them are checked before the first is used
        for start in range(0, len(values), batch_size):
            part = values[start : start + batch_size]
            seeds = range(first_seed + start, first_seed + start + len(part))
            yield self(part, seeds=seeds, **settings)
