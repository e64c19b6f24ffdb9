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
    if where is None or Path(where).parent.name == "solutions":
        return
    try:
        write_json(place(), remembered() | {name: str(datetime.date.today())})
    except InputError as error:
        print(f"This is not remembered: {error}")


def remembered() -> dict[str, str]:
    """The passed checks with their dates; a damaged file is named, and counts as empty."""
    if not place().exists():
        return {}
    try:
        kept = read_json(place())
    except CheckpointError:
        kept = None
    if isinstance(kept, dict):
        return kept
    print(f"{place()} is damaged and counts as empty: the next passed check replaces it.")
    return {}


def exercises() -> dict[str, list[str]]:
    """The checks of each lesson in their order: "00" -> ["saving", ...]."""
    paths = sorted((workspace() / "notebooks" / "exercises").glob("[0-9][0-9]_*.ipynb"))
    calls = {path.name[:2]: path.read_text(encoding="utf-8") for path in paths}
    found = {lesson: re.findall(r'"exercises\.(\w+)\(', text) for lesson, text in calls.items()}
    return {lesson: list(dict.fromkeys(names)) for lesson, names in found.items()}


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
        known = exercises()
        if known and lesson not in known:
            raise InputError(f"there is no lesson {lesson!r}: name one of {', '.join(known)}.")
        self.names = known.get(lesson, [])
        self.done = remembered() if notebook() else {}  # elsewhere the text is always the same
        left = [name for name in self.names if name not in self.done]
        after = [other for other in known if other > lesson]
        lesson_next = f"lesson {after[0]}" if after else "nothing: this is the last lesson"
        self.next = f"Next: {f'exercise {left[0]}' if left else lesson_next}"

    def __repr__(self) -> str:
        lines = [f"[{'x' if name in self.done else ' '}] {name}" for name in self.names]
        return "\n".join([*lines, self.next])

    def _repr_html_(self) -> str:
        lines = [f"{'☑' if n in self.done else '☐'} {escape(n)}" for n in self.names]
        return "<br>".join([*lines, self.next])


def show(lesson: str) -> Progress:
    """What is done of a lesson ("04") and what comes next, to be the last value of its cell.

    InputError if there is no such lesson.
    """
    return Progress(lesson)
