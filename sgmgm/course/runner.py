"""The runner: execute lessons one by one, with a report and pages to look at; or jump in at any."""

import ast
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
import torch
from ipykernel.kernelspec import write_kernel_spec

from .. import doctor
from ..pipeline import SHIPPED
from ..utils.devices import default_device
from ..utils.errors import InputError, listed, reason
from ..utils.files import ROOT, write_json
from ..utils.hub import check_manifest
from . import gallery
from .start import REPORTED, images, machine, models, preflight


def find_lessons(wanted: list[str], folder: Path) -> list[Path]:
    """Lessons by number ("01") or name, all of them if none is named, in their order."""
    paths = [p for p in sorted(folder.glob("[0-9][0-9]_*.ipynb")) if "-Copy" not in p.stem]
    lessons = {path.stem: path for path in paths}  # without JupyterLab's duplicates
    if not lessons:
        raise InputError(f"{folder} holds no lessons: give the course's folder with --notebooks.")
    chosen = set()
    for word in wanted:
        word = word.removesuffix(".ipynb")
        found = {name for name in lessons if word in (name, name[:2])}
        if not found:
            raise InputError(f"unknown lesson {word!r}: choose from {listed(lessons, 20)}.")
        chosen |= found
    return [path for name, path in lessons.items() if name in chosen or not wanted]


def code_cells(notebook) -> list:
    """The cells that hold code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameter_cell(notebook):
    """The cell tagged `parameters`; None if there is none."""
    return next((c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])), None)


def declared(notebook) -> dict:
    """What a lesson's `parameters` cell assigns: name -> value."""
    cell = parameter_cell(notebook)
    lines = ast.parse(cell.source).body if cell else []
    return {
        line.targets[0].id: ast.literal_eval(line.value)
        for line in lines
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name)
    }


def read_lesson(path: Path, parameters: dict):
    """A lesson's notebook; InputError if it is damaged or does not declare these parameters."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat and json raise many kinds
        raise InputError(f"{path} cannot be read as a notebook: {error}.") from None
    unknown = [name for name in parameters if name not in declared(notebook)]
    if unknown:
        raise InputError(f"{path.stem} does not declare the parameter {listed(unknown)}.")
    return notebook


@contextmanager
def own_kernel():
    """Kernels named python3 run this very interpreter, quietly, whatever Jupyter has registered."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "kernels" / "python3"
        write_kernel_spec(place, extra_arguments=["--log-level=CRITICAL"])
        os.environ |= {"TQDM_DISABLE": "1", "JUPYTER_PATH": folder}
        os.environ.pop("JPY_SESSION_NAME", None)  # no person's notebook: see `done.notebook`
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= before


def run_lesson(path: Path, out: Path, parameters: dict) -> str:
    """Execute one lesson into `out`; returns "ok" or "failed: ..." in one sentence."""
    done, failed = out / path.name, out / f"{path.stem}.failed.ipynb"
    partial = out / f".{path.stem}.partial.ipynb"
    for old in (done, failed):
        old.unlink(missing_ok=True)
    try:
        options = {"kernel_name": "python3", "progress_bar": False}
        notebook = papermill.execute_notebook(path, partial, parameters, **options)
        nbformat.write(freeze(notebook), partial)
        partial.replace(done)
        return "ok"
    except papermill.PapermillExecutionError as error:
        partial.replace(failed)
        return f"failed: {error.ename} in cell {error.exec_count}: {' '.join(error.evalue.split())}"
    except Exception as error:  # the kernel died, the disk is full, ...
        return f"failed: {type(error).__name__}: {reason(error)}"
    finally:
        partial.unlink(missing_ok=True)


def freeze(notebook):
    """An executed notebook whose views are images: the kernel that would move them is gone."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


def run(wanted: list[str], out: Path, notebooks: Path | None = None, **parameters) -> list[dict]:
    """Execute lessons one by one into `out`; write `report.json` and pages to look at there.

    `wanted` are numbers or names, all lessons if empty; `parameters` are profile, dataset, seed
    and device, each lesson's own if not given. Returns for each lesson its name, seconds, budget
    (seconds, or None) and status: "ok", "over budget" or "failed: ...". A failing lesson does not
    stop the others.
    """
    lessons = find_lessons(wanted, Path(notebooks or ROOT / "notebooks"))
    read = {path: read_lesson(path, parameters) for path in lessons}
    device = torch.device(parameters.get("device") or default_device())
    summary = parameters | {
        "device": machine(device),
        "speed": round(doctor.speed(device, seconds=1)),  # `sgmgm doctor` compares with its own
        "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in REPORTED},
        "python": sys.version.split()[0],
        "lessons": [],
    }
    write_json(out / "report.json", summary)  # before the work: a place that cannot be written
    with own_kernel():
        for number, path in enumerate(lessons, start=1):
            print(f"[{number}/{len(lessons)}] {path.stem} ...", file=sys.stderr, flush=True)
            begun = time.perf_counter()
            status = run_lesson(path, out, parameters)
            seconds = round(time.perf_counter() - begun, 1)
            budgets = read[path].metadata.get("sgmgm", {}).get("budget", {})
            budget = budgets.get(parameters.get("profile"))
            if status == "ok" and budget is not None and seconds > budget:
                status = "over budget"
            entry = {"name": path.stem, "seconds": seconds, "budget": budget, "status": status}
            summary["lessons"].append(entry)
            write_json(out / "report.json", summary)
            allowed = f" of {budget} s" if budget is not None else " s"
            print(f"      {seconds:.0f}{allowed}: {status}", file=sys.stderr, flush=True)
    gallery.write(out, summary)
    return summary["lessons"]


def commit() -> str:
    """The repository's commit, with "+changes" if the files differ from it, or "unknown"."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "-s") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def needed(notebook) -> list[str]:
    """The parts of a pipeline that a lesson asks `course.models` for, in its order."""
    parts: dict[str, None] = {}  # a dict keeps the order
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "course.models":
                parts |= {ast.literal_eval(a): None for a in node.args}
    return list(parts)


def catch_up(lesson: str, notebooks: Path | None = None, **parameters) -> tuple[Path, list, Path]:
    """Bring about the state in which a lesson, a number or name, starts: data and models are here.

    The parameters are profile, dataset, seed and device, the lesson's own if not given. Returns
    the lesson, the parts that it needs, and their folder: the shipped one, or one in `runs/`, where
    missing ones are trained. InputError: no such lesson; CheckpointError, DataError: damaged files.
    """
    path = find_lessons([lesson], Path(notebooks or ROOT / "notebooks"))[0]
    notebook = read_lesson(path, parameters)
    parts, parameters = needed(notebook), declared(notebook) | parameters
    machine = {name: parameters[name] for name in ("device", "profile", "dataset")}
    parameters["device"] = preflight(**machine)
    what = {name: parameters[name] for name in ("dataset", "profile")}
    images("test", 10, **what)  # downloads what is absent
    folder = models(*parts, **parameters)
    if folder.parent == SHIPPED:
        check_manifest(folder)
    return path, parts, folder
