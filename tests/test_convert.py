"""Published weights: the real layouts with random numbers at a small size, and hostile files."""

import json
import math
import pickle
import struct
import tempfile
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sgmgm import convert
from sgmgm.commands import cli
from sgmgm.convert import load_maskgit_jax, load_released, load_released_tokenizer
from sgmgm.smoothing import ToastConfig, ToastSmoother
from sgmgm.tokenizer import TokenizerConfig, VQTokenizer
from sgmgm.transformer import MaskedTransformer, TransformerConfig
from sgmgm.utils.errors import CheckpointError

from .parity.test_transformer_parity import HERE, read

SIZES = {
    "num_vq_tokens": 16,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "codebook_size": 32,
    "num_classes": 6,
    "layer_norm_eps": 1e-12,
}
TOAST = {"hidden_size": 24, "num_hidden_layers": 3, "num_classes": 6, "tg_factor": 5}
CONFIG = SIZES | {"tg_factor": 5, "vocab_size": 39, "_class_name": "MaskGitTransformerTOAST"}
VQ = {
    "resolution": 16,
    "num_channels": 3,
    "hidden_channels": 32,
    "channel_mult": [1, 2, 3],
    "num_res_blocks": 2,
    "z_channels": 8,
    "num_embeddings": 32,
    "quantized_embed_dim": 8,
}


def shaken(model):
    """The model with random numbers everywhere, biases and norms too."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return model.eval()


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    transformer = shaken(MaskedTransformer(TransformerConfig(**SIZES)))
    return transformer, shaken(ToastSmoother(ToastConfig(**TOAST)))


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(1)
    return shaken(VQTokenizer(TokenizerConfig(**VQ)))


def state(*models):
    return {k: v.clone() for model in models for k, v in model.state_dict().items()}


def write(folder, tensors, config, weights="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    saver = save_file if weights.endswith("safetensors") else torch.save
    saver(tensors, folder / weights)
    return folder


def zipped(folder, archive, inside="UnlockMGM"):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for each in folder.iterdir():
            file.write(each, f"{inside}/{each.name}")
    return archive


@contextmanager
def refused(*words):
    with pytest.raises(CheckpointError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def same(ours, theirs):
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


CANVAS = torch.tensor([[38, 1, 38, 31] * 4, [38] * 16])
LABELS = torch.tensor([5, 6])

# ------------------------------------------------------------------------- the authors' layout


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize("weights", convert.WEIGHTS)
def test_round_trip_of_the_released_layout(models, tmp_path, monkeypatch, weights, as_zip):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = write(tmp_path / "model", state(*models), CONFIG, weights)
    if as_zip:
        path = zipped(path, tmp_path / "model.zip")
    transformer, smoother = load_released(path)
    assert not list((tmp_path / "temporary").iterdir())
    assert not transformer.training and not smoother.training
    same(transformer, models[0])
    same(smoother, models[1])
    with torch.no_grad():
        out, expected = transformer(CANVAS, LABELS), models[0](CANVAS, LABELS)
        assert torch.equal(out.logits, expected.logits)
        ours = smoother(transformer, out.hidden, LABELS).logits
        assert torch.equal(ours, models[1](models[0], expected.hidden, LABELS).logits)


def test_the_reference_model_answers_as_the_released_code_did(tmp_path):
    meta, t = read("tiny_transformer.safetensors")
    weights = {k.removeprefix("weights."): v for k, v in t.items() if k.startswith("weights")}
    config = {k: float(v) if "e" in v or "." in v else int(v) for k, v in meta.items()}
    transformer, smoother = load_released(write(tmp_path / "m", weights, config))
    with torch.no_grad():
        out = transformer(t["in.tokens"], t["in.class_ids"])
        hidden = smoother(transformer, out.hidden, t["in.class_ids"]).hidden
        smooth = transformer.mlm_layer(hidden[:, 1:])
        plain = transformer.mlm_layer(out.hidden[:, 1:])
    torch.testing.assert_close(plain, t["out.logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(smooth, t["out.smoothed_logits"], atol=1e-4, rtol=0)


def test_a_generator_alone_and_half_precision(models, tmp_path):
    half = {k: v.half() for k, v in state(models[0]).items()}
    transformer, smoother = load_released(write(tmp_path / "m", half, SIZES))
    assert smoother is None and transformer.embed.word_embeddings.weight.dtype == torch.float32


@pytest.mark.parametrize("dropped", ["codebook_size", "num_classes"])
def test_sizes_that_the_shapes_tell(models, tmp_path, dropped):
    only = {k: SIZES[k] for k in ("num_attention_heads", "layer_norm_eps")}
    same(load_released(write(tmp_path / "a", state(*models), only))[0], models[0])
    part = only | {k: SIZES[k] for k in {"codebook_size", "num_classes"} - {dropped}}
    same(load_released(write(tmp_path / "b", state(models[0]), part))[0], models[0])
    with refused("num_attention_heads", "layer_norm_eps", "codebook_size", "num_classes"):
        load_released(write(tmp_path / "c", state(models[0]), {}))


def test_tokenizer_layout(tokenizer, tmp_path):
    same(load_released_tokenizer(write(tmp_path / "a", state(tokenizer), VQ)), tokenizer)
    bare = write(tmp_path / "b", state(tokenizer), {"resolution": 32}, "pytorch_model.bin")
    loaded = load_released_tokenizer(zipped(bare, tmp_path / "b.zip", "deep/er"))
    same(loaded, tokenizer)
    assert loaded.config.channel_mult == (1, 2, 3) and loaded.config.num_tokens == 64
    with refused("resolution"):
        load_released_tokenizer(write(tmp_path / "c", state(tokenizer), {}))


def test_which_of_several_models(models, tmp_path):
    write(tmp_path / "checkpoint-50000" / "ema_model", state(*models), CONFIG)
    write(tmp_path / "checkpoint-50000" / "unwrapped_model", state(models[0]), CONFIG)
    assert load_released(tmp_path)[1] is not None
    with refused("several", "one/config.json", "two/config.json"):
        write(tmp_path / "x" / "one", state(models[0]), CONFIG)
        load_released(write(tmp_path / "x" / "two", state(models[0]), CONFIG).parent)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nothing"):
        with refused(path.name):
            load_released(path)


def test_every_name_that_does_not_fit_is_listed(models, tmp_path):
    tensors = state(*models)
    lost = ["decoders.1.linear.weight", "transformer_layers.2.attention.out.bias"]
    for name in lost:
        del tensors[name]
    tensors["extra.a"] = tensors["extra.b"] = torch.zeros(2)
    tensors["mlm_layer.to_logits.bias"] = torch.zeros(7)
    tensors["mlm_layer.mlm_ln.bias"] = torch.zeros(24, dtype=torch.int64)
    with refused(*lost, "extra.a", "extra.b", "to_logits.bias ((7,)", "mlm_ln.bias (no real"):
        load_released(write(tmp_path / "m", tensors, CONFIG, "pytorch_model.bin"))
    with refused("decoder.conv_in.weight", "surplus", " more"):
        load_released_tokenizer(write(tmp_path / "t", state(*models), VQ))


HOSTILE = [
    ("num_hidden_layers", 10**9),
    ("num_hidden_layers", -1),
    ("hidden_size", 10**12),
    ("hidden_size", "24"),
    ("num_attention_heads", 0),
    ("num_attention_heads", [4]),
    ("num_attention_heads", 7),
    ("layer_norm_eps", math.nan),
    ("codebook_size", 1e9),
    ("num_vq_tokens", True),
]


@pytest.mark.parametrize(("name", "value"), HOSTILE)
def test_impossible_sizes(models, tmp_path, name, value):
    huge = isinstance(value, int) and value >= 10**9
    with refused("impossible sizes" if huge else name):
        load_released(write(tmp_path / "m", state(*models), CONFIG | {name: value}))


def test_a_config_that_is_none(models, tmp_path):
    for config in ([], "words", None):
        with refused("config.json"):
            load_released(write(tmp_path / "m", state(*models), config))
    (tmp_path / "m" / "config.json").write_text("{")
    with refused("config.json"):
        load_released(tmp_path / "m")


def test_sizes_far_beyond_the_file_get_no_memory(tmp_path, models):
    tensors = state(models[0])
    rows = 10**9  # a view of one number, as large as it likes
    for name in ("embed.word_embeddings.weight", "mlm_layer.to_logits.weight"):
        tensors[name] = torch.zeros(1).expand(rows, 24)
    tensors["mlm_layer.to_logits.bias"] = torch.zeros(1).expand(rows)
    config = SIZES | {"codebook_size": rows - 7}
    with refused("GB"):
        load_released(write(tmp_path / "m", tensors, config, "pytorch_model.bin"))


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def test_code_in_a_bin_is_refused_and_not_executed(models, tmp_path):
    mark = tmp_path / "executed"
    folder = write(tmp_path / "m", state(*models) | {"x": Evil(mark)}, CONFIG, "pytorch_model.bin")
    with refused("nothing in it was executed"):
        load_released(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    with refused("pytorch_model.bin"):
        load_released(zipped(folder, tmp_path / "m.zip"))
    torch.save([1, 2], folder / "pytorch_model.bin")
    with refused("no dict"):
        load_released(folder)
    assert not mark.exists()


@pytest.mark.parametrize("weights", convert.WEIGHTS[1:])
def test_truncated_files(models, tmp_path, weights):
    folder = write(tmp_path / "m", state(*models), CONFIG, weights)
    archive = zipped(folder, tmp_path / "m.zip")
    for path, load in ((folder / weights, folder), (archive, archive)):
        whole = path.read_bytes()
        for length in (0, 10, len(whole) // 2, len(whole) - 5):
            path.write_bytes(whole[:length])
            with refused(path.name):
                load_released(load)


@pytest.mark.parametrize("name", ["../a", "/a", "x/../../a", "..\\a", "C:\\a", "\\\\host\\a"])
def test_zip_slip(models, tmp_path, name):
    archive = zipped(write(tmp_path / "m", state(*models), CONFIG), tmp_path / "m.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "out")
    with refused("refused", "points outside"):
        load_released(archive)
    assert not (tmp_path.parent / "a").exists() and not (tmp_path / "a").exists()


def test_zip_bomb_and_damaged_entry(models, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    folder = write(tmp_path / "m", state(*models), CONFIG)
    archive = zipped(folder, tmp_path / "m.zip")
    whole = bytearray(archive.read_bytes())
    whole[len(whole) // 2] ^= 255
    archive.write_bytes(whole)
    with refused("cannot be unpacked"):
        load_released(archive)
    (folder / "model.safetensors").write_bytes(bytes(60 * 2**20))
    with refused("refused", "60 MB"):
        load_released(zipped(folder, archive))
    assert not list((tmp_path / "temporary").iterdir())


# --------------------------------------------- MaskGIT's flax files, by an encoder of our own


def packed(value) -> bytes:
    """msgpack by the letter of its specification, with flax's extension for arrays."""
    if isinstance(value, dict):
        body = b"".join(packed(k) + packed(v) for k, v in value.items())
        return b"\xde" + struct.pack(">H", len(value)) + body
    if isinstance(value, str):
        return b"\xd9" + struct.pack(">B", len(value.encode())) + value.encode()
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xd2" + struct.pack(">i", value)
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, tuple):
        return b"\xdc" + struct.pack(">H", len(value)) + b"".join(map(packed, value))
    name = {"uint16": "bfloat16"}.get(value.dtype.name, value.dtype.name)
    payload = packed((value.shape, name, value.tobytes()))
    return extension(1, payload)


def extension(code, payload):
    return b"\xc9" + struct.pack(">Ib", len(payload), code) + payload


def nested(flat: dict) -> dict:
    tree = {}
    for name, value in flat.items():
        *parts, last = name.split(".")
        branch = tree
        for part in parts:
            branch = branch.setdefault(part, {})
        branch[last] = np.ascontiguousarray(value)
    return tree


def flax_transformer(model) -> dict:
    """The inverse of what `load_maskgit_jax` does, one parameter after another."""
    t = {k: v.numpy() for k, v in model.state_dict().items()}
    heads, width = SIZES["num_attention_heads"], SIZES["hidden_size"]
    flat = {
        "Embed_0.word_embeddings.embedding": t["embed.word_embeddings.weight"],
        "Embed_0.position_embeddings.embedding": t["embed.position_embeddings.weight"],
        "Embed_0.embeddings_ln.scale": t["embed.embeddings_ln.weight"],
        "Embed_0.embeddings_ln.bias": t["embed.embeddings_ln.bias"],
        "MlmLayer_0.mlm_bias.bias": t["mlm_layer.to_logits.bias"],
        "MlmLayer_0.mlm_dense.kernel": t["mlm_layer.mlm_dense.weight"].T,
        "MlmLayer_0.mlm_dense.bias": t["mlm_layer.mlm_dense.bias"],
        "MlmLayer_0.mlm_ln.scale": t["mlm_layer.mlm_ln.weight"],
        "MlmLayer_0.mlm_ln.bias": t["mlm_layer.mlm_ln.bias"],
    }
    for i in range(SIZES["num_hidden_layers"]):
        ours, theirs = f"transformer_layers.{i}", f"TransformerLayer_{i}"
        attention = f"{theirs}.Attention_0.self_attention"
        for part in ("query", "key", "value"):
            kernel = t[f"{ours}.attention.{part}.weight"].T.reshape(width, heads, -1)
            flat[f"{attention}.{part}.kernel"] = kernel
            flat[f"{attention}.{part}.bias"] = t[f"{ours}.attention.{part}.bias"].reshape(heads, -1)
        out = t[f"{ours}.attention.out.weight"].T.reshape(heads, -1, width)
        flat[f"{attention}.out.kernel"] = out
        flat[f"{attention}.out.bias"] = t[f"{ours}.attention.out.bias"]
        for part in ("intermediate_output", "layer_output"):
            flat[f"{theirs}.Mlp_0.{part}.kernel"] = t[f"{ours}.ffn.{part}.weight"].T
            flat[f"{theirs}.Mlp_0.{part}.bias"] = t[f"{ours}.ffn.{part}.bias"]
        for norm, name in (("attn_layer_norm", "Attention_0.attention_output_ln"),
                           ("ffn.layer_norm", "Mlp_0.layer_output_ln")):  # fmt: skip
            flat[f"{theirs}.{name}.scale"] = t[f"{ours}.{norm}.weight"]
            flat[f"{theirs}.{name}.bias"] = t[f"{ours}.{norm}.bias"]
    return flat


def flax_tokenizer(model) -> dict:
    """VQGAN's parameters under flax's names: three levels of two blocks, written out."""
    blocks = {
        "encoder": ["down.0.block.0", "down.0.block.1", "down.1.block.0", "down.1.block.1",
                    "down.2.block.0", "down.2.block.1", "mid.0", "mid.1"],
        "decoder": ["mid.0", "mid.1", "up.2.block.0", "up.2.block.1", "up.1.block.0",
                    "up.1.block.1", "up.0.block.0", "up.0.block.1"],
    }  # fmt: skip
    layers = {
        "encoder.conv_in": "encoder.Conv_0",
        "encoder.conv_out": "encoder.Conv_1",
        "encoder.norm_out": "encoder.GroupNorm_0",
        "decoder.conv_in": "decoder.Conv_0",
        "decoder.up.2.upsample_conv": "decoder.Conv_1",
        "decoder.up.1.upsample_conv": "decoder.Conv_2",
        "decoder.conv_out": "decoder.Conv_3",
        "decoder.norm_out": "decoder.GroupNorm_0",
    }
    inner = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "norm2": "GroupNorm_1", "conv2": "Conv_1",
             "nin_shortcut": "Conv_2"}  # fmt: skip
    for side, names in blocks.items():
        for i, block in enumerate(names):
            for ours, theirs in inner.items():
                layers[f"{side}.{block}.{ours}"] = f"{side}.ResBlock_{i}.{theirs}"
    flat = {}
    for name, value in model.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        if layer == "quantize.embedding":
            flat["quantizer.codebook"] = value.numpy()
        elif value.ndim == 4:
            flat[f"{layers[layer]}.kernel"] = value.permute(2, 3, 1, 0).numpy()
        else:
            flat[f"{layers[layer]}.{'scale' if leaf == 'weight' else leaf}"] = value.numpy()
    return flat


def flax_forward(p: dict, ids: np.ndarray) -> np.ndarray:
    """MaskGIT's transformer from its paper, in numpy and flax's layout; hidden states -> logits."""

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * p[f"{name}.scale"] + p[f"{name}.bias"]

    def dense(x, name):
        return x @ p[f"{name}.kernel"] + p[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    words = p["Embed_0.word_embeddings.embedding"]
    x = norm(words[ids] + p["Embed_0.position_embeddings.embedding"], "Embed_0.embeddings_ln")
    for i in range(SIZES["num_hidden_layers"]):
        name = f"TransformerLayer_{i}.Attention_0.self_attention"
        q, k, v = (
            np.einsum("bld,dhe->bhle", x, p[f"{name}.{part}.kernel"])
            + p[f"{name}.{part}.bias"][:, None]
            for part in ("query", "key", "value")
        )
        a = np.exp(np.einsum("bhle,bhme->bhlm", q, k) / math.sqrt(q.shape[-1]))
        y = np.einsum("bhlm,bhme->bhle", a / a.sum(-1, keepdims=True), v)
        y = np.einsum("bhle,hed->bld", y, p[f"{name}.out.kernel"]) + p[f"{name}.out.bias"]
        x = norm(x + y, f"TransformerLayer_{i}.Attention_0.attention_output_ln")
        mlp = f"TransformerLayer_{i}.Mlp_0"
        y = dense(gelu(dense(x, f"{mlp}.intermediate_output")), f"{mlp}.layer_output")
        x = norm(x + y, f"{mlp}.layer_output_ln")
    x = norm(gelu(dense(x, "MlmLayer_0.mlm_dense")), "MlmLayer_0.mlm_ln")
    return x @ words.T + p["MlmLayer_0.mlm_bias.bias"]


def flax_file(path, flat):
    path.write_bytes(packed({"params": nested(flat)}))
    return path


@pytest.fixture(scope="module")
def tied(models):
    model = MaskedTransformer(models[0].config).eval()
    model.load_state_dict(models[0].state_dict())
    with torch.no_grad():
        model.mlm_layer.to_logits.weight.copy_(model.embed.word_embeddings.weight)
    return model


def test_flax_transformer(tied, tmp_path):
    flat = flax_transformer(tied)
    model = load_maskgit_jax(flax_file(tmp_path / "checkpoint", flat), num_classes=6)
    same(model, tied)
    assert model.config == tied.config
    ids = torch.cat((LABELS[:, None] + SIZES["codebook_size"], CANVAS), 1).numpy()
    expected = torch.from_numpy(flax_forward(flat, ids)).float()
    with torch.no_grad():
        logits = model.mlm_layer(model(CANVAS, LABELS).hidden)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert model.config.mask_id == 38


def test_flax_tokenizer(tokenizer, tmp_path):
    flat = flax_tokenizer(tokenizer)
    model = load_maskgit_jax(flax_file(tmp_path / "checkpoint", flat), resolution=16)
    same(model, tokenizer)
    assert model.config == tokenizer.config
    images = torch.rand(1, 3, 6, 5)
    padded = np.pad(images.numpy()[0], ((0, 0), (1, 1), (1, 1)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    expected = np.einsum("ihwrs,rsio->ohw", patches, flat["encoder.Conv_0.kernel"])
    with torch.no_grad():
        ours = model.encoder.conv_in(images)[0]
    torch.testing.assert_close(ours, torch.from_numpy(expected).float(), atol=1e-5, rtol=1e-5)


def test_flax_bfloat16(tied, tmp_path):
    tree = nested(flax_transformer(tied))
    bias = tree["MlmLayer_0"]["mlm_bias"]["bias"]
    tree["MlmLayer_0"]["mlm_bias"]["bias"] = (bias.view(np.uint32) >> 16).astype(np.uint16)
    (tmp_path / "m").write_bytes(packed({"params": tree, "step": np.array(7, np.int32)}))
    model = load_maskgit_jax(tmp_path / "m", num_classes=6)
    assert torch.equal(model.embed.word_embeddings.weight, tied.embed.word_embeddings.weight)
    bias = torch.from_numpy(bias)
    torch.testing.assert_close(model.mlm_layer.to_logits.bias, bias, atol=0, rtol=1e-2)


def published_names() -> tuple[dict, dict]:
    """Names and shapes as printed from Google's two 256 px files (hmorimitsu/maskgit-torch)."""
    wide, kernel, heads = (768,), (768, 16, 48), (16, 48)
    t = {
        "Embed_0.embeddings_ln.bias": wide,
        "Embed_0.embeddings_ln.scale": wide,
        "Embed_0.position_embeddings.embedding": (257, 768),
        "Embed_0.word_embeddings.embedding": (2025, 768),
        "MlmLayer_0.mlm_bias.bias": (2025,),
        "MlmLayer_0.mlm_dense.bias": wide,
        "MlmLayer_0.mlm_dense.kernel": (768, 768),
        "MlmLayer_0.mlm_ln.bias": wide,
        "MlmLayer_0.mlm_ln.scale": wide,
    }
    for i in range(24):
        a, m = f"TransformerLayer_{i}.Attention_0", f"TransformerLayer_{i}.Mlp_0"
        for part in ("key", "query", "value"):
            t[f"{a}.self_attention.{part}.bias"] = heads
            t[f"{a}.self_attention.{part}.kernel"] = kernel
        t |= {
            f"{a}.attention_output_ln.bias": wide,
            f"{a}.attention_output_ln.scale": wide,
            f"{a}.self_attention.out.bias": wide,
            f"{a}.self_attention.out.kernel": (16, 48, 768),
            f"{m}.intermediate_output.bias": (3072,),
            f"{m}.intermediate_output.kernel": (768, 3072),
            f"{m}.layer_output.bias": wide,
            f"{m}.layer_output.kernel": (3072, 768),
            f"{m}.layer_output_ln.bias": wide,
            f"{m}.layer_output_ln.scale": wide,
        }
    v = {"quantizer.codebook": (1024, 256), "encoder.Conv_0.kernel": (3, 3, 3, 128)}
    convolutions = {"encoder.Conv_1": (1, 1, 512, 256), "decoder.Conv_0": (3, 3, 256, 512),
                    "decoder.Conv_1": (3, 3, 512, 512), "decoder.Conv_2": (3, 3, 256, 256),
                    "decoder.Conv_3": (3, 3, 256, 256), "decoder.Conv_4": (3, 3, 128, 128),
                    "decoder.Conv_5": (3, 3, 128, 3)}  # fmt: skip
    for name, shape in convolutions.items():
        v |= {f"{name}.kernel": shape, f"{name}.bias": shape[3:]}
    for name, width in (("encoder", 512), ("decoder", 128)):
        v |= {f"{name}.GroupNorm_0.{leaf}": (width,) for leaf in ("scale", "bias")}
    widths = {"encoder": [128] * 5 + [256] * 4 + [512] * 4, "decoder": [512] * 5 + [256] * 4}
    widths["decoder"] += [128] * 4  # block i goes from the i-th of these to the next
    for side, row in widths.items():
        for i in range(12):
            block, (before, after) = f"{side}.ResBlock_{i}", row[i : i + 2]
            v[f"{block}.Conv_0.kernel"] = (3, 3, before, after)
            v[f"{block}.Conv_1.kernel"] = (3, 3, after, after)
            if before != after:
                v[f"{block}.Conv_2.kernel"] = (1, 1, after, after)
            for leaf in ("scale", "bias"):
                v[f"{block}.GroupNorm_0.{leaf}"] = (before,)
                v[f"{block}.GroupNorm_1.{leaf}"] = (after,)
    return t, v


def test_published_flax_names_become_the_released_ones(monkeypatch):
    seen = {}

    def build(kinds, sizes, tensors, path):
        seen["t"] = tensors
        return [convert._make(kind, sizes, tensors, path) for kind in kinds]

    monkeypatch.setattr(convert, "_build", build)
    for part, names in zip(("transformer", "tokenizer"), published_names(), strict=True):
        views = {k: torch.zeros(1).expand(shape) for k, shape in names.items()}
        monkeypatch.setattr(convert, "_read_flax", lambda path, views=views: views)
        model = load_maskgit_jax("no file")
        released = json.loads((HERE / f"imagenet256_{part}.json").read_text())
        theirs = {k: v for k, v in released["shapes"].items() if not k.startswith(convert.SMOOTHER)}
        assert {k: list(v.shape) for k, v in seen["t"].items()} == theirs
        for name, value in released["config"].items():
            if name != "tg_factor":
                got = getattr(model.config, name)
                assert (list(got) if isinstance(got, tuple) else got) == value


def test_flax_names_that_do_not_fit_are_listed(tied, tokenizer, tmp_path):
    flat = flax_transformer(tied)
    del flat["TransformerLayer_1.Mlp_0.layer_output.bias"]
    flat["Critic_0.kernel"] = np.zeros((2, 2), np.float32)
    flat["MlmLayer_0.mlm_ln.bias"] = np.zeros(5, np.float32)
    flat["mlm_layer.mlm_dense.weight"] = flat["MlmLayer_0.mlm_dense.kernel"]  # there already
    twice = "surplus: Critic_0.weight, mlm_layer.mlm_dense.weight (twice)"
    with refused("layers.1.ffn.layer_output.bias", "mlm_ln.bias ((5,)", twice):
        load_maskgit_jax(flax_file(tmp_path / "m", flat), num_classes=6)
    flat = flax_tokenizer(tokenizer)
    flat["encoder.ResBlock_99.Conv_0.kernel"] = flat.pop("encoder.ResBlock_1.Conv_1.kernel")
    with refused("encoder.ResBlock_99"):
        load_maskgit_jax(flax_file(tmp_path / "t", flat))
    with refused("hidden_size"):
        load_maskgit_jax(flax_file(tmp_path / "o", {"Dense_0.kernel": np.zeros(3, np.float32)}))


BAD = {
    "empty": b"",
    "words": b"no msgpack at all",
    "number": packed(7),
    "leaf": packed({"params": {"a": 7}}),
    "deep": b"\x91" * 100_000,
    "deep maps": (b"\x81\xa1a") * 2000 + b"\xc0",
    "huge list": b"\xdd\xff\xff\xff\xff",
    "huge bytes": b"\xc6\xff\xff\xff\xff",
    "complex": packed({"a": 0})[:-5] + extension(2, packed((1, 2))),
    "object": packed({"a": 0})[:-5] + extension(1, packed(((1,), "object", b"12345678"))),
    "too few": packed({"a": 0})[:-5] + extension(1, packed(((9,), "float32", b"1234"))),
    "too wide": packed({"a": 0})[:-5] + extension(1, packed(((2**30,) * 4, "float32", b"1234"))),
    "no bytes": packed({"a": 0})[:-5] + extension(1, packed(((0,), "float32", b""))),
    "no shape": packed({"a": 0})[:-5] + extension(1, packed(("x", "float32", b"1234"))),
    "chunks": packed({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 1}}}),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_msgpack(tmp_path, kind):
    (tmp_path / "m").write_bytes(BAD[kind])
    with refused("flax"):
        load_maskgit_jax(tmp_path / "m")


def test_damaged_flax_files_load_or_are_refused(tied, tmp_path):
    whole = packed({"params": nested(flax_transformer(tied))})
    path = tmp_path / "m"
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with refused("flax"):
            load_maskgit_jax(path, num_classes=6)
    generator = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 30):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            load_maskgit_jax(path, num_classes=6)
        except CheckpointError as error:
            assert "\n" not in str(error)
    for missing in (tmp_path, tmp_path / "nothing"):
        with refused("cannot be read"):
            load_maskgit_jax(missing)


# ---------------------------------------------------------------------------- the command line


def command(*words) -> int:
    return cli.main(["sample", "--device", "cpu", *map(str, words)])


def test_sample_from_published_weights(models, tied, tokenizer, tmp_path, capsys):
    weights, out = tmp_path / "weights", tmp_path / "grid.png"
    weights.mkdir()
    layout = write(tmp_path / "m", state(*models), CONFIG, "pytorch_model.bin")
    zipped(layout, weights / "UnlockMGM_imagenet_256.zip")
    (weights / "UnlockMGM_imagenet_512.zip").write_bytes(b"for another day")
    flax_file(weights / "tokenizer_imagenet256_checkpoint", flax_tokenizer(tokenizer))
    draw = ("--model", "imagenet256", "--weights", weights, "--num", 4, "--out", out)
    assert command(*draw, "--classes", "3,5") == 0
    assert "36 network passes" in capsys.readouterr().out  # 18 steps, two passes each
    assert Image.open(out).size == (102, 102)  # 2 x 2 images of 16 x 16, three times enlarged
    (weights / "UnlockMGM_imagenet_256.zip").unlink()
    flax_file(weights / "maskgit_imagenet256_checkpoint", flax_transformer(tied))
    assert command(*draw) == 2  # the tiny file has no 1000 classes
    assert "codebook_size" in capsys.readouterr().err


def test_published_settings_and_a_generator_alone(models, tokenizer, tmp_path):
    write(tmp_path / "transformer", state(*models), CONFIG)
    write(tmp_path / "vqgan", state(tokenizer), VQ | {"resolution": 256})
    pipeline = convert.published_pipeline("imagenet512", tmp_path, "cpu")
    s = pipeline.card.sampling
    assert (s.steps, s.temperature, s.anneal) == (18, 45.0, "compounding")
    assert (s.guidance, s.scale, s.order) == ("self", 1.0, "confidence")
    assert convert.PUBLISHED["imagenet256"].temperature == 25.0
    assert pipeline.card.classes == ["0", "1", "2", "3", "4", "5"]
    write(tmp_path / "transformer", state(models[0]), CONFIG)
    pipeline = convert.published_pipeline("imagenet512", tmp_path, "cpu")
    assert pipeline(["3"], steps=2).images.shape == (1, 3, 16, 16)


def test_sample_says_what_is_missing(models, tokenizer, tmp_path, capsys):
    def says(*words, model="imagenet256"):
        code = command("--model", model, "--out", tmp_path / "x.png", *words)
        message = capsys.readouterr().err
        assert code == 2 and message.count("\n") == 1
        return message

    sources = ("UnlockMGM_imagenet_256.zip", "JiwanHur/UnlockMGM", "google-research/maskgit")
    folder = tmp_path / "weights"
    for words in ((), ("--weights", folder)):
        assert all(source in says(*words) for source in sources)
    folder.mkdir()
    assert "one tokenizer" in says("--weights", folder)
    write(folder / "tokenizer", state(tokenizer), VQ)
    assert "one transformer for imagenet512, not none" in says(
        "--weights", folder, model="imagenet512"
    )
    for name in ("a", "b"):
        write(folder / name, state(*models), CONFIG)
    assert "not a, b" in says("--weights", folder)
    assert "imagenet512" in says("--weights", folder, model="sprites")
    swapped = tmp_path / "swapped"
    write(swapped / "tokens", state(*models), CONFIG)
    flax_file(swapped / "transformer", flax_tokenizer(tokenizer))
    assert "VQTokenizer, not a MaskedTransformer" in says("--weights", swapped)
