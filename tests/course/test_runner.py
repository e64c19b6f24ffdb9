"""The runner and the shape of every lesson; `notebooks/` executes the lessons themselves."""

import ast
import json
import os

import nbformat
import pytest
import torch

from sgmgm import datasets, presets
from sgmgm.commands import cli
from sgmgm.course import runner

PARAMETERS = ["profile", "dataset", "seed", "device"]
LESSONS = runner.find_lessons([], runner.ROOT / "notebooks")
PARAMETER_CELL = 'profile = "smoke"\ndataset = "sprites"\nseed = 0\ndevice = None'


def write_lesson(folder, name, *sources, parameters=PARAMETER_CELL, **metadata):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), folder / name)


def sources(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def run(notebooks, out, *words):
    return cli.main(["course", "run", *words, "--notebooks", str(notebooks), "--out", str(out)])


# --- the runner --------------------------------------------------------------------------------


def test_runner_goes_on_after_a_failing_lesson(notebooks, tmp_path, capsys):
    write_lesson(notebooks, "01_bad.ipynb", "1 / 0")
    where = "import os, sys\nprint(profile, dataset, seed, device, sys.executable, os.getcwd())"
    write_lesson(notebooks, "02_good.ipynb", where, sgmgm={"budget": {"smoke": 600}})
    write_lesson(notebooks, "03_slow.ipynb", "", sgmgm={"budget": {"smoke": 0, "laptop": 9}})
    (notebooks / "notes.ipynb").write_text("no lesson")
    out, before = tmp_path / "out", dict(os.environ)
    with pytest.raises(SystemExit) as end:
        run(notebooks, out, "--dataset", "cifar10", "--seed", "7", "--device", "cpu")
    assert end.value.code == 1
    said = capsys.readouterr()
    assert "2 of 3 lessons ran" in said.out and "failed: 01_bad" in said.err
    assert dict(os.environ) == before

    report = json.loads((out / "report.json").read_text())
    assert (report["profile"], report["dataset"], report["seed"]) == ("smoke", "cifar10", 7)
    assert report["commit"] and report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert report["device"].startswith("cpu")
    bad, good, slow = report["lessons"]
    assert [set(each) for each in report["lessons"]] == [
        {"name", "seconds", "budget", "status"}
    ] * 3
    assert bad["name"] == "01_bad" and "ZeroDivisionError" in bad["status"]
    assert bad["status"].startswith("failed: ") and "\n" not in bad["status"]
    assert (good["status"], good["budget"]) == ("ok", 600) and good["seconds"] > 0
    assert slow["status"] == "over budget"

    written = sorted(path.name for path in out.iterdir())
    pages = ["02_good.html", "03_slow.html", "index.html"]
    done = ["01_bad.failed.ipynb", "02_good.ipynb", "03_slow.ipynb", "report.json"]
    assert written == sorted(pages + done)
    done = nbformat.read(out / "02_good.ipynb", as_version=4)
    printed = done.cells[-1].outputs[0].text.split()
    assert printed[:4] == ["smoke", "cifar10", "7", "cpu"]
    assert os.path.samefile(printed[4], os.sys.executable)

    # mended, it leaves no trace of the failure
    write_lesson(notebooks, "01_bad.ipynb", "1 / 1")
    assert run(notebooks, out, "01") == 0
    assert not (out / "01_bad.failed.ipynb").exists() and (out / "01_bad.ipynb").exists()
    report = json.loads((out / "report.json").read_text())
    assert len(report["lessons"]) == 1 and "dataset" not in report  # the lesson's own


def test_bad_requests_are_one_sentence(notebooks, tmp_path, capsys):
    write_lesson(notebooks, "01_one.ipynb")
    write_lesson(notebooks, "02_two.ipynb", parameters='profile = "smoke"\nseed = 0')
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        ((notebooks, tmp_path / "out", "07"), "unknown lesson '07': choose from 01_one, 02_two"),
        (
            (notebooks, tmp_path / "out", "--dataset", "sprites", "--device", "cpu"),
            "02_two does not declare the parameter dataset, device",
        ),
        ((empty, tmp_path / "out"), "holds no lessons"),
        ((notebooks, notebooks / "01_one.ipynb", "01"), "cannot write"),
    ]
    for arguments, sentence in cases:
        assert run(*arguments) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1, said
    (notebooks / "01_one.ipynb").write_text("{")
    assert run(notebooks, tmp_path / "out", "01") == 2
    assert "cannot be read as a notebook" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lessons_are_found_by_number_and_name(notebooks):
    for name in ("02_b.ipynb", "01_a.ipynb", "x.ipynb"):
        write_lesson(notebooks, name)
    for wanted in (["02", "01_a"], ["01", "02_b.ipynb", "01"], []):
        assert [p.stem for p in runner.find_lessons(wanted, notebooks)] == ["01_a", "02_b"]


# --- the lessons -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lesson_has_its_form(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1 and list(runner.declared(notebook)) == PARAMETERS
    values = {}
    exec(tagged[0].source, values)
    assert values["profile"] in presets.PRESETS and values["dataset"] in datasets.NAMES
    after = notebook.cells[notebook.cells.index(tagged[0]) + 1 :]
    code = [cell for cell in after if cell.cell_type == "code"]
    used = {
        node.id
        for cell in code
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert set(PARAMETERS) <= used
    for source in sources(notebook):
        assert len(source.splitlines()) < 40 and "pyplot" not in source
    for cell in code:
        assert cell.execution_count, f"a cell was not executed: {cell.source[:60]}"
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", output
            assert not any("widget" in kind for kind in output.get("data", {})), "see runner.freeze"
            size = len(output.get("data", {}).get("image/png", "")) * 3 // 4
            assert size < 300_000
    assert set(notebook.metadata["sgmgm"]["budget"]) == {"smoke", "laptop"}
    text = path.read_text()
    assert not any(place in text for place in ("/tmp/", "/home/", "/root/"))
    assert path.stat().st_size < 1_500_000
