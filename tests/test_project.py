"""The project holds together: pins, layers, and no option that nobody reads."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sgmgm
from sgmgm import (
    classifier,
    extractor,
    presets,
    settings,
    smoothing,
    tokenizer,
    training,
    transformer,
)
from sgmgm.commands.parser import parser

ROOT = Path(sgmgm.__file__).resolve().parent.parent
PACKAGE = ROOT / "sgmgm"
SOURCES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): ast.parse(
        path.read_text(encoding="utf-8")
    )
    for path in PACKAGE.rglob("*.py")
}

# The system: a module imports only what stands before it.
WAY = [
    *("utils.errors", "utils.files", "utils.devices", "utils.samples", "sprites", "folders"),
    *("datasets", "utils.distributed", "utils.hub", "classifier", "extractor"),
    *(
        "tokenizer",
        "masking",
        "transformer",
        "smoothing",
        "guidance",
        "sampling",
        "fast",
        "metrics",
        "settings",
    ),
    *("pipeline", "scoring", "tasks", "training", "presets", "workflow", "convert", "doctor"),
]
# What serves the evidence, the course and the command line stands on top of it, in this order.
TOP = ("course", "evidence", "commands")


def imports(name: str) -> set[str]:
    """Modules of this package that a module imports, also inside of functions."""
    found = set()
    package = name.split(".")[:-1]
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) + 1 - node.level], *(node.module or "").split(".")]
            module = ".".join(part for part in base if part)
            found.add(module)
            found |= {f"{module}.{alias.name}".lstrip(".") for alias in node.names}
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(each.split(".")[0] == "sgmgm" for each in names), f"{name}: be relative"
    return found & (SOURCES.keys() - {"__init__"})


def test_every_module_of_the_system_has_its_place():
    system = {name for name in SOURCES if name.split(".")[0] not in TOP}
    packages = {"__init__", "__main__", "utils.__init__"}
    assert system - packages == set(WAY), "say where it belongs: add it to WAY, or drop it"


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - {"__main__"}))
def test_arrows_point_downward(name):
    top = name.split(".")[0]
    known = set(WAY[: WAY.index(name)] if name in WAY else WAY)
    for package in TOP[: TOP.index(top) + 1] if top in TOP else ():
        known |= {each for each in SOURCES if each.startswith(f"{package}.")}
    wrong = imports(name) - known
    assert not wrong, f"{name} imports {', '.join(sorted(wrong))}"


def test_the_system_is_in_sight():
    """At the top the system and nothing else; modules that can be read in one sitting."""
    assert len(list(PACKAGE.glob("*.py"))) <= 24
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in PACKAGE.rglob("*.py")}
    assert not [p for p, n in lengths.items() if n > 450]
    # the checks of exercises are counted apart: they grow with the course, and no lesson reads them
    exercises = {p for p in lengths if p.parent.name == "exercises"}
    assert sum(n for p, n in lengths.items() if p not in exercises) <= 10_400


def test_sampling_needs_no_training_library():
    """A first image in seconds: what only training needs is imported where it is used."""
    code = (
        "import sys, sgmgm.pipeline; "
        "print(*(m for m in sys.modules if m.split('.')[0] in ('accelerate', 'peft') "
        "or m in ('sgmgm.training', 'sgmgm.tasks', 'sgmgm.workflow')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.split() == [], done.stdout


def test_the_command_starts_without_what_takes_seconds_to_import():
    code = "import sys, sgmgm.commands.cli; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    slow = {"torchvision", "sympy", "accelerate", "peft", "matplotlib", "IPython"}
    assert done.returncode == 0 and not slow & set(done.stdout.split())


# the last one says how many steps it chose for `--minutes`
SPEAKERS = (
    *("commands.actions", "commands.cli", "course.start", "course.runner"),
    *("course.done", "training"),
)


def test_no_module_names_a_device_or_prints():
    """Only what talks to a person prints, and nobody moves things to a GPU on their own."""
    for name, tree in SOURCES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                assert called != "cuda", f"{name} line {node.lineno}"
                said = called == "print" and not name.startswith(SPEAKERS)
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


def part_trainings() -> set[str]:
    """`workflow.train` reads these by the part's name."""
    return {f"{part.split('-')[0]}_training" for part in settings.TRAINABLE}


@pytest.mark.parametrize(
    "kind",
    [
        settings.Sampling,
        presets.Smoothing,
        presets.Preset,
        training.TrainingConfig,
        classifier.ClassifierConfig,
        extractor.SecondConfig,
        tokenizer.TokenizerConfig,
        transformer.TransformerConfig,
        smoothing.ToastConfig,
    ],
)
def test_every_setting_is_read(kind):
    own = {
        training.TrainingConfig: {"learning_rate", "warmup"},  # by `rate`
        tokenizer.TokenizerConfig: {"channel_mult"},  # by `widths`
    }.get(kind, set())
    unread = set(kind.__dataclass_fields__) - reads(kind.__name__) - own - part_trainings()
    assert not unread, f"nobody reads {kind.__name__}.{', '.join(sorted(unread))}"


def test_every_option_of_every_command_is_read():
    read = set(settings.Sampling.__dataclass_fields__)  # `chosen_settings` takes them all
    for node in ast.walk(SOURCES["commands.actions"]):
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
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"),
                 *ROOT.glob("*.*")]:  # fmt: skip
        if path.is_file() and path != Path(__file__) and path.name != ".git":
            text = path.read_text(errors="ignore")
            assert not re.search(r"/(work|home|root)/[a-z]", text), path


@pytest.mark.check
def test_an_installed_copy_holds_every_module(tmp_path):
    """Not an editable one: setuptools copies what `pyproject.toml` names, styles and all."""
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(PACKAGE, source / "sgmgm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    options = ("--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--target", target)
    subprocess.run([sys.executable, "-m", "pip", "install", *options, source], check=True)

    def files(root: Path) -> set[str]:
        every = (path for path in (root / "sgmgm").rglob("*.*") if path.suffix != ".pyc")
        return {path.relative_to(root).as_posix() for path in every}

    assert files(target) == files(ROOT) and "sgmgm/course/views.css" in files(target)
