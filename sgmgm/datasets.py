"""Image data sets by name: `sprites`, `cifar10`, `fashion-mnist`, its sample, `folder:PATH`.

Whatever the source, a data set is one uint8 tensor of square RGB images and one tensor of
labels. Downloads land in `data_root()`.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import folders, sprites
from .utils.errors import DataError, InputError, check_choice, check_count, reason
from .utils.files import canonical

SPLITS = ("train", "test")
RESOLUTION = 32  # pixels of every set but `folder:PATH`, whose pictures are scaled to any size
# where below `data_root()` the public sets are
DOWNLOADED = {"cifar10": "cifar-10-batches-py", "fashion-mnist": "FashionMNIST/raw"}
SPRITE_SPLITS = {"train": (0, 20_000), "test": (1, 5_000)}  # seed, images
# A part of Fashion-MNIST ships with the package: `python -m scripts.fashion_sample` made it.
SAMPLES = {"fashion-mnist-sample": "fashion-mnist"}  # sample -> the whole set
SAMPLE = {"train": 2_000, "test": 1_000}  # images
SAMPLE_FOLDER = Path(__file__).parent / "fashion-mnist-sample"
SHEET = 40  # images in a row of the file
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
           "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")  # fmt: skip


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of a data set, in memory."""

    name: str
    split: str
    images: Tensor  # uint8 (N, 3, H, W)
    labels: Tensor  # int64 (N,) in 0..C-1
    classes: tuple[str, ...]
    flip: bool = True  # whether a mirrored image could have come from the set too

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index) -> tuple[Tensor, Tensor]:
        """The images at `index` (slice, list or tensor), float32 in [0, 1], and their labels."""
        return self.images[index].float() / 255, self.labels[index]

    def batches(self, progress: str) -> Iterator[Tensor]:
        """All images, float32 (B, 3, H, W) in [0, 1]; `progress` names the bar."""
        for start in tqdm(range(0, len(self), 250), desc=progress, leave=False):
            yield self.batch(slice(start, start + 250))[0]

    def fingerprint(self) -> str:
        """A digest of all images and labels."""
        digest = hashlib.sha256(self.images.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def subset(self, count: int) -> "ImageSet":
        """The first `count` images; they share memory with this set."""
        if check_count("count", count) > len(self):
            held = f"the {self.split} split of {self.name} has {len(self)} images"
            raise InputError(f"count is {count}, but {held}.")
        return replace(self, images=self.images[:count], labels=self.labels[:count])


def load(
    name: str, split: str = "train", count: int | None = None, resolution: int = RESOLUTION
) -> ImageSet:
    """Load a data set by its name (see `NAMES`), or its first `count` images.

    `folder:PATH` (see `folders`) has a `resolution`, a split "all", and may hold fewer than `count`
    images; the other sets have 32 x 32 pixels. InputError for a wrong argument, DataError for data
    that are absent or damaged.
    """
    check_name(name)
    own = name.startswith("folder:")
    check_choice("split", split, (*SPLITS, "all") if own else SPLITS)
    check_count("resolution", resolution)
    if count is not None:
        check_count("count", count)  # before anything is downloaded
    if own:
        found = folders.load(name, split, resolution)
        whole = ImageSet(canonical(name), split, *found, flip=False)
        return whole if count is None else whole.subset(min(count, len(whole)))
    if resolution != RESOLUTION:
        fixed = f"{name} has {RESOLUTION} x {RESOLUTION} pixels, not {resolution} x {resolution}"
        raise InputError(f"{fixed}; only folder:PATH takes another resolution.")
    whole = DATASETS[name](split, count)
    return whole if count is None else whole.subset(count)


def check_name(name: str) -> None:
    """InputError if there is no data set of this name."""
    if not (isinstance(name, str) and name.startswith("folder:")):
        check_choice("data set", name, (*DATASETS, "folder:PATH"))


def whole_set(name: str) -> str:
    """The data set that a sample was taken from; the name itself if it is no sample."""
    return SAMPLES.get(name, name)


def describe_sample(name: str) -> str:
    """What a sample holds, in one sentence; "" for every other data set."""
    if name not in SAMPLES:
        return ""
    held = " and ".join(f"{count:,} {split}" for split, count in SAMPLE.items())
    return f"{name}: {held} images, a small part of {SAMPLES[name]}."


def data_root() -> Path:
    """Where downloaded data live: the folder SGMGM_DATA, else data/raw in the current folder."""
    return Path(os.path.expanduser(os.environ.get("SGMGM_DATA") or Path("data", "raw")))


def augment(images: Tensor, generator: torch.Generator, flip=True, shift: int = 0) -> Tensor:
    """Mirror half of the images (B, C, H, W); move each by up to `shift` pixels, edges repeated.

    The result is new and depends on the images and on the generator's state alone.
    """
    batch, channels, height, width = images.shape

    def offsets(low: int, high: int) -> Tensor:
        random = torch.randint(low, high, (batch, 1), generator=generator, device=generator.device)
        return random.to(images.device)

    def line(length: int) -> Tensor:
        moved = torch.arange(length, device=images.device) + offsets(-shift, shift + 1)
        return moved.clamp(0, length - 1)

    rows, columns = line(height), line(width)
    if flip:
        columns = torch.where(offsets(0, 2) == 1, width - 1 - columns, columns)
    which = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return images[which, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _load_sprites(split: str, count: int | None) -> ImageSet:
    seed, total = SPRITE_SPLITS[split]
    images, labels = sprites.render(range(min(count or total, total)), seed)
    images = images.mul_(255).round_().to(torch.uint8)
    return ImageSet("sprites", split, images, labels, sprites.CLASSES)


# torchvision downloads and reads the public sets; its tracebacks become one sentence here.


def _load_cifar10(split: str, count: int | None) -> ImageSet:
    folder = data_root() / DOWNLOADED["cifar10"]
    from torchvision.datasets import CIFAR10  # seconds to import

    names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    names.append(CIFAR10.meta["filename"])
    archives = [(data_root() / CIFAR10.filename, CIFAR10.tgz_md5)]
    remedy = f"put {CIFAR10.filename} (from {CIFAR10.url}) into {data_root()}"
    _download_if_absent(CIFAR10, [folder / name for name in names], archives, remedy)
    # pickles could run code: torchvision opens only files with the checksums that it knows
    data = _read(CIFAR10, split, folder)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # a view: torchvision's own memory
    labels = torch.tensor(data.targets)
    return ImageSet("cifar10", split, images.contiguous(), labels, tuple(data.classes))


def _load_fashion_mnist(split: str, count: int | None) -> ImageSet:
    folder = data_root() / DOWNLOADED["fashion-mnist"]
    from torchvision.datasets import FashionMNIST

    names = [name for name, _ in FashionMNIST.resources]
    archives = [(folder / name, checksum) for name, checksum in FashionMNIST.resources]
    remedy = f"put {', '.join(names)} (from {FashionMNIST.mirrors[0]}) into {folder}"
    files = [folder / name.removesuffix(".gz") for name in names]
    _download_if_absent(FashionMNIST, files, archives, remedy)
    data = _read(FashionMNIST, split, folder)
    shape, labels = tuple(data.data.shape), len(data.targets)
    if shape != (labels, 28, 28) or not labels:
        what = f"{split} images of the shape {shape}, which does not fit {labels} labels"
        raise DataError(f"{folder} holds {what}: delete it and get it again.")
    if data.targets.max() >= len(FashionMNIST.classes):
        raise DataError(f"{folder} holds {split} labels above 9: delete it and get it again.")
    images = F.pad(data.data, (2, 2, 2, 2))[:, None].repeat(1, 3, 1, 1)
    # All shoes point to the left, so a mirrored one would be a new kind of image.
    return ImageSet("fashion-mnist", split, images, data.targets, tuple(data.classes), flip=False)


def _load_fashion_sample(split: str, count: int | None) -> ImageSet:
    name, path, total = "fashion-mnist-sample", SAMPLE_FOLDER / f"{split}.png", SAMPLE[split]
    try:
        with Image.open(path) as file:
            sheet = torch.from_numpy(np.array(file))
        if sheet.dtype != torch.uint8 or sheet.shape != (total // SHEET * 28, SHEET * 28):
            raise ValueError(f"it holds {tuple(sheet.shape)} pixels")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's, for a damaged file
        raise DataError(f"{path} is absent or damaged ({error}): install sgmgm again.") from error
    images = sheet.unflatten(0, (-1, 28)).unflatten(2, (SHEET, 28)).transpose(1, 2).flatten(0, 1)
    images = F.pad(images, (2, 2, 2, 2))[:, None].repeat(1, 3, 1, 1)
    labels = torch.arange(total) % len(FASHION)
    return ImageSet(name, split, images, labels, FASHION, flip=False)


def _download_if_absent(kind, files: list[Path], archives: list, remedy: str) -> None:
    """Let torchvision unpack the archives, or download them, if one of the files is missing."""
    try:
        missing = [file for file in files if not file.is_file()]
        if missing:
            with contextlib.redirect_stdout(sys.stderr):  # progress is no result
                kind(data_root(), download=True)
    except Exception as error:  # torchvision lets through whatever the network or disk raises
        from torchvision.datasets.utils import check_integrity

        for archive, checksum in archives:
            if archive.is_file() and not check_integrity(archive, checksum):
                raise DataError(f"{archive} is damaged or incomplete: get it again.") from error
        what = f"is absent and could not be downloaded ({reason(error)})"
        raise DataError(f"{missing[0]} {what}: {remedy}.") from error


def _read(kind, split: str, folder: Path):
    try:
        return kind(data_root(), train=split == "train", download=False)
    except Exception as error:  # damage shows as any error of numpy, pickle or torch
        what = f"cannot be read as {kind.__name__}, because a file in it is damaged"
        raise DataError(f"{folder} {what}: delete it and get it again.") from error


# name -> (split, count or None for all) -> an `ImageSet` of 32 x 32 pixels; more images are cut
DATASETS = {"sprites": _load_sprites, "cifar10": _load_cifar10}
DATASETS["fashion-mnist"] = _load_fashion_mnist
DATASETS["fashion-mnist-sample"] = _load_fashion_sample
NAMES = (*DATASETS, "folder:PATH")
