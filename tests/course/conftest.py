"""A folder for lessons, and runs that do not measure the machine."""

import pytest

from sgmgm.course import runner


@pytest.fixture(autouse=True)
def no_probe(monkeypatch):
    """A run measures the machine's speed; `test_doctor` does that once."""
    monkeypatch.setattr(runner.doctor, "speed", lambda device, seconds: 100.0)


@pytest.fixture
def notebooks(tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    return folder
