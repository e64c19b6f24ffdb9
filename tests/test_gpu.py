import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
import torch

from scripts import gpu
from sgmgm.utils.errors import CheckpointError
from sgmgm.utils.hub import save_tensors

# what a plain PyTorch machine may lack of what `make setup` installs
ABSENT = ("jupyterlab", "ipywidgets", "IPython", "papermill", "nbconvert", "nbformat", "nbval",
          "ipykernel", "torch_fidelity", "prdc", "playwright", "ruff", "mypy", "hypothesis",
          "xdist")  # fmt: skip
BLOCKER = f"""
import sys
from importlib.machinery import PathFinder
class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in {ABSENT}
        return None if absent else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Present
"""


def size_of(files) -> int:
    return sum((gpu.ROOT / file).stat().st_size for file in files)


def test_what_travels_is_less_than_60_mb():
    found = gpu.files()
    names = {file.as_posix() for file in found}
    assert {"sgmgm/fast.py", "tests/test_cuda.py", "Makefile"} <= names
    checkpoints = {file.parts[2] for file in found if file.parts[0] == "data"}
    assert checkpoints == {"cifar10"}
    tokens = 2 * 50_000 * 64 * 2 + 8 * 50_000  # two views of int16, and labels
    assert size_of(file for file in found if str(file) != gpu.TOKENS) + tokens < 60e6
    assert size_of(found) < 60e6
    for name in set(gpu.TRAVELS) - {gpu.TOKENS}:
        assert (gpu.ROOT / name).exists(), name


@pytest.mark.parametrize("part, gone", [("tests", "pytest"), ("benchmark", "matplotlib"),
                                        ("train", "accelerate")])  # fmt: skip
def test_a_missing_package_is_named_and_stops_its_part_alone(part, gone, monkeypatch):
    real = gpu.importlib.util.find_spec
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda n: None if n == gone else real(n))
    assert gpu.why_not(part, False) == f"it needs {gone}, which this Python does not have."
    assert (gpu.why_not("trace", False) is None) == (gone != "accelerate")


def test_a_generator_waits_for_its_tokens(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    assert "docs/gpu.md says how" in gpu.why_not("scores", True)
    (tmp_path / "build").mkdir()
    (tmp_path / gpu.TOKENS).touch()
    assert gpu.why_not("train", True) is None and gpu.why_not("scores", True) is None


def test_tokens_of_another_tokenizer_are_refused(monkeypatch, tmp_path):
    from scripts import gpu_parts

    tokenizer = gpu_parts.VQTokenizer.from_pretrained(gpu_parts.TOKENIZER)
    monkeypatch.setattr(gpu_parts, "ROOT", tmp_path)
    tensors = {"tokens": torch.zeros(1, 3, 64).short(), "labels": torch.arange(3)}
    own = gpu_parts.digest(gpu_parts.TOKENIZER / "model.safetensors")
    save_tensors(tmp_path / gpu.TOKENS, tensors, {"made_by": own})
    assert gpu_parts.read_tokens(tokenizer)[1].tolist() == [0, 1, 2]
    save_tensors(tmp_path / gpu.TOKENS, tensors, {"made_by": "another"})
    with pytest.raises(CheckpointError, match="make it anew"):
        gpu_parts.read_tokens(tokenizer)


SCRIPTS = {  # in place of the parts: one fails, one writes its result and never ends
    "tests": "raise SystemExit('1 failed')",
    "benchmark": "import json, pathlib, time; r = {'images_per_second': 100, 'share': 0.5}; "
    "pathlib.Path('{out}/benchmark.json').write_text(json.dumps({'ways': ['a', 'b'], 'batches': "
    "[{'b': r, 'speedup': 9}]})); time.sleep(60)",
    "trace": "print('3 spans')",
    "train": "print('trained')",
    "scores": "print('scored')",
}


def test_a_part_that_fails_or_never_ends_stops_no_other(monkeypatch, tmp_path, capsys):
    out, seen = tmp_path / "new" / "gpu", []

    def script(part, where, on_gpu, seconds):
        if (where / "summary.json").exists():  # written after every part
            seen.append(len(json.loads((where / "summary.json").read_text())["parts"]))
        return ["-c", SCRIPTS[part].replace("{out}", where.as_posix())]

    monkeypatch.setattr(gpu, "command", script)
    monkeypatch.setattr(gpu, "TOY_SECONDS", 6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "why_not", lambda part, on_gpu: {"train": "no tokens."}.get(part))
    assert gpu.run_all(out, 0.001) == 1
    summary = json.loads((out / "summary.json").read_text())
    states = {each["part"]: each["state"] for each in summary["parts"]}
    assert states == {"tests": "failed", "benchmark": "stopped", "trace": "done",
                      "train": "skipped", "scores": "done"}  # fmt: skip
    notes = {each["part"]: each["note"] for each in summary["parts"]}
    assert notes["tests"] == "1 failed" and notes["train"] == "no tokens."
    assert notes["scores"] == "scored" and seen == [1, 2, 4]  # nothing runs for the skipped one
    assert summary["measured"] == {"images/s": 100, "share of peak": 0.5, "times eager": 9}
    assert "3 spans" in capsys.readouterr().out


def test_the_page_names_what_travels_what_comes_back_and_the_bars():
    page = (gpu.ROOT / "docs" / "gpu.md").read_text()
    for name in (*gpu.RESULTS, gpu.TOKENS, "make gpu-list"):
        assert name in page, name
    for bar in ("90 images/s", "45 %", "8 times", "35 %"):
        assert bar in page, bar


@pytest.mark.check
def test_a_dry_run_in_a_copy_of_what_travels(tmp_path):
    """All parts at toy size, from those files alone and with those packages alone."""
    copy, out = tmp_path / "copy", tmp_path / "results"
    for file in gpu.files():
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(gpu.ROOT / file, copy / file)
    (copy / "sitecustomize.py").write_text(BLOCKER)
    environment = os.environ | {"PYTHONPATH": str(copy), "CUDA_VISIBLE_DEVICES": ""}
    arguments = ["-m", "scripts.gpu", "--out", str(out), "--minutes", "1"]
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    summary = json.loads((out / "summary.json").read_text())
    assert {each["part"]: each["state"] for each in summary["parts"]} == dict.fromkeys(
        gpu.SHARES, "done"
    )
    assert "needs an NVIDIA GPU" in done.stdout and "skipped" in summary["parts"][0]["note"]
    assert {path.name for path in out.iterdir()} == set(gpu.RESULTS) and len(gpu.RESULTS) <= 8
    assert all(path.stat().st_size < 16e6 for path in out.iterdir())
    assert 0 < (out / "trace.json.gz").stat().st_size < 2e6
    for part in ("transformer", "smoother"):
        with tarfile.open(out / f"{part}.tar") as archive:
            archive.extractall(tmp_path, filter="data")
    report = json.loads((tmp_path / gpu.PIPELINE / "transformer" / "training.json").read_text())
    assert len(report["tokenizer"]) == 8 and report["minutes"] > 0
    assert json.loads((out / "scores.jsonl").read_text())["num"] == 10
