"""The gallery: pages that need neither a kernel nor a network."""

import base64
import io
import json
import re

import nbformat
import pytest
from PIL import Image

from .test_runner import run, write_lesson


def test_the_gallery_shows_every_lesson_without_a_network(notebooks, tmp_path):
    write_lesson(notebooks, "01_bad.ipynb", "raise ValueError('<b>')")
    images = "images = torch.rand(8, 3, 32, 32)\nplots.image_rows({'two < three': images})"
    write_lesson(
        notebooks, "02_good.ipynb", f"import torch\nfrom sgmgm.course import plots\n{images}"
    )
    lesson = nbformat.read(notebooks / "02_good.ipynb", as_version=4)
    words = "# 02 · A *good* one\n\nIt is about *this*.\n\nNot this."
    lesson.cells.insert(0, nbformat.v4.new_markdown_cell(words))
    nbformat.write(lesson, notebooks / "02_good.ipynb")
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        run(notebooks, out)
    index = (out / "index.html").read_text()
    assert "02 · A *good* one</a>" in index and "<p>It is about this.</p>" in index
    assert index.count("data:image/png;base64") == 1 and "two &lt; three" in index
    assert "failed: ValueError in cell" in index and "&lt;b&gt;" in index and "<b>" not in index
    report = json.loads((out / "report.json").read_text())
    for stamp in (report["commit"], "seed: 0", report["versions"]["torch"], report["device"]):
        assert stamp in index
    good = (out / "02_good.html").read_text()
    assert good.count("two &lt; three") >= 1 and "No description" not in good
    for page in (index, good):
        assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=.https?:[^>]*>", page)


def test_views_and_moving_pictures_need_no_kernel_in_the_gallery(notebooks, tmp_path):
    """A view is its figure, as it says nothing without its kernel; the card shows what moves."""
    write_lesson(
        notebooks,
        "01_view.ipynb",
        "import torch\nfrom sgmgm.course import plots, views\n"
        "class Grey(views.View):\n"
        "    def render(self): pass\n"
        "    def figure(self): return plots.image_rows({'grey': torch.rand(1, 3, 8, 8)})\n"
        "display(views.Animation(torch.rand(3, 3, 8, 8), 'noise', 500, 'a', 'b', 'c'))\n"
        "Grey()",
    )
    out = tmp_path / "out"
    assert run(notebooks, out) == 0
    executed, index = (out / "01_view.ipynb").read_text(), (out / "index.html").read_text()
    assert "widget-view" not in executed and "widget-state" not in executed
    page = (out / "01_view.html").read_text()
    for html, alts in ((index, ["noise"]), (page, ["noise", "1 images a row: grey"])):
        images = re.findall("<img[^>]*>", html)
        shown = [dict(re.findall('(src|alt)="([^"]*)"', image)) for image in images]
        assert [image["alt"] for image in shown] == alts
        first = base64.b64decode(shown[0]["src"].removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(first)) as moving:
            assert moving.n_frames == 3
