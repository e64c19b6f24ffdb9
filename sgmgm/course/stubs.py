"""Exercise notebooks, generated from the solutions."""

import ast
import copy
from pathlib import Path

from ..utils.files import ROOT, atomic_path
from .runner import find_lessons, read_lesson


def exercise(solution):
    """The exercise notebook of a solution notebook.

    In cells tagged `solution` every function loses its body.
    """
    from nbformat.v4 import new_code_cell

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
        docstring = function.body[0]  # type: ignore[attr-defined]
        kept += [*lines[function.lineno - 1 : docstring.end_lineno], "    ...  # your lines", ""]
    return "\n".join(kept).rstrip()


def write_exercises(wanted: list[str], notebooks: Path | None = None) -> list[Path]:
    """Write these lessons' `exercises/` from their `solutions/`; returns the files."""
    import nbformat

    folder = Path(notebooks or ROOT / "notebooks")
    written = []
    for path in find_lessons(wanted, folder / "solutions"):
        place = folder / "exercises" / path.name
        with atomic_path(place) as partial:
            nbformat.write(exercise(read_lesson(path, {})), partial)
        written.append(place)
    return written
