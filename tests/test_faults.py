"""Kills, full disks, unwritable folders, cut downloads and flipped bits: nothing good is lost."""

import contextlib
import errno
import functools
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import FashionMNIST

from sgmgm import datasets, scoring, training, workflow
from sgmgm.commands.cli import main
from sgmgm.metrics import Reference
from sgmgm.pipeline import Pipeline
from sgmgm.smoothing import LoraSmoother
from sgmgm.training import fit
from sgmgm.transformer import MaskedTransformer
from sgmgm.utils.errors import CheckpointError, DataError, InputError, SgmgmError
from sgmgm.utils.hub import read_tensors

from .test_bad_input import check_sentence, posix
from .test_datasets import pack_fashion, write_fashion
from .test_training import CONFIG, TASKS, make

ROOT = Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------------------------------- kills

# `make test` kills one kind, `make check` all
KINDS = [pytest.param(kind, marks=[pytest.mark.check] * (kind != "toast")) for kind in TASKS]


@pytest.fixture(scope="module")
def worker():
    """Trains in a child of its own: (kind, folder, seconds, point, count) -> killed, seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.killed_worker"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(kind, folder, seconds=None, point=None, count=0):
        words = json.dumps([kind, str(folder), seconds, point, count])
        print(words, file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield ask
    process.stdin.close()
    assert process.wait() == 0


@pytest.fixture(scope="module")
def undisturbed(worker, tmp_path_factory):
    """The folder of a training that nobody disturbed, and how long it took."""

    @functools.cache
    def folder(kind):
        whole = tmp_path_factory.mktemp("whole") / kind
        killed, seconds = worker(kind, whole)
        assert not killed
        return whole, seconds

    return folder


def check_same(folder, whole):
    """Every file of weights to the last bit, the same history, and nothing besides."""
    assert {f.name for f in folder.iterdir()} == {f.name for f in whole.iterdir()}
    for file in whole.glob("*.safetensors"):
        assert (folder / file.name).read_bytes() == file.read_bytes(), file.name
    histories = [json.loads((f / "training.json").read_text())["history"] for f in (folder, whole)]
    assert histories[0] == histories[1]


@posix
@pytest.mark.parametrize("kind", KINDS)
def test_training_survives_twenty_kills_at_random_moments(kind, worker, undisturbed, tmp_path):
    whole, seconds = undisturbed(kind)
    draw, folder, kills = random.Random(kind), tmp_path / "killed", 0
    while kills < 20:
        killed, _ = worker(kind, folder, draw.uniform(0, seconds))
        kills += killed
        if not killed:
            check_same(folder, whole)
            shutil.rmtree(folder)
    assert worker(kind, folder)[0] is False
    check_same(folder, whole)


@posix
@pytest.mark.parametrize("kind", KINDS)
def test_training_survives_a_kill_at_every_point_of_writing(kind, worker, undisturbed, tmp_path):
    """Checkpoints are files 1 to 8 of a run, then come weights, settings and report."""
    whole, _ = undisturbed(kind)
    state = tmp_path / "training.safetensors"
    step = 0  # of the newest whole checkpoint
    for point in ("half", "written", "flushed", "replaced"):
        assert worker(kind, tmp_path, None, point, 2)[0] is True
        step += 2 if point == "replaced" else 1
        assert json.loads(read_tensors(state)[1]["report"])["step"] == step
        assert (point == "replaced") != bool(list(tmp_path.glob(".*partial*")))
    assert step == 5
    for more, point in ((4, "written"), (1, "replaced"), (2, "flushed"), (3, "replaced")):
        assert worker(kind, tmp_path, None, point, more)[0] is True
    assert json.loads(read_tensors(state)[1]["report"])["step"] == CONFIG.steps
    assert worker(kind, tmp_path)[0] is False
    check_same(tmp_path, whole)


@pytest.mark.check
def test_the_command_survives_kills(trained, tmp_path):
    """From outside: `sgmgm train transformer` of the smoke preset, killed at its checkpoints."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    for part in ("classifier", "tokenizer"):
        shutil.copytree(trained / part, whole / part)
    shutil.copytree(whole, folder)
    workflow.train("transformer", "sprites", "smoke", whole, device="cpu")
    words = ["train", "transformer", "--preset", "smoke", "--out", str(folder), "--device", "cpu"]
    code = (
        "import sys, sgmgm.training as t; from sgmgm.commands.cli import main; "
        f"t.SAVE_SECONDS = -1; sys.exit(main({words!r}))"
    )
    state = folder / "transformer" / "training.safetensors"
    for least in (1, 20):  # checkpoints written before the kill; one can fall between two looks
        run, stamps = (
            subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL),
            set(),
        )
        while run.poll() is None and len(stamps) < least:
            with contextlib.suppress(FileNotFoundError):
                stamps.add(state.stat().st_mtime_ns)  # opened, it could not be replaced on Windows
            time.sleep(0.01)
        run.kill()
        assert run.wait() != 0 and json.loads(read_tensors(state)[1]["report"])["step"] >= least
    assert main(words) == 0
    weights = "transformer/model.safetensors"
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()
    assert not state.exists() and not list(folder.rglob(".*partial*"))


def test_a_file_that_is_replaced_while_it_is_read_is_one_or_the_other(tmp_path):
    """By another process, as a training does with its checkpoint."""
    path = tmp_path / "weights.safetensors"
    code = (
        "import sys, itertools, torch; from pathlib import Path; from sgmgm.utils.hub import *\n"
        "for size in itertools.cycle((1000, 3000)):\n"
        "    save_tensors(Path(sys.argv[1]), {'x': torch.full((size,), float(size))})\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        while not path.exists():
            assert writer.poll() is None
            time.sleep(0.01)
        sizes = {len(read_tensors(path)[0]["x"]) for _ in range(3000)}
    finally:
        writer.kill()
        writer.wait()
    assert sizes == {1000, 3000}


# ------------------------------------------------------------------------------- full and closed


@contextlib.contextmanager
def mounted(folder, options):
    """A tmpfs at a folder; skips where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def sprites():
    return datasets.load("sprites", count=48)


def check_full(folder, sprites, fill, free):
    """A disk that is full at step 4 keeps the checkpoint of step 4; with room, all is well."""
    task = make("transformer", sprites)
    usual = task.after_step
    task.after_step = lambda step, *rest: (step == 4 and fill(), usual(step, *rest))
    with pytest.raises(InputError) as caught:
        fit(task, CONFIG, folder / "run", device="cpu")
    check_sentence(str(caught.value), "cannot write")
    state = folder / "run" / "training.safetensors"
    assert json.loads(read_tensors(state)[1]["report"])["step"] == 4
    assert [f.name for f in state.parent.iterdir()] == [state.name]
    free()
    fit(make("transformer", sprites), CONFIG, folder / "run", device="cpu")


@posix
def test_a_full_disk_costs_no_checkpoint(sprites, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    fit(make("transformer", sprites), CONFIG, tmp_path / "whole", device="cpu")
    with mounted(tmp_path / "disk", "size=4m") as disk:
        ballast = disk / "ballast"

        def fill():
            with pytest.raises(OSError) as full, open(ballast, "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            assert full.value.errno == errno.ENOSPC

        check_full(disk, sprites, fill, ballast.unlink)
        check_same(disk / "run", tmp_path / "whole")


@posix
def test_a_limit_on_file_sizes_costs_no_checkpoint(sprites, tmp_path, monkeypatch):
    import resource

    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    fit(make("transformer", sprites), CONFIG, tmp_path / "whole", device="cpu")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE)
    try:
        check_full(tmp_path, sprites, lambda: limit((10_000, hard)), lambda: limit((soft, hard)))
    finally:
        limit((soft, hard))
        signal.signal(signal.SIGXFSZ, usual)
    check_same(tmp_path / "run", tmp_path / "whole")


@contextlib.contextmanager
def closed(folder):
    """A folder that cannot be written; for root, who may write anywhere, a read-only disk."""
    if os.geteuid() == 0:
        with mounted(folder, "ro"):
            yield folder
    else:
        folder.mkdir(mode=0o555)
        yield folder


@posix
def test_a_read_only_folder_is_one_sentence(trained, tmp_path, capsys, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("work was begun that cannot be kept")

    monkeypatch.setattr(Pipeline, "__call__", never)
    monkeypatch.setattr(training, "batch_indices", never)
    with closed(tmp_path / "closed") as folder:
        for words in (
            ["train", "classifier", "--preset", "smoke", "--out", folder],
            ["run", "--preset", "smoke", "--out", folder / "new"],
            ["sample", "--model", trained, "--out", folder / "x.png"],
            ["sample", "--model", trained, "--out", folder / "x.npz"],
            ["pack", "--model", trained, "--out", folder / "packed"],
        ):
            assert main([str(word) for word in words]) == 2
            check_sentence(capsys.readouterr().err.strip().rsplit("\n")[-1], "cannot write")
        assert not list(folder.iterdir())


# ------------------------------------------------------------------------- downloads and damage


class HalfServer(http.server.BaseHTTPRequestHandler):
    """Promises whole files, and hangs up in the middle of those that `cut` names."""

    root: Path
    cut: set

    def do_GET(self):  # noqa: N802
        content = (self.root / self.path[1:]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path[1:] in self.cut else content)

    def log_message(self, *args):
        pass


def test_an_interrupted_download_is_named_and_goes_on(tmp_path, monkeypatch, capsys):
    source = write_fashion(tmp_path / "server")
    resources = pack_fashion(source)
    handler = type("Handler", (HalfServer,), {"root": source, "cut": {resources[1][0]}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setattr(FashionMNIST, "resources", resources)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("SGMGM_DATA", str(tmp_path / "raw"))
    try:
        with pytest.raises(DataError) as caught:
            datasets.load("fashion-mnist")
        check_sentence(str(caught.value), f"{resources[1][0]} is damaged or incomplete")
        handler.cut = set()
        assert len(datasets.load("fashion-mnist")) == 12
    finally:
        server.shutdown()
        server.server_close()
    assert capsys.readouterr().out == ""


def damages(path, count=40):
    """The file cut off at some places, and with single bits flipped at others."""
    whole, draw = path.read_bytes(), np.random.default_rng(0)
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        yield f"cut at {length}", whole[:length]
    places = {*draw.integers(8, len(whole), count).tolist(), *range(8, 200, 9), len(whole) - 1}
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(draw.integers(8))
        yield f"bit at {place}", bytes(flipped)


def test_no_cut_and_no_flipped_bit_goes_unnoticed(own, sprites, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    task = make("toast", sprites)

    def stop(step, *rest):
        if step == 2:
            raise KeyboardInterrupt

    task.after_step = stop
    with pytest.raises(KeyboardInterrupt):
        fit(task, CONFIG, tmp_path / "run", device="cpu")
    model = MaskedTransformer.from_pretrained(own / "transformer")
    classifier = scoring.find_classifier("sprites", own)
    reference = own / "reference.safetensors"
    Reference.from_features(classifier(sprites.batch(slice(None))[0]).features, "a", "b").save(
        reference
    )
    task = make("toast", sprites)
    readers = {
        own / "transformer" / "model.safetensors": MaskedTransformer.from_pretrained,
        own / "smoother-lora" / "adapter_model.safetensors": lambda f: LoraSmoother.load(f, model),
        reference: lambda folder: Reference.load(reference),
        tmp_path / "run" / "training.safetensors": lambda f: fit(task, CONFIG, f, device="cpu"),
    }
    for path, read in readers.items():
        whole = path.read_bytes()
        for what, damaged in damages(path):
            path.write_bytes(damaged)
            with pytest.raises((CheckpointError, DataError)) as caught:
                pytest.fail(f"{what} of {path.name}: {read(path.parent)}")
            assert "\n" not in str(caught.value) and str(caught.value).endswith("."), what
        path.write_bytes(whole)
        if path.name != "training.safetensors":
            read(path.parent)


def test_a_wrong_sha256_is_one_sentence(trained, tmp_path, capsys):
    workflow.pack(trained, tmp_path / "packed", "cpu")
    path = tmp_path / "packed" / "tokenizer" / "config.json"
    path.write_text(path.read_text() + " ")
    capsys.readouterr()
    words = ["sample", "--model", str(tmp_path / "packed"), "--out", str(tmp_path / "x.png")]
    assert main(words) == 2
    check_sentence(capsys.readouterr().err.strip(), "tokenizer/config.json is missing or was chan")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "changes, fragment",
    [
        ({"r": 10**9}, "does not give the rank"),
        ({"r": 10**30}, "does not give the rank"),
        ({"r": "8"}, "does not give the rank"),
        ({"r": True}, "does not give the rank"),
        ({"r": None}, "does not give the rank"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 10**12}, "another peft_type"),
        ({"target_modules": "(a+)+$"}, "another target_modules"),
        ({"lora_alpha": 1e300}, "another lora_alpha"),
    ],
)
def test_a_hostile_adapter_is_refused(changes, fragment, own):
    path = own / "smoother-lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    model = MaskedTransformer.from_pretrained(own / "transformer")
    with pytest.raises(SgmgmError) as caught:
        LoraSmoother.load(path.parent, model)
    check_sentence(str(caught.value), fragment)
