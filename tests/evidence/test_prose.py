"""Prose: the numbers of README, docs, cards and lessons are those of the records.

Every number with two decimals or a per cent sign, in a paragraph that names a score, stands in a
sentence that the records make (`SAID`), in an output of the same lesson, or in `FIXED`.
"""

import itertools
import json
import re

import pytest

from sgmgm.utils.files import ROOT

from .claims import FIXED, SAID

SCORE = r"(?i)distance|fréchet|fid\b|precision|recall|accuracy|coherence|nll|nats|psnr|classifi"
NUMBER = r"(?<![\w.,:/√-])(?:\d*\.\d\d+|\d+(?:\.\d+)? ?%)(?![\d.]*\d|\w)"
MADE = r"<!-- (?:results|tables|minutes): .*?<!-- end of \w+ -->"  # test_results compares these
CODE = r"```.*?```|<code>.*?</code>|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|\d{4}\.\d{5}"
PAGES = sorted({*SAID, *FIXED, *(path.relative_to(ROOT).as_posix() for where in (
    "docs/*.md", "notebooks/*.ipynb", "notebooks/exercises/*.ipynb", "data/results/README.md")
    for path in ROOT.glob(where))})  # fmt: skip


def paragraphs(page):
    """The prose of a page, each paragraph in one line, without what `sgmgm results` writes."""
    text = (ROOT / page).read_text(encoding="utf-8")
    cells = json.loads(text)["cells"] if page.endswith("ipynb") else [{"source": text}]
    parts = ["".join(c["source"]) for c in cells if c.get("cell_type") != "code"]
    parts = [re.sub(MADE, "", part.replace("\\\n", ""), flags=re.S) for part in parts]
    return [" ".join(p.split()) for part in parts for p in re.split(r"\n\s*\n|\n(?=- )", part)]


def shown(page):
    """The numbers in the outputs of a lesson."""
    text = (ROOT / page).read_text(encoding="utf-8")
    cells = json.loads(text)["cells"] if page.endswith("ipynb") else []
    outputs = [o for cell in cells for o in cell.get("outputs", [])]
    texts = [part for o in outputs for part in (o.get("text", ""), *(
        o.get("data", {}).get(f"text/{kind}", "") for kind in ("plain", "markdown")))]  # fmt: skip
    return [float(n) for t in texts for n in re.findall(r"\d+\.?\d*|\.\d+", "".join(t))]


def numbers(part):
    """The numbers of a paragraph that names a score."""
    return re.findall(NUMBER, re.sub(CODE, " ", part, flags=re.S)) if re.search(SCORE, part) else []


def wrong(page, prose, outputs):
    """What the prose says and nothing proves, or should say and does not."""
    known = SAID.get(page, []) + FIXED.get(page, [])
    found = [sentence for sentence in known if not any(sentence in part for part in prose)]
    for part in prose:
        rest = re.sub("|".join(map(re.escape, known)) or "$", " ", part)
        for number in numbers(part) and numbers(f"distance {rest}"):
            value, places = number.rstrip(" %"), len(number.rstrip(" %").partition(".")[2])
            scale = (1, 100) if "%" in number else (1,)
            if not any(f"{k * v:.{places}f}" == value for v in outputs for k in scale):
                found.append(f"{number} in: {part[:60]}")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_number_of_the_prose_is_measured(page):
    assert not wrong(page, paragraphs(page), shown(page))


def test_another_number_is_noticed():
    """With its last digit changed, every number of a page fails the test above. In a lesson the
    new one may be another number of its outputs: that is rare."""
    missed, tried = [], 0
    for page in PAGES:
        prose, outputs = paragraphs(page), shown(page)
        for i, part in enumerate(prose):
            for number, up in itertools.product(numbers(part), (1, 4, 7)):
                *_, last = re.finditer(r"\d", number)
                other = f"{number[: last.start()]}{(int(last[0]) + up) % 10}{number[last.end() :]}"
                text = part.replace(number, other, 1)
                caught = wrong(page, [*prose[:i], text, *prose[i + 1 :]], outputs)
                missed += [] if caught else [(page, number, other)]
                tried += 1
    assert not [page for page, *_ in missed if "notebooks" not in page] and tried > 200
    assert len(missed) < tried / 30, missed
