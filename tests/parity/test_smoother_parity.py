"""The TOAST smoother against numbers that the released implementation gave (see README.md)."""

import json

import pytest
import torch
import torch.nn.functional as F

from sgmgm.smoothing import ToastConfig, ToastSmoother
from sgmgm.transformer import MaskedTransformer, TransformerConfig

from .test_transformer_parity import CONFIG_NAMES, HERE, read


@pytest.fixture(scope="module")
def reference():
    meta, t = read("tiny_transformer.safetensors")
    numbers = {k: float(v) if "e" in v or "." in v else int(v) for k, v in meta.items()}
    model = MaskedTransformer(
        TransformerConfig(**{k: v for k, v in numbers.items() if k in CONFIG_NAMES}, dropout=0.0)
    )
    names = ToastConfig.__dataclass_fields__
    smoother = ToastSmoother(ToastConfig(**{k: v for k, v in numbers.items() if k in names}))
    weights = {k.removeprefix("weights."): v for k, v in t.items() if k.startswith("weights")}
    own = {k: v for k, v in weights.items() if k in smoother.state_dict()}
    smoother.load_state_dict(own)
    model.load_state_dict({k: v for k, v in weights.items() if k not in own})
    return model.eval(), smoother.eval(), t, numbers


def smoothed(model, smoother, tokens, labels):
    with torch.no_grad():
        out = smoother(model, model(tokens, labels).hidden, labels)
        return out, model.mlm_layer(out.hidden[:, 1:])


def test_smoothed_logits(reference):
    model, smoother, t, _ = reference
    _, whole = smoothed(model, smoother, t["in.tokens"], t["in.class_ids"])
    torch.testing.assert_close(whole, t["out.smoothed_logits"], atol=1e-4, rtol=0)


def test_auxiliary_and_reconstruction_loss(reference):
    model, smoother, t, numbers = reference
    smoother.train()
    out, whole = smoothed(model, smoother, t["in.corrupted_tokens"], t["in.class_ids"])
    smoother.eval()
    torch.testing.assert_close(whole, t["out.aux_logits"], atol=1e-4, rtol=0)
    chosen = t["in.labels"] >= 0
    loss = F.cross_entropy(
        whole[chosen], t["in.labels"][chosen], label_smoothing=numbers["label_smoothing"]
    )
    torch.testing.assert_close(loss, t["out.aux_loss"][0], atol=1e-4, rtol=0)
    reconstruction = numbers["lambda_var"] * out.reconstruction
    torch.testing.assert_close(reconstruction, t["out.reconstruction_loss"][0], atol=1e-4, rtol=0)


def test_names_shapes_and_size_of_the_released_smoother():
    released = json.loads((HERE / "imagenet256_transformer.json").read_text())
    names = ToastConfig.__dataclass_fields__
    with torch.device("meta"):
        smoother = ToastSmoother(
            ToastConfig(**{k: v for k, v in released["config"].items() if k in names})
        )
    shapes = {k: list(v.shape) for k, v in smoother.state_dict().items()}
    theirs = {k: v for k, v in released["shapes"].items()
              if k.startswith(("cls_anchor_gen.", "decoders.", "top_down_transform"))}  # fmt: skip
    assert shapes == theirs
    assert round(sum(p.numel() for p in smoother.parameters()) / 1e6, 2) == 41.79
