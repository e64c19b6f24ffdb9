"""Other trainings: does the gain of a guidance hold when the networks are trained anew?

The generator, its smoother and its weak model are trained with other seeds, on the shipped
tokenizer, and sampled at the settings that were tuned on the shipped ones. Nothing is tuned anew.
`results.trainings` joins the records with those of the shipped training.
"""

import sys
from pathlib import Path

from sgmgm.evidence import results
from sgmgm.evidence.sweep import summarise, sweep, table
from sgmgm.pipeline import Pipeline, find_pipeline
from sgmgm.settings import Sampling
from sgmgm.utils.devices import has_bf16
from sgmgm.utils.files import check_writable
from sgmgm.workflow import train

from .evidence import FINAL, SEEDS
from .variants import command, variant

TRAININGS = (1, 2)  # seeds; the shipped networks have 0
PARTS = ("transformer", "smoother", "weak")
SHARED = ("classifier", "tokenizer")
GUIDANCES = ("none", "self", "auto", "cfg")


def trained(shipped: Path, seed: int, work: Path) -> Path:
    """A pipeline folder with the shipped tokenizer, and all that rests on it trained anew."""
    folder = variant(shipped, SHARED, work / f"training-{seed}")
    card = Pipeline.from_pretrained(shipped, "cpu").card
    for part in PARTS:
        train(part, card.dataset, card.preset, folder, seed, "cpu")
    return folder


def run(args) -> None:
    """One training after the other; what a stopped run has done stays."""
    shipped = find_pipeline(args.model)
    out = args.out / f"trainings-{shipped.name}.jsonl"
    check_writable(out)
    rows, _ = results.reported(args.out / f"sweep-{shipped.name}.jsonl")
    points = [Sampling(**results.best(rows, guidance)) for guidance in GUIDANCES]
    for seed in TRAININGS:
        folder = trained(shipped, seed, args.work)
        # where there is no bfloat16 the fast path gives the same images as the plain loop
        pipeline = Pipeline.from_pretrained(folder, "cpu", bf16=not has_bf16("cpu"))
        print(table(summarise(sweep(pipeline, points, FINAL, SEEDS, out))), flush=True)


def main(arguments=None) -> int:
    """`python -m scripts.trainings`; returns the exit code."""
    return command(__doc__, run, "trainings", arguments)


if __name__ == "__main__":
    sys.exit(main())
