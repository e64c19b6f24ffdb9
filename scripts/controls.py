"""Pushes of equal strength: is it the direction of self-guidance's push that helps?

Every arm guides away from another smoothed prediction: of a TOAST adapter trained on canvases with
nothing wrong, of a weak transformer at several ages, without the class, of blurred logits, of the
uniform one. Its scale is the one at which guidance moves the prediction as far as self-guidance at
its best setting does, by the mean KL(plain || guided) on test images. Its temperature is tuned,
with further values where the best one lies at an edge.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sgmgm import datasets, presets
from sgmgm.evidence import results
from sgmgm.evidence.sweep import TUNING_SEED, summarise, sweep, table
from sgmgm.guidance import GUIDANCES
from sgmgm.masking import random_mask
from sgmgm.pipeline import Pipeline, find_pipeline
from sgmgm.settings import Sampling
from sgmgm.smoothing import SMOOTHERS
from sgmgm.tasks import SmootherTask, TransformerTask
from sgmgm.training import fit
from sgmgm.transformer import MaskedTransformer
from sgmgm.utils.devices import has_bf16
from sgmgm.utils.files import check_writable, write_bytes
from sgmgm.workflow import cached_tokens

from .evidence import FINAL, FIRST, PASSES, SEEDS, TEMPERATURES, TUNING, grown
from .variants import command, named, variant

IMAGES = 500  # test images behind the strength of a push
CONTROL_STEPS = (50, 100, 400)
WEAK_STEPS = (100, 400, 1600)
SHARED = ("classifier", "tokenizer", "transformer")
# name -> guidance, a part that does not ship, and its training steps
ARMS: dict[str, tuple[str, str | None, int]] = {
    "self": ("self", None, 0),
    **{f"control, {n} steps": ("self", "smoother", n) for n in CONTROL_STEPS},
    **{f"weak, {n} steps": ("auto", "weak", n) for n in WEAK_STEPS},
    **{name: (name, None, 0) for name in ("cfg", "spatial", "sharpened")},
}


def unchanged(tokens: Tensor, labels: Tensor, generator, task) -> Tensor:
    """In place of `tasks.WRONG_TOKENS`: nothing is wrong, but as many tokens are judged."""
    return tokens


def folder_of(shipped: Path, part: str | None, steps: int, work: Path) -> Path:
    """A pipeline folder with the shipped networks and this part, trained for so many steps."""
    if part is None:
        return shipped
    folder = variant(shipped, SHARED, work / f"{part}-{steps}")
    if not (folder / part / "training.json").is_file():
        train(part, steps, folder, Pipeline.from_pretrained(shipped, "cpu"))
    return folder


def train(part: str, steps: int, folder: Path, pipeline: Pipeline) -> None:
    """Train a control smoother or a weak transformer into a folder's part."""
    dataset, preset, classes = (getattr(pipeline.card, k) for k in ("dataset", "preset", "classes"))
    plan = presets.get(dataset, preset, len(classes))
    data = datasets.load(dataset)
    tokens = cached_tokens(pipeline.tokenizer, data, folder)  # (V, M, N)
    codebook = pipeline.tokenizer.quantize.embedding.weight.detach()  # (K, D)
    torch.manual_seed(0)
    if part == "weak":
        weak = MaskedTransformer(plan.weak)
        weak.init_from_codebook(codebook)
        task, config = TransformerTask(weak, tokens, data.labels), plan.weak_training
    else:
        toast = SMOOTHERS["toast"].fresh(pipeline.transformer, plan.smoothing)
        what = toast, pipeline.transformer, tokens, data.labels, codebook, plan.smoothing.rate
        task, config = SmootherTask(*what), plan.smoother_training
        task.wrong = unchanged
    config = replace(config, steps=steps, warmup=min(config.warmup, steps // 2))
    metadata = {"dataset": dataset, "preset": preset, "mirror": data.flip}
    fit(task, config, folder / part, device="cpu", metadata=metadata)


def canvases(pipeline: Pipeline) -> tuple[Tensor, Tensor, Tensor]:
    """Test images as canvases (B, N), masked as in training; their labels and where they are."""
    test = datasets.load(pipeline.card.dataset, "test", IMAGES)
    pixels, labels = test.batch(torch.arange(len(test)))
    tokens = pipeline.tokenizer.encode(pixels)  # (B, N)
    images, positions = tokens.shape
    masked = random_mask(images, positions, torch.Generator().manual_seed(0))
    return torch.where(masked, pipeline.transformer.config.mask_id, tokens), labels, masked


def strength(plain: Tensor, smooth: Tensor, scale: float) -> float:
    """Mean KL(plain || guided) in nats of logits (M, K)."""
    p = plain.log_softmax(-1)
    guided = (plain + scale * (plain - smooth)).log_softmax(-1)
    return (p.exp() * (p - guided)).sum(-1).mean().item()


def scale_of(plain: Tensor, smooth: Tensor, wanted: float) -> float:
    """The scale with this strength, to three digits; it grows with the scale."""
    low, high = 0.0, 1.0
    while strength(plain, smooth, high) < wanted:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if strength(plain, smooth, middle) < wanted else (low, middle)
    return float(f"{high:.3g}")


@torch.no_grad()
def both_at(
    pipeline: Pipeline, settings: Sampling, canvas: Tensor, labels: Tensor, masked: Tensor
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Plain and smoothed logits (M, K) at the masked positions."""
    plain, smooth = pipeline.guidance(settings).both(canvas, labels)
    assert smooth is not None  # no arm is unguided
    return plain.float()[masked], smooth.float()[masked]


def arm(name: str, shipped: Path, best: Sampling, work: Path) -> list[dict]:
    """The records of one arm at the strength of self-guidance's best setting."""
    guidance, part, steps = ARMS[name]
    folder = folder_of(shipped, part, steps, work)
    # where there is no bfloat16 the fast path gives the same images as the plain loop
    pipeline = Pipeline.from_pretrained(folder, "cpu", bf16=not has_bf16("cpu"))
    model = Pipeline.from_pretrained(shipped, "cpu")
    what = canvases(model)
    wanted = strength(*both_at(model, best, *what), best.scale)
    settings = best.updated(guidance=guidance, steps=PASSES // GUIDANCES[guidance][0].passes)
    scale = scale_of(*both_at(pipeline, settings, *what), wanted)
    out = work / f"{name.replace(', ', '-').replace(' ', '-')}.jsonl"
    edges, before = [TEMPERATURES.index(value) for value in FIRST["temperature"]], []
    while edges != before:
        values = TEMPERATURES[edges[0] : edges[1] + 1]
        points = [settings.updated(scale=scale, temperature=value) for value in values]
        tried = sweep(pipeline, points, TUNING, [TUNING_SEED], out)
        best_of = min(tried, key=lambda record: record["scores"]["frechet"])["settings"]
        at = TEMPERATURES.index(best_of["temperature"])
        before, edges = edges, grown(edges, at, TEMPERATURES)
    records = [*tried, *sweep(pipeline, [Sampling(**best_of)], FINAL, SEEDS, out)]
    for record in records:
        record["strength"] = wanted
        if part:  # so that tables tell the arms apart
            named(record, name)
    return records


def run(args) -> None:
    """All arms, one after the other; what a stopped run has measured is in the work folder."""
    shipped = find_pipeline(args.model)
    out = args.out / f"controls-{shipped.name}.jsonl"
    check_writable(out)
    rows, _ = results.reported(args.out / f"sweep-{shipped.name}.jsonl")
    best = Sampling(**results.best(rows, "self"))
    records = []
    for name in ARMS:
        records += arm(name, shipped, best, args.work)
        print(f"{name}: {table(summarise(records[-len(SEEDS) :]))}", flush=True)
    write_bytes(out, "".join(json.dumps(record) + "\n" for record in records).encode())


def main(arguments=None) -> int:
    """`python -m scripts.controls`; returns the exit code."""
    return command(__doc__, run, "controls", arguments)


if __name__ == "__main__":
    sys.exit(main())
