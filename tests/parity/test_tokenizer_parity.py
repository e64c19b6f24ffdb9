"""Our tokenizer against numbers that the released implementation gave (see README.md here)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sgmgm.tokenizer import TokenizerConfig, VQTokenizer

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def reference():
    with safe_open(HERE / "tiny_tokenizer.safetensors", "pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sizes = {k: float(v) if "." in v else int(v) for k, v in meta.items() if "," not in v}
    config = TokenizerConfig(
        **sizes, channel_mult=tuple(int(m) for m in meta["channel_mult"].split(","))
    )
    model = VQTokenizer(config).eval()
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights")}
    model.load_state_dict(weights)
    return model, tensors


def test_every_stage_equals_the_released_tokenizer(reference):
    model, t = reference
    with torch.no_grad():
        encoded = model.encoder(t["in.pixels"])
        reconstruction, quantized = model(t["in.pixels"])
    torch.testing.assert_close(encoded, t["out.encoded"], atol=1e-5, rtol=0)
    assert torch.equal(quantized.tokens, t["out.tokens"])
    torch.testing.assert_close(quantized.states, t["out.quantized"], atol=1e-5, rtol=0)
    torch.testing.assert_close(quantized.loss, t["out.commitment_loss"][0], atol=1e-5, rtol=0)
    torch.testing.assert_close(reconstruction, t["out.reconstruction"], atol=1e-5, rtol=0)


def test_decode_inverts_the_token_order(reference):
    model, t = reference
    images = model.decode(t["out.tokens"])
    torch.testing.assert_close(images, t["out.reconstruction"].clamp(0, 1), atol=1e-5, rtol=0)


def test_names_and_shapes_of_the_released_imagenet_tokenizer():
    released = json.loads((HERE / "imagenet256_tokenizer.json").read_text())
    with torch.device("meta"):
        model = VQTokenizer(TokenizerConfig(**released["config"]))
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == released["shapes"]
