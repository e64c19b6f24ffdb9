"""The command with which a late-comer catches up."""

import shutil

import nbformat

from sgmgm.commands import cli
from sgmgm.course import runner, start

from .test_runner import LESSONS, write_lesson

GIVEN = {"profile": "smoke", "dataset": "sprites", "seed": 0, "device": "cpu"}


def test_a_lesson_says_which_parts_it_needs():
    needed = {path.stem[:2]: runner.needed(nbformat.read(path, 4)) for path in LESSONS}
    assert needed["01"] == ["tokenizer"]
    assert needed["05"] == ["tokenizer", "transformer", "smoother", "smoother-lora"]
    assert all(needed.values())


def test_with_shipped_models_there_is_nothing_to_do(capsys):
    assert cli.main(["course", "catch-up", "05", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "smoother, smoother-lora in" in said and "ship with the course" in said
    assert "05_adapter_fine_tuning.ipynb" in said


def test_what_is_missing_is_trained(trained, tmp_path, monkeypatch):
    """... and what is there is kept: the folder already holds all but one part."""
    (tmp_path / "notebooks").mkdir()
    for module in (start, runner):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(start, "SHIPPED", tmp_path / "none")
    write_lesson(tmp_path / "notebooks", "04_x.ipynb", 'course.models("tokenizer", "weak", x=1)')
    place = tmp_path / "runs" / "sprites-smoke"
    shutil.copytree(trained, place)
    shutil.rmtree(place / "weak")
    before = (place / "tokenizer" / "model.safetensors").stat().st_mtime_ns
    path, parts, folder = runner.catch_up("04", **GIVEN)
    assert (path.name, parts, folder) == ("04_x.ipynb", ["tokenizer", "weak"], place)
    assert (place / "weak" / "model.safetensors").is_file()
    assert (place / "tokenizer" / "model.safetensors").stat().st_mtime_ns == before


def test_a_duplicate_is_no_lesson(tmp_path):
    for name in ("05_adapter_fine_tuning.ipynb", "05_adapter_fine_tuning-Copy1.ipynb"):
        shutil.copy(runner.ROOT / "notebooks" / "05_adapter_fine_tuning.ipynb", tmp_path / name)
    path, _, folder = runner.catch_up("05", tmp_path, **GIVEN)
    assert path.name == "05_adapter_fine_tuning.ipynb" and folder.name == "sprites"


def test_catching_up_wants_a_lesson(capsys):
    for words, sentence in ((["catch-up"], "with which lesson"), (["catch-up", "77"], "unknown")):
        assert cli.main(["course", *words]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
