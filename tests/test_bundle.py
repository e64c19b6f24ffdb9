"""A tiny course is bundled from local wheels, and installed from the bundle alone."""

import os
import subprocess
import sys

import pytest

from scripts import bundle
from sgmgm import datasets
from sgmgm.utils.errors import InputError

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["sgmgm"]
[project]
name = "sgmgm"
version = "1"
dependencies = ["tinyneed>=1"]
optional-dependencies = {course = ["tinyextra"]}
"""
# the least that pip accepts as a builder: it writes one wheel that points back to the folder
BACKEND = """
import os, sys
sys.path.insert(0, {tests!r})
from make_wheel import wheel

def build_editable(folder, config_settings=None, metadata_directory=None):
    needs = ("tinyneed>=1", "tinyextra; extra == 'course'")
    return wheel(folder, "sgmgm", {{"course.pth": os.getcwd()}}, *needs)
"""
DOCTOR = """
import tinyextra, tinyneed, pathlib, sys
print("doctor:", *sorted(p.name for p in pathlib.Path("data").rglob("*") if p.is_file()))
"""
MAKE_WHEEL = '''
import pathlib, zipfile

def wheel(folder, name, files, *needs):
    """A wheel of a few text files; returns its name."""
    info = f"{name}-1.dist-info/"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1", "Provides-Extra: course"]
    tag = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    files = files | {info + "METADATA": "\\n".join(lines + [f"Requires-Dist: {n}" for n in needs])}
    files |= {info + "WHEEL": tag, info + "RECORD": ""}
    path = pathlib.Path(folder) / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in files.items():
            archive.writestr(inside, text)
    return path.name
'''


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A course with two requirements, and the only place where pip may find them."""
    root, shelf = tmp_path / "tiny", tmp_path / "shelf"
    for folder in (shelf, root / "sgmgm" / "__pycache__", root / "data" / "checkpoints"):
        folder.mkdir(parents=True)
    (shelf / "make_wheel.py").write_text(MAKE_WHEEL)
    names = {}
    exec(MAKE_WHEEL, names)
    for name in ("tinyneed", "tinyextra"):
        names["wheel"](shelf, name, {f"{name}.py": ""})
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "sgmgm" / "backend.py").write_text(BACKEND.format(tests=str(shelf)))
    (root / "sgmgm" / "__init__.py").write_text("")
    (root / "sgmgm" / "__main__.py").write_text(DOCTOR)
    (root / "data" / "checkpoints" / "model.txt").write_text("weights")
    raw = tmp_path / "raw" / datasets.DOWNLOADED["cifar10"]
    raw.mkdir(parents=True)
    (raw / "batch.txt").write_text("pictures")
    monkeypatch.setenv("SGMGM_DATA", str(tmp_path / "raw"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setattr(bundle, "ROOT", root)
    return root


@pytest.mark.check
def test_it_installs_from_itself_alone(tiny, tmp_path, capsys):
    out = tmp_path / "my stick"
    assert bundle.main([str(out)]) == 0
    assert "run: python install.py" in capsys.readouterr().out
    packages = sorted(p.name for p in (out / "packages").iterdir())
    assert packages == ["tinyextra-1-py3-none-any.whl", "tinyneed-1-py3-none-any.whl"]
    assert not list(out.rglob("__pycache__")) and not list(tmp_path.glob(".*partial"))

    moved = out.rename(tmp_path / "elsewhere")  # a stick has another name on every machine
    nowhere = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHONPATH"))}
    ran = subprocess.run(
        [sys.executable, "install.py"],
        cwd=moved,
        env=kept | nowhere | {"PIP_INDEX_URL": "https://127.0.0.1:9/simple"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "doctor: batch.txt model.txt" in ran.stdout


def test_an_absent_package_is_one_sentence_and_leaves_nothing(tiny, tmp_path, capsys):
    (tmp_path / "shelf" / "tinyextra-1-py3-none-any.whl").unlink()
    assert bundle.main([str(tmp_path / "stick")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # before it stands what it does
    assert "pip cannot collect the packages: No matching distribution found for tinyextra" in said
    assert not list(tmp_path.glob("*stick*"))


def test_another_python_than_the_bundles_is_refused(tiny, tmp_path):
    script = bundle.bundle(tmp_path / "stick") / "install.py"
    script.write_text(script.read_text().replace(str(sys.version_info[:2]), "(3, 99)"))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert ran.returncode == 1 and "this bundle is for Python 3.99, not 3." in ran.stderr
    assert not (tmp_path / "stick" / "course" / ".venv").exists()


def test_a_folder_that_exists_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match="exists: delete it or choose another place"):
        bundle.bundle(tmp_path)


def test_it_asks_for_what_the_project_names():
    wanted = bundle.requirements(bundle.ROOT)
    for name in ("setuptools", "torch>=", "jupyterlab"):
        assert any(each.startswith(name) for each in wanted)
    assert not any(each.startswith("pytest") for each in wanted)
    assert all((bundle.ROOT / part).exists() for part in ("pyproject.toml", "data/checkpoints"))
