"""Seals: the lessons' outputs are those of their code and their models."""

import base64
import io

import nbformat
import numpy as np
import pytest
from PIL import Image

from sgmgm.commands import cli
from sgmgm.course import runner, seals
from sgmgm.evidence import results
from sgmgm.utils.files import read_json

from .test_runner import PARAMETER_CELL, write_lesson

LESSONS = runner.find_lessons([], runner.ROOT / "notebooks")


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_lesson_is_in_step_with_its_code_and_models(path):
    assert not seals.stale(path), seals.stale(path)
    notebook = runner.read_lesson(path, {})
    seal = notebook.metadata["sgmgm"]["seal"]
    assert seal["profile"] == runner.declared(notebook)["profile"] == "laptop" and seal["device"]


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A small shipped pipeline, in place of the real ones."""
    folder = tmp_path / "shipped" / "sprites"
    for part in ("tokenizer", "classifier", "transformer"):
        (folder / part).mkdir(parents=True)
        (folder / part / "model.safetensors").write_bytes(part.encode())
    (folder / "pipeline.json").write_text("{}")
    monkeypatch.setattr(seals, "SHIPPED", tmp_path / "shipped")
    return folder


FIGURE = "from sgmgm.course import charts\ncharts.lines({'a': ([0, 1], [0, 1])}, 'x', 'y')"
SAYS = "print('in', profile)"


@pytest.fixture
def lesson(tmp_path, shipped):
    write_lesson(tmp_path, "04_x.ipynb", SAYS, FIGURE, "nothing = None", "1 + 1")
    return tmp_path / "04_x.ipynb"


def commit(lesson):
    return cli.main(["course", "commit", "04", "--notebooks", str(lesson.parent)])


def test_commit_writes_both_profiles(lesson, capsys):
    assert "it has no seal. Run: sgmgm course commit 04" in seals.stale(lesson)
    assert commit(lesson) == 0 and str(lesson) in capsys.readouterr().out
    notebook = nbformat.read(lesson, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source == PARAMETER_CELL.replace("smoke", "laptop")
    says, figure, _, number = notebook.cells[1:]
    assert says.outputs[0].text == "in laptop\n" and number.outputs[0].data["text/plain"] == "2"
    alt = figure.outputs[0].metadata["image/png"]["alt"]
    kept = read_json(lesson.parent / "smoke" / "04.json")
    assert list(kept) == [says.id, figure.id, number.id]
    assert kept[says.id][0]["text"] == "in smoke\n"
    assert kept[figure.id][0]["data"] == {"text/plain": alt}
    seal = notebook.metadata["sgmgm"]["seal"]
    assert seal["profile"] == "laptop" and seal["commit"] and seal["device"].startswith("cpu")
    assert seals.stale(lesson) == ""

    # again: the same file, byte by byte
    before = lesson.read_bytes()
    assert commit(lesson) == 0
    assert lesson.read_bytes() == before


def changed(lesson, change):
    notebook = nbformat.read(lesson, as_version=4)
    change(notebook.cells)
    nbformat.write(notebook, lesson)
    return seals.stale(lesson)


def test_changes_are_noticed_and_named(lesson, shipped, monkeypatch):
    # as if it had been executed
    monkeypatch.setattr(seals, "execute", lambda path, *rest: runner.read_lesson(path, {}))
    assert commit(lesson) == 0
    sealed = lesson.read_bytes()

    def text(cells):
        cells.insert(0, nbformat.v4.new_markdown_cell("only words"))

    def code(cells):
        cells[-1].source += "  # another"

    def tag(cells):
        cells[-1].metadata["tags"] = [seals.IGNORED]

    assert changed(lesson, text) == ""
    for change in (code, tag):
        lesson.write_bytes(sealed)
        assert "04_x is out of date: its code has changed" in changed(lesson, change)
    lesson.write_bytes(sealed)

    (shipped / "classifier" / "model.safetensors").write_bytes(b"another")
    assert "the models behind it have changed. Run: sgmgm course commit 04" in seals.stale(lesson)
    (shipped / "classifier" / "model.safetensors").write_bytes(b"classifier")
    (shipped / "transformer" / "model.safetensors").write_bytes(b"another")
    assert seals.stale(lesson) == ""  # this lesson does not load it

    (lesson.parent / "smoke" / "04.json").write_text('{"a": []}')
    assert "04.json, the text of its smoke profile" in seals.stale(lesson)


def test_a_lesson_with_a_pipeline_depends_on_all_of_it(tmp_path, shipped):
    write_lesson(tmp_path, "05_y.ipynb", "Pipeline = None")
    notebook = runner.read_lesson(tmp_path / "05_y.ipynb", {})
    before = seals.weights_digest(notebook)
    (shipped / "pipeline.json").write_text('{"sampling": 1}')
    assert seals.weights_digest(notebook) != before


def test_a_failing_lesson_keeps_its_outputs(tmp_path, shipped, capsys):
    write_lesson(tmp_path, "04_x.ipynb", "1 / 0")
    before = (tmp_path / "04_x.ipynb").read_bytes()
    assert commit(tmp_path / "04_x.ipynb") == 2
    assert "04_x failed (smoke): ZeroDivisionError" in capsys.readouterr().err
    assert (tmp_path / "04_x.ipynb").read_bytes() == before


def test_commit_wants_a_lesson(capsys):
    assert cli.main(["course", "commit"]) == 2
    assert "commit which lessons?" in capsys.readouterr().err


def test_refresh_says_what_is_stale_and_mends_it(monkeypatch, capsys):
    calls = []
    late = {"04": "04_x is out of date: its code has changed. Run: sgmgm course commit 04"}
    monkeypatch.setattr(seals, "stale_lessons", lambda: late)
    monkeypatch.setattr(seals, "commit", lambda wanted, *given: calls.append(wanted) or wanted)
    for part in ("write", "write_cards"):
        monkeypatch.setattr(results, part, lambda part=part: calls.append(part) or [part])
    assert cli.main(["refresh", "-n"]) == 0 and not calls
    assert "sgmgm results" in (said := capsys.readouterr().out) and late["04"] in said
    assert cli.main(["refresh"]) == 0 and calls == ["write", "write_cards", ["04"]]
    late.clear()
    assert cli.main(["refresh"]) == 0 and len(calls) == 5
    assert "no lesson is out of date" in capsys.readouterr().out


# --- images ------------------------------------------------------------------------------------


def png(values, **options):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "png", **options)
    return file.getvalue()


def flat(level=255):
    return np.full((40, 60, 3), level, dtype=np.uint8)


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_pngs_get_small_where_nobody_sees_it():
    generator = np.random.default_rng(0)
    few = flat()
    few[:, ::2] = (10, 200, 30)
    small = seals.small_png(png(few))
    assert Image.open(io.BytesIO(small)).mode == "P" and (decoded(small) == few).all()
    noise = generator.integers(0, 256, (200, 200, 3), dtype=np.uint8)
    assert (decoded(seals.small_png(png(noise))) == noise).all()  # a palette would be seen
    ramp = np.stack([np.tile(np.arange(200, dtype=np.uint8), (200, 1))] * 3, -1)
    ramp[..., 1] = ramp[..., 1].T
    small = seals.small_png(png(ramp))
    assert ((decoded(small) - ramp) ** 2).mean() <= seals.UNLIKE
    frames = [Image.fromarray(flat(level)) for level in (0, 255)]
    moving = png(flat(9), save_all=True, append_images=frames)
    assert seals.small_png(moving) == moving


def with_image(content):
    data = {"image/png": base64.b64encode(content).decode()}
    output = nbformat.v4.new_output("display_data", data)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", id="a", outputs=[output])])


@pytest.mark.parametrize("level, kept", [(255, True), (254, False)])
def test_bytes_stay_where_pixels_agree(level, kept):
    old, new = with_image(png(flat())), with_image(png(flat(level), compress_level=0))
    first = old.cells[0].outputs[0].data["image/png"]
    seals.merge_images(new, old)
    assert (new.cells[0].outputs[0].data["image/png"] == first) == kept


def test_profiles_are_set_in_place():
    cell = nbformat.v4.new_code_cell('profile = "smoke"  # why\nseed = 1')
    cell.metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=[cell])
    seals.with_profile(notebook, "gpu")
    assert notebook.cells[0].source == 'profile = "gpu"  # why\nseed = 1'
