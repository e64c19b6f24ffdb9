"""Results: the tables say what was measured."""

import json

import numpy as np
import pytest
from PIL import Image

from sgmgm.commands.cli import main
from sgmgm.course import charts
from sgmgm.evidence import results
from sgmgm.evidence.sweep import TUNING_SEED, fingerprint, read_records
from sgmgm.pipeline import SHIPPED, Pipeline
from sgmgm.settings import Sampling
from sgmgm.utils.errors import DataError
from sgmgm.utils.files import write_json

from .test_sweep import record

README = results.ROOT / "README.md"


def guided(found):
    """A record with half as many steps as passes."""
    return found | {"settings": found["settings"] | {"steps": 8}}


@pytest.fixture
def folder(tmp_path):
    records = [
        record("none", 0.0, 4.0, 4.0) | {"seed": 0},
        record("none", 0.0, 4.0, 5.0) | {"seed": 1},
        guided(record("self", 1.0, 8.0, 3.0) | {"seed": 0}),
        guided(record("self", 1.0, 8.0, 3.6) | {"seed": 1}),
        record("self+cfg", 1.0, 8.0, 1.0) | {"seed": 0},  # not self-guidance alone
        record("self", 1.0, 8.0, 0.1) | {"seed": 0, "num": 10},  # fewer images: not reported
        record("self", 1.0, 8.0, 0.1) | {"seed": TUNING_SEED, "num": 10},
        record("none", 0.0, 4.0, 6.0, nfe=8.0) | {"seed": 0},
        record("none", 0.0, 4.0, 7.0, nfe=8.0) | {"seed": 1},
    ]
    path = tmp_path / "sweep-sprites.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path


def test_a_table_shows_the_reported_seeds_and_the_gain(folder):
    text = results.markdown(folder)
    assert text.startswith("**sprites**\n\n| guidance |")
    assert "3.300 ± 0.424" in text and "4.500 ± 0.707" in text and "0.100" not in text
    assert "none: at 16 passes each 3.30 ± 0.42 against 4.50 ± 0.71, -27 %; at 8 steps" in text
    assert text.endswith("at 8 steps each 3.30 ± 0.42 against 6.50 ± 0.71, -49 %.")


def test_the_overview_has_a_row_for_each_method_and_a_column_for_each_data_set(folder):
    (folder / "sweep-toys.jsonl").write_text(json.dumps(record("sag", 1.0, 8.0, 2.0)) + "\n")
    lines = results.overview(folder).splitlines()
    assert lines[0] == "| guidance | sprites (100 x 1) | toys (100 x 1) |"
    assert lines[2:6] == [
        "| none | 4.50 ± 0.71 |  |",
        "| sag |  | **2.00 ± 0.00** |",
        "| self | 3.30 ± 0.42 |  |",
        "| self+cfg | **1.00 ± 0.00** |  |",
    ]
    assert lines[7].startswith(
        "- sprites (100 x 1): Self-guidance against none: at 16 passes each 3.30"
    )


def test_what_is_compared_was_chosen_by_the_tuning(folder):
    path = folder / "sweep-sprites.jsonl"
    better = [guided(record("self", 2.0, 8.0, 2.0) | {"seed": seed}) for seed in (0, 1)]
    tuning = guided(record("self", 2.0, 8.0, 9.0) | {"seed": TUNING_SEED, "num": 10})
    usual = guided(record("self", 1.0, 8.0, 8.0) | {"seed": TUNING_SEED, "num": 10})
    with open(path, "a") as file:
        file.writelines(json.dumps(r) + "\n" for r in [*better, tuning, usual])
    rows, _ = results.reported(path)
    assert [r["tuned"] for r in rows if r["settings"]["guidance"] == "self"] == [9.0, 8.0]
    assert "16 passes each 3.30 ± 0.42" in results.gain(rows)
    assert results.best(rows, "self")["scale"] == 1.0
    assert results.best(rows, "sag") == {"guidance": "sag"}


def test_ablations_stand_beside_what_they_vary(folder):
    other = record("self", 1.0, 8.0, 2.0) | {"seed": 0}
    other["settings"]["smoother"] = "smoother-odd"
    (folder / "ablation-sprites.jsonl").write_text(json.dumps(other) + "\n")
    (folder / "large-sprites.jsonl").write_text(json.dumps(other | {"num": 10_000}) + "\n")
    assert "| self (smoother-odd) |  | **2.00 ± 0.00** |" in results.overview(folder)
    (folder / "large-sprites.jsonl").unlink()
    rows = [line for line in results.markdown(folder).split("**sprites: other")[1].splitlines()]
    kinds = [row.split(" | ")[0] for row in rows if row.startswith("| ")][2:]
    assert kinds == ["| self (smoother-odd)", "| self", "| none"]
    more = [guided(record("self", 1.0, 8.0, 1.0) | {"seed": 0, "num": 1000})]
    more.append(record("none", 0.0, 4.0, 1.5) | {"seed": 0, "num": 1000})
    with open(folder / "sweep-sprites.jsonl", "a") as file:
        file.writelines(json.dumps(r) + "\n" for r in more)
    assert "sprites (1,000 x 1)" in results.overview(folder)
    assert [row["num"] for row in results.ablation("sprites", folder)] == [100, 100, 100]


def test_one_hyperparameter_changes_while_the_others_have_their_best_values(folder):
    def tuned(guidance, steps, *where, **other):
        passes = steps * (2 if guidance == "self" else 1)
        point = record(guidance, *where, nfe=passes) | {"seed": TUNING_SEED, "num": 10}
        return point | {"settings": point["settings"] | {"steps": steps} | other}

    found = [
        tuned("none", 8, 0.0, 4.0, 6.0),
        tuned("self", 8, 1.0, 4.0, 3.0),
        tuned("self", 8, 1.0, 8.0, 5.0),
        tuned("self", 8, 2.0, 8.0, 4.0),
        tuned("self", 8, 2.0, 8.0, 0.1, order="random"),  # these two are other methods
        tuned("self", 8, 2.0, 8.0, 0.1, smoother="smoother-odd"),
    ]
    more = [tuned("self", 8, 1.0, 4.0, 3.5), tuned("none", 8, 0.0, 4.0, 7.0)]
    more += [tuned("self", 32, 1.0, 4.0, 2.0), tuned("none", 32, 0.0, 4.0, 5.0)]
    for kind, records in (("sweep", found), ("steps", more)):
        with open(folder / f"{kind}-sprites.jsonl", "w") as file:
            file.writelines(json.dumps(r) + "\n" for r in records)
    assert results.hyperparameters("sprites", folder) == {
        "guidance scale s": {"self, 8 steps": ((0.0, 1.0, 2.0), (6.0, 3.0, 4.0))},
        "temperature": {"self, 8 steps": ((4.0, 8.0), (3.0, 4.0))},
        "network passes": {"none": ((8, 32), (7.0, 5.0)), "self": ((16, 64), (3.5, 2.0))},
    }
    assert results.hyperparameters("toys", folder) == {}


def test_a_benchmark_gives_one_line(folder):
    slow, quick = ({"images_per_second": v, "share": v / 66} for v in (10.0, 30.0))
    record = {"size": "laptop", "steps": 18, "speedup": 3.0}
    for device, path in (("a toaster", "fast bf16"), ("an older one", "fast float32")):
        rows = [{"batch": 64, "eager float32": slow, path: quick}]
        record |= {"device": device, "ways": ["eager float32", path], "batches": rows}
        write_json(folder / f"benchmark-{device}.json", record)
    said = results.speed(folder)
    assert "on a toaster: 30.0 images/s, 3.0 times" in said and "45% of" in said
    assert "older one, without bfloat16: 30.0" in said and "measured float32 matrix" in said
    (folder / "README.md").write_text("\n".join((*results.RESULTS, *results.MINUTES)))
    (folder / "docs").mkdir()
    page = folder / "docs" / "results.md"
    page.write_text("\n".join((*results.RESULTS, *results.TABLES)))
    assert said in results.pages(folder, folder)[page]


def test_more_images_have_a_column_of_their_own(folder):
    lines = [record("none", 0.0, 4.0, 3.0) | {"seed": 0}, record("none", 0.0, 4.0, 4.0)]
    lines.append(guided(record("self", 1.0, 8.0, 1.0)))
    lines = [line | {"num": 10_000, "bf16": False} for line in lines]
    (folder / "large-sprites.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    said = results.overview(folder).splitlines()
    assert said[0].endswith("sprites (100 x 1) | sprites (10,000 x 1) |")
    assert said[3] == "| self | 3.30 ± 0.42 | **1.00 ± 0.00** |"
    assert said[-1].startswith("- sprites (10,000 x 1): Self-guidance against none: ")
    assert said[-1].endswith("1.00 ± 0.00 against 3.50 ± 0.71, -71 %.")
    assert "**sprites: more images**" in results.markdown(folder)


def test_what_is_not_finished_is_not_reported(folder):
    whole = results.overview(folder)
    tuning = record("none", 0.0, 4.0, 3.0) | {"seed": TUNING_SEED}
    for kind in ("ablation-sprites", "controls-sprites", "sweep-cifar10"):
        (folder / f"{kind}.jsonl").write_text(json.dumps(tuning) + "\n")
    assert results.overview(folder) == whole
    odd = record("none", 0.0, 9.0, 3.0) | {"num": 10_000}  # no sweep has this setting
    (folder / "large-sprites.jsonl").write_text(json.dumps(odd) + "\n")
    assert "sprites (10,000 x 1)" in results.overview(folder)
    assert "sprites: more images" in results.markdown(folder)


def test_an_earlier_sweep_stays_with_what_was_tuned_along_with_it(folder):
    other = guided(record("self", 1.0, 8.0, 2.0) | {"seed": 0})
    other["settings"]["smoother"] = "smoother-other"
    (folder / "ablation-sprites.jsonl").write_text(json.dumps(other) + "\n")
    before = results.ablation("sprites", folder)
    (folder / "sweep-sprites.jsonl").rename(folder / "earlier-sprites.jsonl")
    assert results.ablation("sprites", folder) == before and len(before) > 1


def test_pushes_of_equal_strength_have_a_table(folder):
    arm = guided(record("auto", 1.0, 8.0, 2.0) | {"seed": 0})
    arm["settings"]["smoother"] = "weak, 100 steps"
    (folder / "controls-sprites.jsonl").write_text(json.dumps(arm) + "\n")
    text = results.markdown(folder)
    own = text.split("**sprites: pushes of equal strength**")[1]
    assert "| auto (weak, 100 steps) |" in own and "| none |" in own


def test_several_trainings_are_one_row(folder):
    """The deviation is that of the trainings' means, not that of all seeds."""
    shipped = [record("none", 0.0, 4.0, d) | {"seed": s} for s, d in enumerate((3.0, 4.0))]
    (folder / "sweep-sprites.jsonl").write_text("".join(json.dumps(r) + "\n" for r in shipped))
    anew = [
        record("none", 0.0, 4.0, d) | {"seed": seed, "weights": weights, "key": f"{weights}{seed}"}
        for weights, distances in (("first", (4.0, 5.0)), ("second", (2.0, 3.0)))
        for seed, d in enumerate(distances)
    ]
    (folder / "trainings-sprites.jsonl").write_text("".join(json.dumps(r) + "\n" for r in anew))
    (row,) = results.trainings("sprites", folder)
    assert row["frechet"] == (3.5, 1.0) and row["seeds"] == 6
    assert "**sprites: three trainings**" in results.markdown(folder)


def test_the_block_replaces_what_stood_there(folder, tmp_path, monkeypatch):
    picture = charts.bars({"a": [1.0]}, ["b"], "x", "y")  # the real one is drawn below
    monkeypatch.setattr(results, "gallery", lambda *_: picture)
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    for path, second in ((readme, results.MINUTES), (page, results.TABLES)):
        marked = "\n".join(f"{begin}\nold\n{end}" for begin, end in (results.RESULTS, second))
        path.write_text(f"before\n{marked}\nafter\n")
    written = results.write(folder, tmp_path)
    first, second = (path.read_text(encoding="utf-8") for path in (readme, page))
    for text in (first, second):
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "3.30 ± 0.42**<br>0.50 / 0.50<br>1 tried |" in first
    assert "| 3.30 ± 0.42 |" in second and "3.300 ± 0.424" in second
    assert set(written) == {readme, page, folder / "gallery.png", folder / "sweep-sprites.png"}
    results.write(folder, tmp_path)
    assert [path.read_text(encoding="utf-8") for path in (readme, page)] == [first, second]


def test_one_command_shows_every_model_that_ships(tmp_path, capsys):
    out = tmp_path / "all.png"
    assert main(["gallery", "--out", str(out), "--seed", "1", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{out}\n" and [*tmp_path.iterdir()] == [out]
    drawn, usual = (np.asarray(Image.open(p)) for p in (out, results.FOLDER / "gallery.png"))
    assert drawn.shape == usual.shape and (drawn != usual).mean() > 0.1  # another seed's


def test_a_text_without_marks_or_a_folder_without_results_gives_one_sentence(folder, tmp_path):
    readme = folder / "README.md"
    readme.write_text("nothing")
    with pytest.raises(DataError, match="needs one line"):
        results.write(folder, folder)
    assert readme.read_text() == "nothing" and not list(folder.glob("*.png"))
    with pytest.raises(DataError, match="holds no sweep"):
        results.markdown(tmp_path / "void")


def test_the_pages_say_what_the_records_say():
    for path, text in results.pages().items():
        assert path.read_text(encoding="utf-8") == text, path


def test_the_readmes_table_has_five_guidances_their_scores_and_what_was_tried(folder):
    (folder / "sweep-toys.jsonl").write_text(json.dumps(record("sag", 1.0, 8.0, 2.0)) + "\n")
    assert results.brief(folder).splitlines() == [
        "| guidance | sprites (100 x 1) | toys (100 x 1) |",
        "| --- | --- | --- |",
        "| none | 4.50 ± 0.71<br>0.50 / 0.50<br>0 tried |  |",
        *("| cfg |  |  |", "| spatial |  |  |", "| auto |  |  |"),
        "| self | **3.30 ± 0.42**<br>0.50 / 0.50<br>1 tried |  |",
        "| self against none | -27 % |  |",
    ]


def test_the_lesson_says_the_verdict_that_the_records_give(folder):
    """Wins and loses where mean ± spread do not overlap; the rival is the best of the others."""
    text = results.verdict(folder)  # 3.3 ± 0.42 against 4.5 ± 0.71 at 16 passes
    assert "- Against **none, at equal passes**, self-guidance **wins** on sprites." in text
    assert "3.30 ± 0.42 : 4.50 ± 0.71<br>**wins**, -27 %" in text
    assert "3.30 ± 0.42 : 1.00 ± 0.00 (self+cfg)<br>**loses**, +230 %" in text
    path = folder / "sweep-sprites.jsonl"
    with open(path, "a") as file:  # now 4 ± 1.06
        file.write(json.dumps(guided(record("self", 1.0, 8.0, 5.1) | {"seed": 2})) + "\n")
    assert "self-guidance **ties** on sprites" in results.verdict(folder)


def test_minutes_are_those_of_a_run(tmp_path):
    assert "0" not in results.minutes(tmp_path)  # nobody measured: no number
    lessons = [{"name": "00_tour", "seconds": 20}, {"name": "01_vq", "seconds": 114}]
    run = {"profile": "smoke", "dataset": "sprites", "device": "a toaster"}
    write_json(tmp_path / "course.json", run | {"lessons": lessons})
    text = results.minutes(tmp_path)
    assert "on sprites (a toaster) all lessons together compute for 2 minutes" in text
    assert "the longest for 2." in text


@pytest.mark.parametrize("name", results.sweeps(results.FOLDER))
def test_the_records_are_of_the_models_that_ship(name):
    path = results.sweeps(results.FOLDER)[name]
    rows, _ = results.reported(path)
    folder = SHIPPED / path.stem.removeprefix("sweep-")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text == results.card(folder, rows)
    own = Pipeline.from_pretrained(folder, "cpu").card.sampling.guidance
    assert (f"Rows 5 and 6: the model's own setting, `{own}`." in text) == (own != "self")
    width, height = Image.open(folder / "samples.png").size  # two rows for each setting
    assert (width - 2) // 66 == 10 and (height - 2) // 66 == (4 if own == "self" else 6)
    for row in rows:
        assert row["seeds"] >= 3


@pytest.mark.parametrize("path", sorted(results.FOLDER.glob("*.jsonl")), ids=lambda path: path.stem)
def test_all_points_are_of_the_models_that_ship(path):
    folder = SHIPPED / path.stem.partition("-")[2]
    points = {json.dumps(r["settings"]): r["weights"] for r in read_records(path)}
    for words, weights in points.items():
        point = Sampling(**json.loads(words))
        if path.stem.split("-")[0] in results.EXPERIMENTS and " " in point.smoother:
            continue  # other networks, made for this only
        if path.stem.startswith("trainings"):
            assert weights != fingerprint(folder, point), words
            continue
        if not point.guidance_part or (folder / point.guidance_part).is_dir():
            assert weights == fingerprint(folder, point), words
