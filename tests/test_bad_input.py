"""Every mistake gets one clear sentence, and leaves nothing half-written behind.

What single modules refuse is listed beside their other tests; here is what a user meets at the
two entrances, `Pipeline` and the command line.
"""

import errno
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import torch

from sgmgm import workflow
from sgmgm.commands.cli import main
from sgmgm.datasets import load
from sgmgm.pipeline import Pipeline
from sgmgm.tokenizer import VQTokenizer
from sgmgm.utils import samples
from sgmgm.utils.errors import SgmgmError
from sgmgm.utils.files import atomic_path, check_writable, read_json, write_json
from sgmgm.utils.samples import save_samples

MASKED = torch.full((1, 64), 74)


@pytest.fixture(scope="module")
def pipe(trained):
    return Pipeline.from_pretrained(trained, "cpu")


# for what has no like on Windows: fork, signals that wait, limits on files, mounts
posix = pytest.mark.skipif(os.name != "posix", reason="needs fork, signals and limits of POSIX")


def check_sentence(text, fragment):
    assert "\n" not in text and text.endswith("."), text
    assert fragment in text
    assert "Traceback" not in text and "Error(" not in text


# ------------------------------------------------------------------------- the library's front door

CALLS = {
    "class above": (lambda p: p([10]), "class 10 is out of range: give 0..9"),
    "class below": (lambda p: p([-1]), "class -1 is out of range"),
    "class name": (lambda p: p(["dragon"]), "unknown class 'dragon': give 0..9 or one of house"),
    "class as a fraction": (lambda p: p([1.5]), "unknown class 1.5"),
    "class as a truth": (lambda p: p([True]), "unknown class True"),
    "no class": (lambda p: p([]), "give at least one label"),
    "none": (lambda p: p(None), "labels must be class numbers or names, not None"),
    "table of classes": (lambda p: p(torch.zeros(2, 2).long()), "unknown class [0, 0]"),
    "class tensor of floats": (lambda p: p(torch.zeros(2)), "unknown class 0.0"),
    "setting": (lambda p: p([0], step=3), "unknown sampling setting step: choose from steps"),
    "no steps": (lambda p: p([0], steps=0), "steps must be a whole number of at least 1, not 0"),
    "negative steps": (lambda p: p([0], steps=-3), "at least 1, not -3"),
    "half steps": (lambda p: p([0], steps=2.5), "at least 1, not 2.5"),
    "cold": (lambda p: p([0], temperature=-1.0), "at least 0, not -1.0"),
    "boundless": (lambda p: p([0], temperature=math.inf), "finite number of at least 0, not inf"),
    "not a temperature": (lambda p: p([0], temperature=math.nan), "not nan"),
    "temperature in words": (lambda p: p([0], temperature="hot"), "not 'hot'"),
    "anneal": (lambda p: p([0], anneal="fast"), "unknown anneal 'fast': choose one of linear"),
    "order": (lambda p: p([0], order="best"), "unknown order 'best': choose one of confidence"),
    "schedule": (lambda p: p([0], schedule="sine"), "unknown schedule 'sine'"),
    "guidance": (lambda p: p([0], guidance="magic"), "unknown guidance 'magic'"),
    "scale": (lambda p: p([0], guidance="cfg", scale=math.nan), "must be finite, not nan"),
    "scale schedule": (lambda p: p([0], scale_schedule="up"), "unknown scale schedule 'up'"),
    "smoother": (lambda p: p([0], guidance="self", smoother="nobody"), "has no nobody: first run"),
    "too few seeds": (lambda p: p([0, 1], seeds=[3]), "give one seed for each label: 2, not 1"),
    "one seed": (lambda p: p([0], seeds=3), "seeds must be whole numbers"),
    "negative seed": (lambda p: p([0], seeds=[-1]), "seeds must be whole numbers"),
    "giant seed": (lambda p: p([0], seeds=[2**64]), "seeds must be whole numbers"),
    "seed in words": (lambda p: p([0], seeds=["a"]), "seeds must be whole numbers"),
    "canvas too short": (lambda p: p([0], canvas=MASKED[:, 1:]), "shape (1, 64), not (1, 63)"),
    "canvases": (lambda p: p([0], canvas=MASKED.repeat(2, 1)), "shape (1, 64), not (2, 64)"),
    "canvas of floats": (lambda p: p([0], canvas=MASKED.float()), "must hold int64 tokens"),
    "canvas ids": (lambda p: p([0], canvas=MASKED + 1), "tokens 0..63 or 74 ([MASK])"),
    "canvas of a class": (lambda p: p([0], canvas=MASKED - 1), "tokens 0..63 or 74 ([MASK])"),
    "canvas below 0": (lambda p: p([0], canvas=-MASKED), "tokens 0..63 or 74 ([MASK])"),
    "canvas as a list": (lambda p: p([0], canvas=[[74] * 64]), "not list"),
    "batch size": (lambda p: list(p.stream([0], batch_size=0)), "batch size must be a whole"),
    "first seed": (lambda p: list(p.stream([0], first_seed=-4)), "first seed must be a whole"),
    "masks left": (lambda p: p.tokenizer.decode(MASKED), "is a [MASK] left?"),
    "picture size": (lambda p: p.tokenizer.encode(torch.zeros(1, 3, 28, 28)), "(1, 3, 28, 28)"),
    "no such folder": (lambda p: Pipeline.from_pretrained("no/such"), "no model 'no/such'"),
    "endless name": (lambda p: Pipeline.from_pretrained("a" * 5000), "no model 'aaa"),
    "device": (lambda p: Pipeline.from_pretrained(p.folder, "gpu7"), "no device 'gpu7' here"),
    "hollow device": (lambda p: Pipeline.from_pretrained(p.folder, "meta"), "no device 'meta'"),
    "part": (lambda p: workflow.train("head", "sprites", "smoke", "x"), "unknown part 'head'"),
    "preset": (lambda p: workflow.train("classifier", "sprites", "xl", "x"), "unknown preset 'xl'"),
    "data set": (lambda p: workflow.train("classifier", "cats", "smoke", "x"), "unknown data set"),
    "no data set": (lambda p: load(None), "unknown data set None"),
    "split": (lambda p: load("sprites", "valid"), "unknown split 'valid'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_calls(case, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, fragment = CALLS[case]
    with pytest.raises(SgmgmError) as caught:
        call(pipe)
    check_sentence(str(caught.value), fragment)
    assert not list(tmp_path.iterdir())


def test_nothing_is_changed_by_a_refused_call(pipe):
    labels, canvas = torch.tensor([99]), MASKED.clone()
    for options in ({}, {"canvas": canvas - 200}, {"steps": 0}):
        with pytest.raises(SgmgmError):
            pipe(labels, **options)
    assert labels.tolist() == [99] and canvas.equal(MASKED)


# --------------------------------------------------------------------------------- the command line

SAMPLE = ("sample", "--model", "{model}", "--num", "2", "--steps", "1")
COMMANDS = {
    "no command": ((), "arguments are required"),
    "unknown command": (("paint",), "invalid choice: 'paint'"),
    "unknown option": (("info", "--model", "sprites", "--loud"), "unrecognized arguments: --loud"),
    "unknown part": (("train", "head"), "invalid choice: 'head'"),
    "unknown preset": (("train", "all", "--preset", "xl"), "invalid choice: 'xl'"),
    "unknown data set": (("train", "all", "--dataset", "cats"), "unknown data set 'cats'"),
    "no data folder": (("train", "all", "--dataset", "folder:nowhere"), "there is no such folder"),
    "empty data folder": (("run", "--dataset", "folder:{empty}"), "has no class folders"),
    "seed in words": (("train", "all", "--seed", "one"), "invalid int value: 'one'"),
    "giant seed": (("train", "classifier", "--seed", str(10**30)), "--seed must lie in 0.."),
    "negative seed": ((*SAMPLE, "--seed", "-1"), "--seed must lie in 0.."),
    "gallery of another kind": (("gallery", "--out", "{empty}/x.jpg"), "is no PNG"),
    "start for all": (("train", "all", "--start", "{empty}"), "--start is for one part"),
    "start without weights": (
        ("train", "classifier", "--start", "{empty}"), "holds no trained weights"),
    "smoothing of no smoother": (("train", "transformer", "--rate", "0.5"), "for one smoother"),
    "train below a file": (
        ("train", "classifier", "--preset", "smoke", "--out", "{file}/x"), "cannot write"),
    "no tokenizer yet": (
        ("train", "transformer", "--preset", "smoke", "--out", "{empty}"), "has no tokenizer"),
    "no model": (("sample",), "arguments are required: --model"),
    "unknown model": (("sample", "--model", "nobody"), "no model 'nobody'"),
    "a file as model": (("sample", "--model", "{file}"), "no model"),
    "an empty folder as model": (("info", "--model", "{empty}"), "no model"),
    "no images": ((*SAMPLE, "--num", "0"), "--num must be a whole number of at least 1, not 0"),
    "negative images": ((*SAMPLE, "--num", "-5"), "--num must be a whole number"),
    "no steps": ((*SAMPLE, "--steps", "0"), "steps must be a whole number of at least 1, not 0"),
    "negative steps": ((*SAMPLE, "--steps=-2"), "at least 1, not -2"),
    "half steps": ((*SAMPLE, "--steps", "1.5"), "invalid int value: '1.5'"),
    "no batch": ((*SAMPLE, "--batch-size", "0"), "batch size must be a whole number"),
    "cold": ((*SAMPLE, "--temperature=-1"), "temperature must be a finite number"),
    "boundless": ((*SAMPLE, "--temperature", "inf"), "temperature must be a finite number"),
    "not a temperature": ((*SAMPLE, "--temperature", "nan"), "temperature must be a finite number"),
    "scale": ((*SAMPLE, "--guidance", "cfg", "--scale", "nan"), "scale must be finite"),
    "guidance": ((*SAMPLE, "--guidance", "magic"), "invalid choice: 'magic'"),
    "order": ((*SAMPLE, "--order", "best"), "invalid choice: 'best'"),
    "class above": ((*SAMPLE, "--classes", "3,10"), "class 10 is out of range"),
    "class below": ((*SAMPLE, "--classes=-1"), "class -1 is out of range"),
    "class name": ((*SAMPLE, "--classes", "dragon"), "unknown class 'dragon'"),
    "class with a power": ((*SAMPLE, "--classes", "²"), "unknown class '²'"),
    "class with two signs": ((*SAMPLE, "--classes=--5"), "unknown class '--5'"),
    "half of a quoted class": ((*SAMPLE, "--classes", '"salt, pepper'), "unknown class 'salt, p"),
    "empty class": ((*SAMPLE, "--classes", "1,,2"), "unknown class ''"),
    "wrong suffix": ((*SAMPLE, "--out", "x.gif"), "end it in .png (a grid) or .npz"),
    "no suffix": ((*SAMPLE, "--out", "x"), "end it in .png"),
    "picture below a file": ((*SAMPLE, "--out", "{file}/x.png"), "cannot write"),
    "samples below a file": ((*SAMPLE, "--out", "{file}/a/x.npz"), "cannot write"),
    "a folder as picture": ((*SAMPLE, "--out", "{pngfolder}"), "cannot write"),
    "endless name": ((*SAMPLE, "--out", "x" * 400 + ".png"), "cannot write"),
    "device": ((*SAMPLE, "--device", "quantum"), "no device 'quantum' here: try"),
    "a device without numbers": ((*SAMPLE, "--device", "meta"), "no device 'meta' here"),
    "no samples": (("evaluate",), "arguments are required: --samples"),
    "compared with what": (("evaluate", "--samples", "{few}"), "name a data set by --reference"),
    "compared by whom": (
        ("evaluate", "--samples", "{few}", "--model", "{file}"), "no model"),
    "absent samples": (
        ("evaluate", "--samples", "x.npz", "--model", "sprites"), "there is no file x.npz"),
    "cut samples": (("evaluate", "--samples", "{cut}", "--model", "{model}"), "truncated"),
    "no archive": (("evaluate", "--samples", "{file}", "--model", "{model}"), "truncated or not"),
    "too few samples": (("evaluate", "--samples", "{few}", "--model", "{model}"), "at least 4"),
    "labels of another set": (
        ("evaluate", "--samples", "{alien}", "--model", "{model}"), "labels must be in 0..9"),
    "reference": (("evaluate", "--samples", "{few}", "--reference", "cats"), "cats"),
    "no weights": (("evaluate", "--samples", "{few}", "--model", "{model}", "--extractor",
                    "inception", "--weights", "{file}"), "Inception"),
    "a part that is no smoother": (
        (*SAMPLE, "--guidance", "self", "--smoother", "weak"), "'weak' is no smoother"),
    "no smoother": ((*SAMPLE, "--guidance", "self", "--smoother", "nobody"), "has no nobody"),
    "a kind that is no part": (
        (*SAMPLE, "--guidance", "self", "--smoother", "smoother-toast"),
        "train smoother --name smoother-toast"),
    "samples without steps": (
        (*SAMPLE, "--steps", "0", "--out", "x.npz"), "steps must be a whole number"),
    "samples without scale": (
        (*SAMPLE, "--guidance", "cfg", "--scale", "nan", "--out", "x.npz"), "must be finite"),
    "samples by a tokenizer": (
        (*SAMPLE, "--guidance", "self", "--smoother", "tokenizer", "--out", "x.npz"),
        "'tokenizer' is no smoother"),
    "weights of no Inception": (
        ("evaluate", "--samples", "{few}", "--model", "{model}", "--weights", "{file}"),
        "--weights is for --extractor inception"),
    "a name above": (
        ("train", "classifier", "--preset", "smoke", "--out", "{empty}", "--name", ".."),
        "'..' is no plain folder name"),
    "a run without its smoother": (
        ("run", "--preset", "smoke", "--out", "{empty}", "--guidance", "self"),
        "which `sgmgm run` does not train"),
    "a run without steps": (
        ("run", "--preset", "smoke", "--out", "{empty}", "--steps", "0"), "steps must be"),
    "sweep below a file": (
        ("sweep", "--model", "{model}", "--num", "10", "--out", "{file}/x.jsonl"), "cannot write"),
    "few after tuning": (
        ("sweep", "--model", "{model}", "--tune", "10", "--num", "5"), "--num must be"),
    "sweep in a file of something else": (
        ("sweep", "--model", "{model}", "--num", "10", "--out", "{file}"), "no sweep's"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(trained, tmp_path_factory):
    """Things that lie about, for the commands to stumble over."""
    root = tmp_path_factory.mktemp("places")
    (root / "empty").mkdir()
    (root / "folder.png").mkdir()
    (root / "file").write_text("a file")
    images = np.zeros((3, 32, 32, 3), np.uint8)
    save_samples(root / "few.npz", images, np.zeros(3, int))
    save_samples(root / "alien.npz", np.concatenate([images] * 3), np.full(9, 700))
    (root / "cut.npz").write_bytes((root / "alien.npz").read_bytes()[:-3000])
    names = {f.stem: f for f in root.iterdir()}
    shutil.copytree(trained, root / "model")
    return {**names, "pngfolder": root / "folder.png", "model": root / "model"}


def everything(folder):
    """Every file and when it was written, but for the statistics, which are kept when whole."""
    files = (f for f in folder.rglob("*") if f.is_file() and f.name != "reference.safetensors")
    return sorted((str(f), f.stat().st_mtime_ns) for f in files)


@pytest.mark.parametrize("case", COMMANDS)
def test_commands(case, places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, fragment = COMMANDS[case]
    before = everything(places["model"].parent)
    try:
        code = main([word.format(**places) for word in words])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    # a progress bar wipes itself with "\r", and one below another goes up a line ("\x1b[A") at its
    # end; what then stands on the screen is what counts
    lines = [re.split("\r|\x1b\\[A", line)[-1] for line in captured.err.split("\n")]
    lines = [line for line in lines if line.strip() and "%|" not in line]
    assert len(lines) == 1 and lines[0].startswith("sgmgm")
    check_sentence(lines[0], fragment)
    assert not list(tmp_path.iterdir())
    assert everything(places["model"].parent) == before


# ------------------------------------------------------------------------------------------- files


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.json") as partial:
        partial.write_text("half of the ne")
        raise RuntimeError
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["file/x.json", "folder", "n" * 300, ".", "a\0b"])
def test_places_where_nothing_can_be_written(name, tmp_path):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SgmgmError) as caught:
        write_json(tmp_path / name, {})
    check_sentence(str(caught.value), "cannot write")
    assert sorted(f.name for f in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_disk_that_is_full_at_the_last_moment_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"old": 1})

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SgmgmError) as caught:
        write_json(tmp_path / "a.json", {"new": 1})
    check_sentence(str(caught.value), "No space left on device; choose another place or make room")
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


@posix
def test_a_full_disk_is_one_sentence(trained, tmp_path):
    """A limit on the size of files stands for it: numpy, Pillow and safetensors must stop."""
    import resource
    import signal

    model = VQTokenizer.from_pretrained(trained / "tokenizer")
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        for write in (
            lambda: model.save_pretrained(tmp_path / "model"),
            lambda: save_samples(tmp_path / "x.npz", images, np.zeros(20, int)),
            lambda: samples.save_grid(tmp_path / "x.png", pixels),
        ):
            with pytest.raises(SgmgmError) as caught:
                write()
            check_sentence(str(caught.value), "cannot write")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, usual)
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def test_asking_whether_a_file_can_be_written_writes_nothing(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "x.png")
    check_writable(os.path.relpath(tmp_path / "x.png"))
    (tmp_path / "file").write_text("a file")
    for bad in (tmp_path, tmp_path / "file" / "x.png", tmp_path / ("n" * 300) / "x.png"):
        with pytest.raises(SgmgmError):
            check_writable(bad)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 9000, b"{'a': 1}"])
def test_damaged_json(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(SgmgmError) as caught:
        read_json(tmp_path / "a.json")
    check_sentence(str(caught.value), "a.json cannot be read as JSON")


def test_json_keeps_every_letter(tmp_path):
    write_json(tmp_path / "a.json", {"name": "Übung 模型 🦋"})
    assert read_json(tmp_path / "a.json") == {"name": "Übung 模型 🦋"}
    assert json.loads((tmp_path / "a.json").read_bytes().decode("ascii"))
