"""Samples on disk as any evaluator reads them: ADM's `.npz` (arr_0 uint8 NHWC, arr_1 labels)."""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .errors import DataError, listed
from .files import atomic_path

UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, MemoryError, SyntaxError,
              tokenize.TokenError, zipfile.BadZipFile, zlib.error)  # fmt: skip


def save_samples(path: str | Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images uint8 (N, H, W, 3) and labels int (N,) as ADM's `.npz`, atomically.

    `arr_0` holds the images, `arr_1` the labels as int64, uncompressed (Dhariwal & Nichol 2021).
    """
    with atomic_path(path) as partial, open(partial, "wb") as file:
        np.savez(file, images, labels.astype(np.int64))


def load_samples(path, resolution: int | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Images uint8 (N, H, W, 3) and labels int64 (N,), or None, of an ADM `.npz`.

    Labels may be whole numbers, one-hot rows or absent. DataError if the file is absent, damaged or
    holds something else, or if the images are not `resolution` wide and high.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}: write it with `sgmgm sample --out {path.name}`.")
    try:
        archive = np.load(path)  # never unpickles
        if not (isinstance(archive, np.lib.npyio.NpzFile) and archive.zip):
            raise ValueError
        with archive:
            keys = archive.files
            unpacked = sum(entry.file_size for entry in archive.zip.infolist())
            if unpacked > 2**30 + 100 * path.stat().st_size:  # images hardly compress
                raise ValueError
            images = archive["arr_0"] if "arr_0" in keys else None
            labels = archive["arr_1"] if "arr_1" in keys else None
            if any(isinstance(array, bytes) for array in (images, labels)):
                raise ValueError  # an entry that is no array
    except UNREADABLE as error:
        raise DataError(f"{path} is truncated or not a plain .npz file: write it anew.") from error
    if images is None:
        held = listed(keys) or "nothing"
        raise DataError(f"{path} holds {held} and no arr_0: save the images under that name.")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        held = f"{images.dtype} {images.shape} in arr_0"
        raise DataError(f"{path} holds {held}: save a non-empty uint8 array (N, H, W, 3).")
    if resolution is not None and images.shape[1:3] != (resolution, resolution):
        held, size = "{1} x {2} pixels".format(*images.shape), f"{resolution} x {resolution}"
        raise DataError(f"{path} holds {held} where {size} are needed: sample at that size.")
    return images, None if labels is None else _class_numbers(path, labels, len(images))


def _class_numbers(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    """Labels of an npz as int64 (N,), from whole numbers or one-hot rows."""
    numeric = labels.dtype.kind in "biuf"
    if numeric and labels.ndim == 2 and labels.shape[1] and len(labels) == count:
        if ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all():
            return labels.argmax(1)
    elif labels.dtype.kind in "iu" and labels.shape == (count,) and (labels >= 0).all():
        return labels.astype(np.int64)
    held, wanted = f"{labels.dtype} {labels.shape} in arr_1", f"{count} class numbers from 0"
    raise DataError(f"{path} holds {held}: save {wanted}, or leave arr_1 out.")


def sample_batches(images: np.ndarray, batch_size: int = 64) -> Iterator[Tensor]:
    """Images uint8 (N, H, W, 3) as batches float32 (B, 3, H, W) in [0, 1], for `extract`."""
    for start in range(0, len(images), batch_size):
        yield to_float(images[start : start + batch_size])


def to_float(images: np.ndarray) -> Tensor:
    """Images uint8 (B, H, W, 3) as float32 (B, 3, H, W) in [0, 1]."""
    pixels = torch.tensor(images)  # a copy: the array may be frozen
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 255


def to_uint8(images: Tensor) -> np.ndarray:
    """Images float32 (B, 3, H, W) in [0, 1] as uint8 (B, H, W, 3)."""
    pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def save_grid(path: str | Path, images: Tensor, columns: int | None = None, zoom: int = 3) -> None:
    """Write images (B, 3, H, W) in [0, 1] as one image file, a grid."""
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    images = images.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
    white = (-len(images)) % columns  # images that fill the last row
    images = F.pad(images, (2, 0, 2, 0, 0, 0, 0, white), value=1.0)  # a line left of and above each
    rows = images.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2)
    grid = F.pad(rows, (0, 2, 0, 2), value=1.0)
    with atomic_path(path) as partial:
        Image.fromarray(to_uint8(grid[None])[0]).save(partial)
