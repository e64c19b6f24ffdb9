"""Weights that others published, in this package's classes, with every name accounted for.

The paper's checkpoints (JiwanHur/UnlockMGM on GitHub) are a folder or zip with `config.json` and
one state dict of generator and smoother; MaskGIT's (google-research/maskgit) are flax msgpack
files, read here without JAX. Nothing here runs code from a file, and what does not fit exactly is
a CheckpointError that names it.
"""

import math
import pickle
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

import msgpack
import torch
from safetensors.torch import load_file
from torch import Tensor

from .pipeline import Card, Pipeline
from .settings import Sampling
from .smoothing import ToastSmoother
from .tokenizer import VQTokenizer
from .transformer import MaskedTransformer
from .utils.devices import default_device
from .utils.errors import CheckpointError, InputError, check_choice, listed, reason
from .utils.files import read_json
from .utils.hub import Pretrained, without_memory

MAX_BYTES = 8 * 2**30  # of an unpacked checkpoint; the largest published one has about 1 GB
WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
SMOOTHER = ("cls_anchor_gen.", "decoders.", "top_down_transform")
# their defaults are right
OPTIONAL = {"dropout", "keep_class", "commitment_cost", "norm_groups"}
OPTIONAL |= {"encoder", "decoder", "window", "codebook_decay"}


def load_released(path: str | Path) -> tuple[MaskedTransformer, ToastSmoother | None]:
    """Generator and smoother (None if the file has none) of the authors' checkpoint folder or zip.

    `config.json` may lack what the tensors' shapes give; keys that are not sizes of ours are
    ignored. CheckpointError at missing, damaged or hostile files and at what does not fit.
    """
    with _read(path) as (config, tensors):
        sizes = _transformer_sizes(tensors, config)
        has_smoother = any(name.startswith(SMOOTHER) for name in tensors)
        kinds = (MaskedTransformer, ToastSmoother) if has_smoother else (MaskedTransformer,)
        models = _build(kinds, sizes, tensors, path)
    return models[0], models[1] if has_smoother else None


def load_released_tokenizer(path: str | Path) -> VQTokenizer:
    """The VQGAN tokenizer from a folder or zip in the authors' layout; see `load_released`."""
    with _read(path) as (config, tensors):
        return _build((VQTokenizer,), _tokenizer_sizes(tensors, config), tensors, path)[0]


@contextmanager
def _read(path: str | Path) -> Iterator[tuple[dict, dict[str, Tensor]]]:
    """What `config.json` says and the named tensors; these may live in files that vanish."""
    with _unpacked(Path(path)) as (config_file, weights_file):
        config = read_json(config_file)
        if not isinstance(config, dict):
            raise CheckpointError(f"{path}: config.json holds no settings.")
        try:
            if weights_file.suffix == ".safetensors":
                tensors = load_file(weights_file)
            else:
                tensors = torch.load(weights_file, "cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            found = f"{weights_file.name} is damaged or holds more than plain tensors"
            raise CheckpointError(f"{path}: {found}; nothing in it was executed.") from None
        except Exception as error:  # a damaged file can fail anywhere in torch's reader
            why = reason(error)
            raise CheckpointError(f"{path}: {weights_file.name} is damaged: {why}.") from None
        if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
            raise CheckpointError(f"{path}: {weights_file.name} is no dict of named tensors.")
        yield config, tensors


@contextmanager
def _unpacked(path: Path) -> Iterator[tuple[Path, Path]]:
    """`config.json` and the weights file on disk; a zip's are there only inside the block."""
    if path.is_dir():
        files = [f for name in ("config.json", *WEIGHTS) for f in path.rglob(name)]
        config, weights = _choose([f.relative_to(path).as_posix() for f in files], path)
        yield path / config, path / weights
        return
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is neither a folder nor a whole zip file.")
    with tempfile.TemporaryDirectory(prefix="sgmgm-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                _check_archive(archive, path)
                chosen = _choose(archive.namelist(), path)
                files = [Path(archive.extract(name, folder)) for name in chosen]
        except CheckpointError:
            raise
        except Exception as error:  # a damaged archive can fail anywhere in zipfile
            raise CheckpointError(f"{path} cannot be unpacked: {reason(error)}.") from None
        yield files[0], files[1]


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    for name in archive.namelist():
        if ".." in re.split(r"[/\\]", name) or re.match(r"[/\\]|[A-Za-z]:", name):
            raise CheckpointError(f"{path} is refused: {name!r} points outside its own folder.")
    total = sum(entry.file_size for entry in archive.infolist())
    # Weights hardly compress: a hundredfold is a zip bomb.
    if total > min(MAX_BYTES, 2**20 + 100 * path.stat().st_size):
        raise CheckpointError(f"{path} is refused: it would unpack to {total / 2**20:.0f} MB.")


def _choose(names: list[str], path: Path) -> tuple[str, str]:
    """The one folder among these files that holds `config.json` and weights."""
    pairs = []
    for config in sorted(name for name in names if PurePosixPath(name).name == "config.json"):
        beside = [str(PurePosixPath(config).with_name(weights)) for weights in WEIGHTS]
        pairs += [(config, weights) for weights in beside if weights in names][:1]
    # A whole training folder has more models than one; the authors sample from `ema_model`.
    averaged = [pair for pair in pairs if PurePosixPath(pair[0]).parent.name == "ema_model"]
    pairs = averaged or pairs
    if not pairs:
        raise CheckpointError(f"{path} holds no config.json with one of {listed(WEIGHTS)} beside.")
    if len(pairs) > 1:
        several = listed(config for config, _ in pairs)
        raise CheckpointError(f"{path} holds several models ({several}): name one of them.")
    return pairs[0]


def _axis(tensors: dict, name: str, axis: int) -> int | None:
    shape = getattr(tensors.get(name), "shape", ())
    return shape[axis] if axis < len(shape) else None


def _count(tensors: dict, prefix: str) -> int | None:
    numbers = {n[len(prefix) :].split(".")[0] for n in tensors if n.startswith(prefix)}
    return len(numbers) or None


def _transformer_sizes(tensors: dict, config: dict) -> dict:
    """Sizes of generator and smoother: from the shapes, unless the configuration says them."""
    table, positions = "embed.word_embeddings.weight", "embed.position_embeddings.weight"
    first = "transformer_layers.0.ffn.intermediate_output.weight"
    sizes: dict[str, Any] = {
        "num_vq_tokens": (_axis(tensors, positions, 0) or 1) - 1 or None,
        "hidden_size": _axis(tensors, table, 1),
        "num_hidden_layers": _count(tensors, "transformer_layers."),
        "intermediate_size": _axis(tensors, first, 0),
        "num_classes": _axis(tensors, "cls_anchor_gen.mlp_c.weight", 0),
        "tg_factor": _axis(tensors, "cls_anchor_gen.mlp_f.weight", 1),
    }
    sizes |= {name: value for name, value in config.items() if value is not None}
    names, vocabulary = ("codebook_size", "num_classes"), _axis(tensors, table, 0)
    for name, other in (names, names[::-1]):  # the vocabulary is codes, classes and [MASK]
        if vocabulary and sizes.get(name) is None and isinstance(sizes.get(other), int):
            sizes[name] = vocabulary - 1 - sizes[other]
    return sizes


def _tokenizer_sizes(tensors: dict, config: dict) -> dict:
    """Sizes of the tokenizer; its resolution is nowhere in the shapes."""
    width = _axis(tensors, "encoder.conv_in.weight", 0)
    levels = range(_count(tensors, "encoder.down.") or 0)
    tops: list[Any] = [_axis(tensors, f"encoder.down.{i}.block.0.conv1.weight", 0) for i in levels]
    sizes: dict[str, Any] = {
        "num_channels": _axis(tensors, "encoder.conv_in.weight", 1),
        "hidden_channels": width,
        "channel_mult": [top // width for top in tops] if width and all(tops) else None,
        "num_res_blocks": _count(tensors, "encoder.mid."),
        "z_channels": _axis(tensors, "encoder.conv_out.weight", 0),
        "num_embeddings": _axis(tensors, "quantize.embedding.weight", 0),
        "quantized_embed_dim": _axis(tensors, "quantize.embedding.weight", 1),
    }
    return sizes | {name: value for name, value in config.items() if value is not None}


def _make(kind: type[Pretrained], sizes: dict, tensors: dict, path: str | Path) -> Any:
    """A model of these sizes that has no memory yet."""
    names = [f.name for f in fields(kind.config_class)]
    missing = [n for n in names if n not in OPTIONAL and sizes.get(n) is None]
    if missing:
        raise CheckpointError(f"{path}: neither config.json nor shapes give {listed(missing)}.")
    try:
        config = kind.config_class(**{n: sizes[n] for n in names if sizes.get(n) is not None})
        return without_memory(kind, config, len(tensors))
    except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} has impossible sizes: {reason(error)}.") from None


def _build(kinds: tuple, sizes: dict, tensors: dict, path: str | Path) -> list:
    """Models with these weights; every name and shape must fit, none may be left."""
    models = [_make(kind, sizes, tensors, path) for kind in kinds]
    want = {k: tuple(v.shape) for model in models for k, v in model.state_dict().items()}
    real = {k for k, v in tensors.items() if isinstance(v, Tensor) and v.is_floating_point()}
    have = {k: tuple(tensors[k].shape) if k in real else "no real numbers" for k in tensors}
    unfit = sorted(k for k in want.keys() & have.keys() if want[k] != have[k])
    problems = {
        "missing": sorted(want.keys() - have.keys()),
        "surplus": [k if k.isprintable() else ascii(k) for k in sorted(have.keys() - want.keys())],
        "wrong shape": [f"{k} ({have[k]} instead of {want[k]})" for k in unfit],
    }
    found = "; ".join(f"{what}: {listed(k)}" for what, k in problems.items() if k)
    if found:
        raise CheckpointError(f"{path} does not fit, {found}.")
    if 4 * sum(math.prod(shape) for shape in want.values()) > MAX_BYTES:
        raise CheckpointError(f"{path} is refused: it asks for more than {MAX_BYTES >> 30} GB.")
    for model in models:
        model.to_empty(device="cpu")
        try:
            model.load_state_dict({name: tensors[name] for name in model.state_dict()})
        except RuntimeError as error:  # tensors without data, and the like
            raise CheckpointError(f"{path} does not fit: {reason(error)}.") from None
        model.eval()
    return models


FLAX_LAYERS = {  # replaced in this order
    "Embed_0.": "embed.", "TransformerLayer_": "transformer_layers.",
    "Attention_0.self_attention.": "attention.",
    "Attention_0.attention_output_ln.": "attn_layer_norm.",
    "Mlp_0.layer_output_ln.": "ffn.layer_norm.", "Mlp_0.": "ffn.",
    "MlmLayer_0.mlm_bias.": "mlm_layer.to_logits.", "MlmLayer_0.": "mlm_layer.",
}  # fmt: skip
FLAX_BLOCK = {"GroupNorm_0": "norm1", "Conv_0": "conv1", "GroupNorm_1": "norm2", "Conv_1": "conv2",
              "Conv_2": "nin_shortcut"}  # fmt: skip
FLAX_DTYPES = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "uint32")


def load_maskgit_jax(
    path: str | Path, num_classes: int = 1000, resolution: int = 256
) -> MaskedTransformer | VQTokenizer:
    """MaskGIT's original transformer or tokenizer from its flax msgpack file, without JAX.

    Such a file gives all sizes but two: how the transformer's vocabulary of K codes, C classes and
    [MASK] = K + C divides (`num_classes`), and the tokenizer's `resolution`. CheckpointError if it
    is damaged or does not fit.

    Verified in public sources: names and shapes of both ImageNet-256 files (convert_*_weights.ipynb
    of hmorimitsu/maskgit-torch); layers, LayerNorm's 1e-12 and [MASK] = 2024 (google-research/
    maskgit); the output matrix is the token embeddings plus `mlm_bias` (JiwanHur/UnlockMGM). The
    512 px files are held to the same names, unverified. JAX's GELU is the tanh approximation; that
    of the paper's PyTorch model, and so of this one, is exact.
    """
    params = _read_flax(Path(path))
    is_tokenizer = "quantizer.codebook" in params
    layers = _flax_tokenizer_layers(params) if is_tokenizer else FLAX_LAYERS
    tensors = {}
    for name, value in params.items():
        ours = re.sub(r"\.(kernel|scale|embedding)$", ".weight", name)
        for flax, layer in layers.items():
            ours = ours.replace(flax, layer)
        tensors[f"{name} (twice)" if ours in tensors else ours] = _turned(name, value)
    if is_tokenizer:
        sizes = _tokenizer_sizes(tensors, {"resolution": resolution})
        return _build((VQTokenizer,), sizes, tensors, path)[0]
    table = tensors.get("embed.word_embeddings.weight")
    if table is not None:  # the output matrix is tied to it
        tensors.setdefault("mlm_layer.to_logits.weight", table)
    heads = _axis(params, "TransformerLayer_0.Attention_0.self_attention.query.kernel", 1)
    config = {"num_classes": num_classes, "num_attention_heads": heads, "layer_norm_eps": 1e-12}
    sizes = _transformer_sizes(tensors, config)
    return _build((MaskedTransformer,), sizes, tensors, path)[0]


def _turned(name: str, value: Tensor) -> Tensor:
    """A flax parameter in PyTorch's layout: outputs first, inputs last, heads merged."""
    kernel = name.endswith(".kernel")
    if ".self_attention." in name and value.ndim == (3 if kernel else 2):
        # (D, heads, d) of query, key and value; (heads, d, D) of out; (heads, d) of a bias
        value = value.flatten(0, 1) if ".out." in name else value.flatten(-2)
    if kernel and value.ndim == 4:
        return value.permute(3, 2, 0, 1)  # height, width, in, out
    return value.T if kernel and value.ndim == 2 else value


def _flax_tokenizer_layers(params: dict) -> dict[str, str]:
    """Flax's names of the VQGAN's layers, which count in order of use, and ours."""
    levels = (_count(params, "decoder.Conv_") or 1) - 1
    blocks = (_count(params, "encoder.ResBlock_") or 0) // (levels + 1)
    mid = [f"mid.{i}." for i in range(blocks)]
    level = [[f".{i}.block.{j}." for j in range(blocks)] for i in range(levels)]
    down = ["down" + block for i in level for block in i] + mid
    up = mid + ["up" + block for i in reversed(level) for block in i]
    layers = {f"encoder.ResBlock_{i}.": f"encoder.{ours}" for i, ours in enumerate(down)}
    layers |= {f"decoder.ResBlock_{i}.": f"decoder.{ours}" for i, ours in enumerate(up)}
    for i in range(1, levels):
        layers[f"decoder.Conv_{i}."] = f"decoder.up.{levels - i}.upsample_conv."
    for side, last in (("encoder", 1), ("decoder", levels)):
        layers[f"{side}.Conv_0."] = f"{side}.conv_in."
        layers[f"{side}.Conv_{last}."] = f"{side}.conv_out."
        layers[f"{side}.GroupNorm_0."] = f"{side}.norm_out."
    layers["quantizer.codebook"] = "quantize.embedding.weight"
    return layers | {f".{flax}.": f".{ours}." for flax, ours in FLAX_BLOCK.items()}


def _read_flax(path: Path) -> dict[str, Tensor]:
    """The parameters of a flax msgpack file under dotted names.

    The format (flax.serialization): a tree of maps; extension 1 is an array, a packed (shape,
    dtype name, bytes in C order), extension 3 a scalar in the same form.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 30} GB")
        limits = {"max_map_len": 100_000, "max_array_len": 100_000, "max_str_len": 1000}
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_array, strict_map_key=True, **limits)
        if not isinstance(tree, dict):
            raise ValueError("it holds no parameters")
        return dict(_leaves(tree.get("params", tree), ""))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError,
            msgpack.UnpackException) as error:  # fmt: skip
        why = reason(error)
        raise CheckpointError(f"{path} is no flax checkpoint, or damaged: {why}.") from None


def _array(code: int, data: bytes) -> Tensor:
    """One extension value; never more memory than its bytes."""
    if code not in (1, 3):
        raise ValueError(f"it holds an unknown kind of value ({code})")
    shape, dtype, buffer = msgpack.unpackb(data, raw=True, max_array_len=32)
    if dtype.decode() not in FLAX_DTYPES:
        raise ValueError(f"it holds numbers of the type {dtype.decode()!r}")
    return torch.frombuffer(bytearray(buffer), dtype=getattr(torch, dtype.decode())).reshape(shape)


def _leaves(tree: dict, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, Tensor):
            yield name, value
        else:
            raise ValueError(f"{name} is no array")


PUBLISHED = {  # the settings of the authors' sampling scripts, evaluations/sample_sg_*.py
    "imagenet256": Sampling(steps=18, temperature=25.0, anneal="compounding", guidance="self"),
    "imagenet512": Sampling(steps=18, temperature=45.0, anneal="compounding", guidance="self"),
}
LAYOUT = ("UnlockMGM_imagenet_{0}.zip (linked from https://github.com/JiwanHur/UnlockMGM) and "
          "tokenizer_imagenet{0}_checkpoint (linked from "
          "https://github.com/google-research/maskgit)")  # fmt: skip


def published_pipeline(
    model: str, weights: str | Path | None, device: str | None = None, bf16: bool = False
) -> Pipeline:
    """The paper's ImageNet system, "imagenet256" or "imagenet512", from files you downloaded.

    `weights` is a folder with two entries: one whose name has "token" or "vq" in it is the
    tokenizer, the other the transformer. Each is a folder or a .zip in the authors' layout, or
    MaskGIT's flax file (no suffix, or .msgpack). Entries named after the other resolution are
    ignored, so both systems can share a folder. Classes go by number, "0" to "999". From a
    transformer without a smoother, sampling is unguided with MaskGIT's temperature (4.5, linear).
    InputError without a folder says what to get from where; CheckpointError if a part does not fit.
    """
    check_choice("published model", model, PUBLISHED)
    layout = LAYOUT.format(model[-3:])
    if weights is None:
        raise InputError(f"{model} needs --weights DIR, a folder with {layout}.")
    if not Path(weights).is_dir():
        raise CheckpointError(f"{weights} is no folder: make it, and put there {layout}.")
    other = {"256": "512", "512": "256"}[model[-3:]]
    entries: dict[str, list[Path]] = {"tokenizer": [], "transformer": []}
    for entry in sorted(Path(weights).iterdir()):
        kept = entry.is_dir() or entry.suffix.lower() in ("", ".zip", ".msgpack")
        if kept and entry.name[0] not in "._" and other not in entry.name:
            token = re.search("token|vq", entry.name.lower())
            entries["tokenizer" if token else "transformer"].append(entry)
    for part, found in entries.items():
        if len(found) != 1:
            names = listed(entry.name for entry in found) or "none"
            what = f"must hold one {part} for {model}, not {names}"
            raise CheckpointError(f"{weights} {what}: put there {layout}.")
    transformer, smoother = _part(entries["transformer"][0], load_released, MaskedTransformer)
    tokenizer, _ = _part(entries["tokenizer"][0], load_released_tokenizer, VQTokenizer)
    # Convolutions fit every size, and the authors leave this number to be set by hand.
    side = math.isqrt(transformer.config.num_vq_tokens)
    tokenizer.config = replace(tokenizer.config, resolution=side * tokenizer.config.patch)
    sampling = PUBLISHED[model]
    if smoother is None:
        sampling = sampling.updated(guidance="none", temperature=4.5, anneal="linear")
    classes = [str(number) for number in range(transformer.config.num_classes)]
    card = Card("imagenet", "published", classes, sampling)
    pipeline = Pipeline(card, tokenizer, transformer, None, device or default_device(), bf16)
    if smoother is not None:
        pipeline.guidance_parts["smoother"] = smoother.to(pipeline.device)
    return pipeline


def _part(path: Path, load_layout, kind: type):
    """One entry of the weights folder, in whichever layout, and the smoother that came with it."""
    layout = path.is_dir() or path.suffix.lower() == ".zip"
    loaded = load_layout(path) if layout else load_maskgit_jax(path)
    model, smoother = loaded if isinstance(loaded, tuple) else (loaded, None)
    if not isinstance(model, kind):
        raise CheckpointError(f"{path} is a {type(model).__name__}, not a {kind.__name__}.")
    return model, smoother
