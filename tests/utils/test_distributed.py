"""Two processes give the answer of one, and do not wait for a dead one."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sgmgm.commands.cli import main
from sgmgm.utils import distributed as processes
from sgmgm.utils.samples import load_samples, save_samples

from .. import worker
from ..commands.test_jobs import plainly

ROOT = Path(__file__).resolve().parents[2]
ALONE = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
BIN = Path(sys.executable).parent
TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc_per_node", "2"]
# the flag means "several processes"; on CPUs `--cpu` would start only one
ACCELERATE = [str(BIN / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2"]
ACCELERATE += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launch(launcher, *words):
    run = [*launcher, "-m", *map(str, words)]
    options = {"capture_output": True, "text": True, "timeout": 600}
    return subprocess.run(run, cwd=ROOT, env=os.environ | ALONE, **options)


@pytest.mark.parametrize(
    "said, lost",
    [
        ("[third_party/gloo/transport/tcp/pair.cc:525] Read error [127.0.0.1]:1: timeout", True),
        ("Connection closed by peer [127.0.0.1]:16477", True),
        ("NCCL error: a remote process exited or there was a network error", True),
        ("NCCL error: invalid usage. Duplicate GPU detected : rank 0 and rank 1", False),
        ("CUDA error: peer access is not supported between these two devices", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_which_errors_say_that_another_process_is_gone(said, lost, monkeypatch):
    monkeypatch.setattr(processes, "rank_and_size", lambda: (0, 2))
    assert processes.is_loss_of_another(RuntimeError(said)) == lost


WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize("change", [{}, {"RANK": None}, {"MASTER_ADDR": None}, {"WORLD_SIZE": "1"},
                                    {"WORLD_SIZE": "two"}, {"WORLD_SIZE": None}])  # fmt: skip
def test_a_launch_has_a_size_a_rank_and_an_address(change, monkeypatch):
    for name, value in (WHOLE | change).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(
            name, value
        )
    assert processes.launched() == (not change)


def test_a_size_that_was_left_over_makes_nobody_wait(own, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    shutil.rmtree(own / "weak")
    words = ["train", "weak", "--preset", "smoke", "--steps", "1", "--device", "cpu", "--out", own]
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def pair(trained, tmp_path_factory):
    """One launch of two processes that train, score and sample (see worker.py), and one's score."""
    out = tmp_path_factory.mktemp("pair")
    shutil.copytree(trained, out / "model")
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (600, 32, 32, 3), np.uint8)
    save_samples(out / "x.npz", pixels, np.arange(600) % 10)
    alone = worker.say(worker.commands(out, out / "model")["evaluate"])
    (out / "alone.json").write_text(alone)
    done = launch([*ACCELERATE, "--main_process_port", free_port()], "tests.worker", out)
    assert done.returncode == 0, done.stderr
    return out


def found(pair, rank=0):
    return json.loads((pair / f"found-{rank}.json").read_text())


@pytest.mark.check
def test_two_processes_train_and_extract_as_one(pair, tmp_path):
    two, one = found(pair), worker.results(tmp_path)
    for kind in worker.TASKS:
        assert len(one[kind]) == len(two[kind]) == worker.CONFIG.steps
        for alone, shared in zip(one[kind], two[kind], strict=True):
            # between two codes nearly as near rounding decides, and it differs between processors
            close = 1e-3 if kind != "tokenizer" or alone["step"] <= 5 else 0.03
            assert shared == pytest.approx(alone, rel=close, abs=1e-4), kind
        assert one[kind][0]["loss"] != one[kind][-1]["loss"]
    assert len(one["features"]) == 48
    for name in ("features", "logits"):
        assert np.allclose(two[name], one[name], rtol=1e-5, atol=1e-6)


@pytest.mark.check
def test_two_processes_go_by_one_clock(pair):
    report = json.loads((pair / "clock" / "training.json").read_text())
    assert found(pair)["steps"] == found(pair, 1)["steps"] == report["training"]["steps"] > 0


@pytest.mark.check
def test_two_processes_score_as_one(pair):
    alone = json.loads((pair / "alone.json").read_text())
    shared = json.loads(found(pair)["said"]["evaluate"])
    assert found(pair, 1)["said"]["evaluate"] == ""  # one process reports
    numbers = {k: v for k, v in alone.items() if isinstance(v, float)}
    assert len(numbers) > 5
    assert {k: shared[k] for k in numbers} == pytest.approx(numbers, rel=1e-6)


@pytest.mark.check
def test_two_processes_share_a_job(pair, trained):
    assert "7 of 11 images" in found(pair)["said"]["sample"]  # batches 0 and 2; batch 1
    assert found(pair, 1)["said"]["sample"] == ""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes did: on some processors it changes last bits
    try:
        assert (load_samples(pair / "samples.npz")[0] == plainly(trained)).all()
    finally:
        torch.set_num_threads(threads)


def training(trained, folder):
    for part in ("classifier", "tokenizer"):
        shutil.copytree(trained / part, folder / part)
    return ["tests.worker", "die", "train", "transformer", "--preset", "smoke", "--out", folder,
            "--device", "cpu"]  # fmt: skip


@pytest.mark.check
def test_a_launcher_ends_when_a_process_dies(trained, tmp_path):
    done = launch(TORCHRUN, *training(trained, tmp_path / "run"))
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr or "exitcode: -9" in done.stderr.replace(" ", "")
    assert not (tmp_path / "run" / "transformer" / "training.json").exists()


@pytest.mark.check
def test_without_a_launcher_the_others_end_with_a_sentence(trained, tmp_path):
    about = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = [sys.executable, "-m", *map(str, training(trained, tmp_path / "run"))]
    pair = [
        subprocess.Popen(
            words,
            cwd=ROOT,
            env=os.environ | ALONE | about | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in pair]
    assert [process.returncode for process in pair] == [2, -9]
    assert all(f"process {i} of 2: waits at 127.0.0.1 for" in said[i] for i in range(2))
    assert "sgmgm: another process of this launch has ended" in said[0]
    assert "Traceback" not in said[0]
