import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from sgmgm import datasets, folders
from sgmgm.utils.errors import DataError

from .test_datasets import check_sentence, check_whole, cut


def write_pictures(root: Path, classes=("cat", "dog"), count: int = 10) -> Path:
    """In class c, picture i is the plain grey 100 c + i."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 30), (100 * label + i,) * 3).save(root / name / f"{i:02}.png")
    return root


def test_every_fifth_picture_of_a_class_is_for_testing(tmp_path):
    name = f"folder:{write_pictures(tmp_path / 'pets')}"
    train, test = datasets.load(name), datasets.load(name, "test")
    check_whole(train)
    assert train.classes == test.classes == ("cat", "dog")
    assert test.images[:, 0, 0, 0].tolist() == [4, 104, 9, 109]
    assert test.labels.tolist() == [0, 1, 0, 1]
    assert train.images[:4, 0, 0, 0].tolist() == [0, 100, 1, 101]  # mixed from the first on
    greys = [*train.images[:, 0, 0, 0].tolist(), *test.images[:, 0, 0, 0].tolist()]
    assert sorted(greys) == [*range(10), *range(100, 110)]


def test_given_splits_are_kept(tmp_path):
    write_pictures(tmp_path / "pets" / "train", count=6)
    write_pictures(tmp_path / "pets" / "test", count=2)
    name = f"folder:{tmp_path / 'pets'}"
    assert len(datasets.load(name, "train")) == 12 and len(datasets.load(name, "test")) == 4


def test_a_class_may_be_called_train(tmp_path):
    write_pictures(tmp_path / "traffic", classes=("bus", "train"), count=5)
    assert datasets.load(f"folder:{tmp_path / 'traffic'}").classes == ("bus", "train")


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    root = write_pictures(tmp_path / "pets", count=5)
    (root / ".thumbnails").mkdir()
    (root / "cat" / "._00.png").write_bytes(b"not a picture")
    (root / "cat" / "notes.txt").write_text("not a picture")
    data = datasets.load(f"folder:{root}")
    assert data.classes == ("cat", "dog") and len(data) == 8


def test_pictures_are_cut_to_their_centre_and_resized(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = (10, 200, 30)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    for resolution in (8, 20, 64):
        image = folders.read_picture(tmp_path / "wide.png", resolution)
        assert image.shape == (3, resolution, resolution)
        assert (image == torch.tensor([10, 200, 30])[:, None, None]).all()


def test_pictures_are_antialiased(tmp_path):
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(checks.astype(np.uint8)).save(tmp_path / "checks.png")
    image = folders.read_picture(tmp_path / "checks.png", 8).float()
    assert (image - 127.5).abs().max() < 8


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("L", 70, (70, 70, 70)),
        ("I;16", 70 * 256, (70, 70, 70)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_kind_of_pixel_becomes_rgb_on_white(mode, colour, expected, tmp_path):
    Image.new(mode, (9, 9), colour).save(tmp_path / "plain.png")
    image = folders.read_picture(tmp_path / "plain.png", 4)
    assert (image == torch.tensor(expected)[:, None, None]).all()


def test_a_transparent_palette_becomes_white(tmp_path):
    picture = Image.new("P", (9, 9), 0)
    picture.putpalette([200, 0, 0])
    picture.save(tmp_path / "palette.png", transparency=0)
    assert (folders.read_picture(tmp_path / "palette.png", 4) == 255).all()


def test_a_photograph_is_turned_upright(tmp_path):
    picture = Image.new("RGB", (32, 32))
    picture.paste((255, 255, 255), (0, 0, 16, 32))  # left half white
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be turned clockwise by the viewer
    picture.save(tmp_path / "photo.png", exif=orientation)
    image = folders.read_picture(tmp_path / "photo.png", 32)
    assert (image[:, :15] > 250).all() and (image[:, 17:] < 5).all()


def test_a_thin_picture_does_not_grow(tmp_path):
    Image.new("RGB", (1, 50_000)).save(tmp_path / "thin.png")
    assert folders.read_picture(tmp_path / "thin.png", 32).shape == (3, 32, 32)


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of one pixel whose header says otherwise."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    header = b"IHDR" + struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    content = buffer.getvalue()
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


@pytest.mark.parametrize("size", [(8001, 8000), (12_000, 8000), (60_000, 60_000)])
def test_giants_are_refused_before_they_are_unpacked(size, tmp_path, recwarn):
    (tmp_path / "giant.png").write_bytes(png_that_claims(*size))
    with pytest.raises(DataError, match="giant.png has more than 64 megapixels"):
        folders.read_picture(tmp_path / "giant.png", 32)
    assert not recwarn.list


def no_pictures(root):
    write_pictures(root)
    (root / "eel").mkdir()
    (root / "eel" / "notes.txt").write_text("no eel")


def no_classes(root):
    root.mkdir()
    Image.new("RGB", (9, 9)).save(root / "loose.png")


def unequal_splits(root):
    write_pictures(root / "train")
    write_pictures(root / "test", classes=("cat", "eel"))


def scrambled(root):
    (write_pictures(root) / "cat" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")


def cut_picture(root):
    write_pictures(root)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "dog" / "02.png")
    cut(root / "dog" / "02.png", 4000)


def no_bytes(root):
    (write_pictures(root) / "dog" / "05.png").write_bytes(b"")


def one_class_of_five(root):
    write_pictures(root, classes=("cat",), count=5)


def one_small_class(root):
    write_pictures(root, classes=("cat",), count=10)
    write_pictures(root, classes=("dog",), count=3)


def only_train(root):
    write_pictures(root / "train")
    write_pictures(root, classes=("other",))


def too_deep(root):
    write_pictures(root / "pets")
    write_pictures(root / "wild", classes=("lion",))


def unlabelled_test(root):
    write_pictures(root / "train")
    (root / "test").mkdir()
    Image.new("RGB", (9, 9)).save(root / "test" / "1.png")


def several_bad(root):
    scrambled(root)
    no_bytes_here(root / "dog" / "04.png")


def many_bad(root):
    write_pictures(root, count=12)
    for i in range(12):
        no_bytes_here(root / "cat" / f"{i:02}.png")


def no_bytes_here(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "prepare, split, fragment",
    [
        (lambda root: None, "train", "there is no such folder"),
        (lambda root: root.write_text("a file"), "train", "there is no such folder"),
        (lambda root: root.mkdir(), "train", "has no class folders"),
        (no_classes, "train", "has no class folders"),
        (no_pictures, "train", "eel holds no pictures"),
        (unequal_splits, "train", "only one of them has dog, eel"),
        (one_class_of_five, "train", "has one picture to test with; scores need 2"),
        (one_small_class, "train", "too few are in dog (3)"),
        (only_train, "train", "train holds only folders: are those the classes?"),
        (too_deep, "train", "pets holds only folders"),
        (unlabelled_test, "train", "test has no class folders"),
        (several_bad, "test", "2 of 20 pictures cannot be used; remove or replace them: "),
        (many_bad, "train", ".png and 2 more. The first: "),
        (
            lambda root: write_pictures(root, count=4),
            "train",
            "a class needs 5; too few are in cat (4), dog (4)",
        ),
        (scrambled, "train", "03.png cannot be read as a picture"),
        (cut_picture, "train", "02.png cannot be read as a picture"),
        (no_bytes, "train", "05.png cannot be read as a picture"),
    ],
)
def test_folders_that_cannot_be_used_give_one_sentence(prepare, split, fragment, tmp_path):
    prepare(tmp_path / "pets")
    check_sentence(DataError, fragment, lambda: datasets.load(f"folder:{tmp_path / 'pets'}", split))


# Splits, links and what is left out


@pytest.mark.parametrize(
    "train, test", [("train", "val"), ("Train", "VALID"), ("TRAINING", "Test")]
)
def test_folders_of_splits_are_read_as_splits(train, test, tmp_path):
    """In any capitals; which of two names for the other split is taken, the description says."""
    write_pictures(tmp_path / train, count=6)
    write_pictures(tmp_path / test, count=2)
    write_pictures(tmp_path / "extra", count=2)
    name = f"folder:{tmp_path}"
    data = datasets.load(name, "test")
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [0, 1, 0, 1]
    assert len(datasets.load(name)) == 12 and len(datasets.load(name, "all")) == 16
    said = folders.describe(name).splitlines()
    assert said[0] == f"{name}: 2 classes, training + test pictures: cat 6 + 2, dog 6 + 2"
    assert said[1:] == ["left out: the folders extra"]


def test_a_nested_picture_belongs_to_its_class(tmp_path):
    root = write_pictures(tmp_path / "pets", count=5)
    write_pictures(root / "cat", classes=("old",), count=5)
    assert datasets.load(f"folder:{root}", "all").labels.bincount().tolist() == [10, 5]


def test_every_real_folder_and_file_is_read_once(tmp_path):
    """Links to parents, to other classes, to one's own folder and to single pictures."""
    root = write_pictures(tmp_path / "pets")
    write_pictures(tmp_path, classes=("more",), count=5)
    for link, target in {
        "cat/up": root,
        "cat/above": tmp_path,
        "cat/round": root / "cat",
        "cat/dogs": root / "dog",
        "cat/extra": tmp_path / "more",
        "dog/extra": tmp_path / "more",
        "cat/one.png": root / "dog" / "00.png",
    }.items():
        (root / link).symlink_to(target)
    data = datasets.load(f"folder:{root}", "all")
    greys = data.images[:, 0, 0, 0]
    assert sorted(greys[data.labels == 1].tolist()) == list(range(100, 110))
    assert sorted(greys[data.labels == 0].tolist()) == sorted([*range(10), *range(5)])


def test_a_split_is_not_mixed_into_the_other_by_a_link(tmp_path):
    write_pictures(tmp_path / "train", count=6)
    write_pictures(tmp_path / "val", count=2)
    (tmp_path / "train" / "cat" / "more").symlink_to(tmp_path / "val" / "cat")
    assert len(datasets.load(f"folder:{tmp_path}")) == 12


def test_what_pillow_reads_is_read_and_the_rest_is_named(tmp_path):
    root = write_pictures(tmp_path / "pets", count=5)
    endings = [".gif", ".JFIF", ".webp", ".tga", ".jp2"]
    endings += [".avif"] * features.check("avif")
    for ending in endings:
        Image.new("RGB", (9, 9), (250, 250, 250)).save(root / "cat" / f"white{ending}")
    for name in ("1.heic", "2.heic", "notes.txt", "plain"):
        (root / "dog" / name).write_bytes(b"?")
    (root / "beside.png").write_bytes(b"?")
    data = datasets.load(f"folder:{root}", "all")
    assert int((data.images[data.labels == 0].flatten(1).amin(1) > 240).sum()) == len(endings)
    left_out = folders.describe(f"folder:{root}").splitlines()[1]
    assert left_out.startswith("left out: 5 files (2 .heic, ") and "1 without ending" in left_out
    assert ".eps" not in folders.readable()  # Pillow would start another program for it


def test_own_output_is_no_class(tmp_path, monkeypatch):
    root = write_pictures(tmp_path / "pets", count=5)
    (root / "runs" / "pets-smoke" / "tokenizer").mkdir(parents=True)
    (root / "runs" / "pets-smoke" / "pipeline.json").write_text("{}")
    Image.new("RGB", (9, 9)).save(root / "runs" / "pets-smoke" / "samples.png")
    monkeypatch.chdir(root)
    assert datasets.load("folder:.").classes == ("cat", "dog")


def test_one_folder_has_one_name(tmp_path, monkeypatch):
    root = write_pictures(tmp_path / "pets", count=5)
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ways = ["folder:pets", "folder:pets/", "folder:./pets", f"folder:{root}", "folder:link"]
    names = {datasets.load(way).name for way in (*ways, "folder:~/pets")}
    monkeypatch.chdir(tmp_path / "notebooks")
    assert names == {datasets.load("folder:../pets").name, f"folder:{root}"}
    monkeypatch.chdir(root)
    assert datasets.load("folder:.").name in names


def test_a_folder_may_hold_fewer_pictures_than_asked_for(tmp_path):
    name = f"folder:{write_pictures(tmp_path / 'pets')}"
    assert len(datasets.load(name, count=17)) == 16 and len(datasets.load(name, count=3)) == 3
    assert not datasets.load(name).flip


def test_changed_pictures_are_read_again(tmp_path):
    name = f"folder:{write_pictures(tmp_path / 'pets')}"
    first = datasets.load(name)
    first.images.zero_()  # and what a caller does to its copy stays there
    assert datasets.load(name).images.any()
    Image.new("RGB", (9, 9), "white").save(tmp_path / "pets" / "cat" / "00.png")
    assert (datasets.load(name).images[0] == 255).all()


# Kinds of pixels


def tiff(values: np.ndarray, kind: int, order: str = ">") -> bytes:
    """A grey TIFF file; kind 1 is whole, 2 whole with a sign, 3 a fraction (SampleFormat)."""
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    height, width = values.shape
    short = {
        256: width,
        257: height,
        258: 8 * values.itemsize,
        259: 1,
        262: 1,
        278: height,
        339: kind,
    }
    long = {273: 8 + 2 + 12 * 9 + 4, 279: len(data)}
    tags = b"".join(
        struct.pack(f"{order}HHI", tag, 4 if tag in long else 3, 1)
        + (struct.pack(f"{order}I", v) if tag in long else struct.pack(f"{order}HH", v, 0))
        for tag, v in sorted({**short, **long}.items())
    )
    start = {">": b"MM\0*", "<": b"II*\0"}[order]
    return start + struct.pack(f"{order}IH", 8, 9) + tags + bytes(4) + data


@pytest.mark.parametrize("order", "<>")
def test_16_bit_greys_are_scaled(order, tmp_path):
    values = np.full((9, 9), 70 * 256, np.uint16)
    (tmp_path / "grey.tif").write_bytes(tiff(values, 1, order))
    assert (folders.read_picture(tmp_path / "grey.tif", 4) == 70).all()
    values[:] = 65535
    (tmp_path / "white.tif").write_bytes(tiff(values, 1, order))
    assert (folders.read_picture(tmp_path / "white.tif", 4) == 255).all()


def test_transparent_16_bit_greys_become_white(tmp_path):
    values = np.full((8, 8), 70 * 256, np.uint16)
    values[:, 4:] = 300  # which is transparent
    Image.fromarray(values).save(tmp_path / "grey.png", transparency=300)
    image = folders.read_picture(tmp_path / "grey.png", 8)
    assert (image[..., 0] == 70).all() and (image[..., -1] == 255).all()


@pytest.mark.parametrize(
    "values, kind, fragment",
    [
        (np.full((9, 9), 0.7, np.float32), 3, "fractions of 32 bits"),
        (np.full((9, 9), 2**30, np.int32), 2, "whole numbers of 32 bits"),
        (np.full((9, 9), 2**30, np.uint32), 1, ".tif "),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_pixels_of_unknown_range_are_refused_and_never_black(
    order, values, kind, fragment, tmp_path
):
    (tmp_path / "a.tif").write_bytes(tiff(values, kind, order))
    check_sentence(DataError, fragment, lambda: folders.read_picture(tmp_path / "a.tif", 4))


# Samples


def test_a_folder_of_samples_has_the_labels_of_its_folders(tmp_path):
    for name, grey in (("dog", 100), ("cat", 50)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / name / "1.png")
    images, labels = folders.read_samples(tmp_path, 8, ["dog", "cat"])
    assert images.shape == (2, 8, 8, 3) and images.dtype == np.uint8
    assert images[:, 0, 0, 0].tolist() == [50, 100] and labels.tolist() == [1, 0]
    assert folders.read_samples(tmp_path, None, ["dog"])[1] is None
    check_sentence(
        DataError, "8 x 8 pixels where 32 x 32", lambda: folders.read_samples(tmp_path, 32)
    )
    Image.new("RGB", (8, 9)).save(tmp_path / "dog" / "2.png")
    check_sentence(
        DataError, "8 x 9 pixels where 8 x 8", lambda: folders.read_samples(tmp_path, None)
    )
    (tmp_path / "none").mkdir()
    check_sentence(DataError, "no pictures", lambda: folders.read_samples(tmp_path / "none", 8))
