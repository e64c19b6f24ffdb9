"""Every declared parameter is checked and read, and another seed shows something else."""

import ast
import contextlib
import io
import itertools
import os
import time

import nbformat
import pytest

from sgmgm.course import runner, start
from sgmgm.course.plots import Plot
from sgmgm.utils.errors import InputError

LESSONS = runner.find_lessons([], runner.ROOT / "notebooks")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ | {"TQDM_DISABLE": "1"})
    # else a stopwatch would already show something else
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)


def steps(path, **parameters):
    """Run a lesson cell by cell in this process; yields what each cell shows."""
    names = {"display": lambda *shown: None}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        body = ast.parse(cell.source).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(ast.Module(body, []), path.name, "exec"), names)
            shown = last and eval(compile(ast.Expression(last.value), path.name, "eval"), names)
        if "parameters" in cell.metadata.get("tags", []):
            names |= parameters
        yield said.getvalue(), shown.png() if isinstance(shown, Plot) else repr(shown)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_parameter_is_checked_and_read(path):
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    parameters, first, *rest = map(ast.parse, cells)
    names = {line.targets[0].id for line in parameters.body}
    assert names == {"profile", "dataset", "seed", "device"}
    checks = {"device = course.preflight(device, profile, dataset)", "torch.manual_seed(seed)"}
    assert checks <= {ast.unparse(line) for line in first.body}
    uses = [node for cell in rest for node in ast.walk(cell) if isinstance(node, ast.Name)]
    assert names <= {use.id for use in uses if isinstance(use.ctx, ast.Load)}
    assert not names & {use.id for use in uses if isinstance(use.ctx, ast.Store)}


@pytest.mark.parametrize("name", ["profile", "dataset", "device"])
def test_a_choice_that_is_none_is_refused(name):
    chosen = {"device": "cpu", "profile": "smoke", "dataset": "sprites"} | {name: "nonsense"}
    with pytest.raises(InputError, match="nonsense"):
        start.preflight(**chosen)


@pytest.mark.check
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_another_seed_shows_something_else(path):
    given = {"device": "cpu", "profile": "smoke"}
    first, second = (steps(path, **given, seed=seed) for seed in (0, 1))
    pairs = zip(first, second, strict=True)
    next(pairs), next(pairs)  # the parameters, and the line of versions
    assert any(a != b for a, b in pairs)
