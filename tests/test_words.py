"""One word for one thing: the package says things in the field's words (see CONTRIBUTING.md)."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import sgmgm
from sgmgm.commands.parser import parser

PACKAGE = Path(sgmgm.__file__).resolve().parent
COMMANDS = next(a for a in parser()._actions if a.dest == "command").choices

# what the package does not say -> what it says instead
WORDS = {
    r"eyes?": "classifier, feature extractor",
    r"dials?": "hyperparameter",
    r"lies?": "corrupted or substituted tokens",
    r"crowds?": "distribution of images",
    r"luck|lucky|luckier": "Gumbel noise, chance",
    r"settled": "known",
    r"told": "report, metadata",
    r"recipes?": "training configuration",
    r"fronts?": "trade-off curve",
    r"pleased": "the metric is exploited",
    r"on the table": "masked",
    r"the house": "the architecture, the rules",
    r"how sure": "confidence",
    r"worse answer": "smoothed prediction",
    r"points nowhere": "only rescales the logits",
}
# what looks like one of them and is none
EXCEPTIONS = {
    "eye": ("torch.eye",),  # the identity matrix
    "lie": ("lie in",),  # a number in its range
    "recipe": ('"recipe"',),  # the key of `training.json` files of earlier versions
    "front": ("in front of", "up front"),
}
BROKEN = {term: re.compile(rf"\b(?:{term})\b") for term in WORDS}


def plain(text: str) -> str:
    """Lower case, identifiers taken apart at `_` and at capitals, one space between words."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", text)
    return " ".join(text.lower().split())


def broken(text: str) -> list[str]:
    """The words of a text that the package does not use."""
    text = plain(text)
    return [found[0] for word in BROKEN.values() for found in word.finditer(text)]


def pieces(source: str) -> list[tuple[int, str]]:
    """(line, text) of every identifier, string and block of comments of a module."""
    found, block = [], []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            found.append((token.start[0], token.string))
        if token.type == tokenize.COMMENT:
            if block and block[-1][0] < token.start[0] - 1:
                found.append((block[0][0], " ".join(text for _, text in block)))
                block = []
            block.append((token.start[0], token.string.lstrip("# ")))
    if block:
        found.append((block[0][0], " ".join(text for _, text in block)))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append((node.lineno, node.value))
        if isinstance(node, ast.JoinedStr):  # a phrase may go on behind a value
            parts = (str(getattr(part, "value", "")) for part in node.values)
            found.append((node.lineno, "".join(parts)))
    return found


def terms(source: str) -> list[str]:
    for uses in EXCEPTIONS.values():
        for use in uses:
            source = source.replace(use, '""' if use.startswith('"') else "none")
    return sorted({f"line {line}: {word}" for line, text in pieces(source)
                   for word in broken(text)})  # fmt: skip


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")),
                         ids=lambda path: path.relative_to(PACKAGE).as_posix())  # fmt: skip
def test_a_module_uses_the_fields_words(path):
    found = terms(path.read_text(encoding="utf-8")) + broken(path.stem)
    assert not found, "see WORDS for what to write instead"


def test_model_cards_use_the_fields_words():
    about = PACKAGE.parent / "data" / "checkpoints" / "about.toml"
    assert not broken(about.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_uses_the_fields_words(name):
    text = COMMANDS[name].format_help() if name else parser().format_help()
    assert not broken(text)


def test_each_word_is_found_wherever_it_hides():
    """In names, attributes, comments over two lines, strings over two lines, f-strings."""
    for source, word in {
        "def recipe_of(x): pass": "recipe",
        "class EyeOfMine: pass": "eye",
        "x.Told": "told",
        "# what is on the\n# table\nx = 1": "on the table",
        'x = "a control that points " "nowhere"': "points nowhere",
        'x = f"how sure {y} is"': "how sure",
        '"""The dials."""': "dials",
    }.items():
        assert [found.split(": ")[1] for found in terms(source)] == [word], source
    assert not terms("torch.eye(3); old = report['recipe'.strip()]".replace("'recipe'", '"recipe"'))
    assert not terms("belief, soldier, frontier, foretold, replied")
