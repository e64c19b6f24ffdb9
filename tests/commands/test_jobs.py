import contextlib
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from sgmgm.commands import jobs
from sgmgm.pipeline import Pipeline
from sgmgm.utils.errors import DataError, InputError
from sgmgm.utils.samples import load_samples, save_samples, to_uint8

LABELS = torch.arange(11) % 10
OPTIONS = {"seed": 40, "batch_size": 4, "steps": 2}


@pytest.fixture
def pipe(trained):
    return Pipeline.from_pretrained(trained, "cpu")


@pytest.fixture(scope="module")
def expected(trained):
    return plainly(trained)


def plainly(trained):
    """The same images from one plain call after another."""
    pipe = Pipeline.from_pretrained(trained, "cpu")
    parts = pipe.stream(LABELS, first_seed=40, batch_size=4, steps=2)
    return np.concatenate([to_uint8(part.images) for part in parts])


def interrupted(monkeypatch, pipe, path, after, **settings):
    """A job that ends after some batches, as Ctrl-C would end it."""
    usual, count = Pipeline.__call__, []

    def call(*args, **kwargs):
        if len(count) == after:
            raise KeyboardInterrupt
        count.append(1)
        return usual(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "__call__", call)
        with pytest.raises(KeyboardInterrupt):
            jobs.generate_to(path, pipe, LABELS, **OPTIONS | settings)
    assert not path.exists()


def test_a_job_is_a_stream_in_a_file(pipe, expected, tmp_path):
    path = tmp_path / "new folder" / "samples.npz"
    assert jobs.generate_to(path, pipe, LABELS, **OPTIONS) == 11
    images, labels = load_samples(path)
    assert (images == expected).all() and labels.tolist() == LABELS.tolist()
    assert [f.name for f in path.parent.iterdir()] == ["samples.npz"]


def test_a_stopped_job_goes_on(pipe, expected, tmp_path, monkeypatch):
    path = tmp_path / "samples.npz"
    interrupted(monkeypatch, pipe, path, after=2)
    parts = {f: f.stat().st_mtime_ns for f in (tmp_path / "samples.npz.parts").glob("*.npy")}
    assert len(parts) == 2
    usual, seen = jobs.join, {}

    def join(path, files, *rest):
        seen.update({f: f.stat().st_mtime_ns for f in files})
        usual(path, files, *rest)

    monkeypatch.setattr(jobs, "join", join)
    assert jobs.generate_to(path, pipe, LABELS, **OPTIONS) == 3  # the last batch only
    assert parts.items() <= seen.items()
    assert (load_samples(path)[0] == expected).all()


@pytest.mark.parametrize(
    "change", [{"seed": 41}, {"batch_size": 5}, {"steps": 3}, {"guidance": "cfg"}]
)
def test_another_job_is_not_mixed_in(change, pipe, tmp_path, monkeypatch):
    path = tmp_path / "samples.npz"
    interrupted(monkeypatch, pipe, path, after=1)
    with pytest.raises(InputError, match=f"holds a job with another {next(iter(change))}"):
        jobs.generate_to(path, pipe, LABELS, **OPTIONS | change)
    with pytest.raises(InputError, match=r"another num \(11, not 12\)"):
        jobs.generate_to(path, pipe, torch.arange(12) % 10, **OPTIONS)
    with pytest.raises(InputError, match="another labels"):
        jobs.generate_to(path, pipe, LABELS.flip(0), **OPTIONS)
    pipe.transformer.mlm_layer.mlm_dense.bias.data += 1
    with pytest.raises(InputError, match="another weights"):
        jobs.generate_to(path, pipe, LABELS, **OPTIONS)


def test_a_smoother_that_was_trained_anew_is_another_job(trained, tmp_path, monkeypatch):
    pipe, path = Pipeline.from_pretrained(trained, "cpu"), tmp_path / "samples.npz"
    options = OPTIONS | {"guidance": "self"}
    interrupted(monkeypatch, pipe, path, after=1, guidance="self")
    next(pipe.guidance_part("smoother").parameters()).data += 1
    with pytest.raises(InputError, match="another weights"):
        jobs.generate_to(path, pipe, LABELS, **options)


def test_what_a_kill_left_of_a_finished_job_is_no_part_of_the_next(pipe, expected, tmp_path):
    folder = tmp_path / "samples.npz.parts"
    folder.mkdir()
    np.save(folder / "000000000.npy", np.zeros((4, 32, 32, 3), np.uint8))  # without its job.json
    assert jobs.generate_to(tmp_path / "samples.npz", pipe, LABELS, **OPTIONS) == 11
    assert (load_samples(tmp_path / "samples.npz")[0] == expected).all()


def test_a_job_leaves_the_unfinished_files_of_others_alone(pipe, expected, tmp_path):
    """`samples.v2.npz` and `samples.2.npz` may be in the making beside `samples.npz`."""
    path = tmp_path / "samples.npz"
    others = [tmp_path / f".samples.{name}.321.partial.npz" for name in ("v2", "2", "321")]
    others.append(tmp_path / ".mysamples.321.partial.npz")
    killed = tmp_path / ".samples.321.partial.npz"
    for file in (*others, killed):
        file.touch()
    assert jobs.generate_to(path, pipe, LABELS, **OPTIONS) == 11
    assert sorted(tmp_path.iterdir()) == sorted([*others, path])
    assert (load_samples(path)[0] == expected).all()


def test_a_damaged_part_is_named(pipe, tmp_path, monkeypatch):
    path = tmp_path / "samples.npz"
    interrupted(monkeypatch, pipe, path, after=1)
    part = jobs.part_file(tmp_path / "samples.npz.parts", 0)
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match="000000000.npy is damaged"):
        jobs.generate_to(path, pipe, LABELS, **OPTIONS)
    assert not path.exists()
    part.unlink()
    assert jobs.generate_to(path, pipe, LABELS, **OPTIONS) == 4


def test_no_flipped_bit_of_a_header_is_a_traceback(tmp_path):
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int64)
    part, whole = tmp_path / "000000000.npy", tmp_path / "whole.npz"
    np.save(part, images)
    save_samples(whole, images, labels)
    readers = {
        part: lambda: jobs.join(tmp_path / "out.npz", [part], labels, 2),
        whole: lambda: load_samples(whole),
    }
    for path, read in readers.items():
        good = path.read_bytes()
        first = good.index(b"\x93NUMPY")
        for bit in range(8 * 128):  # one flipped bit at a time; some make another whole array
            bad = bytearray(good)
            bad[first + bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            with contextlib.suppress(DataError):
                read()


def test_a_part_that_another_process_took_away(tmp_path):
    with pytest.raises(InputError, match="another process finished or removed this job"):
        jobs.join(tmp_path / "o.npz", [tmp_path / "000000000.npy"], np.zeros(1, np.int64), 1)


def test_the_file_is_joined_a_part_at_a_time(tmp_path):
    """Memory stays flat: joining 64 MB takes little more than one part of 1 MB."""
    import tracemalloc

    parts = [jobs.part_file(tmp_path, i) for i in range(64)]
    for i, part in enumerate(parts):
        np.save(part, np.full((64, 72, 76, 3), i, np.uint8))
    tracemalloc.start()
    jobs.join(tmp_path / "x.npz", parts, np.arange(64 * 64), 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
    images, labels = load_samples(tmp_path / "x.npz")
    assert images.shape == (4096, 72, 76, 3) and labels.tolist() == list(range(4096))
    assert (images[::64, 5, 5, 1] == np.arange(64)).all()


def command(trained, path, *more):
    return [*more, "-m", "sgmgm", "sample", "--model", str(trained), "--num", "300", "--steps", "2",
            "--batch-size", "4", "--seed", "40", "--out", str(path), "--device", "cpu"]  # fmt: skip


@pytest.mark.check
def test_killed_at_any_moment_no_image_is_lost_or_repeated(trained, pipe, tmp_path):
    path = tmp_path / "samples.npz"
    parts = tmp_path / "samples.npz.parts"
    job = subprocess.Popen(command(trained, path, sys.executable), stderr=subprocess.DEVNULL)
    while job.poll() is None and len(list(parts.glob("[0-9]*.npy"))) < 3:
        time.sleep(0.02)
    job.kill()
    assert job.wait() != 0
    kept = len(list(parts.glob("[0-9]*.npy")))
    assert 3 <= kept < 75 and not path.exists()
    done = subprocess.run(
        command(trained, path, sys.executable), capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0 and f"{300 - 4 * kept} of 300 images" in done.stdout
    images, labels = load_samples(path)
    assert labels.tolist() == [i % 10 for i in range(300)]
    for part in pipe.stream(labels, first_seed=40, batch_size=4, steps=2):
        assert (images[: len(part.images)] == to_uint8(part.images)).all()
        images = images[len(part.images) :]
    assert [f.name for f in tmp_path.iterdir()] == ["samples.npz"]
