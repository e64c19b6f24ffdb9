"""The course: what every lesson starts with, and the runner that executes all lessons."""

import ast
import copy
import importlib.metadata
import io
import os
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch

from . import datasets, doctor, gallery, workflow
from .devices import check_device, default_device, describe_device, has_bf16
from .errors import InputError, check_choice
from .files import atomic_path, read_json, write_json
from .pipeline import SHIPPED
from .presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
REPORTED = ("sgmgm", "torch", "torchvision", "numpy", "accelerate", "papermill")


# --- what the lessons use ----------------------------------------------------------------------


def workspace() -> Path:
    """Where the lessons keep models and data: the repository, or else the current folder."""
    return ROOT if (ROOT / "notebooks").is_dir() else Path.cwd()


def preflight(device: str | None = None, profile: str = "smoke", dataset: str = "sprites") -> str:
    """Say in one line what this lesson runs on, and what is in its way; returns the device.

    Downloads go to the repository's `data/raw` wherever Jupyter was started. InputError if there
    is no such device, profile or data set.
    """
    check_choice("profile", profile, PRESETS)
    datasets.check_name(dataset)
    os.environ.setdefault("SGMGM_DATA", str(workspace() / "data" / "raw"))
    device = device or default_device()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in REPORTED[:2])
    print(f"{versions}, Python {sys.version.split()[0]}, {machine(check_device(device))}")
    stops = [f for f in doctor.examine(workspace(), device, doctor.QUICK) if f.state == "stop"]
    if stops:
        print(doctor.describe(stops))
    return device


def machine(device: torch.device) -> str:
    """A device in words, and what it lacks: said here, no lesson has to warn of it."""
    with warnings.catch_warnings(action="ignore"):
        able = has_bf16(device.type)
    return describe_device(device) + ("" if able else ", no bfloat16")


@contextmanager
def progress():
    """Show progress bars while it runs and clear them when all went well.

    With TQDM_DISABLE in the environment (the runner sets it) nothing is shown at all.
    """
    if "TQDM_DISABLE" in os.environ:
        with redirect_stderr(io.StringIO()):
            yield
    else:
        yield
        from IPython.display import clear_output

        clear_output()


def models(*parts: str, dataset: str, profile: str, seed: int, device: str | None) -> Path:
    """The folder of a pipeline with these parts: shipped, trained before, or trained now.

    Shipped models serve the profiles `smoke` and `laptop`; what is trained here is kept in
    `runs/` of the workspace, so a second call takes no time.
    """
    check_choice("profile", profile, PRESETS)
    shipped = SHIPPED / dataset
    if profile != "gpu" and all((shipped / part / "training.json").is_file() for part in parts):
        return shipped
    name = Path(dataset.removeprefix("folder:")).name
    folder = workspace() / "runs" / (f"{name}-{profile}" + (f"-seed{seed}" if seed else ""))
    if not (shipped / "classifier" / "model.safetensors").is_file():
        parts = ("classifier", *parts)
    with progress():
        for part in parts:
            workflow.train(part, dataset, profile, folder, seed, device)
    return folder


def report(folder: Path, part: str) -> dict:
    """How a part of a pipeline was trained (see `training.fit`)."""
    return read_json(folder / part / "training.json")


# --- the runner --------------------------------------------------------------------------------


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
            raise InputError(f"unknown lesson {word!r}: choose from {', '.join(lessons)}.")
        chosen |= found
    return [path for name, path in lessons.items() if name in chosen or not wanted]


def declared(notebook) -> list[str]:
    """The names that a lesson's `parameters` cell assigns."""
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    body = ast.parse(cells[0].source).body if cells else []
    targets = [target for line in body if isinstance(line, ast.Assign) for target in line.targets]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def read_lesson(path: Path, parameters: dict):
    """A lesson's notebook; InputError if it is damaged or does not declare these parameters."""
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat and json raise many kinds
        raise InputError(f"{path} cannot be read as a notebook: {error}.") from None
    unknown = [name for name in parameters if name not in declared(notebook)]
    if unknown:
        raise InputError(f"{path.stem} does not declare the parameter {', '.join(unknown)}.")
    return notebook


@contextmanager
def own_kernel():
    """Kernels named python3 run this very interpreter, quietly, whatever Jupyter has registered."""
    from ipykernel.kernelspec import write_kernel_spec

    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(
            Path(folder) / "kernels" / "python3", extra_arguments=["--log-level=CRITICAL"]
        )
        os.environ |= {"TQDM_DISABLE": "1", "JUPYTER_PATH": folder}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= before


def run_lesson(path: Path, out: Path, parameters: dict) -> str:
    """Execute one lesson into `out`; returns "ok" or "failed: ..." in one sentence."""
    import nbformat
    import papermill

    done, failed = out / path.name, out / f"{path.stem}.failed.ipynb"
    partial = out / f".{path.stem}.partial.ipynb"
    for old in (done, failed):
        old.unlink(missing_ok=True)
    try:
        notebook = papermill.execute_notebook(
            path, partial, parameters, kernel_name="python3", progress_bar=False
        )
        nbformat.write(freeze(notebook), partial)
        partial.replace(done)
        return "ok"
    except papermill.PapermillExecutionError as error:
        partial.replace(failed)
        return f"failed: {error.ename} in cell {error.exec_count}: {_first_line(error.evalue)}"
    except Exception as error:  # the kernel died, the disk is full, ...
        return f"failed: {type(error).__name__}: {_first_line(str(error))}"
    finally:
        partial.unlink(missing_ok=True)


def freeze(notebook):
    """An executed notebook whose views are pictures: the kernel that would move them is gone."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return notebook


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"


def run(wanted: list[str], out: Path, notebooks: Path | None = None, **parameters) -> list[dict]:
    """Execute lessons one by one into `out`; write `report.json` and pages to look at there.

    Args:
        wanted: numbers or names of lessons; all of them if empty.
        parameters: profile, dataset, seed and device, which every lesson must declare.

    Returns:
        For each lesson its name, seconds, budget (seconds, or None) and status: "ok",
        "over budget" or "failed: ...". A failing lesson does not stop the others.
    """
    try:
        import ipykernel  # noqa: F401
        import papermill  # noqa: F401
    except ImportError:
        raise InputError(
            "the runner needs papermill: in the course's folder, pip install -e '.[course]'."
        ) from None
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
        return subprocess.run(
            ["git", "-C", ROOT, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "-s") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# --- exercises ---------------------------------------------------------------------------------


def exercise(solution):
    """The exercise notebook of a solution notebook.

    In cells tagged `solution` every function loses its body; what it was stands folded below.
    """
    from nbformat.v4 import new_code_cell, new_markdown_cell

    notebook = copy.deepcopy(solution)
    notebook.cells = []
    for cell in copy.deepcopy(solution.cells):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "solution" not in cell.metadata.get("tags", []):
            notebook.cells.append(cell)
            continue
        answer = (
            f"<details><summary>Solution</summary>\n\n```python\n{cell.source}\n```\n</details>"
        )
        notebook.cells += [
            new_code_cell(stub(cell.source), id=cell.id),
            new_markdown_cell(answer, id=f"{cell.id}-answer"),
        ]
    return notebook


def stub(source: str) -> str:
    """Functions without their bodies: signature, docstring, `...`."""
    lines, kept = source.splitlines(), []
    for function in ast.parse(source).body:
        docstring = function.body[0]  # type: ignore[attr-defined]
        kept += [*lines[function.lineno - 1 : docstring.end_lineno], "    ...  # your lines", ""]
    return "\n".join(kept).rstrip()


def write_exercises(notebooks: Path | None = None) -> list[Path]:
    """Write `exercises/` from `solutions/`, both in the course's folder; returns the files."""
    import nbformat

    folder = Path(notebooks or ROOT / "notebooks")
    written = []
    for path in find_lessons([], folder / "solutions"):
        place = folder / "exercises" / path.name
        with atomic_path(place) as partial:
            nbformat.write(exercise(read_lesson(path, {})), partial)
        written.append(place)
    return written
