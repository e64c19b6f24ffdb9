"""Keeping and finding models: a folder with `config.json` and `model.safetensors`."""

import hashlib
import json
import re
import warnings
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from .errors import CheckpointError, InputError, is_finite, listed, reason
from .files import read_json, write_bytes, write_json

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name
MAX_HEADER = 2**20  # bytes of names and notes; the largest model here needs a tenth


class Pretrained(nn.Module, PyTorchModelHubMixin):
    """A model that is built from one dataclass, `config_class`, and kept as plain data."""

    config_class: type
    config: Any

    def save_pretrained(self, folder, dtype=None, **_) -> None:  # type: ignore[override]
        """Write `config.json` and `model.safetensors`; `dtype` narrows the floating weights."""
        weights = {}
        for name, value in self.state_dict().items():
            narrow = dtype if value.is_floating_point() else None
            weights[name] = value.detach().to("cpu", narrow, copy=True).contiguous()
        save_tensors(Path(folder) / "model.safetensors", weights)
        write_json(Path(folder) / "config.json", asdict(self.config))

    @classmethod
    def from_pretrained(cls, source: str | Path, **hub):  # type: ignore[override]
        """The model kept in a folder or in the hub's repository "owner/name"; CheckpointError if a
        file is absent or damaged, or the weights do not fit the sizes."""
        folder = Path(source)
        if not folder.is_dir():
            owner = folder.parent  # that is here: a mistyped folder, no one's repository
            if isinstance(source, Path) or owner.is_dir() or not REPOSITORY.fullmatch(source):
                raise CheckpointError(f"there is no folder {source}: train its model first.")
            wanted = ["*.json", "*.safetensors"]
            try:
                folder = Path(snapshot_download(source, allow_patterns=wanted, **hub))
            except Exception as error:  # network, name and cache errors of many kinds
                what = f"neither a folder here nor a hub repository within reach ({reason(error)})"
                raise CheckpointError(f"{source} is {what}.") from None
        return load_weights(cls(cls.read_config(folder)), folder / "model.safetensors")

    @classmethod
    def read_config(cls, folder: str | Path):
        """The sizes in a folder's `config.json`, as `config_class`."""
        path, weights = Path(folder) / "config.json", Path(folder) / "model.safetensors"
        data = read_json(path)
        with sound(weights), safe_open(weights, "pt") as file:
            stored = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
        try:
            config = from_fields(cls.config_class, data, path)
            wanted = without_memory(cls, config, len(stored)).state_dict()
        except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} holds impossible sizes: {reason(error)}.") from None
        declared = {k: tuple(v.shape) for k, v in wanted.items()}
        unfit = sorted(k for k in declared | stored if declared.get(k) != stored.get(k))
        if unfit:
            what = f"model.safetensors in {folder} does not fit its config.json"
            raise CheckpointError(f"{what}: {listed(unfit)}.")
        return config


def from_fields(kind: type, data, path: Path) -> Any:
    """A dataclass from what a file says: the one reader of configurations.

    A missing field takes its default, an unknown one is left out with a warning. ValueError if
    nothing fits.
    """
    names = {field.name for field in fields(kind)}
    if not isinstance(data, dict) or (data and not names & data.keys()):
        raise ValueError(f"it names no field of a {kind.__name__}")
    if unknown := sorted(data.keys() - names):
        warnings.warn(f"{path}: {listed(unknown)} is unknown here and left out.", stacklevel=2)
    return kind(**{name: data[name] for name in names & data.keys()})


def check_sizes(config) -> None:
    """InputError unless every field of a configuration has its type, and every size is >= 1."""
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is float:
            good = type(value) is not bool and is_finite(value)
        elif field.type in (bool, str):
            good = isinstance(value, field.type)
        else:  # int or tuple[int, ...]
            many = isinstance(value, tuple) and field.type is not int
            whole = value if many else [value] * (field.type is int)
            good = bool(whole) and all(type(v) is int and v >= 1 for v in whole)
        if not good:
            raise InputError(f"{field.name} cannot be {value!r}.")


def without_memory(kind: type, config, tensors: int) -> Any:
    """A model that has no memory yet, for a file of so many tensors.

    ValueError if its sizes cannot be, or as soon as it makes far more parameters than these.
    """
    check_sizes(config)
    made = iter(range(2 * tensors + 1000))

    def tick(module, name, parameter):
        if next(made, None) is None:
            raise ValueError("they ask for far more weights than model.safetensors holds")

    hook = register_module_parameter_registration_hook(tick)
    try:
        with torch.device("meta"):
            return kind(config)
    finally:
        hook.remove()


@contextmanager
def sound(path: Path):
    """CheckpointError if the file is missing, or turns out to be damaged inside."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > MAX_HEADER:  # a small file can name a million empty tensors
            raise SafetensorError(f"its header of {header:,} bytes is no model's")
        yield
    except (OSError, SafetensorError) as error:
        why = reason(error)
        raise CheckpointError(f"{path} is damaged: {why}; get or train it again.") from None


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Fill `model` from a safetensors file (in the model's own precision); in eval mode."""
    try:
        model.load_state_dict(read_tensors(path)[0])
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit: {reason(error)}.") from None
    return model.eval()


def save_tensors(path: Path, tensors: dict, notes: dict[str, str] | None = None) -> None:
    """Write a safetensors file, atomically; its header holds the notes and a SHA-256 of it all."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    notes = dict(notes or {})
    # not `save_file`, which writes to a temporary file of its own
    write_bytes(path, save(tensors, notes | {"sha256": checksum(tensors, notes)}))


def read_tensors(path: Path) -> tuple[dict, dict[str, str]]:
    """Tensors and notes of a safetensors file; CheckpointError if a single bit has changed.

    Files that others wrote have no checksum: those are taken as they are.
    """
    with sound(path):
        # at once: `safe_open` opens a file twice, and a writer may replace it in between
        whole = path.read_bytes()
        tensors = load(whole)
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    notes = header.get("__metadata__", {})
    expected = notes.pop("sha256", None)
    # a flipped bit may also have hit the checksum's name; others' notes may hold digests, too
    renamed = any(_one_bit_off(name, "sha256") for name in notes)
    if renamed or expected not in (None, checksum(tensors, notes)):
        raise CheckpointError(f"{path} is damaged: its checksum differs; get or train it again.")
    return tensors, notes


def _one_bit_off(name: str, other: str) -> bool:
    bits = int.from_bytes(name.encode()) ^ int.from_bytes(other.encode())
    return len(name) == len(other) and bits.bit_count() == 1


def fingerprint(*things) -> str:
    """A digest, 16 hexadecimal digits, of tensors, bytes and plain data: for new comparisons."""
    sha = hashlib.sha256()
    for thing in things:
        if isinstance(thing, torch.Tensor):
            sha.update(repr((thing.dtype, tuple(thing.shape))).encode())
            thing = thing.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        raw: Any = thing if isinstance(thing, bytes | np.ndarray) else repr(thing).encode()
        sha.update(raw)
    return sha.hexdigest()[:16]


def checksum(tensors: dict, notes: dict[str, str]) -> str:
    """SHA-256 of names, types, shapes, values and notes, hexadecimal."""
    sha = hashlib.sha256(repr(sorted(notes.items())).encode())
    for name, value in sorted(tensors.items()):
        sha.update(repr((name, value.dtype, tuple(value.shape))).encode())
        sha.update(value.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(path: Path) -> str:
    """SHA-256 of a safetensors file's weights in float16: `pack` leaves it as it is."""
    return checksum({name: value.half() for name, value in read_tensors(path)[0].items()}, {})


def write_manifest(folder: Path) -> None:
    """Note the SHA-256 of every file of weights and settings below `folder` in `manifest.json`."""
    files = [f for f in folder.rglob("*") if f.suffix in (".safetensors", ".json")]
    files = sorted(f for f in files if f.name != "manifest.json")
    hashes = {file.relative_to(folder).as_posix(): digest(file) for file in files}
    write_json(folder / "manifest.json", hashes)


def is_packed(folder: Path) -> bool:
    """Whether a manifest seals the folder; one in the making has none."""
    return (folder / "manifest.json").is_file()


def read_manifest(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file that the folder's manifest names."""
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{folder / 'manifest.json'} is damaged: get the folder again.")
    return manifest


def check_manifest(folder: Path) -> None:
    """CheckpointError if a file that the folder's manifest names is missing or was changed."""
    for name, expected in read_manifest(folder).items() if is_packed(folder) else ():
        if not (folder / name).is_file() or digest(folder / name) != expected:
            what = "is missing or was changed (SHA-256 differs from manifest.json)"
            raise CheckpointError(f"{folder / name} {what}: get it again.")
