"""Score a model's images with the classifier and with the second extractor.

The classifier's features are part of the tokenizer's loss, the second extractor's are part of
nothing. Scored are real test images ("real"), their reconstructions ("rebuilt") and samples of a
guidance at its best setting ("none", "self", "cfg"), each with the same number of images.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from sgmgm import datasets, scoring
from sgmgm.pipeline import SHIPPED, Pipeline
from sgmgm.training import plain
from sgmgm.utils.errors import SgmgmError, check_count
from sgmgm.utils.files import read_json, write_json
from sgmgm.utils.samples import to_uint8

SCORES = ("frechet", "precision", "recall", "density", "coverage", "accuracy", "prc_rows")
# the best setting of each method with at most 16 network passes (see data/results)
SETTINGS = {
    "cifar10": {
        "none": {"steps": 16, "temperature": 6.0, "guidance": "none", "scale": 0.0},
        "self": {"steps": 8, "temperature": 4.0, "guidance": "self", "scale": 0.5},
        "cfg": {"steps": 8, "temperature": 24.0, "guidance": "cfg", "scale": 8.0},
    },
    "fashion-mnist": {
        "none": {"steps": 16, "temperature": 3.0, "guidance": "none", "scale": 0.0},
        "self": {"steps": 8, "temperature": 3.0, "guidance": "self", "scale": 1.0},
        "cfg": {"steps": 8, "temperature": 4.0, "guidance": "cfg", "scale": 0.5},
    },
}


def images_of(what: str, pipeline: Pipeline, count: int, seed: int, settings: dict):
    """Images uint8 (N, H, W, 3) and labels (N,): "real", "rebuilt" or the samples of a setting."""
    if what in ("real", "rebuilt"):
        test = datasets.load(pipeline.card.dataset, "test", count)
        parts = []
        for pixels in test.batches(what):
            if what == "rebuilt":
                pixels = pipeline.tokenizer.decode(pipeline.tokenizer.encode(pixels))
            parts.append(torch.from_numpy(to_uint8(pixels)))
        return torch.cat(parts).numpy(), test.labels.numpy()
    labels = scoring.balanced_labels(count, list(range(len(pipeline.card.classes))))
    return scoring.generate(pipeline, labels, seed, **settings)[0], labels.numpy()


def run(args) -> None:
    """Add one record for each kind of images to the results file."""
    pipeline = Pipeline.from_pretrained(args.model)
    dataset, folder = pipeline.card.dataset, pipeline.folder
    both = {
        part: scoring.find_extractor(part, dataset, folder) for part in ("classifier", "second")
    }
    references = {k: scoring.reference_for(dataset, e, folder) for k, e in both.items()}
    kinds = {}
    for what in args.images.split(","):
        usual = SETTINGS.get(dataset, {}).get(what, {"guidance": what})
        kinds[what] = {} if what in ("real", "rebuilt") else usual
        pipeline.card.sampling.updated(**kinds[what])  # a wrong name is found before the work
    for what, settings in kinds.items():
        images, labels = images_of(what, pipeline, args.count, args.seed, settings)
        record = {
            "model": args.model if folder == SHIPPED / args.model else "own",
            "dataset": dataset,
            "extractors": [extractor.name for extractor in both.values()],
            "images": what,
            "count": args.count,
        }
        if settings:
            record |= {"seed": args.seed}
            record |= {"settings": pipeline.card.sampling.updated(**settings).record()}
        for part, extractor in both.items():
            scores = asdict(scoring.score(images, labels, references[part], extractor))
            record[part] = {name: scores[name] for name in SCORES}
        before = read_json(args.out) if args.out.is_file() else []
        write_json(args.out, [*before, plain(record)])


def main(arguments=None) -> int:
    """`python -m scripts.two_extractors`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a shipped name or a pipeline folder")
    parser.add_argument("--images", default="real,rebuilt,none,self,cfg", help="a list of: real, "
                        "rebuilt, a guidance's name")  # fmt: skip
    parser.add_argument("--count", type=int, default=1000, help="images of each kind")
    parser.add_argument("--seed", type=int, default=10_000_000, help="of the first sample")
    parser.add_argument("--out", type=Path, required=True, help=".json; records are added to it")
    args = parser.parse_args(arguments)
    try:
        check_count("--count", args.count, least=2)
        run(args)
    except SgmgmError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
