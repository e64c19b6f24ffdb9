"""Sweeps: nothing is computed twice, nothing is lost, and the averages are right."""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest

from sgmgm import scoring
from sgmgm.commands.cli import main
from sgmgm.course.charts import trade_off
from sgmgm.evidence import sweep
from sgmgm.pipeline import Pipeline
from sgmgm.settings import Sampling
from sgmgm.utils.errors import DataError, InputError


def test_combinations_that_mean_the_same_are_one_point():
    points = sweep.grid_points(
        Sampling(),
        {
            "guidance": ["none", "cfg", "self"],
            "scale": [1.0, 2.0],
            "smoother": ["smoother", "smoother-lora"],
            "order": ["confidence", "random"],
            "temperature": [2.0, 8.0],
        },
    )
    # per order: none 1, cfg 2 scales, self 2 x 2; confidence has 2 temperatures, random none
    assert len(points) == (1 + 2 + 4) * (2 + 1)
    assert len(set(points)) == len(points)


def test_a_sweep_goes_on_where_it_stopped(trained, tmp_path, monkeypatch):
    pipeline = Pipeline.from_pretrained(trained, "cpu")
    points = sweep.grid_points(pipeline.card.sampling, {"guidance": ["none", "self"]})
    out = tmp_path / "results.jsonl"
    first = sweep.sweep(pipeline, points[:1], 20, [0, 1], out)
    out.write_text(out.read_text() + '{"key": "cut o')  # a crash while the next line was written
    calls = []
    monkeypatch.setattr(
        sweep, "generate", lambda *a, **k: calls.append((a[2], k)) or scoring.generate(*a, **k)
    )
    records = sweep.sweep(pipeline, points, 20, [0, 1], out)
    assert [settings["guidance"] for _, settings in calls] == ["self", "self"]
    assert abs(calls[1][0] - calls[0][0]) >= 20  # no image has the seed of another one
    assert records[:2] == first
    assert sweep.sweep(pipeline, points, 20, [0, 1], out) == records and len(calls) == 2
    assert [r["nfe"] for r in records] == [6, 6, 12, 12]
    assert records[0]["scores"]["coherence"] is not None


def test_other_weights_are_another_point(own, tmp_path):
    pipeline = Pipeline.from_pretrained(own, "cpu")
    points = [pipeline.card.sampling]
    before = sweep.sweep(pipeline, points, 10, [0], tmp_path / "r.jsonl")
    for name in ("config.json", "model.safetensors"):
        (own / "transformer" / name).write_bytes((own / "weak" / name).read_bytes())
    after = sweep.sweep(Pipeline.from_pretrained(own, "cpu"), points, 10, [0], tmp_path / "r.jsonl")
    assert before[0]["key"] != after[0]["key"]


def test_scores_of_two_classifiers_are_not_mixed(trained, tmp_path):
    pipeline = Pipeline.from_pretrained(trained, "cpu")
    points, out = [pipeline.card.sampling.updated(guidance="none")], tmp_path / "results.jsonl"
    sweep.sweep(pipeline, points, 20, [0], out)
    record = json.loads(out.read_text())
    record["scores"]["extractor"] = "classifier of another day"
    out.write_text(json.dumps(record) + "\n")
    with pytest.raises(InputError, match="scores by classifier of another day"):
        sweep.sweep(pipeline, points, 20, [0], out)


def test_means_and_spreads(tmp_path):
    def record(seed, frechet, tau):
        scores = dict.fromkeys(sweep.SCORES, 0.5) | {"frechet": frechet, "coherence": None}
        settings = vars(Sampling(temperature=tau))
        point = {"weights": "w", "bf16": False, "num": 10, "seed": seed, "nfe": 6}
        return point | {"settings": settings, "scores": scores}

    half = record(2, 9.0, 8.0) | {"bf16": True}  # another precision is another row
    rows = sweep.summarise([record(0, 2.0, 4.0), record(0, 1.0, 8.0), record(1, 2.0, 8.0), half])
    assert [row["bf16"] for row in rows] == [False, False, True]
    assert rows[0]["frechet"] == pytest.approx((1.5, 0.5**0.5)) and rows[0]["seeds"] == 2
    assert rows[1]["frechet"] == (2.0, 0.0) and "coherence" not in rows[0]
    assert "| none | 1 | 8 | 12 |" in sweep.table(rows)
    brief = sweep.table(rows[:1], ("guidance", "recall", "frechet", "coherence"), digits=2)
    assert brief.startswith("| guidance | recall | frechet |\n")
    assert brief.endswith("\n| none | 0.50 ± 0.00 | 1.50 ± 0.71 |")
    rows[0]["settings"] |= {"order": "halton", "anneal": "compounding"}  # without noise
    assert "| none, halton order | 1 | - | 12 |" in sweep.table(rows)
    rows[0]["settings"]["order"] = "confidence"
    assert "| none | 1 | 8 compounding | 12 |" in sweep.table(rows)


def test_damaged_results_are_named(tmp_path):
    path, whole = tmp_path / "r.jsonl", json.dumps(RECORDS[0]).encode() + b"\n"
    for bad in (b"broken\n", b"\xff\n", b"[1]\n", b'{"a": 1}\n', b"{}\n", b"my only notes"):
        path.write_bytes(whole + bad)
        with pytest.raises(DataError, match=r"line 2 of .* is damaged or no sweep's"):
            sweep.read_records(path)
        assert path.read_bytes() == whole + bad


def test_only_what_a_crash_cut_off_is_lost(tmp_path):
    path, (first, second, third) = tmp_path / "r.jsonl", RECORDS[:3]
    path.write_bytes(json.dumps(first).encode() + b"\n" + bytes(5))  # a power cut leaves zeros
    assert sweep.read_records(path) == [first]
    whole = json.dumps(first) + "\n" + json.dumps(second)
    for end in (len(whole), len(whole) - 1, len(json.dumps(first)) + 3):
        path.write_text(whole[:end])
        kept = sweep.read_records(path)
        assert kept == [first, second][: 2 if end == len(whole) else 1]
        sweep.append_record(path, third)
        assert sweep.read_records(path) == [*kept, third]


def test_a_point_counts_once(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(2 * (json.dumps(RECORDS[0]) + "\n"))  # by two commands at once
    assert sweep.read_records(path) == RECORDS[:1]


def test_the_command_prints_a_table(trained, tmp_path, capsys):
    out = tmp_path / "r.jsonl"
    words = ["sweep", "--model", str(trained), "--num", "10", "--seeds", "0", "--out", str(out)]
    assert main([*words, "--guidance", "none,cfg", "--scale", "0.5"]) == 0
    assert "| cfg | 0.5 |" in capsys.readouterr().out
    assert len([json.loads(line) for line in out.read_text().splitlines()]) == 2
    with pytest.raises(SystemExit):
        main([*words, "--scale", "1,much"])
    assert "--scale: invalid list of numbers value: '1,much'" in capsys.readouterr().err


KEYS = itertools.count()


def record(guidance, scale, temperature, frechet, nfe=16.0, order="confidence", weights="w"):
    settings = asdict(Sampling(int(nfe), temperature, guidance=guidance, scale=scale, order=order))
    scores = dict.fromkeys(sweep.SCORES, 0.5) | {"frechet": frechet, "coherence": None}
    scores["inception_score"] = 10 - frechet
    point = {"key": f"{next(KEYS)}", "weights": weights, "bf16": True, "num": 100, "seed": 0}
    point["nfe"] = nfe
    return point | {"settings": settings, "scores": scores}


RECORDS = [
    record("none", 0.0, 2.0, 5.0, nfe=8.0),
    record("none", 0.0, 4.0, 4.0, nfe=8.0),
    record("none", 0.0, 4.0, 3.5),
    record("self", 1.0, 8.0, 3.0),
    record("self", 1.0, 2.0, 3.2),
    record("self", 2.0, 8.0, 2.0),
    record("self", 2.0, 16.0, 2.5),
    record("self", 2.0, 0.0, 1.9, order="random"),
]


def test_the_best_point_of_each_method_at_each_number_of_passes():
    found = [(p.guidance, p.scale, p.temperature, p.order) for p in sweep.best_points(RECORDS)]
    assert found == [
        ("self", 2.0, 0.0, "random"),
        ("none", 0.0, 4.0, "confidence"),
        ("none", 0.0, 4.0, "confidence"),
    ]


def test_a_trade_off_curve_runs_over_temperature_at_the_best_scale():
    found = sweep.curves([*RECORDS, record("sag", 1.0, 2.0, 1.0)])  # none of the five
    assert found == {
        "none": [(6.5, 3.5, "4")],
        "self": [(8.0, 2.0, "8"), (7.5, 2.5, "16")],
    }
    assert sweep.curves(RECORDS, passes=8) == {"none": [(5.0, 5.0, "2"), (6.0, 4.0, "4")]}
    plot = trade_off(found | {"cfg": [(1.0, 10.1, "far")]})
    left, right = plot.axes  # more than half of the range from 6.5 to 8 is empty
    for axes in plot.axes:
        *lines, level = axes.lines
        assert [list(line.get_xdata()) for line in lines] == [[6.5], [8, 7.5]]
        assert list(level.get_ydata()) == [3.5, 3.5]
    assert left.get_xlim()[1] < 7.5 <= right.get_xlim()[0] + 0.1
    best = "best without guidance"
    assert {text.get_text() for text in left.texts} == {"4", "8", "16", "//", best}
    assert plot.png().startswith(b"\x89PNG") and "none; self" in plot.alt and "cfg" not in plot.alt


def test_a_trade_off_curve_has_its_temperatures_at_its_ends():
    points = [(5.0, 3.0, "1"), (5.125, 2.0, "2"), (5.25, 2.2, "3"), (5.375, 2.5, "4")]
    (axes,) = trade_off({"self": points}).axes
    assert {text.get_text(): text.xy for text in axes.texts} == {"1": (5, 3), "4": (5.375, 2.5)}
    for text, end, near in zip(axes.texts, (0, 3), (1, 2), strict=True):
        way = np.subtract(*axes.transData.transform([points[end][:2], points[near][:2]]))
        assert way @ text.xyann > 0  # away from the curve


def test_settings_are_never_tuned_on_the_seeds_that_are_reported(trained, tmp_path, capsys):
    out = tmp_path / "r.jsonl"
    options = ["--guidance", "none,sharpened", "--scale", "0.5,2", "--tune", "20", "--num", "30"]
    options += ["--seeds", "0,1", "--out", str(out), "--device", "cpu"]
    assert main(["sweep", "--model", str(trained), *options]) == 0
    records = sweep.read_records(out)
    tuned = [r for r in records if r["seed"] == sweep.TUNING_SEED]
    final = [r for r in records if r["seed"] in (0, 1)]
    assert len(tuned) == 3 and len(final) == 4 and len(records) == 7
    best = min((r for r in tuned if r["settings"]["guidance"] == "sharpened"),
               key=lambda r: r["scores"]["frechet"])  # fmt: skip
    sharp = [r["settings"] for r in final if r["settings"]["guidance"] == "sharpened"]
    assert sharp == [best["settings"]] * 2
    text = capsys.readouterr().out
    assert text.count("30 x 2") == 2 and "20 x 1" not in text
