"""The glossary: in order, every link leads somewhere, and no lesson links a term it lacks."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "glossary.md"
TEXT = PAGE.read_text(encoding="utf-8")
ENTRIES = re.findall(r'(?m)^- <a id="([\w-]+)"></a>((?:.*\n(?!\n|- ))*.*)', TEXT)
LESSONS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
LINKED = re.compile(r"\[\**([^\]*]+?)\**\]\((?:\.\./)+docs/glossary\.md(?:#([\w-]+))?\)")


def same(term: str) -> str:
    """A term without capitals and plural."""
    return re.sub(r"(?<=ss)es$|(?<!s)s$", "", " ".join(term.lower().strip("[]").split()))


def test_entries_are_in_order_and_explained():
    terms = [re.findall(r"\*\*([^*]+)\*\*", text) for _, text in ENTRIES]
    first = [t[0].lower().strip("[]").replace("é", "e") for t in terms]
    assert first == sorted(first) and len({name for name, _ in ENTRIES}) == len(ENTRIES) > 80
    for name, text in ENTRIES:
        assert re.search(r"\[0\d\]", text), f"{name}: which lesson explains it?"


def test_every_link_has_its_place():
    places = dict(re.findall(r"(?m)^\[(.+?)\]: (\S+)$", TEXT))
    assert all((PAGE.parent / path).is_file() for path in places.values())
    entries = "\n".join(text for _, text in ENTRIES)
    used = set(re.findall(r"\[(0\d|`\w+`)\]", entries))
    assert used <= places.keys() and places.keys() - used == set()


def test_every_term_that_a_lesson_links_is_explained():
    known = {same(t) for _, text in ENTRIES for t in re.findall(r"\*\*([^*]+)\*\*", text)}
    anchors = {name for name, _ in ENTRIES}
    for path in LESSONS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        for term, anchor in LINKED.findall(text):
            assert same(term) in known | {"glossary"}, f"{path.name} links {term!r}"
            assert not anchor or anchor in anchors, f"{path.name} links #{anchor}"


def test_the_names_in_the_notation_are_in_the_code():
    table = TEXT.split("## Notation")[1].split("## Glossary")[0]
    source = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "sgmgm").glob("*.py"))
    for row in re.findall(r"(?m)^\|.*\|$", table)[2:]:
        for name in re.findall(r"`([^`]+)`", row.split("|")[-2]):
            word = name.split()[0]
            assert re.search(rf"\b{re.escape(word)}\b", source), f"no {name} in the code"
