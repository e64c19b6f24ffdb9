"""Progress: passed checks are remembered for a person, for nobody else, and never in the way."""

import json
import math

import pytest

from sgmgm.commands import cli
from sgmgm.course import done, exercises
from sgmgm.utils.errors import InputError


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A person's JupyterLab, with the file of progress in a temporary place."""
    path = tmp_path / "runs" / "progress.json"
    monkeypatch.setattr(done, "place", lambda: path)
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/exercises/00_tour.ipynb")
    return path


def saving(side, count, codes):
    return side * side * 24 / (count * math.log2(codes))


def test_a_passed_check_is_remembered(kept, capsys):
    exercises.saving(saving)
    assert capsys.readouterr().out == "saving: right.\n"
    assert json.loads(kept.read_text()).keys() == {"saving"}
    with pytest.raises(exercises.NotYet):
        exercises.saving(lambda *sizes: 1.0)
    done.passed("mask_tokens")
    assert done.remembered().keys() == {"saving", "mask_tokens"}
    assert repr(done.show("00")).startswith("[x] saving\n[x] mask_tokens")
    assert "☑ saving" in done.show("00")._repr_html_()


@pytest.mark.parametrize("name", [None, "notebooks/solutions/00_tour.ipynb"])
def test_solutions_and_programs_leave_no_trace(name, kept, monkeypatch, capsys):
    if name:
        monkeypatch.setenv("JPY_SESSION_NAME", name)
    else:
        monkeypatch.delenv("JPY_SESSION_NAME")
    exercises.saving(saving)
    assert capsys.readouterr().out == "saving: right.\n" and not kept.exists()


def test_without_a_person_the_lesson_shows_the_same_text(kept, monkeypatch):
    done.passed("saving")
    monkeypatch.delenv("JPY_SESSION_NAME")
    assert repr(done.show("00")).startswith("[ ] saving")


@pytest.mark.parametrize("content", ["{", "[1]", '"saving"'])
def test_a_damaged_file_is_no_obstacle(kept, content, capsys):
    kept.parent.mkdir()
    kept.write_text(content)
    done.passed("saving")
    assert "is damaged and counts as empty" in capsys.readouterr().out
    assert done.remembered().keys() == {"saving"}


def test_a_place_that_cannot_be_written(kept, capsys):
    kept.parent.write_text("a file where the folder should be")
    done.passed("saving")
    assert "This is not remembered: cannot write" in capsys.readouterr().out


def test_the_command_says_what_is_done(kept, capsys):
    done.passed("saving")
    assert cli.main(["course", "progress"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 9  # the first is that of the check
    assert lines[1].startswith("00: 1 of ") and "mask_tokens" in lines[1]
    assert all(line[:2] == f"{i:02}" for i, line in enumerate(lines[1:]))


def test_the_lesson_says_what_comes_next(kept):
    first, second, *_ = done.exercises()["04"]
    done.passed(first)
    assert repr(done.show("04")).endswith(f"Next: exercise {second}")
    for lesson, following in (("04", "lesson 05"), ("08", "nothing: this is the last lesson")):
        for name in done.exercises()[lesson]:
            done.passed(name)
        assert repr(done.show(lesson)).endswith(f"Next: {following}")
        assert done.show(lesson)._repr_html_().endswith(f"Next: {following}")
    with pytest.raises(InputError, match="no lesson '4': name one of 00, 01"):
        done.show("4")


def test_a_check_that_is_called_twice_is_one_exercise(tmp_path, monkeypatch):
    monkeypatch.setattr(done, "workspace", lambda: tmp_path)
    (tmp_path / "notebooks" / "exercises").mkdir(parents=True)
    cells = json.dumps(["exercises.saving(saving)", "exercises.saving(other)"])
    (tmp_path / "notebooks" / "exercises" / "00_tour.ipynb").write_text(cells)
    assert done.exercises() == {"00": ["saving"]}
