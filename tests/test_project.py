"""The project holds together: pins, layers, and no option that nobody reads."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

import sgmgm
from sgmgm import classifier, presets, smoothing, tokenizer, training, transformer
from sgmgm.cli import parser

ROOT = Path(sgmgm.__file__).resolve().parent.parent
SOURCES = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "sgmgm").glob("*.py")}

# A module imports only what stands before it. What nothing may import stands in TOP.
WAY = [
    *("errors", "files", "devices", "processes", "hub", "sprites", "datasets", "classifier"),
    *("tokenizer", "masking", "transformer", "smoothing", "guidance", "sampling", "fast"),
    *("samples", "metrics", "tasks", "training", "presets", "pipeline", "convert", "jobs"),
    *("workflow", "sweep", "benchmark", "cards"),
]
TOP = {
    *("plots", "results", "doctor", "bundle", "gallery", "course", "cli", "view", "widgets"),
    *("exercises", "workshop"),
}
TOP_ON_TOP = {"cli": {"bundle", "course", "doctor", "plots", "results", "workshop"},
              "__main__": {"cli", "doctor"},
              "course": {"doctor", "exercises", "gallery"}, "results": {"plots"}, "view": {"plots"},
              "widgets": {"plots", "view"}, "workshop": {"course"}}  # fmt: skip


def imports(tree):
    """Modules of this package that a module imports, also inside of functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 1 or module.split(".")[0] == "sgmgm":
                module = module.removeprefix("sgmgm").lstrip(".")
                found |= {module} if module else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("sgmgm.")}
    return found & SOURCES.keys()


def test_every_module_has_its_place():
    unplaced = SOURCES.keys() - {*WAY, *TOP, "__init__", "__main__"}
    assert not unplaced, f"say where {unplaced} belong: add them to WAY or TOP"


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_arrows_point_downward(name):
    known = WAY[: WAY.index(name)] if name in WAY else [*WAY, *TOP_ON_TOP.get(name, ())]
    wrong = imports(SOURCES[name]) - set(known)
    assert not wrong, f"{name} imports {', '.join(sorted(wrong))}"


def test_no_module_names_a_device_or_prints():
    """Only what talks to a person prints, and nobody moves things to a GPU on their own."""
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                assert called != "cuda", f"{name} line {node.lineno}"
                said = called == "print" and name not in ("cli", "course", "exercises")
                assert not said, f"{name} line {node.lineno}"


# ------------------------------------------------------------------------------------- options


def reads(skip: str) -> set[str]:
    """Attributes that are read anywhere but in the class `skip`."""

    class Reader(ast.NodeVisitor):
        def __init__(self):
            self.found = set()

        def visit_ClassDef(self, node):  # noqa: N802
            if node.name != skip:
                self.generic_visit(node)

        def visit_Attribute(self, node):  # noqa: N802
            if isinstance(node.ctx, ast.Load):
                self.found.add(node.attr)
            self.generic_visit(node)

    reader = Reader()
    for tree in SOURCES.values():
        reader.visit(tree)
    return reader.found


def part_recipes() -> set[str]:
    """`workflow.train` reads these by the part's name."""
    from sgmgm.workflow import PARTS

    return {f"{part.split('-')[0]}_recipe" for part in PARTS}


@pytest.mark.parametrize(
    "kind",
    [
        presets.Sampling,
        presets.Smoothing,
        presets.Preset,
        training.Recipe,
        classifier.ClassifierConfig,
        tokenizer.TokenizerConfig,
        transformer.TransformerConfig,
        smoothing.ToastConfig,
    ],
)
def test_every_setting_is_read(kind):
    own = {"learning_rate", "warmup"} if kind is training.Recipe else set()  # by Recipe.rate
    unread = set(kind.__dataclass_fields__) - reads(kind.__name__) - own - part_recipes()
    assert not unread, f"nobody reads {kind.__name__}.{', '.join(sorted(unread))}"


def test_every_option_of_every_command_is_read():
    tree = SOURCES["cli"]
    definition = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "parser")
    read = set(presets.Sampling.__dataclass_fields__)  # `chosen_settings` takes them all
    for statement in tree.body:
        if statement is definition:
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "args":
                read.add(node.attr)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                read.add(node.value)
    commands = next(a for a in parser()._actions if a.dest == "command").choices
    given = {a.dest for command in commands.values() for a in command._actions}
    # `course run` is the only action there is
    assert given - read - {"help", "action"} == set()


# ---------------------------------------------------------------------------------------- pins


def test_conda_and_pip_name_the_same_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    lines = (ROOT / "environment.yml").read_text().splitlines()
    listed = [line.strip().removeprefix("- ") for line in lines if line.strip().startswith("- ")]
    listed = set(listed) - {"conda-forge", "pip", "pip:", "-e ."}
    assert f"python{project['requires-python']}" in listed
    assert listed - {f"python{project['requires-python']}"} == pins


def test_every_import_is_a_requirement():
    """Third-party modules that the package imports are in `dependencies` or in an extra."""
    import sys

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    names = {re.match(r"[A-Za-z0-9_-]+", pin)[0].replace("-", "_") for pin in pins}
    names = names - {"pillow"} | {"PIL", "IPython", "nbformat", "nbclient", "pygments"}
    # the last four come with ipykernel and papermill
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in modules:
                first = module.split(".")[0]
                known = first in names or first in sys.stdlib_module_names or first == "sgmgm"
                assert known, f"{name} imports {first}, which is no requirement"


def test_no_file_names_this_machine():
    for path in [*(ROOT / "sgmgm").glob("*.py"), *(ROOT / "tests").rglob("*.py"),
                 *ROOT.glob("*.*")]:  # fmt: skip
        if path.is_file() and path != Path(__file__):
            text = path.read_text(errors="ignore")
            assert not re.search(r"/(work|home|root)/[a-z]", text), path
