"""Gallery: the executed lessons as pages to read without Jupyter, and one that shows them all."""

import base64
from html import escape
from pathlib import Path

import nbformat

from ..utils.files import write_bytes

STYLE = Path(__file__).with_name("gallery.css").read_text()


def page(notebook) -> bytes:
    """One lesson as HTML that needs no other file, and no script from elsewhere."""
    from nbconvert import HTMLExporter

    # the classic template writes figures' alt texts
    options = {"mathjax_url": "", "require_js_url": "", "jquery_url": ""}
    exporter = HTMLExporter(template_name="classic", **options)
    return exporter.from_notebook_node(notebook)[0].encode()


def largest_figure(notebook) -> str:
    """The figure with the most content, as HTML; an animated PNG (chunk `acTL`) counts most."""
    found = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if png := output.get("data", {}).get("image/png"):
            moves = b"acTL" in base64.b64decode(png[:200])
            alt = escape(output.metadata.get("image/png", {}).get("alt", ""))
            found.append((moves, len(png), png, alt))
    if not found:
        return ""
    *_, png, alt = max(found)
    return f'<img src="data:image/png;base64,{png}" alt="{alt}">'


def card(lesson: dict, notebook) -> str:
    """One lesson on the page of all: a figure, its title and first paragraph, how it went."""
    name, status = escape(lesson["name"]), escape(lesson["status"])
    if notebook is None:
        return f"<li><h2>{name}</h2><p>{status}</p></li>"
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), name)
    title, _, rest = first.partition("\n")
    paragraph = escape(rest.strip().split("\n\n")[0].replace("*", ""))
    return (
        f'<li>{largest_figure(notebook)}<h2><a href="{name}.html">{escape(title.lstrip("# "))}</a>'
        f"</h2><p>{paragraph}</p><p>{lesson['seconds']:.0f} s · {status} · "
        f'<a href="{name}.ipynb">notebook</a></p></li>'
    )


def write(out: Path, report: dict) -> None:
    """Write a page for each executed notebook in `out`, and `index.html` from the run's report."""
    cards = []
    for lesson in report["lessons"]:
        place, notebook = out / f"{lesson['name']}.ipynb", None
        if place.is_file():
            notebook = nbformat.read(place, as_version=4)
            write_bytes(place.with_suffix(".html"), page(notebook))
        cards.append(card(lesson, notebook))
    stamp = report | report["versions"]
    del stamp["lessons"], stamp["versions"]
    facts = " · ".join(f"{name}: {escape(str(value))}" for name, value in stamp.items())
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>The lessons</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>'
        f"<h1>The lessons, as they ran here</h1><p>{facts}</p><ul>{''.join(cards)}</ul></html>\n"
    )
    write_bytes(out / "index.html", text.encode())
