"""Write the exercise notebooks from their solutions: `python -m scripts.exercises [LESSON ...]`."""

import ast
import copy
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

from sgmgm.course.runner import find_lessons, read_lesson
from sgmgm.utils.files import ROOT, atomic_path

from . import exit_code


def exercise(solution):
    """The exercise notebook of a solution notebook.

    In cells tagged `solution` every function loses its body.
    """
    notebook = copy.deepcopy(solution)
    notebook.cells = []
    for cell in copy.deepcopy(solution.cells):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "solution" not in cell.metadata.get("tags", []):
            notebook.cells.append(cell)
            continue
        notebook.cells.append(new_code_cell(stub(cell.source), id=cell.id))
    return notebook


def stub(source: str) -> str:
    """Functions without their bodies: signature, docstring, `...`."""
    lines, kept = source.splitlines(), []
    for function in ast.parse(source).body:
        docstring = function.body[0]
        kept += [*lines[function.lineno - 1 : docstring.end_lineno], "    ...  # your lines", ""]
    return "\n".join(kept).rstrip()


def write_exercises(wanted: list[str], folder: Path) -> list[Path]:
    """Write these lessons' `exercises/` from their `solutions/` in a folder; returns the files."""
    written = []
    for path in find_lessons(wanted, folder / "solutions"):
        place = folder / "exercises" / path.name
        with atomic_path(place) as partial:
            nbformat.write(exercise(read_lesson(path, {})), partial)
        written.append(place)
    return written


def main(lessons: list[str], folder: Path = ROOT / "notebooks") -> int:
    """Write the exercises of these lessons, of all if none is named; returns the exit code."""

    def run() -> None:
        written = write_exercises(lessons, folder)
        print(f"{written[0].parent}: {len(written)} notebooks from their solutions")

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
