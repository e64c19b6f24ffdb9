"""Samples on disk: plain numpy, read once, and every damaged file refused in one sentence."""

import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from sgmgm.utils.errors import DataError, InputError
from sgmgm.utils.samples import load_samples, sample_batches, save_grid, save_samples


def pictures(count=6, size=8):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_samples_round_trip_and_are_plain_numpy(tmp_path):
    path, images, labels = tmp_path / "s.npz", pictures(), np.array([3, 1, 4, 1, 5, 9])
    save_samples(path, images, labels.astype(np.int32))
    with np.load(path) as plain:
        assert plain.files == ["arr_0", "arr_1"] and plain["arr_1"].dtype == np.int64
        np.testing.assert_array_equal(plain["arr_0"], images)
    loaded, loaded_labels = load_samples(path, resolution=8)
    np.testing.assert_array_equal(loaded, images)
    np.testing.assert_array_equal(loaded_labels, labels)
    np.savez(path, images, np.eye(10)[labels])
    np.testing.assert_array_equal(load_samples(path)[1], labels)
    np.savez(path, images)
    assert load_samples(path)[1] is None
    assert list(tmp_path.iterdir()) == [path]


def test_sample_batches():
    images = pictures(7)
    images.flags.writeable = False
    batches = list(sample_batches(images, 3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    whole = torch.cat(batches)
    assert whole.dtype == torch.float32 and whole.shape == (7, 3, 8, 8)
    back = (whole * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(back, images)


def test_samples_are_read_without_a_second_copy(tmp_path):
    images = np.zeros((2000, 32, 32, 3), np.uint8)
    save_samples(tmp_path / "s.npz", images, np.zeros(2000, int))
    tracemalloc.start()
    load_samples(tmp_path / "s.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert images.nbytes <= peak < 1.3 * images.nbytes


BAD_INPUT = {
    "save unwritable": (
        lambda: save_samples("/proc/no/s.npz", pictures(), np.zeros(6, int)),
        "cannot write",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence(case):
    act, text = BAD_INPUT[case]
    with pytest.raises(InputError) as caught:
        act()
    message = str(caught.value)
    assert text in message and message.endswith(".") and "\n" not in message


SIX = np.arange(6)
BAD_SAMPLES = {  # what np.savez is given, and what the message must say
    "other names": (dict(images=pictures()), "holds images and no arr_0"),
    "nothing": (dict(), "holds nothing"),
    "floats": (dict(arr_0=pictures() / 255.0), "float64"),
    "NaN": (dict(arr_0=np.full((6, 8, 8, 3), np.nan)), "uint8 array (N, H, W, 3)"),
    "channels first": (dict(arr_0=pictures().transpose(0, 3, 1, 2)), "(6, 3, 8, 8)"),
    "no images": (dict(arr_0=pictures()[:0]), "non-empty"),
    "one image": (dict(arr_0=pictures()[0]), "(8, 8, 3)"),
    "pickled": (dict(arr_0=np.array([{}], object)), "not a plain .npz"),
    "pickled labels": (dict(arr_0=pictures(), arr_1=np.array([{}] * 6, object)), "not a plain"),
    "float labels": (dict(arr_0=pictures(), arr_1=SIX / 2), "class numbers"),
    "negative labels": (dict(arr_0=pictures(), arr_1=SIX - 1), "from 0"),
    "label count": (dict(arr_0=pictures(), arr_1=SIX[:5]), "save 6 class numbers"),
    "not one-hot": (dict(arr_0=pictures(), arr_1=np.full((6, 10), 0.1)), "class numbers"),
    "NaN labels": (dict(arr_0=pictures(), arr_1=np.full((6, 10), np.nan)), "class numbers"),
    "words": (dict(arr_0=pictures(), arr_1=np.array(list("abcdef"))), "class numbers"),
    "resolution": (dict(arr_0=pictures(size=16)), "16 x 16 pixels where 8 x 8"),
}


def check_data_error(act, path, text):
    with pytest.raises(DataError) as caught:
        act()
    message = str(caught.value)
    assert str(path) in message and text in message, message
    assert message.endswith(".") and "\n" not in message


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_bad_samples_are_one_sentence(case, tmp_path):
    content, text = BAD_SAMPLES[case]
    path = tmp_path / "s.npz"
    np.savez(path, **content)
    check_data_error(lambda: load_samples(path, 8), path, text)


def test_damaged_files_are_one_sentence(tmp_path):
    path = tmp_path / "s.npz"
    whole = _npz_bytes(path)
    for part in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], b"text" * 50):
        path.write_bytes(part)
        check_data_error(lambda: load_samples(path), path, "anew")
    path.unlink()
    check_data_error(lambda: load_samples(path), path, "there is no file")
    path.mkdir()
    check_data_error(lambda: load_samples(path), path, "there is no file")
    array = tmp_path / "array.npz"
    with open(array, "wb") as file:
        np.save(file, pictures())
    check_data_error(lambda: load_samples(array), array, "not a plain .npz")
    method = bytearray(whole_npz := _npz_bytes(tmp_path / "t.npz"))
    method[whole_npz.rindex(b"PK\x01\x02") + 10] = 99  # a compression that zipfile does not know
    array.write_bytes(method)
    check_data_error(lambda: load_samples(array), array, "not a plain .npz")


def _npz_bytes(path):
    save_samples(path, pictures(), SIX)
    return path.read_bytes()


@pytest.mark.parametrize("count, columns", [(6, 3), (7, 3), (2, 5), (5, None)])
def test_a_grid_is_torchvisions(count, columns, tmp_path):
    from torchvision.utils import save_image

    images = torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    save_grid(tmp_path / "ours.png", images, columns, zoom=1)
    wide = columns or 3
    save_image(images, tmp_path / "theirs.png", nrow=wide, padding=2, pad_value=1.0)
    ours, theirs = (np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("ours", "theirs"))
    assert (ours == theirs).all()
