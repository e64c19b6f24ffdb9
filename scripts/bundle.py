"""Pack packages, lessons, models and data for a place without a network, with an installer.

Run `python -m scripts.bundle OUT` from the checkout; there, `python OUT/install.py`.
"""

import argparse
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from sgmgm.datasets import DOWNLOADED, data_root
from sgmgm.utils.errors import InputError
from sgmgm.utils.files import ROOT, check_writable

from . import exit_code

PARTS = ("sgmgm", "notebooks", "docs", "data/checkpoints", "data/results", "pyproject.toml",
         "README.md", "AGENTS.md", "LICENSE", "scripts/install.py")  # fmt: skip
INSTALL = ROOT / "scripts" / "install.py"  # what installs from the bundle


def requirements(root: Path) -> list[str]:
    """What pip needs to build and install the course of a folder."""
    data = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project, build = data["project"], data["build-system"]["requires"]
    return [*build, *project["dependencies"], *project["optional-dependencies"]["course"]]


def bundle(out: str | Path) -> Path:
    """Collect everything, for this system and Python, in a new folder `out` with an `install.py`.

    InputError if `out` exists or a package is not available.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists: delete it or choose another place.")
    check_writable(out)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _download(partial / "packages")
        for part in PARTS:
            _copy(ROOT / part, partial / "course" / part)
        for inside in DOWNLOADED.values():
            _copy(data_root() / inside, partial / "course" / "data" / "raw" / inside)
        ours = INSTALL.read_text().replace("WANTED = ()", f"WANTED = {sys.version_info[:2]}")
        (partial / "install.py").write_text(ours)
        partial.rename(out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _download(place: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(place)]
    ran = subprocess.run([*command, *requirements(ROOT)], capture_output=True, text=True)
    if ran.returncode:
        said = [line for line in ran.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = (said or ran.stderr.splitlines() or ["pip failed"])[-1].removeprefix("ERROR: ")
        raise InputError(f"pip cannot collect the packages: {reason.rstrip('.')}.")


def _copy(source: Path, target: Path) -> None:
    """A file or a folder, if it is there, without what tools leave behind."""
    if source.is_dir():
        junk = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", ".*.partial*")
        shutil.copytree(source, target, ignore=junk)
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def run(args) -> None:
    """Collect the bundle and say how large it is."""
    print("collecting packages: minutes, because torch is large", file=sys.stderr)
    out = bundle(args.out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e9:.2f} GB; there, run: python install.py")


def main(arguments=None) -> int:
    """`python -m scripts.bundle`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    return exit_code(run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
