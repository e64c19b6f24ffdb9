"""Preflight: is this machine ready for the course, and how long will it take?

Its top imports the standard library alone, because it also reports a broken installation.
"""

import importlib.metadata as metadata
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ROOT / "data" / "results" / "course.json"  # the report of one `sgmgm course run`
ENOUGH = 2.0  # GiB; training on CIFAR-10 takes 1.8, more than anything else of `laptop`


class Finding(NamedTuple):
    """What was looked at, how it is ("ok", "note" or "stop"), and what to do unless it is ok."""

    what: str
    state: str
    found: str
    remedy: str


# Each check returns its state and what it found, given the lessons' folder and the wanted device.


def check_python(folder: Path, device: str | None) -> tuple[str, str]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return "ok" if (3, 11) <= sys.version_info < (3, 15) else "stop", found


def check_libraries(folder: Path, device: str | None) -> tuple[str, str]:
    wrong = unmet("sgmgm")
    return "stop" if wrong else "ok", "; ".join(wrong) or "all there"


def check_torch(folder: Path, device: str | None) -> tuple[str, str]:
    import torchvision  # noqa: F401  # fails beside a torch that it was not built for

    wrong = unmet("torchvision")
    return "stop" if wrong else "ok", "; ".join(wrong) or versions("torch", "torchvision")


def check_jupyter(folder: Path, device: str | None) -> tuple[str, str]:
    wrong = unmet("sgmgm", "course")  # the library works without
    return "note" if wrong else "ok", "; ".join(wrong) or versions("jupyterlab", "ipywidgets")


def check_memory(folder: Path, device: str | None) -> tuple[str, str]:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    return "note" if free < ENOUGH else "ok", f"{free:.1f} GiB free"


def check_folder(folder: Path, device: str | None) -> tuple[str, str]:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"only writing shows whether the disk is full")
    return "ok", f"{folder}, {shutil.disk_usage(folder).free / 2**30:.0f} GiB free"


def check_data(folder: Path, device: str | None) -> tuple[str, str]:
    from .datasets import DOWNLOADED, data_root

    place = folder / data_root()  # an absolute one stays as it is
    absent = [name for name, inside in DOWNLOADED.items() if not (place / inside).is_dir()]
    found = f"no {' and no '.join(absent)}" if absent else " and ".join(DOWNLOADED)
    return "note" if absent else "ok", f"{found} in {place}"


def check_models(folder: Path, device: str | None) -> tuple[str, str]:
    from .pipeline import SHIPPED
    from .utils.hub import check_manifest

    shipped = sorted(card.parent for card in SHIPPED.glob("*/pipeline.json"))
    for each in shipped:
        check_manifest(each)
    names = ", ".join(each.name for each in shipped)
    return ("ok", f"{names}: unchanged") if names else ("note", f"none in {SHIPPED}")


def check_speed(folder: Path, device: str | None) -> tuple[str, str]:
    from .utils.devices import check_device, default_device, describe_device
    from .utils.files import read_json

    chosen = check_device(device or default_device())
    now = speed(chosen)
    found = f"{describe_device(chosen)}: {now:.0f} images/s through the probe"
    if not MEASURED.is_file():
        return "ok", found
    then = read_json(MEASURED)
    minutes = {e["name"][:2]: e["seconds"] / 60 * then["speed"] / now for e in then["lessons"]}
    each = ", ".join(f"{name} {value:.1f}" for name, value in minutes.items())
    total = f"the lessons about {sum(minutes.values()):.0f} min (profile {then['profile']})"
    return "ok", f"{found}; {total}: {each}"


BOTH = "pip install --upgrade 'torch>=2.11,<2.15' 'torchvision>=0.26,<0.30'"
AGAIN = "in the course's folder: pip install -e '.[course]'"
CHECKS = {  # and what to do about a bad finding
    "Python": (check_python, "install Python 3.11 to 3.14"),
    "libraries": (check_libraries, AGAIN),
    "torch": (check_torch, f"install both at once: {BOTH}"),
    "Jupyter": (check_jupyter, AGAIN),
    "memory": (check_memory, "close other programs before you train"),
    "folder": (check_folder, "make room, or move the course to a folder of your own"),
    "data": (check_data, "for these sets only: set SGMGM_DATA, or be online at their first use"),
    "models": (check_models, "get data/checkpoints again; without it the lessons train for long"),
    "speed": (check_speed, "try another --device, or install torch again"),
}
QUICK = ("Python", "libraries", "torch", "Jupyter", "folder")  # what every lesson asks


def examine(folder: Path, device: str | None = None, names=tuple(CHECKS)) -> list[Finding]:
    """Run these checks. One that raises is a finding too: that thing does not work."""
    findings = []
    for name in names:
        check, remedy = CHECKS[name]
        try:
            state, found = check(folder, device)
        except Exception as error:  # a broken library fails in its own way
            state, found = "stop", " ".join(f"{type(error).__name__}: {error}".split())
        findings.append(Finding(name, state, found, "" if state == "ok" else remedy))
    return findings


def describe(findings: list[Finding]) -> str:
    """A line for each finding, and one for its remedy."""
    lines = []
    for what, state, found, remedy in findings:
        lines += [f"{state:<6}{what:<11}{found}"] + [f"{'':<17}-> {remedy}"] * bool(remedy)
    return "\n".join(lines)


def unmet(package: str, extra: str = "") -> list[str]:
    """What a package requires and does not find; with an extra, what only the extra requires."""
    from packaging.requirements import Requirement

    wrong = []
    for needed in map(Requirement, metadata.requires(package) or ()):
        marker = needed.marker
        if extra if marker is None else not marker.evaluate({"extra": extra}):
            continue
        try:
            have = metadata.version(needed.name)
            if not needed.specifier.contains(have, prereleases=True):
                wrong.append(f"{needed.name} is {have}, not {needed.specifier}")
        except metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
    return wrong


def versions(*packages: str) -> str:
    return ", ".join(f"{package} {metadata.version(package)}" for package in packages)


def speed(device, seconds: float = 2.0) -> float:
    """Images a second through the laptop preset's transformer: the best of many batches."""
    import torch

    from . import presets
    from .transformer import MaskedTransformer

    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        model = MaskedTransformer(presets.LAPTOP.transformer).to(device).eval()
    canvas, labels = model.blank.expand(32, -1), torch.zeros(32, dtype=torch.long, device=device)
    best, end = 0.0, time.perf_counter() + seconds
    while True:
        begun = time.perf_counter()
        with torch.no_grad():
            model(canvas, labels).logits.sum().item()  # .item() waits for the device
        now = time.perf_counter()
        best = max(best, len(canvas) / (now - begun))
        if now > end:
            return best
