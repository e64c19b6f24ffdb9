"""Where is self-guidance worth most? Other generators, smoothers and orders, tuned alike.

- Generators with fewer training steps, each with a smoother of its own.
- Smoothers with other shares of wrong tokens and other numbers of training steps.
- Orders that do not look at the prediction. MaskGIT's order keeps the most confident of the sampled
  tokens, which acts like a lower softmax temperature; `random` and `halton` lack that. So the
  logits are divided by a softmax temperature here, and each guidance has the one that suits it best
  (arXiv 2510.04525 shows why).
"""

import json
import math
import sys
from pathlib import Path

import torch

from sgmgm.evidence.sweep import read_records, summarise, table
from sgmgm.pipeline import Pipeline, find_pipeline
from sgmgm.settings import Sampling
from sgmgm.transformer import MaskedTransformer
from sgmgm.utils.files import check_writable, write_bytes
from sgmgm.workflow import train

from .evidence import FINAL, SEEDS, Queue
from .variants import command, named, variant

GENERATORS = (625, 1250, 2500)  # training steps; the shipped one has 5,000
SMOOTHERS: dict[str, dict] = {
    "smoother, rate 15": {"rate": 0.15}, "smoother, rate 60": {"rate": 0.6},  # shipped: 30 %
    "smoother, 100 steps": {"steps": 100}, "smoother, 1200 steps": {"steps": 1200},  # shipped: 400
}  # fmt: skip
SOFTMAX_TEMPERATURES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
ORDERS = ("random", "halton")
GUIDANCES = ("none", "self")


def measured(folder: Path, work: Path, guidance: str) -> list[dict]:
    """The records of a method of this folder: tuned, then scored with the best setting."""
    queue = Queue(str(folder), math.inf, work)
    best = queue.tuned(guidance)
    for seed in SEEDS:
        queue.score(best, FINAL, seed)
    return of_method(queue, best)


def of_method(queue: Queue, like: Sampling) -> list[dict]:
    """All records of a queue with this guidance, order and number of steps."""
    same = {key: like.record()[key] for key in ("guidance", "order", "steps")}
    records = read_records(queue.folder / f"sweep-{queue.name}.jsonl")
    return [record for record in records if same.items() <= record["settings"].items()]


def generators(shipped: Path, work: Path) -> list[dict]:
    """Plain and self-guided sampling of less trained generators."""
    records, card = [], Pipeline.from_pretrained(shipped, "cpu").card
    for steps in GENERATORS:
        folder = variant(shipped, ("classifier", "tokenizer"), work / f"generator-{steps}")
        train("transformer", card.dataset, card.preset, folder, device="cpu", steps=steps)
        train("smoother", card.dataset, card.preset, folder, device="cpu")
        for guidance in GUIDANCES:
            found = measured(folder, work, guidance)
            records += [named(record, f"generator, {steps} steps") for record in found]
    return records


def smoothers(shipped: Path, work: Path) -> list[dict]:
    """Self-guided sampling with other smoothers of the shipped generator."""
    records, card = [], Pipeline.from_pretrained(shipped, "cpu").card
    for name, changes in SMOOTHERS.items():
        place = work / name.replace(", ", "-").replace(" ", "-")
        folder = variant(shipped, ("classifier", "tokenizer", "transformer"), place)
        train("smoother", card.dataset, card.preset, folder, device="cpu", **changes)
        records += [named(record, name) for record in measured(folder, work, "self")]
    return records


def cooled(shipped: Path, temperature: float, work: Path) -> Path:
    """The shipped pipeline with all logits divided by a softmax temperature."""
    shared = ("classifier", "tokenizer", "smoother")
    folder = variant(shipped, shared, work / f"softmax-temperature-{temperature:g}")
    if not (folder / "transformer").exists():
        model = MaskedTransformer.from_pretrained(shipped / "transformer")
        with torch.no_grad():
            for parameter in model.mlm_layer.to_logits.parameters():
                parameter.div_(temperature)
        model.save_pretrained(folder / "transformer")
    return folder


def orders(shipped: Path, work: Path) -> list[dict]:
    """Plain and self-guided sampling in other orders, each at its best softmax temperature."""
    queues = {t: Queue(str(cooled(shipped, t, work)), math.inf, work) for t in SOFTMAX_TEMPERATURES}
    records = []
    for order in ORDERS:
        for guidance in GUIDANCES:
            best = {t: queue.tuned(guidance, order=order) for t, queue in queues.items()}
            scores = {t: queue.tuning(best[t]) for t, queue in queues.items()}
            chosen = min(scores, key=lambda t: scores[t])
            for seed in SEEDS:
                queues[chosen].score(best[chosen], FINAL, seed)
            for t, queue in queues.items():
                name = f"softmax temperature {t:g}"
                records += [named(record, name) for record in of_method(queue, best[t])]
    return records


KINDS = {"generators": generators, "smoothers": smoothers, "orders": orders}


def run(args) -> None:
    """All three kinds; what a stopped run has measured is in the work folder."""
    shipped = find_pipeline(args.model)
    for kind, measure in KINDS.items():
        out = args.out / f"{kind}-{shipped.name}.jsonl"
        check_writable(out)
        records = measure(shipped, args.work)
        write_bytes(out, "".join(json.dumps(record) + "\n" for record in records).encode())
        final = [record for record in records if record["num"] == FINAL]
        print(f"{kind}\n{table(summarise(final))}", flush=True)


def main(arguments=None) -> int:
    """`python -m scripts.conditions`; returns the exit code."""
    return command(__doc__, run, "conditions", arguments)


if __name__ == "__main__":
    sys.exit(main())
