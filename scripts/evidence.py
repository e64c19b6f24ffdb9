"""Measure every guidance on the same grid: a queue that goes on where it was stopped.

For each method all combinations of five temperatures and four scales are scored with 400 images of
a seed that no table reports. Where the best of them lies at an edge of the grid, the next value
beyond is added, until it does not. The best setting is then scored with 2,500 images of three other
seeds. All methods have at most 16 network passes for an image; no guidance is also tuned at 8
steps, which is as many as self-guidance has. Numbers are float32, so that they do not depend on the
machine. The records go to the sweeps in `data/results/`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from sgmgm.evidence.sweep import TUNING_SEED, grid_points, read_records, sweep, unused
from sgmgm.guidance import GUIDANCES
from sgmgm.pipeline import Pipeline
from sgmgm.scoring import balanced_labels, generate
from sgmgm.settings import Sampling
from sgmgm.utils.devices import has_bf16
from sgmgm.utils.files import ROOT, write_bytes

from . import exit_code

MODELS = ("fashion-mnist", "sprites", "cifar10")
# (guidance, smoother); the first ones matter most, because a queue may be stopped
METHODS = (
    ("none", None), ("self", None), ("cfg", None), ("auto", None), ("spatial", None),
    ("self+cfg", None), ("sharpened", None), ("spatial-embeddings", None), ("sag", None),
    ("self", "smoother-lora"),
)  # fmt: skip
LARGE = ("none", "self", "cfg", "auto", "self+cfg")  # scored with 10,000 images as well
PASSES = 16
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0)
SCALES = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
FIRST = {"temperature": (2.0, 8.0), "scale": (0.25, 2.0)}  # the grid's first edges
LADDERS = {"temperature": TEMPERATURES, "scale": SCALES}
TUNING, FINAL, MANY, SEEDS = 400, 2500, 10_000, [0, 1, 2]
TIMED = 500  # images behind the times of the final settings
FIGURE = "fashion-mnist", (2.0, 4.0, 8.0, 16.0)  # model and temperatures of the README's figure


def grown(edges: list[int], at: int, ladder: tuple) -> list[int]:
    """The edges of a grid of this ladder's values, one further out if the best lies at one."""
    return [max(0, min(edges[0], at - 1)), min(len(ladder) - 1, max(edges[1], at + 1))]


class OutOfTime(Exception):
    """The minutes are over; what is left waits for the next call."""


class Queue:
    """The points of one model, scored one after the other until the clock says stop."""

    def __init__(self, model: str, ends: float, folder: Path):
        # where there is no bfloat16 the fast path gives the same images as the plain loop
        self.pipeline = Pipeline.from_pretrained(model, "cpu", bf16=not has_bf16("cpu"))
        self.ends, self.folder, self.model = ends, folder, model
        self.name = self.pipeline.folder.name

    def score(self, point: Sampling, num: int, seed: int, kind: str = "sweep") -> dict:
        """The record of one point, kept or computed now."""
        if time.monotonic() > self.ends:
            raise OutOfTime
        out = self.folder / f"{kind}-{self.name}.jsonl"
        return sweep(self.pipeline, [point], num, [seed], out)[0]

    def tuning(self, point: Sampling) -> float:
        """The Fréchet distance of a point by which settings are chosen."""
        return self.score(point, TUNING, TUNING_SEED)["scores"]["frechet"]

    def tuned(
        self, guidance: str, smoother: str | None = None, passes: int = PASSES,
        order: str = "confidence",
    ) -> Sampling:  # fmt: skip
        """The best setting of a method on a grid at none of whose edges it lies."""
        steps = passes // GUIDANCES[guidance][0].passes
        base = Sampling(
            guidance=guidance, steps=steps, smoother=smoother or "smoother", order=order
        )
        first = {name: FIRST[name] for name in FIRST if name not in unused(base)}
        edges = {name: [LADDERS[name].index(value) for value in first[name]] for name in first}
        while True:
            grid = {n: list(LADDERS[n][low : high + 1]) for n, (low, high) in edges.items()}
            points = grid_points(base, grid)
            best = min(points, key=self.tuning)
            before = {name: list(pair) for name, pair in edges.items()}
            for name in edges:
                at = LADDERS[name].index(getattr(best, name))
                edges[name] = grown(edges[name], at, LADDERS[name])
            if edges == before:
                return best

    def times(self) -> None:
        """Measure the time of all final settings in one go: the queue may have run on any machine.

        Their "sampling_core_seconds" become those of `TIMED` images, scaled to their number.
        """
        out = self.folder / f"sweep-{self.name}.jsonl"
        records = read_records(out)
        final = [record for record in records if record["num"] == FINAL]
        if all(record.get("timed") == TIMED for record in final):
            return
        labels = balanced_labels(TIMED, list(range(len(self.pipeline.card.classes))))
        spent: dict[str, float] = {}
        for record in final:
            setting = json.dumps(record["settings"])
            if setting not in spent:
                begun = time.process_time()
                generate(self.pipeline, labels, **record["settings"])
                spent[setting] = time.process_time() - begun
            seconds = round(spent[setting] * FINAL / TIMED, 1)
            record |= {"sampling_core_seconds": seconds, "timed": TIMED}
        write_bytes(out, "".join(json.dumps(record) + "\n" for record in records).encode())

    def figure(self, best: dict) -> None:
        """Plain and self-guided sampling at rising temperatures, all else as `best` says."""
        for temperature in FIGURE[1]:
            for guidance in ("none", "self"):
                point = best[guidance, None].updated(temperature=temperature)
                self.score(point, FINAL, SEEDS[0], "temperature")

    def run(self) -> None:
        """All methods of the model: each is tuned, then scored."""
        best: dict = {}
        for guidance, smoother in METHODS:
            if smoother and not (self.pipeline.folder / smoother).is_dir():
                continue
            best[guidance, smoother] = self.tuned(guidance, smoother)
            for seed in SEEDS:
                scores = self.score(best[guidance, smoother], FINAL, seed)["scores"]
            if (guidance, smoother, self.model) == ("self", None, FIGURE[0]):
                self.figure(best)
            print(f"{self.model}: {best[guidance, smoother]}: {scores['frechet']:.3f}", flush=True)
        equal_steps = self.tuned("none", passes=PASSES // 2)
        for seed in SEEDS:
            self.score(equal_steps, FINAL, seed)
        self.times()
        for guidance in LARGE:
            for seed in SEEDS:
                self.score(best[guidance, None], MANY, seed, "large")


def run(args) -> None:
    """The queues of all models, one after the other."""
    ends = time.monotonic() + 60 * args.minutes
    # all are loaded first: a wrong name is found before hours of work
    queues = [Queue(model, ends, args.out) for model in args.models.split(",")]
    try:
        for queue in queues:
            queue.run()
    except OutOfTime:
        print("the minutes are over; the same command goes on from here")


def main(arguments=None) -> int:
    """`python -m scripts.evidence`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=600, help="no point begins later")
    parser.add_argument("--models", default=",".join(MODELS), help="a list of shipped names")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "results", help="a folder")
    return exit_code(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
