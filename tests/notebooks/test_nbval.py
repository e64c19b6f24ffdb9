"""Every notebook runs in the smoke profile and still says what is kept of that.

Of a lesson a temporary copy runs: in the smoke profile, with the text of `smoke/NN.json` as its
outputs. Figures, and cells tagged `nbval-ignore-output` (whatever depends on a trained model's
digits or on the machine), are executed and not compared; a lesson's cells of this kind hold
assertions.
"""

import os
import subprocess
import sys

import nbformat
import pytest

from sgmgm.course import runner, seals
from sgmgm.utils.files import read_json

FOLDER = runner.ROOT / "notebooks"
SOON = ("00", "03")  # these lessons in `make test`, everything in `make check`
FOLDERS = (FOLDER, FOLDER / "labs", FOLDER / "solutions")
LESSONS = runner.find_lessons([], FOLDER)


def notebooks():
    for path in sorted(path for folder in FOLDERS for path in folder.glob("[0-9]*.ipynb")):
        soon = path.parent == FOLDER and path.stem[:2] in SOON
        name = path.relative_to(FOLDER).with_suffix("").as_posix()
        yield pytest.param(path, id=name, marks=[] if soon else pytest.mark.check)


def nbval(path):
    """What nbval says of a notebook: the finished process."""
    words = ["-m", "pytest", "-q", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider"]
    words.append("--nbval-kernel-startup-timeout=300")  # a busy machine is no failure
    return subprocess.run(
        [sys.executable, *words, path],
        cwd=runner.ROOT,
        env=os.environ | {"TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


def copy(notebook, text, folder):
    """A notebook in the smoke profile, with the compared outputs of a smoke file."""
    for cell in runner.code_cells(seals.with_profile(notebook, "smoke")):
        cell.outputs = [nbformat.NotebookNode(output) for output in text.get(cell.id, [])]
    nbformat.write(notebook, folder / "lesson.ipynb")
    return folder / "lesson.ipynb"


@pytest.mark.parametrize("path", list(notebooks()))
def test_it_runs_and_says_the_same(path, tmp_path):
    if path.parent == FOLDER:
        text = read_json(seals.smoke_file(path))
        path = copy(runner.read_lesson(path, {}), text, tmp_path)
    ran = nbval(path)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_smoke_text_is_of_compared_cells(lesson):
    """Every compared cell that shows something has its text, and no other cell."""
    notebook = runner.read_lesson(lesson, {})
    shown = {cell.id for cell in seals.compared(notebook) if cell.outputs}
    assert read_json(seals.smoke_file(lesson)).keys() == shown


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_a_cell_that_is_not_compared_asserts(lesson):
    """All but the one that asks for the machine, which `course.preflight` checks."""
    notebook = runner.read_lesson(lesson, {})
    names = {cell.id for cell in seals.compared(notebook)}
    rest = [cell.source for cell in runner.code_cells(notebook) if cell.id not in names]
    assert sum("course.preflight(" in source for source in rest) == 1
    for source in rest:
        assert "course.preflight(" in source or "assert" in source, source


def test_another_text_is_noticed(tmp_path):
    cells = [
        nbformat.v4.new_code_cell('profile = "laptop"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(profile)", id="says", execution_count=2),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    lesson = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    for word, code in (("smoke", 0), ("laptop", 1)):
        text = {"says": [{"output_type": "stream", "name": "stdout", "text": f"{word}\n"}]}
        assert nbval(copy(lesson, text, tmp_path)).returncode == code
