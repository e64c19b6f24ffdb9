"""One trained system for all tests, and how many cases are generated."""

import shutil

import pytest
from hypothesis import HealthCheck, settings

from sgmgm import datasets

from . import trained as system

# `make test`, `make check` and every night: how many of the cases that a test names, in percent
quiet = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("test", derandomize=True, max_examples=10, **quiet)
settings.register_profile("check", derandomize=True, max_examples=100, **quiet)
settings.register_profile("nightly", max_examples=200, print_blob=True, **quiet)
settings.load_profile("test")


@pytest.fixture(scope="session", autouse=True)
def few_sprites():
    """Every whole sprites split is its first few images: rendering all takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", system.few_sprites())
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A pipeline folder with every part. Read it only; use `own` to change something."""
    return shutil.copytree(system.FOLDER, tmp_path_factory.mktemp("trained") / "sprites")


@pytest.fixture(scope="session")
def retrained(tmp_path_factory):
    """The same system, trained on this machine: half a minute."""
    return system.train_all(tmp_path_factory.mktemp("retrained") / "sprites")


@pytest.fixture
def own(trained, tmp_path):
    """A copy of the trained pipeline for one test to damage."""
    return shutil.copytree(trained, tmp_path / "own")
