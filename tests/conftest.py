"""One trained system for all tests: the `smoke` preset on sprites, made once per session."""

import shutil
from functools import lru_cache

import pytest

from sgmgm import datasets, settings, workflow

FEW = {"train": 2000, "test": 500}  # of the sprites; `smoke` trains on 2,000 in any case


@pytest.fixture(scope="session", autouse=True)
def few_sprites():
    """Every whole sprites split is its first few images, drawn once: drawing takes seconds."""
    whole = datasets.load
    kept = lru_cache(maxsize=None)(whole)

    def load(name, split="train", count=None, resolution=32):
        if name == "sprites" and split in FEW and count in (None, FEW[split]) and resolution == 32:
            return kept(name, split, FEW[split])
        return whole(name, split, count, resolution)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", load)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A pipeline folder with every part. Read it only; use `own` to change something."""
    folder = tmp_path_factory.mktemp("trained") / "sprites"
    for part in settings.PARTS:
        workflow.train(part, "sprites", "smoke", folder, device="cpu")
    return folder


@pytest.fixture
def own(trained, tmp_path):
    """A copy of the trained pipeline for one test to damage."""
    return shutil.copytree(trained, tmp_path / "own")
