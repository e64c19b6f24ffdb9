"""The trained system of the tests: the `smoke` preset on sprites, in tests/fixtures/trained.

It is committed, so that no test has to wait for a training; test_training trains it again and
compares. Where the presets or the formats change, `python -m tests.trained` writes it anew.
"""

import shutil
from functools import lru_cache
from pathlib import Path

from sgmgm import datasets, settings, workflow

FOLDER = Path(__file__).parent / "fixtures" / "trained"
FEW = {"train": 2000, "test": 500}  # of the sprites; `smoke` trains on 2,000 in any case


def few_sprites():
    """`datasets.load`, but a whole split of sprites is its first few images, rendered once."""
    whole = datasets.load
    kept = lru_cache(maxsize=None)(whole)

    def load(name, split="train", count=None, resolution=32):
        if name == "sprites" and split in FEW and count in (None, FEW[split]) and resolution == 32:
            return kept(name, split, FEW[split])
        return whole(name, split, count, resolution)

    return load


def train_all(folder: Path) -> Path:
    for part in settings.PARTS:
        workflow.train(part, "sprites", "smoke", folder, device="cpu")
    return folder


if __name__ == "__main__":
    datasets.load = few_sprites()
    shutil.rmtree(FOLDER, ignore_errors=True)
    train_all(FOLDER)
    (FOLDER / "tokens.safetensors").unlink()  # made anew where they are needed
