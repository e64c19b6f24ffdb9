"""Writing files so that nothing half-written is ever left behind."""

import hashlib
import json
import os
import re
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .errors import CheckpointError, InputError, reason

ROOT = Path(__file__).resolve().parents[2]  # of the repository


def canonical(dataset: str) -> str:
    """A data set's one name: that of `folder:PATH` has the absolute path, links resolved."""
    kind, colon, path = dataset.partition(":") if isinstance(dataset, str) else ("", "", "")
    if kind != "folder" or not path:
        return dataset
    return kind + colon + Path(os.path.realpath(os.path.expanduser(path))).as_posix()


@contextmanager
def atomic_path(path: str | Path):
    """Yield a temporary path beside `path`; on success it replaces `path` in one step.

    A crash leaves either the old file or the new one. An unwritable place raises InputError.
    """
    path = Path(path)
    if not path.name or "\0" in path.name:
        raise InputError(f"cannot write {str(path)!r}: that is no file's name.")
    # The suffix stays last: writers such as numpy and Pillow read the format from it.
    partial = path.with_name(f".{path.stem[:200]}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        why = f"{getattr(error, 'strerror', None) or error}; choose another place or make room"
        raise InputError(f"cannot write {path}: {why}.") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def clear_partials(folder: str | Path, of: Path | None = None) -> None:
    """Remove what killed writers of a file (of any file if none is named) left in a folder."""
    stem = re.escape(of.stem[:200]) if of else ".*"
    for partial in Path(folder).glob(".*.partial*"):
        if re.fullmatch(rf"\.{stem}\.[0-9]+\.partial(\.[^.]*)?", partial.name):
            partial.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """InputError if `path` cannot be written: to be asked before long work, not after it."""
    path = Path(path).absolute()
    try:
        place = next((folder for folder in path.parents if folder.exists()), path)
        fits = place.is_dir() and os.access(place, os.W_OK) and not path.is_dir()
    except OSError:  # a name that is too long
        fits = False
    if not fits:
        raise InputError(f"cannot write {path}: name a file in a folder that can be written.")


@contextmanager
def sole_writer(place: str | Path):
    """A block for one process of this machine at a time; InputError while another is in it."""
    place = Path(place).resolve()
    name = f"sgmgm-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}"
    lock, note = (Path(tempfile.gettempdir(), name + end) for end in (".lock", ".pid"))
    try:
        with FileLock(lock, timeout=0):
            note.write_text(str(os.getpid()))
            yield
    except Timeout:
        holder = note.read_text() if note.is_file() else "another one"
        what = f"process {holder} is writing to {place}"
        raise InputError(f"{what}: wait for it or choose another place.") from None


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file's whole content, atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def write_json(path: str | Path, data) -> None:
    """Write `data` as readable JSON, atomically."""
    write_bytes(path, (json.dumps(data, indent=2) + "\n").encode())


def read_json(path: str | Path):
    """Read a JSON file; an absent or damaged one raises CheckpointError."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {reason(error)}.") from None
