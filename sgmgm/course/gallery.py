"""Gallery: the executed lessons as pages to read without Jupyter, and one that shows them all."""

import base64
import copy
from html import escape
from pathlib import Path

import nbformat

from ..utils.files import write_bytes

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem;
     list-style: none; padding: 0 }
li { border: 1px solid #8886; border-radius: 8px; padding: 1rem }
img { display: block; width: 100%; height: 11rem; object-fit: contain; background: white;
      border-radius: 4px }
h2 { font-size: 1.1rem; margin: 0.8rem 0 0 } p { margin: 0.3rem 0 0 } small { opacity: 0.75 }
"""


def figures(notebook) -> list:
    """The outputs that are a figure, in their order."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def picture(output) -> str:
    """A figure as HTML, with its text for those who cannot see it."""
    alt = output.metadata.get("image/png", {}).get("alt", "")
    return f'<img src="data:image/png;base64,{output.data["image/png"]}" alt="{escape(alt)}">'


def moves(output) -> bool:
    """Whether a figure is an animated PNG: its second chunk is `acTL` then."""
    return b"acTL" in base64.b64decode(output.data["image/png"][:200])


def page(notebook) -> str:
    """One lesson as HTML that needs no other file."""
    from nbconvert import HTMLExporter

    # no script from elsewhere: the page must look the same without a network
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
    notebook = copy.deepcopy(notebook)
    for output in figures(notebook):
        output.data["text/html"] = picture(output)  # nbconvert's own has no alt text
    return exporter.from_notebook_node(notebook)[0]


def introduction(notebook) -> tuple[str, str]:
    """A lesson's title and its first paragraph."""
    first = next((cell.source for cell in notebook.cells if cell.cell_type == "markdown"), "")
    title, _, rest = first.partition("\n")
    return title.lstrip("# "), rest.strip().split("\n\n")[0].replace("*", "")


def card(lesson: dict, notebook) -> str:
    """One lesson on the page of all: the most colourful picture, what it is about, how it went."""
    title, about = introduction(notebook)
    found = [output for output in figures(notebook) if not moves(output)]
    largest = max(found, key=lambda output: len(output.data["image/png"]), default=None)
    shown = picture(largest) if largest else ""
    name = escape(lesson["name"])
    return (
        f'<li>{shown}<h2><a href="{name}.html">{escape(title or lesson["name"])}</a></h2>'
        f"<p>{escape(about)}</p><p><small>{lesson['seconds']:.0f} s · {escape(lesson['status'])} · "
        f'<a href="{name}.ipynb">notebook</a></small></p></li>'
    )


def write(out: Path, report: dict) -> Path:
    """Write a page for each lesson that ran, and `index.html`; returns the latter.

    A moving picture, if there is one in a lesson, stands on top.

    Args:
        out: the folder with the executed notebooks.
        report: what `course.run` reports of them.
    """
    top, cards = "", []
    for lesson in report["lessons"]:
        place = out / f"{lesson['name']}.ipynb"
        if not place.is_file():
            reason = escape(lesson["status"])
            cards.append(f"<li><h2>{escape(lesson['name'])}</h2><p>{reason}</p></li>")
            continue
        notebook = nbformat.read(place, as_version=4)
        write_bytes(place.with_suffix(".html"), page(notebook).encode())
        cards.append(card(lesson, notebook))
        top = top or next((picture(each) for each in figures(notebook) if moves(each)), "")
    seconds = sum(lesson["seconds"] for lesson in report["lessons"])
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    facts = {
        "profile": report["profile"],
        "dataset": report["dataset"],
        "seed": report["seed"],
        "commit": report["commit"],
        "device": report["device"],
        "versions": f"Python {report['python']}, {versions}",
        "time": f"{seconds:.0f} s",
    }
    stamp = " · ".join(f"{name}: {escape(str(value))}" for name, value in facts.items())
    index = out / "index.html"
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>The lessons</title>'
        '<meta name="viewport" content="width=device-width"><style>'
        f"{STYLE}</style><h1>The lessons, as they ran here</h1>{top}"
        f"<p><small>{stamp}</small></p><ul>{''.join(cards)}</ul></html>\n"
    )
    write_bytes(index, text.encode())
    return index
