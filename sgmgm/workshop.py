"""For a room: slides of the lessons, and what it takes to jump in at any of them."""

import ast
import re
from html import escape
from pathlib import Path

from . import course, datasets
from .errors import InputError
from .files import write_bytes
from .hub import check_manifest
from .pipeline import SHIPPED

# --- catch up ----------------------------------------------------------------------------------


def needed(notebook) -> list[str]:
    """The parts of a pipeline that a lesson asks `course.models` for, in its order."""
    parts: dict[str, None] = {}  # a dict keeps the order
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "course.models":
                parts |= {ast.literal_eval(a): None for a in node.args}
    return list(parts)


def catch_up(lesson: str, notebooks: Path | None = None, **parameters) -> tuple[Path, list, Path]:
    """Bring about the state in which a lesson starts: its data and its models are here.

    Args:
        lesson: number or name.
        parameters: profile, dataset, seed and device, as in the lesson's second cell.

    Returns:
        The lesson, the parts that it needs, and the folder where they are: the shipped one, or
        one in `runs/`, where missing ones have been trained.

    Raises:
        InputError: no such lesson. CheckpointError, DataError: what is there is damaged.
    """
    path = course.find_lessons([lesson], Path(notebooks or course.ROOT / "notebooks"))[0]
    parts = needed(course.read_lesson(path, parameters))
    parameters["device"] = course.preflight(
        *(parameters[name] for name in ("device", "profile", "dataset"))
    )
    datasets.load(parameters["dataset"], "test", count=10)  # downloads what is absent
    folder = course.models(*parts, **parameters)
    if folder.parent == SHIPPED:
        check_manifest(folder)
    return path, parts, folder


# --- slides ------------------------------------------------------------------------------------

STYLE = """
* { box-sizing: border-box }
body { margin: 0; font: 3vmin/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
       color: #1b1f24; background: #fff }
section { display: none; height: 100vh; padding: 5vmin 7vmin 6vmin; overflow: auto }
section.now { display: grid; gap: 1vmin 5vmin; grid-template-rows: auto 1fr auto }
section.both { grid-template-columns: 2fr 3fr }
section > * { grid-column: 1 / -1; align-self: center }
section.both > div { grid-column: auto }
h1, h2 { line-height: 1.15; margin: 0; font-weight: 600 }
h1 { font-size: 2em } h2 { font-size: 1.5em } h2.again { color: #9aa1ab }
p, ul, ol { margin: 0 0 .7em; max-width: 62em } a { color: #0b5cad }
img { display: block; width: 100%; max-height: 70vh; object-fit: contain }
div:has(> pre) > img { max-height: 50vh }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .9em }
pre { margin: 0; white-space: pre-wrap; line-height: 1.35 } div > pre { font-size: .8em }
details { margin: .3em 0 } summary { color: #6b7280; cursor: pointer }
.highlight pre { background: #f4f5f7; padding: .8em 1em; border-radius: .3em }
table { border-collapse: collapse; margin: 0 0 .7em; font-size: .85em }
td, th { padding: .2em .6em; text-align: left; border-bottom: 1px solid #d5d9de }
footer { position: fixed; right: 3vmin; bottom: 2vmin; font-size: 1.8vmin; color: #6b7280 }
@media print { section { display: grid; height: auto; page-break-after: always }
       footer { display: none } }
"""

# An overfull page shrinks as far as a back row can read, then scrolls.
SCRIPT = """
const pages = [...document.querySelectorAll("section")];
let now = 0;
function show(number) {
  now = Math.max(0, Math.min(pages.length - 1, number));
  pages.forEach((page, i) => page.classList.toggle("now", i === now));
  const page = pages[now];
  page.style.fontSize = "";
  for (let size = 2.9; size > 1.8 && page.scrollHeight > page.clientHeight; size -= 0.1)
    page.style.fontSize = size + "vmin";
  document.querySelector("footer").textContent = `${now + 1} / ${pages.length}`;
  history.replaceState(null, "", "#" + (now + 1));
}
function code() {
  const all = [...document.querySelectorAll("aside details")];
  const open = !all.some(each => each.open);
  all.forEach(each => { each.open = open; });
  show(now);
}
const keys = { ArrowRight: 1, PageDown: 1, " ": 1, ArrowLeft: -1, PageUp: -1,
               Home: -Infinity, End: Infinity };
addEventListener("keydown", event => {
  if (event.key === "c" && !event.ctrlKey && !event.metaKey) code();
  if (!(event.key in keys)) return;
  event.preventDefault();
  show(now + keys[event.key]);
});
addEventListener("resize", () => show(now));
show(parseInt(location.hash.slice(1) || 1) - 1);
"""


def pages(notebook) -> list[list]:
    """A lesson's cells, page by page; markdown cells may be cut at their headings.

    A page is what is said and what is then seen: it ends before a heading, before words that
    follow on code, and before a second picture. The code that sets a lesson up is left out.
    """
    from nbformat.v4 import new_markdown_cell

    found: list[list] = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            pictured = any(_png(o) for each in found[-1] for o in each.get("outputs", []))
            if len(found) == 1:
                continue  # parameters and imports, beside the title
            if pictured and any(map(_png, cell.outputs)):
                found.append([])
            found[-1].append(cell)
        elif cell.cell_type == "markdown":
            for text in re.split(r"(?m)^(?=##? )", cell.source):
                if not text.strip():
                    continue
                after_code = found and found[-1][-1].cell_type == "code"
                if not found or text.startswith("#") or after_code:
                    found.append([])
                found[-1].append(new_markdown_cell(text))
    return found


def _png(output) -> str | None:
    return output.get("data", {}).get("image/png")


def slides(notebook) -> str:
    """A lesson as one HTML file that needs no other: a page at a time, code folded away.

    Arrow keys turn the pages, C opens and closes all code; printing gives a page each.
    """
    from nbconvert.filters import Highlight2HTML

    highlight = Highlight2HTML(pygments_lexer="ipython3")
    told, heading, seen = [], "", ""
    for cells in pages(notebook):
        words = "".join(_html(cell.source) for cell in cells if cell.cell_type == "markdown")
        code = [cell for cell in cells if cell.cell_type == "code"]
        shown = "".join(_output(output) for cell in code for output in cell.outputs)
        begins = re.match(r"\s*<h[12].*?</h[12]>", words, re.DOTALL)
        if begins:
            heading, words, again = begins[0], words.removeprefix(begins[0]), False
        else:  # words on what was just seen: let it be seen again
            again, shown = True, shown or seen
        wide = "<table" in shown  # needs the page's whole width, and fills it
        seen = "" if wide else shown
        top = heading.replace("<h2", '<h2 class="again"') if again else heading
        parts = [f"<div>{part}</div>" for part in (words, shown) if part.strip()]
        folded = "".join(
            f"<details><summary>code</summary>{highlight(cell.source)}</details>" for cell in code
        )
        kind = ' class="both"' if len(parts) == 2 and not wide else ""
        told.append(f"<section{kind}>{top}{''.join(parts)}<aside>{folded}</aside></section>")
    title = escape(notebook.cells[0].source.split("\n")[0].strip("# "))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}{_colours()}</style>\n"
        + "\n".join(told)
        + f"\n<footer></footer><script>{SCRIPT}</script></html>\n"
    )


def _html(markdown: str) -> str:
    """Markdown as HTML; links lead to other lessons' slides or into the web, or nowhere."""
    from nbconvert.filters import markdown2html

    html = markdown2html(markdown)
    html = re.sub(r'<a class="anchor-link".*?</a>', "", html)
    html = re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="\1.html"', html)
    return re.sub(r'<a href="(?!https?:|\d\d_)[^"]*">(.*?)</a>', r"\1", html)


def _output(output) -> str:
    """One output of a cell: a picture, a table, or its text."""
    data = output.get("data", {})
    if png := _png(output):
        alt = output.metadata.get("image/png", {}).get("alt", "")
        return f'<img src="data:image/png;base64,{png}" alt="{escape(alt, quote=True)}">'
    if "text/markdown" in data:
        return _html(data["text/markdown"])
    return f"<pre>{escape(output.get('text') or data.get('text/plain', ''))}</pre>"


def _colours() -> str:
    from pygments.formatters import HtmlFormatter

    return HtmlFormatter(style="friendly").get_style_defs(".highlight")


def write_slides(wanted: list[str], out: Path, notebooks: Path | None = None) -> list[Path]:
    """Write the slides of executed lessons, all of them if none is named; returns the files."""
    written = []
    for path in course.find_lessons(wanted, Path(notebooks or course.ROOT / "notebooks")):
        notebook = course.read_lesson(path, {})
        if not notebook.cells or notebook.cells[0].cell_type != "markdown":
            raise InputError(f"{path} has no title: begin it with a markdown cell.")
        place = out / f"{path.stem}.html"
        write_bytes(place, slides(notebook).encode())
        written.append(place)
    return written
