"""Slides that need no network, and the command with which a late-comer catches up."""

import re
import shutil
from html import unescape

import nbformat
import pytest

from sgmgm import cli, course, workshop
from sgmgm.errors import InputError

from .test_course import LESSONS, write_lesson

GIVEN = {"profile": "smoke", "dataset": "sprites", "seed": 0, "device": "cpu"}
PIXEL = "iVBORw0KGgo="  # stands for a picture


def test_a_lesson_says_which_parts_it_needs():
    needed = {path.stem[:2]: workshop.needed(nbformat.read(path, 4)) for path in LESSONS}
    assert needed["01"] == ["tokenizer"]
    assert needed["05"] == ["tokenizer", "transformer", "smoother"]
    assert all(needed.values())


def test_with_shipped_models_there_is_nothing_to_do(capsys):
    assert cli.main(["course", "catch-up", "05", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "tokenizer, transformer, smoother in" in said and "ship with the course" in said
    assert "05_adapter_fine_tuning.ipynb" in said


def test_what_is_missing_is_trained(trained, tmp_path, monkeypatch):
    """... and what is there is kept: the folder already holds all but one part."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(course, "SHIPPED", tmp_path / "none")
    write_lesson(tmp_path / "notebooks", "04_x.ipynb", 'course.models("tokenizer", "weak", x=1)')
    place = tmp_path / "runs" / "sprites-smoke"
    shutil.copytree(trained, place)
    shutil.rmtree(place / "weak")
    before = (place / "tokenizer" / "model.safetensors").stat().st_mtime_ns
    path, parts, folder = workshop.catch_up("04", **GIVEN)
    assert (path.name, parts, folder) == ("04_x.ipynb", ["tokenizer", "weak"], place)
    assert (place / "weak" / "model.safetensors").is_file()
    assert (place / "tokenizer" / "model.safetensors").stat().st_mtime_ns == before


def test_a_duplicate_is_no_lesson(tmp_path):
    for name in ("05_adapter_fine_tuning.ipynb", "05_adapter_fine_tuning-Copy1.ipynb"):
        shutil.copy(course.ROOT / "notebooks" / "05_adapter_fine_tuning.ipynb", tmp_path / name)
    path, _, folder = workshop.catch_up("05", tmp_path, **GIVEN)
    assert path.name == "05_adapter_fine_tuning.ipynb" and folder.name == "sprites"


def test_catching_up_wants_a_lesson(capsys):
    for words, sentence in ((["catch-up"], "with which lesson"), (["catch-up", "77"], "unknown")):
        assert cli.main(["course", *words]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1


def lesson():
    new = nbformat.v4
    picture = new.new_output("display_data", {"image/png": PIXEL})
    picture.metadata = {"image/png": {"alt": 'a "dot"'}}
    cells = [
        new.new_markdown_cell("# 01 · A title\n\nWords."),
        new.new_code_cell("setup = 1"),
        new.new_markdown_cell("## One\n\nLook: [next](02_b.ipynb), [here](x.py), [a](https://b.c)"),
        new.new_code_cell("draw(1 < 2)", outputs=[picture]),
        new.new_markdown_cell("What you saw."),
        new.new_markdown_cell("## Two\n\n- a\n\n## Three"),
        new.new_code_cell("say()", outputs=[new.new_output("stream", text="1 < 2")]),
    ]
    return new.new_notebook(cells=cells)


def test_a_page_is_what_is_said_and_what_is_then_seen():
    page = workshop.slides(lesson())
    assert "<title>01 · A title</title>" in page and "setup" not in page
    sections = re.findall(r"<section.*?</section>", page, re.DOTALL)
    titles = [re.sub("<.*?>", "", re.search(r"<h\d.*?</h\d>", s)[0]) for s in sections]
    assert [unescape(title).strip() for title in titles] == [
        "01 · A title",
        "One",
        "One",
        "Two",
        "Three",
    ]
    look, again = sections[1:3]
    assert PIXEL in look and 'alt="a &quot;dot&quot;"' in look and "<details>" in look
    assert PIXEL in again and "What you saw." in again and "<details>" not in again
    assert PIXEL not in sections[3] and "1 &lt; 2" in sections[4]
    assert 'href="02_b.html"' in look and 'href="https://b.c"' in look and "x.py" not in look


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_slides_of_a_lesson_hold_all_of_it_and_load_nothing(path, tmp_path):
    (written,) = workshop.write_slides([path.stem], tmp_path)
    page = written.read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]+src|<link|<img[^>]+src=\"(?!data:)|@import|url\(", page)
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png", "").replace("\n", "")
            assert png in page.replace("\n", "")
        if cell.cell_type == "markdown":
            for heading in re.findall(r"(?m)^## ([\w :]+)$", cell.source):
                assert f">{heading}" in page


def test_a_lesson_without_a_title_is_refused(tmp_path):
    write_lesson(tmp_path, "01_x.ipynb", "1")
    with pytest.raises(InputError, match="has no title"):
        workshop.write_slides([], tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
