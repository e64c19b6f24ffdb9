"""Seals: what a lesson shows is in step with its code and with the models behind it.

`commit` is the only writer of a lesson's outputs. The notebook keeps those of the `laptop` profile,
which a reader sees; `tests/notebooks/smoke/NN.json` keeps the text of the `smoke` profile, with
which tests compare. A seal in the notebook's metadata tells from what both were made.
"""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image, ImageChops, ImageStat

from ..datasets import whole_set
from ..pipeline import SHIPPED
from ..utils.devices import default_device
from ..utils.errors import InputError
from ..utils.files import ROOT, atomic_path, read_json, write_json
from ..utils.hub import digest, fingerprint
from . import runner
from .start import machine

SMOKE = ROOT / "tests" / "notebooks" / "smoke"
SHOWN = "laptop"  # the profile whose outputs the notebooks keep
IGNORED = "nbval-ignore-output"  # the tag of cells whose text depends on the machine or on digits
UNLIKE = 10  # mean squared error, of 0..255, up to which a palette of 256 colours is not seen


def compared(notebook) -> list:
    """The code cells whose text the tests compare."""
    return [c for c in runner.code_cells(notebook) if IGNORED not in c.metadata.get("tags", [])]


def code_digest(notebook) -> str:
    """Of the code cells: their ids, tags and sources."""
    cells = runner.code_cells(notebook)
    return fingerprint(*((c.id, c.metadata.get("tags", []), c.source) for c in cells))


def weights_digest(notebook) -> str:
    """Of the shipped models that a lesson loads: the parts that it names, or all but "weak"."""
    folder = SHIPPED / whole_set(runner.declared(notebook)["dataset"])
    files = sorted([*folder.rglob("*.safetensors"), folder / "pipeline.json"])
    named = {"classifier", *runner.needed(notebook)}
    whole = any("Pipeline" in cell.source for cell in runner.code_cells(notebook))
    files = [f for f in files if f.parent.name in named or (whole and f.parent.name != "weak")]
    return fingerprint(*((f.relative_to(folder).as_posix(), digest(f)) for f in files))


def smoke_file(path: Path) -> Path:
    """Where the text of a lesson's smoke profile is kept."""
    shipped = path.resolve().parent == ROOT / "notebooks"
    return (SMOKE if shipped else path.parent / "smoke") / f"{path.stem[:2]}.json"


def stale(path: Path) -> str:
    """Why a lesson's outputs are out of date, and the command that mends it; "" if they are not."""
    notebook, text = runner.read_lesson(path, {}), smoke_file(path)
    seal = notebook.metadata.get("sgmgm", {}).get("seal", {})
    if not seal:
        reason = "it has no seal"
    elif seal["code"] != code_digest(notebook):
        reason = "its code has changed"
    elif seal["weights"] != weights_digest(notebook):
        reason = "the models behind it have changed"
    elif not text.is_file() or seal["smoke"] != fingerprint(read_json(text)):
        reason = f"{text.name}, the text of its smoke profile, is missing or has changed"
    else:
        return ""
    return f"{path.stem} is out of date: {reason}. Run: sgmgm course commit {path.stem[:2]}"


def stale_lessons() -> dict[str, str]:
    """The lessons that are out of date, by number, and what `stale` says of each."""
    lessons = runner.find_lessons([], ROOT / "notebooks")
    return {path.stem[:2]: reason for path in lessons if (reason := stale(path))}


def with_profile(notebook, profile: str):
    """The notebook with another profile in its parameters cell, in place."""
    cell = runner.parameter_cell(notebook)
    cell.source = re.sub(r"(?m)^profile = \S+", f'profile = "{profile}"', cell.source)
    return notebook


def execute(path: Path, profile: str, device: str | None):
    """A lesson's notebook after a run in this profile; InputError if a cell fails."""
    notebook = with_profile(runner.read_lesson(path, {}), profile)
    own = runner.parameter_cell(notebook)
    source = own.source
    own.source += f"\ndevice = {device!r}" if device else ""
    options: Any = {"timeout": None, "record_timing": False, "coalesce_streams": True}
    try:
        NotebookClient(notebook, kernel_name="python3", **options).execute()
    except CellExecutionError as error:
        raise InputError(f"{path.stem} failed ({profile}): {error.ename}: {error.evalue}") from None
    own.source = source
    return runner.freeze(notebook)


def smoke_text(notebook) -> dict[str, list]:
    """What the tests compare, by cell id: outputs without images, and without empty cells."""
    kept = json.loads(json.dumps({c.id: c.outputs for c in compared(notebook) if c.outputs}))
    for output in (output for outputs in kept.values() for output in outputs):
        output.get("data", {}).pop("image/png", None)
        output.get("metadata", {}).clear()
    return kept


def pixels(content: bytes):
    """A PNG's pixels, without an alpha channel; None if it moves."""
    with Image.open(io.BytesIO(content)) as image:
        return None if getattr(image, "is_animated", False) else image.convert("RGB")


def small_png(content: bytes) -> bytes:
    """The same PNG, with a palette where nobody sees the difference, if it does not move."""
    image = pixels(content)
    if image is None:
        return content
    reduced, file = image.quantize(256, dither=0), io.BytesIO()
    apart = ImageStat.Stat(ImageChops.difference(image, reduced.convert("RGB")))
    alike = sum(apart.sum2) / sum(apart.count) <= UNLIKE
    (reduced if alike else image).save(file, "png", optimize=True)
    return min(content, file.getvalue(), key=len)


def merge_images(notebook, before) -> None:
    """Make the PNGs small; where the pixels are those of the notebook `before`, keep its bytes."""
    old = {cell.id: cell.outputs for cell in runner.code_cells(before)}
    for cell in runner.code_cells(notebook):
        places = [o.data for o in cell.outputs if "image/png" in o.get("data", {})]
        known = [o.data for o in old.get(cell.id, []) if "image/png" in o.get("data", {})]
        for i, data in enumerate(places):
            png = small_png(base64.b64decode(data["image/png"]))
            if i < len(known):
                kept = base64.b64decode(known[i]["image/png"])
                png = kept if (image := pixels(png)) and image == pixels(kept) else png
            data["image/png"] = base64.b64encode(png).decode()


def commit(wanted: list[str], notebooks: Path | None, device: str | None) -> Iterator[Path]:
    """Run lessons in both profiles and write their outputs, smoke text and seals, one by one."""
    folder = Path(notebooks or ROOT / "notebooks")
    for path in runner.find_lessons(wanted, folder):
        before = runner.read_lesson(path, {})
        with runner.own_kernel():
            quick, shown = (execute(path, profile, device) for profile in ("smoke", SHOWN))
        text = smoke_text(quick)
        merge_images(shown, before)
        used = machine(torch.device(device or default_device()))
        shown.metadata.setdefault("sgmgm", {})["seal"] = {
            "profile": SHOWN, "code": code_digest(shown), "weights": weights_digest(shown),
            "smoke": fingerprint(text), "commit": runner.commit(), "device": used,
        }  # fmt: skip
        write_json(smoke_file(path), text)
        with atomic_path(path) as partial:
            nbformat.write(shown, partial)
        yield path
