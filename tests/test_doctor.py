"""The preflight finds what is wrong, says what to do, and tells scripts by its exit code."""

import json
import os
import subprocess
import sys
import tomllib
import warnings

import pytest
import torch

from sgmgm import datasets, doctor, pipeline
from sgmgm.commands import cli
from sgmgm.course import runner, start
from sgmgm.utils import hub


@pytest.fixture(autouse=True)
def quick_probe(monkeypatch):
    monkeypatch.setattr(doctor, "speed", lambda device, seconds=2.0: 100.0)


def finding(name, folder, device="cpu"):
    (only,) = doctor.examine(folder, device, [name])
    assert only.what == name and (only.state == "ok") == (not only.remedy)
    return only


def test_all_is_well_here(tmp_path, capsys):
    assert cli.main(["doctor", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if "->" not in line] == list(doctor.CHECKS)
    assert not any(line.startswith("stop") for line in lines)
    assert any(torch.__version__.split("+")[0] in line for line in lines)


def test_a_stop_has_a_remedy_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "unmet", lambda *given: ["torch is 1.0, not >=2.11"])
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor", "--device", "cpu"])
    text = capsys.readouterr().out
    assert end.value.code == 2 and "stop  libraries  torch is 1.0, not >=2.11\n" in text
    assert f"-> {doctor.AGAIN}" in text


def test_requirements_are_compared_with_what_is_installed(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "version", {"a": "1.5", "b": "2.0", "d": "1"}.__getitem__)
    needs = ["a>=1,<2", "b>=3", "c; sys_platform == 'never'", 'd>=2; extra == "course"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda package: needs)
    assert doctor.unmet("any") == ["b is 2.0, not >=3"]
    assert doctor.unmet("any", "course") == ["d is 1, not >=2"]
    monkeypatch.undo()
    monkeypatch.setattr(doctor.metadata, "requires", lambda package: ["no-such-package-at-all"])
    assert doctor.unmet("any") == ["no-such-package-at-all is missing"]


def test_a_folder_that_cannot_be_written_stops(tmp_path):
    assert finding("folder", tmp_path).state == "ok" and not list(tmp_path.iterdir())
    assert finding("folder", tmp_path / "absent").state == "stop"


def test_little_memory_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "ENOUGH", 10**6)
    assert finding("memory", tmp_path).state == "note"


def test_data_are_found_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.delenv("SGMGM_DATA", raising=False)
    (tmp_path / "data" / "raw" / datasets.DOWNLOADED["cifar10"]).mkdir(parents=True)
    found = finding("data", tmp_path)
    assert found.state == "note" and "no fashion-mnist in" in found.found
    assert "cifar10" not in found.found
    (tmp_path / "data" / "raw" / datasets.DOWNLOADED["fashion-mnist"]).mkdir(parents=True)
    assert finding("data", tmp_path).state == "ok"
    monkeypatch.setenv("SGMGM_DATA", str(tmp_path / "elsewhere"))
    assert "no cifar10 and no fashion-mnist" in finding("data", tmp_path).found


def test_a_changed_model_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "SHIPPED", tmp_path)
    assert finding("models", tmp_path).state == "note"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pipeline.json").write_text("{}")
    hub.write_manifest(tmp_path / "mine")
    assert "mine: unchanged" in finding("models", tmp_path).found
    (tmp_path / "mine" / "pipeline.json").write_text("{ }")
    changed = finding("models", tmp_path)
    assert changed.state == "stop" and "pipeline.json" in changed.found


def test_minutes_follow_from_the_probe(tmp_path, monkeypatch):
    measured = tmp_path / "course.json"
    monkeypatch.setattr(doctor, "MEASURED", measured)
    assert "min" not in finding("speed", tmp_path).found
    lessons = [{"name": "01_one", "seconds": 30.0}, {"name": "02_two", "seconds": 90.0}]
    # half as fast as the machine that was measured, so everything takes twice as long
    report = {"speed": 200.0, "profile": "smoke", "lessons": lessons}
    measured.write_text(json.dumps(report))
    found = finding("speed", tmp_path).found
    assert "01 1.0, 02 3.0" in found and "about 4 min (profile smoke)" in found
    measured.write_text("{")
    assert finding("speed", tmp_path).state == "stop"


def test_the_probe_counts_images_and_leaves_random_numbers_alone(monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert doctor.speed(torch.device("cpu"), seconds=0.01) > 0
    assert torch.equal(torch.rand(1), expected)


def test_the_measured_file_is_a_course_report_with_a_speed():
    if not doctor.MEASURED.is_file():
        pytest.skip("no lesson was measured yet")
    report = json.loads(doctor.MEASURED.read_text())
    assert report["speed"] > 0 and all(e["status"] == "ok" for e in report["lessons"])
    lessons = {path.stem for path in runner.find_lessons([], runner.ROOT / "notebooks")}
    assert {e["name"] for e in report["lessons"]} <= lessons


def test_a_lesson_says_what_is_in_its_way(monkeypatch, capsys):
    start.preflight("cpu")
    assert len(capsys.readouterr().out.splitlines()) == 1
    monkeypatch.setattr(doctor, "unmet", lambda *given: ["peft is missing"])
    start.preflight("cpu")
    assert "stop  libraries  peft is missing" in capsys.readouterr().out


def test_a_lesson_says_once_that_bfloat16_is_missing(monkeypatch, capsys, recwarn):
    def has_bf16(device):
        warnings.warn("no bfloat16", stacklevel=2)
        return False

    monkeypatch.setattr(start, "has_bf16", has_bf16)
    for count, words in ((1, "cpu, 1 thread"), (2, "cpu, 2 threads")):
        monkeypatch.setattr("torch.get_num_threads", lambda count=count: count)
        start.preflight("cpu")
        assert capsys.readouterr().out.endswith(f"{words}, no bfloat16\n") and not recwarn.list


def test_a_broken_library_is_reported_and_not_raised(tmp_path):
    """Whatever the command, when torch cannot be imported the doctor speaks."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch.so: no such file')")
    ran = subprocess.run(
        [sys.executable, "-m", "sgmgm", "results"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(doctor.ROOT)))},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert "stop  torch      OSError: libtorch.so: no such file" in ran.stderr
    project = tomllib.loads((doctor.ROOT / "pyproject.toml").read_text())["project"]
    pins = [line for line in project["dependencies"] if line.startswith("torch")]
    assert f"pip install --upgrade {' '.join(map(repr, pins))}" in ran.stderr
