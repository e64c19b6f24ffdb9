"""The same seed gives the same image as before: tokens kept from the code of commit 0e374a8.

They belong to a tiny system with random weights, which is made here, and to a shipped model. The
rule: on a processor of the kind that the file names, with its version of torch, all tokens are
equal. Elsewhere sums of floats differ in their last digits, and a token that was nearly as likely
as another may change its image from there on: nine of ten images must then be equal.

`python -m tests.test_kept_tokens` writes the file anew: only where a change is wanted (a shipped
model was trained again), never to make this test pass.
"""

import json
import zlib
from pathlib import Path

import pytest
import torch

from sgmgm import fast
from sgmgm.guidance import GUIDANCES, make_guidance
from sgmgm.pipeline import Pipeline
from sgmgm.sampling import decode, generators_for
from sgmgm.smoothing import LoraSmoother, ToastSmoother
from sgmgm.tokenizer import TokenizerConfig, VQTokenizer
from sgmgm.transformer import MaskedTransformer, TransformerConfig

KEPT = Path(__file__).parent / "kept_tokens.json"
MANIFEST = Path(__file__).parents[1] / "data" / "checkpoints" / "fashion-mnist" / "manifest.json"
TINY = {  # case -> guidance, smoother and the arguments of `decode` that are not the usual ones
    **{name: (name, "toast", {}) for name in GUIDANCES},
    "self, lora": ("self", "lora", {}),
    "self, interval": ("self", "toast", {"scale_schedule": "interval"}),
    "cfg, compounding": ("cfg", "toast", {"anneal": "compounding", "temperature": 25.0}),
    "cfg, square": ("cfg", "toast", {"schedule": "square", "steps": 3}),
    "known tokens compete": ("none", "toast", {"remask_known": True, "temperature": 300.0}),
    "halton": ("none", "toast", {"order": "halton"}),
    "random": ("none", "toast", {"order": "random"}),
    "remask": ("none", "toast", {"order": "remask"}),
    "in-painting": ("self", "toast", {"given": 5}),
}
SHIPPED = ("none", "self", "cfg")
PARTS = ("tokenizer", "transformer", "smoother")


def filled(module):
    """The module with weights that depend on their names and on torch's generator alone."""
    for name, weight in sorted(module.named_parameters()):
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        draw = torch.randn(weight.shape, generator=generator)
        draw = 1.5 * draw / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 0.1 * draw
        weight.data.copy_(draw + ("norm" in name or "ln" in name) * name.endswith("weight"))
    return module.eval()


def tiny():
    """All networks of a tiny system."""
    model = filled(MaskedTransformer(TransformerConfig(16, 32, 3, 4, 48, 20, 5)))
    sizes = {"hidden_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
    codes = {"z_channels": 8, "quantized_embed_dim": 8, "num_embeddings": 20}
    lora = LoraSmoother(model, rank=2)
    adapter = torch.nn.ParameterDict(
        {name.replace(".", "-"): p for name, p in lora.named_parameters() if "lora_" in name}
    )
    filled(adapter)
    return {
        "model": model,
        "weak": filled(MaskedTransformer(TransformerConfig(16, 16, 1, 2, 24, 20, 5))),
        "toast": filled(ToastSmoother.for_transformer(model, tg_factor=3)),
        "lora": lora.eval(),
        "tokenizer": filled(VQTokenizer(TokenizerConfig(resolution=8, **sizes, **codes))),
    }


def tiny_case(nets, case, quick):
    """Tokens of three images, and the means of these images, of one case in `TINY`."""
    name, smoother, options = TINY[case]
    model, options = nets["model"], {"steps": 6, "temperature": 4.0} | options
    guidance = make_guidance(name, model, 1.3, options.pop("scale_schedule", "constant"),
                             weak=nets["weak"], smoother=nets[smoother])  # fmt: skip
    canvas = model.blank.repeat(3, 1)
    given = options.pop("given", 0)
    canvas[:, :given] = torch.arange(given)
    run = fast.decode if quick else decode
    guided = fast.FastGuidance(guidance, torch.float32) if quick else guidance
    labels, generators = torch.tensor([0, 3, 4]), generators_for([0, 7, 2**32 - 1])
    tokens = run(guided, labels, canvas, generators=generators, **options).tokens
    images = nets["tokenizer"].decode(tokens)
    return summary(tokens, images)


def summary(tokens, images):
    return {"tokens": tokens.tolist(), "means": [round(image.mean().item(), 4) for image in images]}


def shipped_case(pipeline, name):
    """The same of two images of the shipped model."""
    samples = pipeline([0, 3], seeds=[5, 6], guidance=name, steps=6)
    return summary(samples.trajectory.tokens, samples.images)


def weights():
    """The digests of the shipped networks."""
    digests = json.loads(MANIFEST.read_text())
    return {part: digests[f"{part}/model.safetensors"] for part in PARTS}


def here():
    return {
        "torch": torch.__version__.split("+")[0],
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


@pytest.fixture(scope="module")
def kept():
    return json.loads(KEPT.read_text())


@pytest.fixture(scope="module")
def nets():
    return tiny()


def compare(found, wanted, exact):
    same = [a == b for a, b in zip(found["tokens"], wanted["tokens"], strict=True)]
    if exact:
        assert all(same)
        assert found["means"] == pytest.approx(wanted["means"], abs=2e-4)
    return same


@pytest.mark.parametrize("quick", [False, True])
def test_the_tiny_system_gives_the_kept_tokens(quick, nets, kept):
    """On both paths: the fast one gives the same tokens as `sampling.decode`."""
    exact, same = kept["made on"] == here(), []
    assert kept["tiny"].keys() == TINY.keys()
    for case, wanted in kept["tiny"].items():
        same += compare(tiny_case(nets, case, quick), wanted, exact)
    assert sum(same) >= 0.9 * len(same)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_shipped_model_gives_the_kept_tokens(bf16, kept, monkeypatch):
    for module in ("fast", "pipeline"):  # in bfloat16 an image may be another one
        monkeypatch.setattr(f"sgmgm.{module}.has_bf16", lambda device: False)
    assert kept["weights"] == weights(), (
        "the shipped fashion-mnist was trained again: python -m tests.test_kept_tokens"
    )
    pipeline, same = Pipeline.from_pretrained("fashion-mnist", "cpu", bf16=bf16), []
    for name in SHIPPED:
        wanted = kept["fashion-mnist"][name]
        same += compare(shipped_case(pipeline, name), wanted, kept["made on"] == here())
    assert sum(same) >= 0.9 * len(same)


def test_cases_differ(kept):
    """A case that gave the tokens of another one would show nothing."""
    tokens = [json.dumps(each["tokens"]) for each in kept["tiny"].values()]
    assert len(set(tokens)) == len(tokens)


if __name__ == "__main__":
    torch.set_num_threads(1)
    nets, pipeline = tiny(), Pipeline.from_pretrained("fashion-mnist", "cpu")
    groups = {
        "tiny": {case: tiny_case(nets, case, False) for case in TINY},
        "fashion-mnist": {name: shipped_case(pipeline, name) for name in SHIPPED},
    }
    lines = [f'"made on": {json.dumps(here())}', f'"weights": {json.dumps(weights())}']
    for group, cases in groups.items():
        rows = ",\n".join(f"{json.dumps(case)}: {json.dumps(each)}" for case, each in cases.items())
        lines.append(f"{json.dumps(group)}: {{\n{rows}}}")
    KEPT.write_text("{" + ",\n".join(lines) + "}\n")
