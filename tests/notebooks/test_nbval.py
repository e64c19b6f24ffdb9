"""Every notebook runs in the smoke profile and still says what its committed outputs say.

Figures, and cells tagged `nbval-ignore-output` (whatever depends on a trained model's digits or
on the machine), are executed and not compared.
"""

import os
import subprocess
import sys

import pytest

from sgmgm.course import runner

FOLDER = runner.ROOT / "notebooks"
SOON = ("00", "03")  # these lessons in `make test`, everything in `make check`
FOLDERS = (FOLDER, FOLDER / "labs", FOLDER / "solutions")


def notebooks():
    for path in sorted(path for folder in FOLDERS for path in folder.glob("[0-9]*.ipynb")):
        soon = path.parent == FOLDER and path.stem[:2] in SOON
        name = path.relative_to(FOLDER).with_suffix("").as_posix()
        yield pytest.param(path, id=name, marks=[] if soon else pytest.mark.check)


@pytest.mark.parametrize("path", list(notebooks()))
def test_it_runs_and_says_the_same(path):
    words = ["-m", "pytest", "-q", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [sys.executable, *words, path],
        cwd=runner.ROOT,
        env=os.environ | {"TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
