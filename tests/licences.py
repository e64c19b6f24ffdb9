"""The licences of everything that the course installs: `python -m tests.licences` lists them."""

import importlib.metadata as metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).resolve().parent.parent / "docs" / "licences.md"
HEAD = """# Licences of what the course installs

Written by `python -m tests.licences` from what each package says of itself, on Linux with Python
3.11 and the default build of torch, with what other systems need besides; a test fails when a
package is missing here. None is under the GPL. The NVIDIA libraries come with the default torch for
Linux only: their terms allow their use, they are not open source, and the CPU build of torch does
without them. Nothing of all this is part of this repository.

| package | licence |
|---|---|
"""

ELSEWHERE = {  # what the same requirements pull in with Python 3.12, and on macOS and Windows
    "aiohappyeyeballs": "PSF-2.0",
    "aiohttp": "Apache-2.0 AND MIT",
    "aiosignal": "Apache 2.0",
    "appnope": "BSD",
    "colorama": "BSD License",
    "frozenlist": "Apache-2.0",
    "multidict": "Apache License 2.0",
    "propcache": "Apache-2.0",
    "pywinpty": "MIT",
    "yarl": "Apache-2.0",
}


def installed() -> set[str]:
    """Names of all packages that the project's requirements pull in here."""
    project = tomllib.loads((PAGE.parent.parent / "pyproject.toml").read_text())["project"]
    lists = project["dependencies"], *project["optional-dependencies"].values()
    found, asked, todo = set(), set(), [Requirement(line) for each in lists for line in each]
    while todo:
        one = todo.pop()
        key = re.sub(r"[-_.]+", "-", one.name).lower(), frozenset(one.extras)
        if key in asked:
            continue
        asked.add(key)
        try:
            needs = metadata.requires(one.name) or ()
        except metadata.PackageNotFoundError:  # for another system, or an extra that is not there
            continue
        found.add(key[0])
        for need in map(Requirement, needs):
            extras = ("", *one.extras)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras):
                todo.append(need)
    return found


def licence(package: str) -> str:
    """A package's licence in a few words: its expression, else its classifiers, else its text."""
    about = metadata.metadata(package)
    named = [c.split(" :: ")[-1] for c in about.get_all("Classifier", ()) if "License ::" in c]
    text = (about.get("License") or "").strip().split("\n")[0]
    return about.get("License-Expression") or ", ".join(named) or text or "not stated"


def page() -> str:
    """The whole of `docs/licences.md`."""
    told = ELSEWHERE | {name: licence(name) for name in installed()}
    return HEAD + "".join(f"| {name} | {words} |\n" for name, words in sorted(told.items()))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
