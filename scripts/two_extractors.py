"""Score real test images and their reconstructions with the classifier and the second extractor.

The classifier's features are part of the tokenizer's loss, the second extractor's are part of
nothing. `sgmgm sweep` scores samples with both.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from sgmgm import datasets, scoring
from sgmgm.pipeline import SHIPPED, Pipeline
from sgmgm.training import plain
from sgmgm.utils.errors import check_count
from sgmgm.utils.files import read_json, write_json
from sgmgm.utils.samples import to_uint8

from . import exit_code

SCORES = ("frechet", "precision", "recall", "density", "coverage", "accuracy", "prc_rows")


def images_of(what: str, pipeline: Pipeline, count: int):
    """Test images, "real" or "rebuilt", uint8 (N, H, W, 3), and their labels (N,)."""
    test = datasets.load(pipeline.card.dataset, "test", count)
    parts = []
    for pixels in test.batches(what):
        if what == "rebuilt":
            pixels = pipeline.tokenizer.decode(pipeline.tokenizer.encode(pixels))
        parts.append(torch.from_numpy(to_uint8(pixels)))
    return torch.cat(parts).numpy(), test.labels.numpy()


def run(args) -> None:
    """Add a record of the real images and one of the rebuilt ones to the results file."""
    check_count("--count", args.count, least=10)
    pipeline = Pipeline.from_pretrained(args.model)
    dataset, folder = pipeline.card.dataset, pipeline.folder
    both = scoring.find_extractors(dataset, folder)
    references = {k: scoring.reference_for(dataset, e, folder) for k, e in both.items()}
    for what in ("real", "rebuilt"):
        images, labels = images_of(what, pipeline, args.count)
        record = {
            "model": args.model if folder == SHIPPED / args.model else "own",
            "dataset": dataset,
            "extractors": [extractor.name for extractor in both.values()],
            "images": what,
            "count": args.count,
        }
        for part, extractor in both.items():
            scores = asdict(scoring.score(images, labels, references[part], extractor))
            record[part] = {name: scores[name] for name in SCORES}
        before = read_json(args.out) if args.out.is_file() else []
        write_json(args.out, [*before, plain(record)])


def main(arguments=None) -> int:
    """`python -m scripts.two_extractors`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a shipped name or a pipeline folder")
    parser.add_argument("--count", type=int, default=1000, help="images of each kind")
    parser.add_argument("--out", type=Path, required=True, help=".json; records are added to it")
    args = parser.parse_args(arguments)
    return exit_code(run, args)


if __name__ == "__main__":
    sys.exit(main())
