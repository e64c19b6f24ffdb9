"""What every lesson starts with: a line on the machine, and the trained parts it needs."""

import io
import os
import sys
import warnings
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch

from .. import datasets, doctor, folders, workflow
from ..pipeline import SHIPPED
from ..presets import PRESETS
from ..scoring import one_class
from ..training import read_report
from ..utils.devices import check_device, default_device, describe_device, has_bf16
from ..utils.errors import DataError, check_choice
from ..utils.files import ROOT

REPORTED = ("sgmgm", "torch", "torchvision", "numpy", "accelerate", "papermill")


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
    versions = doctor.versions(*REPORTED[:2])
    print(f"{versions}, Python {sys.version.split()[0]}, {machine(check_device(device))}")
    if dataset.startswith("folder:"):
        print(folders.describe(dataset))
        found = folders.survey(dataset)
        if len(found.classes) < 2 or len(found.files["test"]) < 8:
            needs = "the lessons need two classes and 8 pictures to test with (40 in all)"
            raise DataError(f"{dataset}: {needs}.")
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
    shipped = SHIPPED / datasets.whole_set(dataset)
    if profile != "gpu" and all((shipped / part / "training.json").is_file() for part in parts):
        return shipped
    folder = workspace() / workflow.default_folder(dataset, profile)
    folder = folder.with_name(folder.name + (f"-seed{seed}" if seed else ""))
    if not (shipped / "classifier" / "model.safetensors").is_file() and not one_class(dataset):
        parts = ("classifier", *parts)
    with progress():
        for part in parts:
            workflow.train(part, dataset, profile, folder, seed, device)
    return folder


def images(split: str, count: int, *, dataset: str, profile: str) -> datasets.ImageSet:
    """The first `count` real images for a lesson; fewer if the data set holds fewer.

    The profiles `smoke` and `laptop` take `fashion-mnist` from the sample that ships, and say so:
    it needs no network. Profile `gpu` takes the whole set.
    """
    check_choice("profile", profile, PRESETS)
    sample = f"{dataset}-sample"
    if sample not in datasets.SAMPLES or profile == "gpu":
        return datasets.load(dataset, split, count)
    found = datasets.load(sample, split, min(count, datasets.SAMPLE[split]))
    held = f"a sample of {dataset} with {datasets.SAMPLE[split]:,} {split} images"
    print(f"{len(found):,} {split} images of {sample}, {held}")
    return found


def report(folder: Path, part: str) -> dict:
    """How a part of a pipeline was trained (see `training.fit`)."""
    return read_report(folder / part)
