"""Jump in at any lesson: bring about the state in which it starts."""

import ast
from pathlib import Path

from ..pipeline import SHIPPED
from ..scoring import load_data
from ..utils.files import ROOT
from ..utils.hub import check_manifest
from .runner import find_lessons, read_lesson
from .start import models, preflight


def needed(notebook) -> list[str]:
    """The parts of a pipeline that a lesson asks `course.models` for, in its order."""
    parts: dict[str, None] = {}  # a dict keeps the order
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "course.models":
                parts |= {ast.literal_eval(a): None for a in node.args}
    return list(parts)


def catch_up(lesson: str, notebooks: Path | None = None, **parameters) -> tuple[Path, list, Path]:
    """Bring about the state in which a lesson, a number or name, starts: data and models are here.

    The parameters are profile, dataset, seed and device, as in the lesson. Returns the lesson, the
    parts that it needs, and their folder: the shipped one, or one in `runs/`, where missing ones
    are trained. InputError: no such lesson; CheckpointError, DataError: damaged files.
    """
    path = find_lessons([lesson], Path(notebooks or ROOT / "notebooks"))[0]
    parts = needed(read_lesson(path, parameters))
    machine = {name: parameters[name] for name in ("device", "profile", "dataset")}
    parameters["device"] = preflight(**machine)
    load_data(parameters["dataset"], "test", count=10)  # downloads what is absent
    folder = models(*parts, **parameters)
    if folder.parent == SHIPPED:
        check_manifest(folder)
    return path, parts, folder
