"""Our transformer against numbers that the released implementation gave (see README.md here)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from sgmgm.transformer import MaskedTransformer, TransformerConfig

HERE = Path(__file__).parent
CONFIG_NAMES = TransformerConfig.__dataclass_fields__.keys()


def read(name):
    with safe_open(HERE / name, "pt") as file:
        return file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def reference():
    meta, tensors = read("tiny_transformer.safetensors")
    sizes = {k: float(v) if k == "layer_norm_eps" else int(v) for k, v in meta.items()
             if k in CONFIG_NAMES}  # fmt: skip
    model = MaskedTransformer(TransformerConfig(**sizes)).eval()
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights")}
    missing, _ = model.load_state_dict(weights, strict=False)
    assert not missing
    return model, tensors


def test_pass_one_equals_the_released_transformer(reference):
    model, t = reference
    with torch.no_grad():
        logits, hidden = model(t["in.tokens"], t["in.class_ids"])
        whole = model.mlm_layer(hidden[:, 1:])
    torch.testing.assert_close(hidden, t["out.hidden"], atol=1e-4, rtol=0)
    torch.testing.assert_close(whole, t["out.logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, t["out.logits"][..., :1024], atol=1e-4, rtol=0)


def test_names_and_shapes_of_the_released_imagenet_generator():
    released = json.loads((HERE / "imagenet256_transformer.json").read_text())
    config = {k: v for k, v in released["config"].items() if k in CONFIG_NAMES}
    with torch.device("meta"):
        model = MaskedTransformer(TransformerConfig(**config))
    ours = {name: list(value.shape) for name, value in model.state_dict().items()}
    smoother = ("cls_anchor_gen.", "decoders.", "top_down_transform")
    theirs = {k: v for k, v in released["shapes"].items() if not k.startswith(smoother)}
    assert ours == theirs
