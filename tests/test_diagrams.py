"""The committed diagrams are what the script draws, small, well-formed and described."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from scripts import diagrams
from sgmgm import presets
from sgmgm.course import plots

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_a_diagram_is_what_the_script_draws(name):
    committed = (diagrams.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert committed == diagrams.DIAGRAMS[name]().svg(), "run python -m scripts.diagrams"
    assert len(committed.encode()) <= 60_000


@pytest.mark.parametrize("name", diagrams.DIAGRAMS)
def test_a_diagram_can_be_read_by_eye_and_by_ear(name):
    root = ElementTree.parse(diagrams.FOLDER / f"{name}.svg").getroot()
    ids = {root.find(f"{SVG}{tag}").get("id") for tag in ("title", "desc")}
    assert set(root.get("aria-labelledby").split()) == ids
    assert len(root.find(f"{SVG}title").text) > 10 and len(root.find(f"{SVG}desc").text) > 60
    panel = root.find(f"{SVG}rect")  # the first one: opaque and light, for pages of any colour
    assert panel.get("fill") == "#FFFFFF" and float(panel.get("width")) >= diagrams.WIDTH - 2
    sizes = [float(e.get("font-size")) for e in root.iter() if e.get("font-size")]
    assert min(sizes) >= 13


def test_every_file_has_its_function():
    assert {path.stem for path in diagrams.FOLDER.glob("*.svg")} == diagrams.DIAGRAMS.keys()


def test_a_text_that_does_not_fit_is_refused():
    drawing = diagrams.Drawing(100, "title", "description")
    with pytest.raises(ValueError, match="reaches out"):
        drawing.text(diagrams.WIDTH - 20, 50, "too long for its place")
    with pytest.raises(ValueError, match="too small"):
        drawing.text(100, 50, "tiny", size=9)
    with pytest.raises(ValueError, match="wider than its box"):
        drawing.box(100, 50, 40, 30, "too wide")


def test_colours_and_sizes_are_those_of_plots_and_presets():
    assert plots.COLOURS[:3] == (diagrams.PLAIN, diagrams.SMOOTHED, diagrams.GUIDED)
    preset = presets.LAPTOP
    tokenizer, transformer = preset.tokenizer, preset.transformer
    found = (tokenizer.grid, tokenizer.num_embeddings, tuple(tokenizer.widths))
    assert found == (diagrams.GRID, diagrams.CODES, diagrams.WIDTHS)
    assert tokenizer.z_channels == diagrams.CODE_WIDTH
    assert transformer.num_classes == diagrams.CLASSES
    assert (transformer.hidden_size, preset.smoothing.rank) == (diagrams.HIDDEN, diagrams.RANK)


def test_low_and_high_marks_do_not_reach_a_reader():
    for draw in diagrams.DIAGRAMS.values():
        drawing = draw()
        assert not re.search(r"[_^]\{|\^", drawing.svg().split("</desc>")[0]), drawing.title
