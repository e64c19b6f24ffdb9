"""Pictures of your own: `folder:PATH`, a folder that holds one folder for each class.

Or PATH holds `train` and `test` (or `val`), each with the same class folders. Otherwise every
fifth picture of a class is kept for testing.
"""

import contextlib
import functools
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from .utils.errors import DataError, listed
from .utils.files import canonical

MAX_PIXELS = 64_000_000  # of one picture: a small file can unpack to gigabytes
MAX_KEPT = 2**28  # bytes: the pixels of a folder of up to this size are decoded once
TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
# formats that Pillow knows by name, but cannot decode without another program
FOREIGN = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


class Pictures(NamedTuple):
    """What a folder holds, found without opening a picture."""

    classes: tuple[str, ...]
    files: dict[str, list[tuple[int, str]]]  # split -> (label, path), in turn from each class
    left_out: Counter  # ending -> files that are no pictures, or belong to no class
    unused: list[str]  # folders beside the splits


def survey(name: str) -> Pictures:
    """The classes and the picture files of `folder:PATH`; DataError if it is laid out otherwise."""
    root = Path(canonical(name).removeprefix("folder:"))
    if name == "folder:" or not os.path.isdir(root):
        raise DataError(f"{name}: there is no such folder; write folder:PATH.")
    inside = {each.casefold(): each for each in _folders(root)}
    given = [next((inside[n] for n in names if n in inside), "") for names in (TRAIN, TEST)]
    places = {split: root / each for split, each in zip(("train", "test"), given, strict=True)}
    if not all(given):
        places, given = {"": root}, []  # one place for both splits
    classes = {split: _folders(place) for split, place in places.items()}
    names = next(iter(classes.values()))
    for split, place in places.items():
        if not classes[split]:
            raise DataError(f"{place} has no class folders: make one folder for each class.")
        if other := set(names) ^ set(classes[split]):
            both, only = " and ".join(map(str, places.values())), listed(sorted(other))
            what = "must have the same class folders; only one of them has"
            raise DataError(f"{both} {what} {only}.")
    starts = [((split, label), place / each) for split, place in places.items()
              for label, each in enumerate(names)]  # fmt: skip
    found: dict = {key: [] for key, _ in starts}
    loose = [each for p in {root, *places.values()} for each in _scan(p) if not each.is_dir()]
    left_out = Counter(_ending(each.path) for each in loose)
    for key, path in _files(starts, {root, *root.parents, *places.values()}):
        if _ending(path) in readable():
            found[key].append(path)
        else:
            left_out[_ending(path)] += 1
    for key, place in starts:
        if not found[key]:
            kinds = listed(readable())
            raise DataError(f"{place} holds no pictures of its own (that Pillow reads: {kinds}).")
    deep = [p for key, p in starts if not any(os.path.dirname(f) == str(p) for f in found[key])]
    wrong = [place for place in deep if place.name.casefold() in TRAIN + TEST]
    if wrong or len(deep) == len(starts):
        place = (wrong or deep)[0]
        remedy = f"are those the classes? Then name folder:{place}, or move the pictures up"
        raise DataError(f"{place} holds only folders: {remedy}.")
    ranked: dict = {"train": [], "test": []}
    for (split, label), paths in found.items():
        for rank, path in enumerate(sorted(paths)):
            ranked[split or ("test" if rank % 5 == 4 else "train")].append((rank, label, path))
    files = {split: [each[1:] for each in sorted(ranks)] for split, ranks in ranked.items()}
    unused = [each for each in inside.values() if given and each not in given]
    return Pictures(tuple(names), files, left_out, unused)


def load(name: str, split: str, resolution: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images uint8 (N, 3, R, R), labels int64 (N,) and the class names of a split ("all": both).

    All pictures of both splits are decoded, so that a training does not find a damaged one at its
    end. DataError names all that cannot be used, and classes too small to spare one for testing.
    """
    found = survey(name)
    if split != "all":
        check_sizes(name, found)
    files = [*found.files["train"], *found.files["test"]]
    stamps = tuple(_stamp(path) for _, path in files)
    small = len(files) * 3 * resolution**2 <= MAX_KEPT
    images = (_decode if small else _decode.__wrapped__)(stamps, resolution)
    labels = torch.tensor([label for label, _ in files])
    middle = len(found.files["train"])
    part = {"train": slice(middle), "test": slice(middle, None), "all": slice(None)}[split]
    return images[part].clone(), labels[part], found.classes


def _stamp(path: str) -> tuple[str, int, int]:
    """A path with the size and time of its file, which change when the file does."""
    with contextlib.suppress(OSError):  # a link that leads nowhere
        status = os.stat(path)
        return path, status.st_size, status.st_mtime_ns
    return path, 0, 0


def check_sizes(name: str, found: Pictures) -> None:
    """DataError if a class has no picture to test with, or there are too few for any score."""
    counts = Counter(label for label, _ in found.files["train"])
    tested = Counter(label for label, _ in found.files["test"])
    small = [f"{each} ({counts[i]})" for i, each in enumerate(found.classes) if not tested[i]]
    if small:
        rule = "every fifth picture of a class is kept for testing, so a class needs 5"
        raise DataError(f"{name}: {rule}; too few are in {listed(small)}.")
    if sum(tested.values()) < 2:
        raise DataError(f"{name} has one picture to test with; scores need 2: add pictures.")


def describe(name: str) -> str:
    """Classes and counts of a folder, and what is left out, in a line each."""
    found = survey(name)
    count = {s: Counter(label for label, _ in files) for s, files in found.files.items()}
    each = [f"{n} {count['train'][i]} + {count['test'][i]}" for i, n in enumerate(found.classes)]
    kinds = [f"{number} {ending or 'without ending'}"
             for ending, number in found.left_out.most_common()]  # fmt: skip
    lines = [f"{name}: {len(each)} {'class' if len(each) == 1 else 'classes'}, "
             f"training + test pictures: {listed(each)}"]  # fmt: skip
    if kinds:
        lines.append(f"left out: {found.left_out.total()} files ({listed(kinds)})")
    if found.unused:
        lines.append(f"left out: the folders {listed(found.unused)}")
    if len(each) == 1:
        lines.append("one class only: no classifier is trained, accuracy is not reported, and "
                     "scores use the classifier that ships for cifar10")  # fmt: skip
    return "\n".join(lines)


@functools.cache
def readable() -> tuple[str, ...]:
    """The endings of the picture files that this Pillow can decode."""
    Image.init()
    kinds = Image.registered_extensions().items()
    return tuple(sorted(e for e, kind in kinds if kind in Image.OPEN and kind not in FOREIGN))


def read_picture(path: str | Path, resolution: int) -> Tensor:
    """The centre square of a picture file as uint8 (3, resolution, resolution), RGB on white.

    DataError if it is no picture, damaged, too large, or if its pixels have no known range.
    """
    with _opened(path) as picture:
        pixels = np.array(_centre_square(picture, path, resolution))  # (H, W, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1)


def read_samples(
    folder: str | Path, resolution: int | None, classes: Iterable[str] = ()
) -> tuple[np.ndarray, np.ndarray | None]:
    """All pictures below a folder, in the order of their paths, as images uint8 (N, H, W, 3).

    Labels int64 (N,) are the numbers of their folders' names among `classes`, or None if one is no
    class. DataError unless there are some, square and of one size (`resolution`, if given).
    """
    root = Path(folder).resolve()
    files = sorted(path for _, path in _files([(0, root)]) if _ending(path) in readable())
    if not files:
        raise DataError(f"{folder} holds no pictures (that Pillow reads: {listed(readable())}).")
    with _opened(files[0]) as picture:
        side = resolution or picture.width
    for path in files:
        with _opened(path) as picture:
            if picture.size != (side, side):
                size = f"{picture.width} x {picture.height} pixels where {side} x {side} are needed"
                raise DataError(f"{path} has {size}: sample at that size.")
    images = _decode.__wrapped__(tuple((path, 0, 0) for path in files), side)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers.get(os.path.relpath(path, root).split(os.sep)[0], -1) for path in files]
    known = None if -1 in labels else np.array(labels)
    return images.permute(0, 2, 3, 1).contiguous().numpy(), known


@functools.lru_cache(maxsize=1)
def _decode(stamps: tuple[tuple[str, int, int], ...], resolution: int) -> Tensor:
    """Pictures as uint8 (N, 3, R, R); size and time of each file tell when to read it again."""
    images = torch.empty(len(stamps), 3, resolution, resolution, dtype=torch.uint8)
    bad: dict[str, DataError] = {}
    for i, (path, *_) in enumerate(tqdm(stamps, desc="read pictures", leave=False)):
        try:
            images[i] = read_picture(path, resolution)
        except DataError as error:
            bad[path] = error
    if bad:
        first = next(iter(bad.values()))
        if len(bad) == 1:
            raise first
        what = f"{len(bad)} of {len(stamps)} pictures cannot be used; remove or replace them"
        raise DataError(f"{what}: {listed(bad)}. The first: {first}")
    return images


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """A picture file, opened; whatever is wrong with it is a DataError."""
    giant = DataError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we are stricter
            with Image.open(path) as picture:  # reads the header only
                if picture.width * picture.height > MAX_PIXELS:
                    raise giant
                yield picture
    except Image.DecompressionBombError:
        raise giant from None
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise DataError(f"{path} cannot be read as a picture: remove or replace it.") from error


def _centre_square(picture: Image.Image, path: str | Path, resolution: int) -> Image.Image:
    # Cropped before it is resized: a picture of 1 x 10,000 would grow to a giant otherwise.
    picture, kind = ImageOps.exif_transpose(picture), picture.format
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    wide = picture.mode.startswith("I;16") or (picture.mode == "I" and kind in ("PNG", "PPM"))
    if picture.mode in ("I", "F") and not wide:
        what = f"{'whole numbers' if picture.mode == 'I' else 'fractions'} of 32 bits"
        raise DataError(f"{path} holds {what}, of no known range: save it with 8 or 16 bits.")
    if wide:  # 16-bit grey, which convert() would clip at 255
        grey = np.asarray(picture).astype(np.int64)
        opaque = grey != picture.info.get("transparency", -1)
        both = np.stack([grey >> 8, opaque * 255], -1).astype(np.uint8)
        picture = Image.fromarray(both, "LA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    return picture.resize((resolution, resolution), Image.Resampling.BICUBIC)  # antialiases


def _files(starts: list, seen: Iterable[Path] = ()) -> Iterator[tuple]:
    """(key, path) of the files below the folders `starts`, [(key, folder)].

    Each real folder and file comes once, however many links lead to it; those in `seen` never do.
    """
    known = {os.path.realpath(each) for each in seen}
    here = [(key, str(path)) for key, path in starts if not os.path.islink(path)]
    links = [(key, str(path)) for key, path in starts if os.path.islink(path)]
    while here or links:
        if not here:
            links.sort(reverse=True)  # of two links to one place, always the same one counts
        key, path = (here or links).pop()
        real = os.path.realpath(path)
        if real in known:
            continue
        known.add(real)
        if not os.path.isdir(path):
            yield key, path
            continue
        for each in _scan(path):
            (links if each.is_symlink() else here).append((key, each.path))


def _scan(folder: str | Path) -> list[os.DirEntry]:
    """What a folder holds but for hidden files; nothing if it is a model's, with our own images."""
    try:
        with os.scandir(folder) as entries:
            inside = [each for each in entries if each.name[0] != "."]
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}.") from None
    return [] if any(each.name == "pipeline.json" for each in inside) else inside


def _folders(root: Path) -> list[str]:
    """The names of the class folders in `root`; what our own commands write (`runs/`) is none."""
    own = ("pipeline.json", "*/pipeline.json", "*/report.json")
    names = [each.name for each in _scan(root) if each.is_dir()]
    return sorted(n for n in names if not any(any((root / n).glob(each)) for each in own))


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()
