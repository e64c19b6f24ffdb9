import gzip
import hashlib
import os
import pickle
import struct
import tarfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, FashionMNIST

from scripts import fashion_sample
from sgmgm import datasets, sprites
from sgmgm.utils.errors import DataError, InputError

REAL = os.environ.get("SGMGM_DATA", "data/raw")  # as it was before a test changes it


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Every test has an empty root of its own and no network."""

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("SGMGM_DATA", str(tmp_path / "raw"))


# Small files in the format of the real ones.


def cifar_batch(random, count: int) -> dict:
    pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": random.integers(0, 10, count).tolist()}


def write_cifar(root: Path, monkeypatch) -> Path:
    """Twelve training and three test images, with checksums that torchvision will accept."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    sums = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
        return [name, sums[name]]

    train = [write(f"data_batch_{i}", cifar_batch(random, 4)) for i in (1, 2, 3)]
    test = [write("test_batch", cifar_batch(random, 3))]
    write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", test)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    return folder


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(root: Path) -> Path:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for start, count in (("train", 12), ("t10k", 5)):
        pixels = random.integers(1, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{start}-images-idx3-ubyte").write_bytes(idx(pixels))
        labels = random.integers(0, 10, count, dtype=np.uint8)
        (folder / f"{start}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def check_whole(data: datasets.ImageSet):
    """What holds for every set."""
    assert data.images.dtype == torch.uint8 and data.images.shape[1:] == (3, 32, 32)
    assert data.labels.dtype == torch.int64 and data.labels.shape == (len(data),)
    assert data.labels.min() >= 0 and data.labels.max() < len(data.classes)
    assert data.images.is_contiguous()


# Image sets


def test_batches_are_floats_and_leave_the_set_alone():
    data = datasets.load("sprites", "test", count=20)
    images, labels = data.batch(torch.tensor([3, 11]))
    assert images.dtype == torch.float32 and images.max() <= 1
    assert torch.equal((images * 255).round().byte(), data.images[[3, 11]])
    assert labels.tolist() == [3, 1]
    images.zero_()
    assert data.images[3].any()


def test_a_subset_is_the_first_images_and_copies_nothing():
    data = datasets.load("sprites", "test", count=20)
    few = data.subset(5)
    assert len(few) == 5 and len(data) == 20
    assert torch.equal(few.images, data.images[:5]) and torch.equal(few.labels, data.labels[:5])
    assert few.images.data_ptr() == data.images.data_ptr()
    assert (few.name, few.split, few.classes, few.flip) == (
        "sprites",
        "test",
        sprites.CLASSES,
        True,
    )


def test_root_is_the_environments_or_the_projects(monkeypatch, tmp_path):
    assert datasets.data_root() == tmp_path / "raw"
    monkeypatch.delenv("SGMGM_DATA")
    assert datasets.data_root() == Path("data/raw")
    monkeypatch.setenv("SGMGM_DATA", "~/sets")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert datasets.data_root() == tmp_path / "sets"
    monkeypatch.setenv("SGMGM_DATA", "~no-such-user/sets")
    assert datasets.data_root() == Path("~no-such-user/sets")


# Sprites


def test_sprites_are_drawn_as_uint8_with_their_colours_intact():
    data = datasets.load("sprites", count=1500)
    check_whole(data)
    drawn, labels = sprites.render(range(1500), seed=0)
    assert torch.equal(data.labels, labels)
    assert (data.batch(slice(None))[0] - drawn).abs().max() <= 0.5 / 255 + 1e-6
    assert sprites.coherence(data.batch(slice(None))[0]) >= 0.99


def test_sprite_splits_share_no_image():
    train, test = (datasets.load("sprites", split, count=2000) for split in datasets.SPLITS)
    both = torch.cat([train.images, test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 4000


# CIFAR-10


def test_cifar_is_read_in_order(monkeypatch, tmp_path):
    write_cifar(tmp_path / "raw", monkeypatch)
    data = datasets.load("cifar10")
    check_whole(data)
    assert len(data) == 12 and len(datasets.load("cifar10", "test")) == 3
    random = np.random.default_rng(0)
    _, second = (cifar_batch(random, 4) for _ in range(2))
    assert data.images[4:8].flatten(1).equal(torch.from_numpy(second["data"]))
    assert data.labels[4:8].tolist() == second["labels"]
    assert data.classes == tuple(f"class {i}" for i in range(10)) and data.flip


def test_cifar_shares_torchvisions_memory(monkeypatch, tmp_path):
    write_cifar(tmp_path / "raw", monkeypatch)
    read, kept = datasets._read, []
    monkeypatch.setattr(datasets, "_read", lambda *args: kept.append(read(*args)) or kept[0])
    data = datasets.load("cifar10")
    assert data.images.data_ptr() == kept[0].data.ctypes.data


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_tampered_cifar_file_is_refused_and_not_unpickled(name, monkeypatch, tmp_path):
    folder = write_cifar(tmp_path / "raw", monkeypatch)
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return Path.touch, (trap,)

    (folder / name).write_bytes(pickle.dumps(Trap()))
    touch, where = Trap().__reduce__()  # what unpickling would do
    touch(*where)
    assert trap.exists()  # the trap works,
    trap.unlink()
    with pytest.raises(DataError, match="a file in it is damaged"):
        datasets.load("cifar10")
    assert not trap.exists()  # and nobody stepped into it


def test_cifar_is_unpacked_from_its_archive(monkeypatch, tmp_path, capsys):
    folder = write_cifar(tmp_path / "elsewhere", monkeypatch)
    archive = tmp_path / "raw" / CIFAR10.filename
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert len(datasets.load("cifar10")) == 12
    assert capsys.readouterr().out == ""


# Fashion-MNIST


def test_fashion_is_padded_and_has_three_channels(tmp_path):
    folder = write_fashion(tmp_path / "raw")
    data = datasets.load("fashion-mnist")
    check_whole(data)
    assert len(data) == 12 and len(datasets.load("fashion-mnist", "test")) == 5
    pixels = np.frombuffer((folder / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    expected = torch.from_numpy(pixels.reshape(12, 1, 28, 28).copy()).expand(-1, 3, -1, -1)
    assert torch.equal(data.images[:, :, 2:-2, 2:-2], expected)
    frame = data.images.clone()
    frame[:, :, 2:-2, 2:-2] = 0
    assert not frame.any()
    assert not data.flip  # its shoes all point the same way


def pack_fashion(folder):
    """Put each file into an archive: [(name, MD5 sum)], as torchvision keeps them."""
    resources = []
    for file in sorted(folder.iterdir()):
        packed = gzip.compress(file.read_bytes())
        (folder / f"{file.name}.gz").write_bytes(packed)
        file.unlink()
        resources.append((f"{file.name}.gz", hashlib.md5(packed).hexdigest()))
    return resources


def test_fashion_is_unpacked_from_its_archives(monkeypatch, tmp_path, capsys):
    resources = pack_fashion(write_fashion(tmp_path / "raw"))
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    assert len(datasets.load("fashion-mnist", count=7)) == 7
    assert capsys.readouterr().out == ""


# Augmentation


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_augmentation_follows_the_generator_and_spares_its_input():
    images = torch.rand(16, 3, 32, 32, generator=seeded())
    before = images.clone()
    first = datasets.augment(images, seeded(1), shift=3)
    torch.rand(5)  # the global generator has no part in it
    assert torch.equal(first, datasets.augment(images, seeded(1), shift=3))
    assert not torch.equal(first, datasets.augment(images, seeded(2), shift=3))
    assert torch.equal(images, before)


def test_without_flip_and_shift_nothing_changes():
    images = torch.rand(4, 3, 8, 6, generator=seeded())
    result = datasets.augment(images, seeded(), flip=False, shift=0)
    assert torch.equal(result, images) and result.data_ptr() != images.data_ptr()


def test_about_half_of_the_images_are_mirrored():
    images = torch.rand(400, 3, 8, 8, generator=seeded())
    result = datasets.augment(images, seeded())
    kept = (result == images).flatten(1).all(1)
    mirrored = (result == images.flip(-1)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_shifts_reach_all_offsets_and_repeat_edges():
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(600, 3, 8, 8)
    result = datasets.augment(images, seeded(), flip=False, shift=2)
    moved = result[:, 0, 4, 4] - images[:, 0, 4, 4]
    assert set(moved.tolist()) == {8 * dy + dx for dy in range(-2, 3) for dx in range(-2, 3)}
    right_down = result[(moved == 18).nonzero()[0, 0], 0]
    assert torch.equal(right_down[:6, :6], images[0, 0, 2:, 2:])
    assert (right_down[:6, 6:] == images[0, 0, 2:, 7:]).all()


# What can go wrong


def empty(root, monkeypatch):
    pass


def cut(path: Path, keep: int):
    path.write_bytes(path.read_bytes()[:keep])


def cut_cifar(root, monkeypatch):
    cut(write_cifar(root, monkeypatch) / "data_batch_1", 1000)


def lose_cifar_batch(root, monkeypatch):
    (write_cifar(root, monkeypatch) / "data_batch_2").unlink()


def cut_cifar_archive(root, monkeypatch):
    root.mkdir()
    (root / CIFAR10.filename).write_bytes(b"half of it")


def cut_fashion_images(root, monkeypatch):
    cut(write_fashion(root) / "train-images-idx3-ubyte", 5000)


def cut_fashion_labels(root, monkeypatch):
    cut(write_fashion(root) / "train-labels-idx1-ubyte", 6)


def misfit_fashion(root, monkeypatch):
    (write_fashion(root) / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(7, np.uint8)))


def mislabel_fashion(root, monkeypatch):
    (write_fashion(root) / "train-labels-idx1-ubyte").write_bytes(idx(np.full(12, 10, np.uint8)))


def file_as_root(root, monkeypatch):
    root.write_text("not a folder")


@pytest.mark.parametrize(
    "prepare, name, fragment",
    [
        (empty, "cifar10", "put cifar-10-python.tar.gz (from https://"),
        (empty, "cifar10", "data_batch_1 is absent and could not be downloaded"),
        (empty, "fashion-mnist", "put train-images-idx3-ubyte.gz, train-labels"),
        (file_as_root, "cifar10", "could not be downloaded"),
        (lose_cifar_batch, "cifar10", "data_batch_2 is absent"),
        (cut_cifar, "cifar10", "cannot be read as CIFAR10, because a file in it is damaged"),
        (cut_cifar_archive, "cifar10", "cifar-10-python.tar.gz is damaged or incomplete"),
        (cut_fashion_images, "fashion-mnist", "cannot be read as FashionMNIST, because"),
        (cut_fashion_labels, "fashion-mnist", "cannot be read as FashionMNIST, because"),
        (misfit_fashion, "fashion-mnist", "does not fit 7 labels"),
        (mislabel_fashion, "fashion-mnist", "labels above 9"),
    ],
)
def test_absent_and_damaged_sets_give_one_sentence(prepare, name, fragment, monkeypatch, tmp_path):
    prepare(tmp_path / "raw", monkeypatch)
    check_sentence(DataError, fragment, lambda: datasets.load(name))


@pytest.mark.parametrize(
    "call, fragment",
    [
        (lambda: datasets.load("imagenet"), "unknown data set 'imagenet': choose one of sprites"),
        (lambda: datasets.load(None), "unknown data set None"),
        (lambda: datasets.load("sprites", "valid"), "unknown split 'valid'"),
        (lambda: datasets.load("sprites", count=0), "count must be a whole number"),
        (lambda: datasets.load("cifar10", count=-5), "count must be a whole number"),
        (lambda: datasets.load("sprites", count=2.5), "count must be a whole number"),
        (lambda: datasets.load("sprites", "test", count=5001), "sprites has 5000 images"),
        (lambda: datasets.load("sprites", count=5).subset(6), "sprites has 5 images"),
        (lambda: datasets.load("sprites", count=5).subset(0), "count must be a whole number"),
        (lambda: datasets.load("sprites", resolution=64), "only folder:PATH takes another"),
        (lambda: datasets.load("folder:x", resolution=0), "resolution must be a whole number"),
    ],
)
def test_bad_arguments_give_one_sentence(call, fragment):
    check_sentence(InputError, fragment, call)


def check_sentence(kind, fragment, call):
    with pytest.raises(kind) as caught:
        call()
    sentence = str(caught.value)
    assert fragment in sentence
    assert sentence.endswith(".") and "\n" not in sentence


# The sample of Fashion-MNIST that ships


@pytest.mark.parametrize("split, count", [("train", 2000), ("test", 1000)])
def test_the_sample_is_balanced_and_needs_no_whole_set(split, count):
    data = datasets.load("fashion-mnist-sample", split)
    check_whole(data)
    assert len(data) == count and data.labels.bincount().tolist() == [count // 10] * 10
    assert data.classes == tuple(FashionMNIST.classes) and not data.flip
    assert len(data.images.flatten(1).unique(dim=0)) == count
    few = datasets.load("fashion-mnist-sample", split, count=20)
    assert torch.equal(few.images, data.images[:20])
    assert datasets.whole_set(data.name) == "fashion-mnist"
    check_sentence(DataError, "could not be downloaded", lambda: datasets.load("fashion-mnist"))


@pytest.mark.parametrize("keep", [None, 5000])
def test_a_damaged_sample_gives_one_sentence(keep, monkeypatch, tmp_path):
    if keep:
        whole = (datasets.SAMPLE_FOLDER / "test.png").read_bytes()
        (tmp_path / "test.png").write_bytes(whole[:keep])
    monkeypatch.setattr(datasets, "SAMPLE_FOLDER", tmp_path)
    load = lambda: datasets.load("fashion-mnist-sample", "test")  # noqa: E731
    check_sentence(DataError, "is absent or damaged", load)


@pytest.mark.real
def test_the_sample_is_made_again_from_the_whole_set(monkeypatch, tmp_path):
    monkeypatch.setenv("SGMGM_DATA", REAL)
    fashion_sample.main(tmp_path)
    for split in datasets.SAMPLE:
        shipped, again = datasets.SAMPLE_FOLDER / f"{split}.png", tmp_path / f"{split}.png"
        assert Image.open(shipped).tobytes() == Image.open(again).tobytes()
        data, whole = (
            datasets.load("fashion-mnist-sample", split),
            datasets.load("fashion-mnist", split),
        )
        c = 3
        firsts = whole.images[whole.labels == c][: len(data) // 10]
        assert torch.equal(data.images[data.labels == c], firsts)


# The real data: `SGMGM_DATA=... pytest -m real`


@pytest.mark.real
@pytest.mark.parametrize(
    "name, split, count",
    [
        ("cifar10", "train", 50_000),
        ("cifar10", "test", 10_000),
        ("fashion-mnist", "train", 60_000),
        ("fashion-mnist", "test", 10_000),
    ],
)
def test_real_data(name, split, count, monkeypatch, capsys):
    monkeypatch.setenv("SGMGM_DATA", REAL)
    data = datasets.load(name, split)
    check_whole(data)
    assert len(data) == count
    assert data.labels.bincount().tolist() == [count // 10] * 10
    assert capsys.readouterr().out == ""
