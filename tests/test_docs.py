"""What stands around the code: pages, schedules, licences, the lock and the workflow."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml  # comes with huggingface_hub
from packaging.requirements import Requirement

from sgmgm.commands.parser import parser
from sgmgm.course import runner

from . import licences
from .test_words import EXCEPTIONS, broken

ROOT = runner.ROOT
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "notebooks" / "README.md"]
LESSONS = {path.stem[:2]: path for path in runner.find_lessons([], ROOT / "notebooks")}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_exists(page):
    commands = next(a for a in parser()._actions if a.dest == "command").choices
    text = page.read_text(encoding="utf-8")
    for name, rest in re.findall(r"(?m)(?:^|`|bin/)sgmgm ([a-z]+)([^`\n#]*)", text):
        assert name in commands, f"{page.name}: sgmgm {name}"
        known = {o for action in commands[name]._actions for o in action.option_strings}
        assert set(re.findall(r"--[a-z][a-z-]*", rest)) <= known, f"{page.name}: {name}{rest}"


def test_every_promise_names_a_test_that_exists():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    section = text.split("\n## Promises and their tests\n")[1].split("\n## ")[0]
    (rows,) = tables(section)
    assert len(rows) >= 29, "no promise is dropped by moving the table"
    for promise, proofs in rows:
        named = re.findall(r"`((?:\w+/)?test_\w+\.py)::(test_\w+)`", proofs)
        assert named and len(named) == proofs.count("`") / 2, promise
        for file, test in named:
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            nodes = ast.parse(source).body
            found = [n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == test]
            assert found, f"{promise}: there is no {file}::{test}"
            marks = {ast.unparse(mark) for mark in found[0].decorator_list}
            slow = "pytest.mark.check" in marks or "pytestmark = pytest.mark.check\n" in source
            assert slow == ("*check*" in promise), promise


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / "data").rglob("README.md")],
                         ids=lambda path: path.relative_to(ROOT).as_posix())  # fmt: skip
def test_a_page_uses_the_fields_words(page):
    text = page.read_text(encoding="utf-8")
    for use in (use for uses in EXCEPTIONS.values() for use in uses):
        text = text.replace(use, "none")
    assert not broken(text), "see WORDS in test_words.py for what to write instead"


# --------------------------------------------------------------------------------------- README

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len(README.split()) <= 1_200


def test_the_readme_starts_with_three_commands():
    """The clone, whose address is the one documented setting, the folder, and a target of make."""
    start = README.split("\n## Start\n")[1]
    lines = re.search(r"```sh\n(.*?)```", start, re.DOTALL)[1].splitlines()
    commands = [line.split("#")[0].strip() for line in lines]
    assert commands[:2] == ['git clone "$SGMGM_REPO" sgmgm', "cd sgmgm"] and len(commands) == 3
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?m)(?:^|`)make ([a-z]+)", README):
        assert re.search(rf"(?m)^{target}:", makefile), target
    assert "export SGMGM_REPO=" in (ROOT / "docs" / "install.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_page_has_a_placeholder_for_an_address(page):
    text = page.read_text(encoding="utf-8")
    assert "OWNER" not in text and not re.search(r"git clone (?!-q )(?!\"\$SGMGM_REPO\")", text)


def test_the_python_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    said = re.search(r"samples\.images  # float32 \((.*?)\) in \[0, 1\]", code)[1]
    images = names["samples"].images
    assert str(tuple(images.shape)) == f"({said})" and images.dtype.is_floating_point
    assert images.min() >= 0 and images.max() <= 1


def test_the_readme_lists_every_lesson_with_the_minutes_of_the_one_day_workshop():
    (rows,) = [rows for rows in tables(README) if "](notebooks/00" in rows[0][0]]
    planned = {row[2][:2]: int(row[1]) for row in SCHEDULES[1] if row[2][:2] in LESSONS}
    assert {row[0][1:3]: int(row[1]) for row in rows} == planned
    for row in rows:
        assert f"](notebooks/{LESSONS[row[0][1:3]].name})" in row[0]
    assert "about seven hours for all nine" in README and 390 <= sum(planned.values()) <= 450


# ------------------------------------------------------------------------------------- workshop


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a page as rows of cells, without their heads."""
    found = re.findall(r"(?m)(?:^\|.*\|\n)+", text)
    return [[[c.strip() for c in row.strip("|").split("|")] for row in t.splitlines()[2:]]
            for t in found]  # fmt: skip


WORKSHOP = (ROOT / "docs" / "workshop.md").read_text(encoding="utf-8")
SCHEDULES = [rows for rows in tables(WORKSHOP) if re.fullmatch(r"\d:\d\d", rows[0][0])]


def test_the_schedules_take_what_they_say():
    half, whole = SCHEDULES
    work = [int(row[1]) for row in whole if row[2] not in ("break", "lunch")]
    assert sum(int(row[1]) for row in half) == 4 * 60 and sum(work) == 7 * 60


@pytest.mark.parametrize("rows", SCHEDULES, ids=["half a day", "one day"])
def test_the_minutes_of_a_schedule_add_up(rows):
    now = 0
    for start, minutes, *_ in rows:
        hours, rest = start.split(":")
        assert int(hours) * 60 + int(rest) == now, f"at {start}"
        now += int(minutes)


def headings(cell: str, lesson: str) -> list[str]:
    """The *headings* that a cell of a table names, of which a lesson has none."""
    text = LESSONS[lesson].read_text(encoding="utf-8")
    named = re.findall(r"\*([^*]+)\*", cell)
    return [h for h in named if not re.search(rf"(?i)## [^\"]*{re.escape(h)}", text)]


def test_a_schedule_names_headings_that_the_lesson_has():
    for rows in SCHEDULES:
        for row in rows:
            if row[2][:2] in LESSONS:
                assert not headings(row[2], row[2][:2])


def test_every_lesson_has_a_plan_whose_minutes_fit_the_schedules():
    """Minutes in brackets are for the whole day only."""
    found = (rows for rows in tables(WORKSHOP) if len(rows[0]) == 3)  # minutes, section, what to do
    plans = [rows for rows in found if re.fullmatch(r"\(?\d+\)?", rows[0][0])]
    for lesson, plan in zip(LESSONS, plans, strict=True):
        half, whole = ([int(r[1]) for r in rows if r[2][:2] == lesson] for rows in SCHEDULES)
        assert sum(int(row[0]) for row in plan if "(" not in row[0]) == sum(half[:1])
        assert [sum(int(row[0].strip("()")) for row in plan)] == whole
        assert not any(headings(row[1], lesson) for row in plan)


def test_half_a_day_reaches_the_core_of_05_and_the_verdict_of_08():
    found = {row[2][:2] for row in SCHEDULES[0]}
    assert {"05", "08"} <= found


def test_every_lesson_can_be_jumped_into_and_is_listed():
    jump = {row[0] for rows in tables(WORKSHOP) for row in rows if row[0] in LESSONS}
    assert jump == set(LESSONS)
    listed = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for path in LESSONS.values():
        assert f"]({path.name})" in listed


# --------------------------------------------------------------------------------- dependencies


def test_every_package_has_its_licence_listed():
    rows = dict(row for rows in tables(licences.PAGE.read_text(encoding="utf-8")) for row in rows)
    assert licences.installed() <= rows.keys(), "run `python -m tests.licences`"
    for name, licence in rows.items():
        assert licence and "GPL" not in licence, name


def test_the_lock_holds_every_requirement_with_hashes():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    text = (ROOT / "tests" / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    locked = {}
    for entry in entries:
        first, *hashes = (line.rstrip(" \\").strip() for line in entry.splitlines())
        name, version = re.match(r"([a-z0-9.-]+)==([^ ;]+)", first).groups()
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), name
        locked.setdefault(name, []).append(version)
    for line in [*project["dependencies"], *extras["course"], *extras["test"]]:
        need = Requirement(line)
        versions = locked[re.sub(r"[-_.]+", "-", need.name).lower()]
        assert all(need.specifier.contains(version) for version in versions), line
    assert "://" not in text, "where packages come from is everybody's own setting"


# ------------------------------------------------------------------------------------- workflow


def test_the_workflow_runs_what_exists():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    told = yaml.safe_load(text)
    schedule = [each["cron"] for each in told[True]["schedule"]]  # YAML reads `on` as True
    for cron in re.findall(r"schedule [!=]= '([^']+)'", text):
        assert cron in schedule
    # weekdays are 0 to 6 there
    assert all(re.fullmatch(r"\d+ \d+ \* \* [0-6*](?:[,-][0-6])*", cron) for cron in schedule)
    steps = [step for job in told["jobs"].values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    commands = next(a for a in parser()._actions if a.dest == "command").choices
    for name in re.findall(r"run: sgmgm ([a-z]+)", text):
        assert name in commands
    for path in re.findall(r"tests/[\w.]+", text):
        assert (ROOT / path).exists()


def test_the_image_copies_no_large_leftovers():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".venv", "runs", "data/raw", ".git"} <= set(ignored)
    assert not any(Path("data/checkpoints").match(pattern) for pattern in ignored)


def test_the_citation_is_of_this_version():
    from sgmgm import __version__

    told = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (told["version"], told["license"]) == (__version__, "MIT")
