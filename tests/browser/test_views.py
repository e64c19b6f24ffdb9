"""The views in a real JupyterLab: move each control, and look at what the page shows."""

import re
from contextlib import contextmanager, suppress

import nbformat
import pytest
from nbconvert import HTMLExporter

from sgmgm.course import runner, seals

from .conftest import PATIENCE

expect = pytest.importorskip("playwright.sync_api", reason="needs playwright").expect
pytestmark = pytest.mark.check

SETUP = """
import time
from pathlib import Path
from sgmgm import datasets
from sgmgm.course import widgets
from sgmgm.pipeline import Pipeline
from sgmgm.settings import Sampling

pipeline = Pipeline.from_pretrained("sprites", "cpu")
pipeline.card.sampling = Sampling(16, 0.5, guidance="none", scale=0.0)
images, labels = datasets.load("sprites", "test", 40).batch(slice(0, 40))
scales, gate = [], Path("gate")

class Explorer(widgets.Explorer):
    def render(self):
        scales.append(self.chosen()["scale"])
        super().render()

def be_busy():
    print("busy", flush=True)
    while gate.exists():
        time.sleep(0.05)
    scales.clear()
"""
VIEWS = (
    "widgets.Scrubber(pipeline, 'rocket', steps=6)",
    "Explorer(pipeline, count=3, steps=4, temperature=6)",
    "widgets.Refill(pipeline, images[:4], labels[:4], steps=4)",
    "widgets.CodebookBrowser(pipeline.tokenizer, images)",
)
RAN = re.compile(r"^\[\d+\]:$")  # the number beside a cell that is done


@pytest.fixture(scope="module")
def page(open_notebook):
    cells = [nbformat.v4.new_code_cell(source) for source in (SETUP, *VIEWS, "'the last cell'")]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    page = open_notebook("views.ipynb", notebook)
    expect(page.locator(".sgmgm")).to_have_count(len(VIEWS))
    expect(page.get_by_text("'the last cell'", exact=True).last).to_be_visible()
    return page


def fresh(page, source):
    """The view of the cell with this source, which is run anew: tests share no state."""
    code = page.locator(".cm-content", has_text=source)
    cell = page.locator(".jp-Notebook .jp-CodeCell", has=code)
    number = cell.locator(".jp-InputPrompt")
    before = number.inner_text()
    page.mouse.move(0, 0)
    code.click()
    page.keyboard.press("Control+Enter")
    expect(number).not_to_have_text(before)
    expect(number).to_have_text(RAN)
    view = cell.locator(".sgmgm")
    expect(view).to_have_count(1)
    expect(view.locator("img").first).to_be_visible()
    return view


def fixture_of(code):
    @pytest.fixture
    def view(page):
        return fresh(page, code)

    return view


scrubber, explorer, refill, codebook = map(fixture_of, VIEWS)


def control(view, description):
    """A control by its label."""
    box = view.locator(".jupyter-widgets").filter(
        has=view.page.locator(f"xpath=./label[text()='{description}']")
    )
    return box.locator("select, input, [role=slider]").first


def press(slider, *keys):
    slider.focus()
    for key in keys:
        slider.page.keyboard.press(key)


def sources(view, alt):
    """The pictures with this text, as data."""
    return view.get_by_alt_text(alt).evaluate_all("all => all.map(each => each.src)")


def changes(view, alt, before):
    """Wait until the pictures with this text are others than before."""
    for _ in range(PATIENCE // 200):
        if sources(view, alt) not in ([], before):
            return
        view.page.wait_for_timeout(200)
    raise AssertionError(f"{alt} stays the same")


def execute(page, code):
    """Run a line in the last cell, as a person would; returns the cell."""
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    cell = cells.nth(cells.count() - 1)
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(code)
    page.keyboard.press("Shift+Enter")
    return cell


@contextmanager
def busy_kernel(page, lab):
    """A kernel that runs a cell until the end of the block; gives the cell."""
    gate = lab[1] / "gate"
    gate.touch()
    try:
        cell = execute(page, "be_busy()")
        expect(cell.locator(".jp-OutputArea")).to_contain_text("busy")
        yield cell
    finally:
        gate.unlink()
    expect(cell.locator(".jp-InputPrompt")).to_have_text(RAN)


# --- scrubber ----------------------------------------------------------------------------------


def test_arrow_keys_step(scrubber):
    expect(scrubber.get_by_alt_text("guided, step 3 of 6: sampled")).to_be_visible()
    before = sources(scrubber, "guided, step 3 of 6: canvas")
    press(control(scrubber, "step"), "ArrowRight")
    for name in ("plain", "guided"):
        for what in ("sampled", "canvas", "confidence", "push"):
            expect(scrubber.get_by_alt_text(f"{name}, step 4 of 6: {what}")).to_be_visible()
    assert sources(scrubber, "guided, step 4 of 6: canvas") != before
    press(control(scrubber, "step"), "ArrowLeft", "ArrowLeft")
    expect(scrubber.get_by_alt_text("plain, step 2 of 6: sampled")).to_be_visible()


def test_play_goes_to_the_end(scrubber):
    scrubber.locator(".widget-play button").first.click()
    expect(scrubber.get_by_alt_text("plain, step 6 of 6: sampled")).to_be_visible()


def test_click_or_key_looks_at_a_token(scrubber):
    cells = scrubber.locator(".cells")
    cells.nth(0).get_by_title("row 2, column 3", exact=True).click()
    expect(scrubber.get_by_text("row 2, column 3: code")).to_be_visible()
    expect(control(scrubber, "of")).to_have_value("plain")
    for name in ("plain", "smoothed", "guided"):
        patches = scrubber.get_by_alt_text(re.compile(f"^{name}: code"))
        expect(patches).to_have_count(5)
        expect(patches.first).to_be_visible()
    press(control(scrubber, "token"), "ArrowRight")
    expect(scrubber.get_by_text("row 2, column 4: code")).to_be_visible()
    cells.nth(1).get_by_title("row 1, column 1", exact=True).focus()
    scrubber.page.keyboard.press("Space")
    expect(scrubber.get_by_text("row 1, column 1: code")).to_be_visible()
    expect(control(scrubber, "of")).to_have_value("guided")
    control(scrubber, "of").select_option("plain")
    expect(scrubber.get_by_text("row 1, column 1: code")).to_be_visible()


def test_resting_on_a_token_looks_at_it(scrubber):
    token = scrubber.locator(".cells").nth(0).get_by_title("row 3, column 5", exact=True)
    token.hover()
    expect(scrubber.get_by_text("row 3, column 5: code")).to_be_visible()
    expect(control(scrubber, "of")).to_have_value("plain")
    press(control(scrubber, "step"), "ArrowRight")
    expect(scrubber.get_by_alt_text("plain, step 4 of 6: sampled")).to_be_visible()
    expect(scrubber.get_by_text("row 3, column 5: code")).to_be_visible()


def test_another_class_and_seed(scrubber):
    alt = re.compile("^guided, step . of 6: sampled$")
    before = sources(scrubber, alt)
    control(scrubber, "class").select_option("tree")
    changes(scrubber, alt, before)
    before = sources(scrubber, alt)
    control(scrubber, "seed").fill("12")
    control(scrubber, "seed").press("Enter")
    changes(scrubber, alt, before)


# --- explorer ----------------------------------------------------------------------------------


def scale(explorer):
    return float(control(explorer, "scale s").get_attribute("aria-valuenow"))


def guided(explorer, s):
    """An image of this scale."""
    return explorer.get_by_alt_text(re.compile(rf"^(self|cfg), s = {s:g}: ")).first


GUIDED, PLAIN = re.compile("^self, s = "), re.compile("^plain: ")


def test_starts_guided(explorer):
    """Whatever the model's own settings are; these (in SETUP) are unguided."""
    assert scale(explorer) == 1 and sources(explorer, GUIDED) != sources(explorer, PLAIN)


@pytest.mark.parametrize("name", ["scale s", "temperature", "steps"])
def test_sliders_render_anew(explorer, name):
    before, plain, s = sources(explorer, GUIDED), sources(explorer, PLAIN), scale(explorer)
    press(control(explorer, name), *["ArrowRight"] * 6)
    changes(explorer, GUIDED, before)
    if name != "scale s":
        changes(explorer, PLAIN, plain)
    else:
        expect(guided(explorer, s + 1.5)).to_be_visible()
        assert sources(explorer, PLAIN) == plain


def test_lists_and_seed_render_anew(explorer):
    before = sources(explorer, PLAIN)
    control(explorer, "its schedule").select_option("compounding")
    changes(explorer, PLAIN, before)
    control(explorer, "class").select_option("boat")
    expect(explorer.get_by_alt_text(re.compile("^plain: boat"))).to_have_count(3)
    control(explorer, "seed").fill("5")
    control(explorer, "seed").press("Enter")
    expect(explorer.get_by_alt_text("plain: boat, seed 5")).to_be_visible()
    control(explorer, "guidance").select_option("cfg")
    expect(explorer.get_by_alt_text(re.compile("^cfg, s = .*: boat, seed 7"))).to_be_visible()


def test_settings_go_into_the_next_cell(explorer):
    page, cells = explorer.page, explorer.page.locator(".jp-Notebook .jp-CodeCell")
    count = cells.count()
    for patience in (60_000, PATIENCE):  # a picture that appears late can move the button away
        explorer.get_by_role("button", name="Settings into the next cell").click()
        with suppress(AssertionError):
            expect(cells).to_have_count(count + 1, timeout=patience)
            break
    expect(cells).to_have_count(count + 1)
    written = cells.nth(3)  # below the setup, the scrubber and the explorer
    expect(written.locator(".cm-content")).to_contain_text(f"scale={scale(explorer)}")
    page.keyboard.press("Shift+Enter")
    expect(written.locator(".jp-InputPrompt")).to_have_text(RAN)
    answer = execute(page, "print(len(samples.images), 'images', len(samples.trajectory.kept))")
    expect(answer.locator(".jp-OutputArea")).to_contain_text("3 images 4")


def test_of_many_moves_only_the_last_is_rendered(explorer, lab):
    page, s = explorer.page, scale(explorer)
    with busy_kernel(page, lab):
        press(control(explorer, "scale s"), *["ArrowRight"] * 10)
        assert scale(explorer) == s + 2.5
    expect(guided(explorer, s + 2.5)).to_be_visible()
    answer = execute(page, "print('rendered at', scales)")
    expect(answer.locator(".jp-OutputArea")).to_contain_text(f"rendered at [{s + 2.5}]")


def test_interrupted_cell_leaves_the_view_usable(explorer, lab):
    page, s = explorer.page, scale(explorer)
    with busy_kernel(page, lab) as cell:
        press(control(explorer, "scale s"), "ArrowLeft", "ArrowLeft")
        expect(guided(explorer, s)).to_be_visible()  # the kernel is busy, the view is there
        page.get_by_role("button", name="Interrupt the kernel").click()
        expect(cell.locator(".jp-OutputArea")).to_contain_text("KeyboardInterrupt")
        expect(guided(explorer, s - 0.5)).to_be_visible()
    press(control(explorer, "scale s"), "ArrowRight")
    expect(guided(explorer, s - 0.25)).to_be_visible()


# --- refill and codebook -----------------------------------------------------------------------


def test_paint_and_refill(refill):
    masked, guided = re.compile(".* of 64 cells masked"), re.compile(".*, guided, s = ")
    expect(refill.get_by_alt_text("32 of 64 cells masked")).to_be_visible()
    before, mask = sources(refill, guided), sources(refill, masked)
    refill.get_by_title("row 1, column 1", exact=True).click()
    expect(refill.get_by_alt_text("33 of 64 cells masked")).to_be_visible()
    assert sources(refill, masked) != mask
    refill.get_by_title("row 8, column 8", exact=True).focus()
    refill.page.keyboard.press("Space")
    expect(refill.get_by_alt_text("32 of 64 cells masked")).to_be_visible()
    control(refill, "mask").select_option("everything")
    expect(refill.get_by_alt_text("64 of 64 cells masked")).to_be_visible()
    changes(refill, guided, before)


def test_refill_controls(refill):
    whole = sources(refill, "the whole image")
    control(refill, "image").select_option(index=2)
    changes(refill, "the whole image", whole)
    control(refill, "class").select_option("umbrella")
    expect(refill.get_by_alt_text("the masked cells filled as umbrella, plain")).to_be_visible()
    press(control(refill, "scale s"), "ArrowRight", "ArrowRight")
    guided = "the masked cells filled as umbrella, guided, s = 1.5"
    expect(refill.get_by_alt_text(guided)).to_be_visible()
    before = sources(refill, guided)
    control(refill, "seed").fill("3")
    control(refill, "seed").press("Enter")
    changes(refill, guided, before)


def test_codebook(codebook):
    press(control(codebook, "page"), "ArrowRight")
    expect(codebook.get_by_alt_text(re.compile("64 codes, page 2"))).to_be_visible()
    press(control(codebook, "page"), "ArrowLeft")
    first = codebook.locator("b").inner_text()
    codebook.get_by_title("row 1, column 2", exact=True).click()
    expect(codebook.locator("b")).not_to_have_text(first)
    control(codebook, "code").fill(first.removeprefix("code "))
    control(codebook, "code").press("Enter")
    expect(codebook.locator("b")).to_have_text(first)
    expect(codebook.get_by_alt_text(re.compile(f"image .*, {first} framed")).first).to_be_visible()


# --- all of them -------------------------------------------------------------------------------


def test_everything_has_a_name(page):
    """Pictures have texts, controls have labels, and nothing failed on the way."""
    views = page.locator(".sgmgm")
    assert views.locator("img").count() > 30
    for image in views.locator("img").all():
        assert image.get_attribute("alt")
    for each in views.locator("select, input").all():
        assert each.evaluate("e => e.labels.length > 0 && e.labels[0].innerText.length > 0")
    # ipywidgets gives the three buttons of its player no names; the player has one
    assert views.locator(".widget-play").get_attribute("title")
    for each in views.locator(":not(.widget-play) > button").all():
        assert each.get_attribute("title") or each.inner_text()
    expect(views.get_by_text("Error")).to_have_count(0)


def test_a_saved_notebook_shows_pictures_without_a_kernel(page, lab, browser, tmp_path):
    """Saved by JupyterLab, exported, and opened as a file: every view is a picture."""
    last = execute(page, "print('now', 'save')")
    expect(last.locator(".jp-OutputArea")).to_contain_text("now save")
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.get_by_text("Save Notebook", exact=True).click()
    path = lab[1] / "views.ipynb"
    for _ in range(PATIENCE // 100):
        if "now save" in path.read_text():
            break
        page.wait_for_timeout(100)
    html, _ = HTMLExporter().from_filename(str(path))
    (tmp_path / "views.html").write_text(html)
    exported = browser.new_page()
    exported.route(re.compile("^http"), lambda route: route.abort())
    exported.goto((tmp_path / "views.html").as_uri())
    pictures = exported.locator(".jp-OutputArea-output img")
    assert pictures.count() == len(VIEWS)
    for each in pictures.all():
        assert each.evaluate("e => e.naturalWidth") > 200
    exported.close()


def shows_views(path):
    code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    return "widgets." in "".join(code)


LESSONS = runner.find_lessons([], runner.ROOT / "notebooks")


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_runs_and_its_views_move(path, open_notebook):
    notebook = seals.with_profile(nbformat.read(path, as_version=4), "smoke")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    page = open_notebook(path.name, notebook)
    expect(page.locator(".jp-CodeCell .jp-InputPrompt").last).to_have_text(RAN)
    views = page.locator(".sgmgm")
    expect(views.first).to_be_visible(visible=shows_views(path))
    for view in views.all():
        slider = view.get_by_role("slider").first
        at = slider.get_attribute("aria-valuenow")
        before = sources(view, re.compile("."))
        press(slider, "ArrowRight")
        expect(slider).not_to_have_attribute("aria-valuenow", at)
        changes(view, re.compile("."), before)
    for kind in ("error", "stderr"):
        wrong = page.locator(f"[data-mime-type='application/vnd.jupyter.{kind}']")
        assert wrong.all_inner_texts() == []
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_text("Shut Down Kernel", exact=True).click()  # memory for the next lesson
