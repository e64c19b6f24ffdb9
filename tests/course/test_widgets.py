"""The views without a browser: state in, images and code out."""

import asyncio
import base64
import io
import re
import shutil
from html.parser import HTMLParser

import ipywidgets
import nbformat
import pytest
import torch
from nbconvert import HTMLExporter
from PIL import Image

from sgmgm import datasets
from sgmgm.course import views, widgets
from sgmgm.pipeline import Pipeline
from sgmgm.settings import Sampling
from sgmgm.utils.errors import InputError

FEW = {"steps": 4}


@pytest.fixture(scope="module")
def pipeline(trained):
    return Pipeline.from_pretrained(trained, "cpu")


@pytest.fixture(scope="module")
def images():
    return datasets.load("sprites", "test").batch(slice(0, 12))


@pytest.fixture(scope="module")
def scrubber(pipeline):
    return widgets.Scrubber(pipeline, label=3, seed=5, **FEW)


def every(widget):
    """A widget and all widgets in it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from every(child)


class Pictures(HTMLParser):
    """The alt texts and sources of all pictures of a view."""

    def __init__(self, shown):
        super().__init__()
        self.found = {}
        for each in every(shown):
            if isinstance(each, ipywidgets.HTML):
                self.feed(each.value)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            given = dict(attributes)
            self.found[given["alt"]] = given["src"]


def pictures(shown):
    return Pictures(shown).found


def words(html):
    return re.sub("<[^>]*>", " ", html)


# --- scrubber ----------------------------------------------------------------------------------


def test_scrubber_shows_what_the_pipeline_generates(scrubber, pipeline):
    for name, guidance in (("plain", "none"), ("guided", "self")):
        samples = pipeline([3], seeds=[5], guidance=guidance, **FEW)
        way = scrubber.trajectories[name]
        assert torch.equal(way.sampled[-1], samples.trajectory.tokens[0])
        torch.testing.assert_close(way.images[-1], samples.images[0], atol=1e-4, rtol=0)
        assert way.masked.sum(1).tolist()[0] == 64 and way.masked[1:].sum(1).max() < 64
        assert way.confidence.isnan().equal(~way.masked)
        assert way.push.isnan().equal(~way.masked)


def test_predictions_are_those_of_that_step(scrubber, pipeline):
    """One position of one step, worked out on its own."""
    canvas = pipeline([3], seeds=[5], guidance="self", **FEW).trajectory.canvases[2]
    guidance = pipeline.guidance(scrubber.settings)
    with torch.no_grad():
        plain, smooth = guidance.both(canvas, torch.tensor([3]))
        guided = guidance(canvas, torch.tensor([3]))
    way = scrubber.trajectories["guided"]
    for at, logits in enumerate((plain, smooth, guided)):
        want = logits[0].log_softmax(-1)
        torch.testing.assert_close(way.log_p[at, 2], want, atol=1e-4, rtol=1e-4)
    i = int(way.masked[2].nonzero()[0])
    code = way.sampled[2, i]
    push = way.log_p[2, 2, i, code] - way.log_p[0, 2, i, code]
    torch.testing.assert_close(way.push[2, i], push)


def test_scrubber_steps_and_looks_at_tokens(scrubber):
    scrubber.step.value = 1
    first = pictures(scrubber)
    scrubber.step.value = 4
    last = pictures(scrubber)
    for name in ("plain", "guided"):
        for what in ("sampled", "canvas", "confidence", "push"):
            before = first[f"{name}, step 1 of 4: {what}"]
            assert before != last[f"{name}, step 4 of 4: {what}"]
    scrubber.cells["plain"].buttons[10].click()
    assert (scrubber.which.value, scrubber.token.value) == ("plain", 10)
    said = words(scrubber.best.value)
    assert (
        "row 2, column 3" in said
        and f"code {scrubber.trajectories['plain'].sampled[3, 10]}" in said
    )
    log_p = scrubber.trajectories["plain"].log_p[:, 3, 10]
    for at, name in enumerate(("plain", "smoothed", "guided")):
        codes = log_p[at].topk(5).indices.tolist()
        assert [alt for alt in pictures(scrubber) if alt.startswith(f"{name}: code")] == [
            f"{name}: code {code}" for code in codes
        ]


def test_best_codes_show_what_the_decoder_shows(scrubber, pipeline):
    """The sampled token's own patch is the image's own cell."""
    way = scrubber.trajectories["guided"]
    first = way.log_p[0, :, :].argmax(-1)  # (T, N), the plain favourite
    k, i = (first == way.sampled).nonzero()[0].tolist()
    row, column = i // 8 * 4, i % 8 * 4
    cell = way.images[k, :, row : row + 4, column : column + 4]
    source = views.html_image(cell, f"plain: code {way.sampled[k, i]}", size="patch").split('"')[3]
    assert source in scrubber.best_codes(way, k, i)


def test_scrubber_renders_for_another_seed_and_class(pipeline):
    scrubber = widgets.Scrubber(pipeline, "tree", **FEW)
    before = scrubber.trajectories["guided"].sampled
    scrubber.seed.value = 9
    assert not torch.equal(before, scrubber.trajectories["guided"].sampled)
    scrubber.label.value = 2
    want = pipeline([2], seeds=[9], guidance="self", **FEW).trajectory.tokens[0]
    assert torch.equal(scrubber.trajectories["guided"].sampled[-1], want)


def test_animation_moves(scrubber, tmp_path):
    animation = scrubber.animation(milliseconds=100)
    data, metadata = animation._repr_mimebundle_()
    assert data["text/plain"] == metadata["image/png"]["alt"] and "plain" in animation.alt
    for name in ("way.png", "way.gif"):
        animation.save(tmp_path / name)
        with Image.open(tmp_path / name) as moving:
            assert (moving.n_frames, moving.size) == (4, (4 * 68, 4 * 64 + 40))
    with Image.open(io.BytesIO(data["image/png"])) as moving:
        moving.seek(3)
        corner = moving.convert("RGB").getpixel((2, 22))
    want = (scrubber.trajectories["plain"].images[3, :, 0, 0] * 255).round().int().tolist()
    assert list(corner) == want
    with pytest.raises(InputError, match="avi"):
        animation.save(tmp_path / "way.avi")
    assert not (tmp_path / "way.avi").exists()


# --- explorer ----------------------------------------------------------------------------------


def test_every_control_of_the_explorer_does_something(pipeline):
    explorer = widgets.Explorer(pipeline, count=2, **FEW)
    moves = [
        *((explorer.controls["guidance"], "spatial"), (explorer.controls["scale"], 4.0)),
        *((explorer.controls["temperature"], 30.0), (explorer.controls["anneal"], "compounding")),
        *((explorer.controls["steps"], 3), (explorer.label, 1), (explorer.seed, 7)),
    ]
    assert {each for each, _ in moves} == {
        *explorer.controls.values(),
        explorer.label,
        explorer.seed,
    }
    for each, value in moves:
        before = explorer.grid.value
        each.value = value
        assert explorer.grid.value != before, each.description
    assert list(explorer.rows) == ["plain", "spatial, s = 4"]
    assert explorer.names == [pipeline.card.classes[1]] * 2
    want = pipeline([1, 1], seeds=[7, 8], **explorer.chosen()).images
    assert torch.equal(explorer.rows["spatial, s = 4"], want)


def test_plain_images_are_not_generated_again_for_another_scale(pipeline, monkeypatch):
    seen = []
    original = Pipeline.__call__
    count = lambda self, *a, **k: seen.append(k["guidance"]) or original(self, *a, **k)  # noqa: E731
    monkeypatch.setattr(Pipeline, "__call__", count)
    explorer = widgets.Explorer(pipeline, count=2, **FEW)
    explorer.controls["scale"].value = 2.0
    explorer.controls["scale"].value = 2.0000000000000004  # what a browser's slider may send
    assert seen == ["none", "self", "self"]


def test_code_gives_the_same_images(pipeline):
    explorer = widgets.Explorer(pipeline, count=2, seed=4, order="halton", **FEW)
    explorer.controls["scale"].value = 2.5
    names = {"pipeline": pipeline}
    exec(explorer.code(), names)
    assert torch.equal(names["samples"].images, explorer.rows["self, s = 2.5"])
    assert "scale=2.5" in words(explorer.code_box.value)


# --- refill ------------------------------------------------------------------------------------


def test_refill_keeps_what_is_visible(pipeline, images):
    refill = widgets.Refill(pipeline, *images, **FEW)
    refill.image.value = 4
    assert refill.label.value == int(images[1][4])
    refill.mask.value = "nothing"
    refill.cells.buttons[9].click()
    refill.cells.buttons[63].click()
    refill.cells.buttons[63].click()
    assert refill.masked.nonzero().flatten().tolist() == [9]
    assert "1 of 64 cells masked" in refill.cells.image.value
    assert (refill.shown["masked"][0, :, 4:8, 4:8] == views.plots.MASK_GREY).all()
    tokens = pipeline.tokenizer.encode(images[0][4:5])
    assert torch.equal(refill.shown["original"], pipeline.tokenizer.decode(tokens))
    canvas = tokens.clone()
    canvas[0, 9] = pipeline.transformer.config.mask_id
    for name, guidance in (("plain", "none"), ("guided", "self")):
        want = pipeline([refill.label.value], seeds=[0], canvas=canvas, guidance=guidance, **FEW)
        assert torch.equal(refill.shown[name], want.images)


def test_refill_moves_and_its_masks():
    shipped = Pipeline.from_pretrained("sprites", "cpu")  # the toy hardly knows its classes apart
    refill = widgets.Refill(shipped, labels=["fish", "tree"], **FEW)
    assert [name for name, _ in refill.image.options] == ["image 1: fish", "image 2: tree"]
    refill.mask.value = "everything"
    for each, value in ((refill.label, 5), (refill.scale, 3.0), (refill.seed, 8)):
        before = refill.shown["guided"]
        each.value = value
        assert not torch.equal(before, refill.shown["guided"]), each.description
    masks = widgets.ready_masks(8)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        **{"lower half": 32, "right half": 32, "centre (in-paint)": 16},
        **{"border (out-paint)": 48, "nothing": 0, "everything": 64},
    }
    assert masks["lower half"].view(8, 8)[4:].all() and masks["right half"].view(8, 8)[:, 4:].all()


# --- codebook ----------------------------------------------------------------------------------


def test_codebook_looks_codes_up(pipeline, images):
    browser = widgets.CodebookBrowser(pipeline.tokenizer, images[0])
    tokens = pipeline.tokenizer.encode(images[0])
    uses = torch.bincount(tokens.flatten(), minlength=pipeline.tokenizer.num_codes)
    assert uses[browser.code.value] == uses.max()
    browser.cells.buttons[1].click()
    code = browser.code.value
    assert uses[code] == uses.sort(descending=True).values[1]
    assert browser.near[0] == code and browser.where.tolist() == [
        i for i in range(12) if (tokens[i] == code).any()
    ][:6]  # fmt: skip
    cells = images[0].unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    average = cells[tokens.flatten() == code].mean(0)
    torch.testing.assert_close(browser.patches[code], average)
    unused = int((uses == 0).nonzero()[0]) if (uses == 0).any() else None
    if unused is not None:
        browser.code.value = unused
        assert "Used nowhere" in words(browser.details.value)


def test_codebook_pages(pipeline, images, monkeypatch):
    monkeypatch.setattr(widgets.CodebookBrowser, "side", 5)  # 64 codes: the last page has gaps
    browser = widgets.CodebookBrowser(pipeline.tokenizer, images[0])
    browser.page.value = browser.page.max
    assert browser.page.max == 3 and any("14 codes, page 3" in alt for alt in pictures(browser))
    before = browser.code.value
    browser.cells.buttons[14].click()  # a gap
    assert browser.code.value == before
    browser.cells.buttons[13].click()
    assert browser.code.value == browser.pages[2][13] != before


# --- all views ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_views(pipeline, images, scrubber):
    return {
        "scrubber": scrubber,
        "explorer": widgets.Explorer(pipeline, count=2, **FEW),
        "refill": widgets.Refill(pipeline, *images, **FEW),
        "codebook": widgets.CodebookBrowser(pipeline.tokenizer, images[0]),
    }


NAMES = ("scrubber", "explorer", "refill", "codebook")


@pytest.mark.parametrize("name", NAMES)
def test_view_has_labels_and_alt_texts(all_views, name):
    controls = [each for each in every(all_views[name]) if hasattr(each, "value")]
    controls = [e for e in controls if not isinstance(e, ipywidgets.HTML | ipywidgets.Play)]
    assert controls and all(each.description and each.tooltip for each in controls)
    cells = [each for each in every(all_views[name]) if isinstance(each, ipywidgets.Button)]
    assert all(each.tooltip for each in cells)
    found = pictures(all_views[name])
    assert len(found) >= 4 and all(found)


@pytest.mark.parametrize("name", NAMES)
def test_view_is_a_figure_where_no_kernel_is(all_views, name):
    """An exported page shows the picture, with its text, and no empty widget."""
    data, metadata = all_views[name]._repr_mimebundle_(include=None, exclude=None)
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 150_000
    data["image/png"] = base64.b64encode(data["image/png"]).decode()
    assert data["text/plain"] == metadata["image/png"]["alt"] != ""
    output = nbformat.v4.new_output("execute_result", data, metadata=metadata)
    cell = nbformat.v4.new_code_cell("the view", outputs=[output])
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert data["image/png"][:200] in page and "widget-view" not in page


def watch(explorer):
    """The scales that this explorer renders with, from now on."""
    seen, render = [], explorer.render
    explorer.render = lambda: seen.append(explorer.controls["scale"].value) or render()
    return seen


async def until(condition):
    """Wait until this holds; two minutes are for machines that do other things too."""
    for _ in range(12_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited for two minutes")


def test_only_the_last_position_is_rendered(pipeline):
    """The page answers at once, or with the moves that it kept back while the kernel was busy."""
    explorer = widgets.Explorer(pipeline, count=1, **FEW)
    scale, seen, kept = explorer.controls["scale"], watch(explorer), [6.0, 7.0]

    def answer(change):
        if kept:
            scale.value = kept.pop(0)
        explorer.answer.value = change.new

    async def move_fast():
        explorer.asked.observe(answer, "value")
        for k in range(20):
            scale.value = k / 4
            await asyncio.sleep(0)
        await until(lambda: seen)
        await asyncio.sleep(2 * views.QUIET)

    asyncio.run(move_fast())
    assert seen == [7.0] and "self, s = 7" in explorer.rows
    assert explorer.asked.value == 3


def test_it_renders_without_a_page(pipeline, monkeypatch):
    monkeypatch.setattr(views, "ANSWER", 0.05)
    explorer = widgets.Explorer(pipeline, count=1, **FEW)
    seen = watch(explorer)

    async def move():
        explorer.controls["scale"].value = 5.0
        await until(lambda: seen)

    asyncio.run(move())
    assert seen == [5.0]


def test_a_figure_waits_for_no_timer(pipeline):
    """Moved and displayed in one cell: the figure shows the new position."""
    explorer = widgets.Explorer(pipeline, count=1, **FEW)

    async def move_and_display():
        explorer.controls["scale"].value = 3.0
        assert "self, s = 3" in explorer._repr_mimebundle_()[0]["text/plain"]

    asyncio.run(move_and_display())


def test_a_failed_or_interrupted_render_leaves_the_view_usable(pipeline):
    explorer = widgets.Explorer(pipeline, count=1, **FEW)
    render = explorer.render

    def fail(error):
        def raises():
            raise error

        explorer.render = raises

    fail(InputError("the temperature is a problem."))
    explorer.update()
    assert "the temperature is a problem." in explorer.status.value
    fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        explorer.update()
    assert "KeyboardInterrupt" in explorer.status.value
    explorer.render = render
    explorer.controls["scale"].value = 2.0
    assert "self, s = 2" in explorer.rows and words(explorer.status.value).strip() == ""


def test_views_are_guided_even_where_the_models_own_settings_are_not(pipeline, monkeypatch):
    start = views.choose_settings
    monkeypatch.setattr(pipeline.card, "sampling", Sampling(guidance="none", scale=0.0))
    assert (start(pipeline, {}).guidance, start(pipeline, {}).scale) == ("self", 1.0)
    changed = start(pipeline, {"guidance": "cfg", "scale": 3.0})
    assert (changed.guidance, changed.scale) == ("cfg", 3.0)
    monkeypatch.setattr(pipeline.card, "sampling", Sampling(guidance="cfg", scale=4.0))
    assert (start(pipeline, {}).guidance, start(pipeline, {}).scale) == ("cfg", 4.0)


def test_guidance_falls_back_on_what_is_there(pipeline, own):
    assert views.find_guidances(pipeline)[:2] == ["self", "cfg"]
    assert "auto" in views.find_guidances(pipeline)
    shutil.rmtree(own / "smoother")
    shutil.rmtree(own / "weak")
    poor = Pipeline.from_pretrained(own, "cpu")
    found = views.find_guidances(poor)
    assert found[0] == "cfg" and not {"self", "auto", "self+cfg"} & set(found)
    assert views.choose_settings(poor, {}).guidance == "cfg"


def test_bad_requests_are_named(pipeline, images):
    for ask in (
        lambda: widgets.Scrubber(pipeline, guidance="none"),
        lambda: widgets.Scrubber(pipeline, label="unicorn"),
        lambda: widgets.Explorer(pipeline, sclae=1),
        lambda: widgets.Refill(pipeline, images[0]),
        lambda: widgets.Refill(pipeline, images[0], [0]),
        lambda: widgets.CodebookBrowser(pipeline.tokenizer, torch.rand(1, 3, 16, 16)),
    ):
        with pytest.raises(InputError):
            ask()


def test_colours_go_from_low_to_high():
    values = torch.tensor([[0.0, 1.0, 0.5, torch.nan]])
    images = views.colour_map(values, 0, 1, 3, "viridis")
    assert images.shape == (1, 3, 6, 6)
    grey = images.mean(1)[0]
    assert grey[0, 0] < grey[3, 0] < grey[0, 3] and grey[5, 5] == pytest.approx(0.85)


def test_a_start_outside_a_control_is_accepted_or_refused_but_never_changed(pipeline):
    explorer = widgets.Explorer(pipeline, count=1, scale=-3.0, **FEW)
    assert explorer.controls["scale"].value == -3.0 and "self, s = -3" in explorer.rows
    assert widgets.Refill(pipeline, labels=[0], scale=-2.5, **FEW).scale.value == -2.5
    for kind, given in ((widgets.Explorer, {}), (widgets.Refill, {"labels": [0]})):
        for seed in (2**31, -1):
            with pytest.raises(InputError, match=f"seed {seed} does not fit .* 0 to 2147483647"):
                kind(pipeline, seed=seed, **given, **FEW)
    with pytest.raises(InputError, match="seed -5"):
        widgets.Scrubber(pipeline, seed=-5, **FEW)
