"""Writing files so that nothing half-written is ever left behind."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError, InputError


@contextmanager
def atomic_path(path: str | Path):
    """Yield a temporary path beside `path`; on success it replaces `path` in one step.

    The content is flushed to disk before the rename, so that a crash leaves either the old
    file or the new one. An unwritable place raises InputError.
    """
    path = Path(path)
    # The suffix stays last: writers such as numpy and Pillow read the format from it.
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; choose another place or make room."
        ) from error
    finally:
        partial.unlink(missing_ok=True) if partial.parent.is_dir() else None


def write_json(path: str | Path, data) -> None:
    """Write `data` as readable JSON, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(data, indent=2) + "\n")


def read_json(path: str | Path):
    """Read a JSON file; an absent or damaged one raises CheckpointError."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None
