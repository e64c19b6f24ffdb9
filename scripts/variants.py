"""What the experiments with other networks share: their folders, their records, their command."""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from sgmgm.evidence import results
from sgmgm.pipeline import Pipeline, write_card

from . import exit_code

IDENTITY = ("dataset", "preset", "weights", "bf16", "num", "seed", "settings")  # of a record's key


def variant(shipped: Path, shared: tuple[str, ...], folder: Path) -> Path:
    """A pipeline folder with some of the shipped parts; the others are still to be trained."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in shared:
        if not (folder / part).exists():
            (folder / part).symlink_to((shipped / part).resolve(), target_is_directory=True)
    if not (folder / "pipeline.json").is_file():
        write_card(folder, Pipeline.from_pretrained(shipped, "cpu").card)
    return folder


def named(record: dict, name: str) -> dict:
    """A record whose method bears this name in tables, as a smoother of that name does."""
    record["settings"]["smoother"] = name
    identity = json.dumps({key: record[key] for key in IDENTITY}, sort_keys=True)
    record["key"] = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return record


def command(doc: str, run: Callable, work: str, arguments: list[str] | None) -> int:
    """The command line of an experiment with a shipped model; returns the exit code."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--model", default="fashion-mnist", help="a shipped name")
    parser.add_argument("--work", type=Path, default=Path("runs") / work, help="models")
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="the records' folder")
    return exit_code(run, parser.parse_args(arguments))
