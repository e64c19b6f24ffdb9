"""Image data sets by name: `sprites`, `cifar10`, `fashion-mnist` and `folder:PATH`.

Whatever the source, a data set is one uint8 tensor of square RGB images and one tensor of
labels. Downloads land in `data_root()`.
"""

import contextlib
import hashlib
import os
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets import CIFAR10, FashionMNIST, ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.utils import check_integrity
from torchvision.transforms.functional import pil_to_tensor

from . import sprites
from .utils.distributed import is_loss_of_another, main_first
from .utils.errors import DataError, InputError, check_choice, check_count

SPLITS = ("train", "test")
RESOLUTION = 32  # pixels of every set but `folder:PATH`, whose pictures are scaled to any size
# where below `data_root()` the public sets lie
DOWNLOADED = {"cifar10": CIFAR10.base_folder, "fashion-mnist": "FashionMNIST/raw"}
SPRITE_SPLITS = {"train": (0, 20_000), "test": (1, 5_000)}  # seed, images
MAX_PIXELS = 64_000_000  # of one picture in a folder: a small file can unpack to gigabytes


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data set, in memory.

    images is uint8 (N, 3, H, W), labels int64 (N,) in 0..C-1, classes the C names; flip says
    whether a mirrored image could have come from the set too.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    flip: bool = True

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index) -> tuple[Tensor, Tensor]:
        """The images at `index` (slice, list or tensor), float32 in [0, 1], and their labels."""
        return self.images[index].float() / 255, self.labels[index]

    def fingerprint(self) -> str:
        """A digest of all images and labels."""
        digest = hashlib.sha256(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def subset(self, count: int) -> "ImageSet":
        """The first `count` images; they share memory with this set."""
        _check_within(count, len(self), self.name, self.split)
        return replace(self, images=self.images[:count], labels=self.labels[:count])


def load(
    name: str, split: str = "train", count: int | None = None, resolution: int = RESOLUTION
) -> ImageSet:
    """Load a data set by its name (see `NAMES`), or its first `count` images.

    `resolution` is for `folder:PATH`; the other sets have 32 x 32 pixels. Raises InputError for
    a wrong argument and DataError for data that are absent or damaged.
    """
    check_choice("split", split, SPLITS)
    check_count("resolution", resolution)
    if count is not None:
        check_count("count", count)  # before anything is downloaded
    if isinstance(name, str) and name.startswith("folder:"):
        return _load_folder(name, split, count, resolution)
    check_name(name)
    if resolution != RESOLUTION:
        raise InputError(
            f"{name} has {RESOLUTION} x {RESOLUTION} pixels, not {resolution} x {resolution}; only "
            "folder:PATH takes another resolution."
        )
    return DATASETS[name](split, count)


def check_name(name: str) -> None:
    """InputError if there is no data set of this name."""
    if not (isinstance(name, str) and name.startswith("folder:")):
        check_choice("data set", name, (*DATASETS, "folder:PATH"))


def data_root() -> Path:
    """Where downloaded data live: the folder SGMGM_DATA, else data/raw in the current folder."""
    return Path(os.environ.get("SGMGM_DATA") or Path("data", "raw"))


def augment(
    images: Tensor, generator: torch.Generator, flip: bool = True, shift: int = 0
) -> Tensor:
    """Mirror half of the images and move each by up to `shift` pixels, edges repeated.

    images is (B, C, H, W); the result is new, of the same shape, and depends on the images and
    on the generator's state alone.
    """
    if images.dim() != 4:
        raise InputError(f"images have shape (B, C, H, W), not {tuple(images.shape)}.")
    check_count("shift", shift, least=0)
    batch, channels, height, width = images.shape

    def offsets(low: int, high: int) -> Tensor:
        drawn = torch.randint(low, high, (batch, 1), generator=generator, device=generator.device)
        return drawn.to(images.device)

    def line(length: int) -> Tensor:
        moved = torch.arange(length, device=images.device) + offsets(-shift, shift + 1)
        return moved.clamp(0, length - 1)

    rows, columns = line(height), line(width)
    if flip:
        columns = torch.where(offsets(0, 2) == 1, width - 1 - columns, columns)
    which = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return images[which, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _check_within(count: int | None, total: int, name: str, split: str) -> None:
    if count is not None and check_count("count", count) > total:
        raise InputError(f"count is {count}, but the {split} split of {name} has {total} images.")


def _load_sprites(split: str, count: int | None) -> ImageSet:
    seed, total = SPRITE_SPLITS[split]
    _check_within(count, total, "sprites", split)
    images = torch.empty(count or total, 3, sprites.SIZE, sprites.SIZE, dtype=torch.uint8)
    labels = torch.empty(len(images), dtype=torch.int64)
    for start in range(0, len(images), sprites.CHUNK):
        part = slice(start, min(start + sprites.CHUNK, len(images)))
        drawn, labels[part] = sprites.render(range(part.start, part.stop), seed)
        images[part] = (drawn * 255).round()
    return ImageSet("sprites", split, images, labels, sprites.CLASSES)


# The two public sets. torchvision downloads and reads them; what it would say in tracebacks or
# skip is said here in one sentence.


def _load_cifar10(split: str, count: int | None) -> ImageSet:
    folder = data_root() / DOWNLOADED["cifar10"]
    sums = [*CIFAR10.train_list, *CIFAR10.test_list]
    sums.append([CIFAR10.meta["filename"], CIFAR10.meta["md5"]])
    _download_if_absent(
        CIFAR10,
        [folder / file for file, _ in sums],
        [(data_root() / CIFAR10.filename, CIFAR10.tgz_md5)],
        f"put {CIFAR10.filename} (from {CIFAR10.url}) into {data_root()}",
    )
    # The batches are pickles, which could run code: torchvision compares each file with its
    # known checksum before it opens it. Doing so here first lets us name the bad one.
    for file, checksum in sums:
        if not check_integrity(folder / file, checksum):
            raise DataError(f"{folder / file} is damaged: delete it and get CIFAR-10 again.")
    data = _read(CIFAR10, split, folder)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # a view: torchvision's own memory
    whole = ImageSet(
        "cifar10", split, images.contiguous(), torch.tensor(data.targets), tuple(data.classes)
    )
    return whole if count is None else whole.subset(count)


def _load_fashion_mnist(split: str, count: int | None) -> ImageSet:
    folder = data_root() / DOWNLOADED["fashion-mnist"]
    archives = [name for name, _ in FashionMNIST.resources]
    _download_if_absent(
        FashionMNIST,
        [folder / name.removesuffix(".gz") for name in archives],
        [(folder / name, checksum) for name, checksum in FashionMNIST.resources],
        f"put {', '.join(archives)} (from {FashionMNIST.mirrors[0]}) into {folder}",
    )
    start = "train" if split == "train" else "t10k"
    image_file = folder / f"{start}-images-idx3-ubyte"
    label_file = folder / f"{start}-labels-idx1-ubyte"
    shape, (labels,) = _idx_shape(image_file, 3), _idx_shape(label_file, 1)
    if shape != (labels, 28, 28) or not labels:
        raise DataError(f"{image_file} holds {shape} pixels, which does not fit {labels} labels.")
    data = _read(FashionMNIST, split, folder)
    if data.targets.max() >= len(FashionMNIST.classes):
        raise DataError(f"{label_file} is damaged: it holds labels above 9.")
    images = F.pad(data.data, (2, 2, 2, 2))[:, None].repeat(1, 3, 1, 1)
    # All shoes point to the left, so a mirrored one would be a new kind of picture.
    whole = ImageSet(
        "fashion-mnist", split, images, data.targets, tuple(FashionMNIST.classes), flip=False
    )
    return whole if count is None else whole.subset(count)


def _download_if_absent(kind, files: list[Path], archives: list, remedy: str) -> None:
    """Let torchvision unpack the archives, or download them, if one of the files is missing."""
    try:
        with main_first():  # torchvision's downloads into one file would cut each other off
            missing = [file for file in files if not file.is_file()]
            if missing:
                with _quiet():
                    kind(data_root(), download=True)
    except Exception as error:  # torchvision lets through whatever the network or disk raises
        if is_loss_of_another(error):
            raise
        for archive, checksum in archives:
            if archive.is_file() and not check_integrity(archive, checksum):
                raise DataError(f"{archive} is damaged or incomplete: get it again.") from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].rstrip(".")
        raise DataError(
            f"{missing[0]} is absent and could not be downloaded ({reason}): {remedy}."
        ) from error


def _read(kind, split: str, folder: Path):
    try:
        with _quiet():
            return kind(data_root(), train=split == "train", download=False)
    except Exception as error:  # damage shows as any error of numpy, pickle or torch
        raise DataError(
            f"{folder} cannot be read as {kind.__name__}: {error}; delete it and get it again."
        ) from error


def _quiet():
    """Standard output belongs to results: torchvision's progress goes to the other channel."""
    return contextlib.redirect_stdout(sys.stderr)


def _idx_shape(path: Path, dimensions: int) -> tuple[int, ...]:
    """The shape that an idx file declares, if the file has the size that follows from it.

    torchvision checks the archives' checksums when it downloads them, and the files never.
    """
    header = 4 + 4 * dimensions
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(header)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    shape = tuple(int.from_bytes(start[i : i + 4], "big") for i in range(4, header, 4))
    pixels = 1
    for length in shape:
        pixels *= length
    if start[:4] != bytes([0, 0, 8, dimensions]) or size != header + pixels:
        raise DataError(f"{path} is truncated or damaged: delete it and get it again.")
    return shape


# name -> (split, count or None for all) -> an `ImageSet` of 32 x 32 pixels
DATASETS = {
    "sprites": _load_sprites,
    "cifar10": _load_cifar10,
    "fashion-mnist": _load_fashion_mnist,
}
NAMES = (*DATASETS, "folder:PATH")


# Pictures in class folders.


def _load_folder(name: str, split: str, count: int | None, resolution: int) -> ImageSet:
    root = Path(name.removeprefix("folder:")).expanduser()
    if name == "folder:" or not root.is_dir():
        raise DataError(f"{name}: there is no such folder; write folder:PATH.")
    if all(_class_names(root / each) for each in SPLITS):
        if _class_names(root / "train") != _class_names(root / "test"):
            raise DataError(f"{root}/train and {root}/test must have the same class folders.")
        pictures = _Pictures(root / split)
        files = _ranked(pictures)
    else:
        pictures = _Pictures(root)
        # Every fifth picture of a class is for testing.
        files = [each for each in _ranked(pictures) if (each[0] % 5 == 4) == (split == "test")]
    if not files:
        raise DataError(f"{root} has no {split} split: a class needs 5 pictures to spare one.")
    _check_within(count, len(files), name, split)
    files = files[:count]
    images = torch.empty(len(files), 3, resolution, resolution, dtype=torch.uint8)
    for image, (_, _, path) in zip(images, files, strict=True):
        image.copy_(read_picture(path, resolution))
    labels = torch.tensor([label for _, label, _ in files])
    return ImageSet(name, split, images, labels, tuple(pictures.classes))


def read_picture(path: str | Path, resolution: int) -> Tensor:
    """The centre square of a picture file as uint8 (3, resolution, resolution), RGB on white.

    Raises DataError for a file that is not a picture, is damaged or has over 64 megapixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we are stricter
            with Image.open(path) as picture:  # reads the header only
                if picture.width * picture.height > MAX_PIXELS:
                    raise DataError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels.")
                return pil_to_tensor(_centre_square(picture, resolution))
    except Image.DecompressionBombError:
        raise DataError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels.") from None
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise DataError(f"{path} cannot be read as a picture: remove or replace it.") from error


def _centre_square(picture: Image.Image, resolution: int) -> Image.Image:
    # Cropped before it is resized: a picture of 1 x 10,000 would grow to a giant otherwise.
    picture = ImageOps.exif_transpose(picture)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if picture.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
        picture = picture.point(lambda value: value / 256).convert("L")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    return picture.resize((resolution, resolution), Image.Resampling.BICUBIC)  # antialiases


def _class_names(root: Path) -> list[str]:
    """The class folders of `root`; none if it does not exist. Hidden ones are some tool's."""
    if not root.is_dir():
        return []
    try:
        folders = [each.name for each in root.iterdir() if each.is_dir()]
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error.strerror}.") from None
    return sorted(name for name in folders if name[0] != ".")


def _is_picture(path: str) -> bool:
    file = Path(path)
    return file.suffix.lower() in IMG_EXTENSIONS and file.name[0] != "."


class _Pictures(ImageFolder):
    """torchvision's ImageFolder without hidden files, and with its errors in one sentence."""

    def __init__(self, root: Path):
        super().__init__(str(root), is_valid_file=_is_picture, allow_empty=True)
        filled = {label for _, label in self.samples}
        for label, name in enumerate(self.classes):
            if label not in filled:
                raise DataError(f"{root / name} holds no pictures ({', '.join(IMG_EXTENSIONS)}).")

    def find_classes(self, directory) -> tuple[list[str], dict[str, int]]:
        names = _class_names(Path(directory))
        if not names:
            raise DataError(f"{directory} has no class folders: make one folder for each class.")
        return names, {name: label for label, name in enumerate(names)}


def _ranked(pictures: ImageFolder) -> list[tuple[int, int, str]]:
    """(rank in its class, label, path) in turn from each class, so that any first few are mixed."""
    seen = [0] * len(pictures.classes)
    ranked = []
    for path, label in sorted(pictures.samples):
        ranked.append((seen[label], label, path))
        seen[label] += 1
    return sorted(ranked)
