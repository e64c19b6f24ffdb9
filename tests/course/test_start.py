"""What a lesson starts with: its models, trained once."""

import pytest

from sgmgm.course import start
from sgmgm.utils.errors import DataError, InputError

from ..test_folders import write_pictures


def test_models_are_trained_once_and_kept_by_seed(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(start, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(start, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(start.workflow, "train", lambda *given: calls.append(given))
    found = start.models("tokenizer", dataset="sprites", profile="smoke", seed=3, device="cpu")
    assert found == tmp_path / "runs" / "sprites-smoke-seed3"
    assert [call[0] for call in calls] == ["classifier", "tokenizer"]
    assert calls[1] == ("tokenizer", "sprites", "smoke", found, 3, "cpu")

    shipped = tmp_path / "shipped" / "sprites"
    (shipped / "tokenizer").mkdir(parents=True)
    (shipped / "tokenizer" / "training.json").write_text('{"step": 5}')
    wanted = {"dataset": "sprites", "seed": 3, "device": "cpu"}
    assert start.models("tokenizer", profile="laptop", **wanted) == shipped
    assert start.report(shipped, "tokenizer") == {"step": 5}
    assert start.models("tokenizer", "transformer", profile="laptop", **wanted) != shipped
    assert start.models("tokenizer", profile="gpu", **wanted) != shipped
    with pytest.raises(InputError, match="profile"):
        start.models("tokenizer", profile="huge", **wanted)


def test_a_folder_is_described_and_checked_at_the_start_of_a_lesson(tmp_path, capsys):
    name = f"folder:{write_pictures(tmp_path / 'pets', count=20)}"
    start.preflight("cpu", "smoke", name)
    assert "2 classes, training + test pictures: cat 16 + 4, dog 16 + 4" in capsys.readouterr().out
    few = f"folder:{write_pictures(tmp_path / 'few', count=19)}"
    one = f"folder:{write_pictures(tmp_path / 'one', classes=('cat',), count=40)}"
    for bad in (few, one):
        with pytest.raises(DataError, match="need two classes and 8 pictures to test with"):
            start.preflight("cpu", "smoke", bad)
