"""Progress: which exercises' checks the reader has passed, kept in one file of the workspace."""

import datetime
import os
import re
import sys
from html import escape
from pathlib import Path

from ..utils.errors import CheckpointError, InputError
from ..utils.files import read_json, write_json
from .start import workspace


def place() -> Path:
    """The file with the names of the passed checks."""
    return workspace() / "runs" / "progress.json"


def notebook() -> str | None:
    """The notebook that a person has open in JupyterLab or VS Code; None for any other program."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    names = getattr(shell, "user_ns", {})
    return names.get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME")


def passed(name: str) -> None:
    """Say that a check is passed, and remember it, unless it was the solutions' own answer."""
    print(f"{name}: right.")
    where = notebook()
    if where is None or "solutions" in Path(where).parts:
        return
    try:
        write_json(place(), remembered() | {name: str(datetime.date.today())})
    except InputError as error:
        print(f"This is not remembered: {error}")


def remembered() -> dict[str, str]:
    """The passed checks with their dates; nothing where the file is absent or damaged."""
    try:
        kept = read_json(place())
    except CheckpointError:
        return {}
    return kept if isinstance(kept, dict) else {}


def exercises() -> dict[str, list[str]]:
    """The checks of each lesson in their order: "00" -> ["saving", ...]."""
    paths = sorted((workspace() / "notebooks" / "exercises").glob("[0-9][0-9]_*.ipynb"))
    calls = {path.name[:2]: path.read_text(encoding="utf-8") for path in paths}
    return {lesson: re.findall(r'"exercises\.(\w+)\(', text) for lesson, text in calls.items()}


def describe() -> str:
    """A line for each lesson: what is done and what is left."""
    have, lines = remembered(), []
    for lesson, names in exercises().items():
        left = [name for name in names if name not in have]
        todo = f"; to do: {', '.join(left)}" if left else ""
        lines.append(f"{lesson}: {len(names) - len(left)} of {len(names)} exercises done{todo}")
    return "\n".join(lines) or "The exercises are not here: they come with the course's repository."


class Progress:
    """The exercises of a lesson, with a tick at those that are done."""

    def __init__(self, lesson: str):
        self.names = exercises().get(lesson, [])
        self.done = remembered() if notebook() else {}  # elsewhere the text is always the same

    def __repr__(self) -> str:
        return "\n".join(f"[{'x' if name in self.done else ' '}] {name}" for name in self.names)

    def _repr_html_(self) -> str:
        return "<br>".join(f"{'☑' if n in self.done else '☐'} {escape(n)}" for n in self.names)


def show(lesson: str) -> Progress:
    """The exercises of a lesson ("04") and which are done, to be the last value of its cell."""
    return Progress(lesson)
