"""The queue of the evidence: the same grid for all, no optimum at an edge, and a clock."""

import json

import pytest
import torch

from scripts import conditions, controls, evidence, trainings
from sgmgm.evidence.results import reported
from sgmgm.evidence.sweep import TUNING_SEED, fingerprint, method, sweep
from sgmgm.pipeline import Pipeline
from sgmgm.settings import Sampling


class Landscape(evidence.Queue):
    """A queue whose distances are a function of the setting."""

    def __init__(self, distance):
        self.distance, self.asked = distance, []

    def score(self, point, num, seed, kind="sweep"):
        assert (num, seed, kind) == (evidence.TUNING, TUNING_SEED, "sweep")
        self.asked.append(point)
        return {"scores": {"frechet": self.distance(point)}}


@pytest.mark.parametrize("temperature, scale", [(4.0, 1.0), (16.0, 0.125), (1.5, 4.0)])
def test_the_grid_grows_until_the_best_setting_lies_inside(temperature, scale):
    queue = Landscape(lambda p: abs(p.temperature - temperature) + abs(p.scale - scale))
    best = queue.tuned("self", None)
    assert (best.temperature, best.scale, best.steps) == (temperature, scale, 8)
    for name, value in (("temperature", temperature), ("scale", scale)):
        tried = {getattr(point, name) for point in queue.asked}
        assert min(tried) < value < max(tried)


def test_no_guidance_has_temperatures_only():
    queue = Landscape(lambda p: -p.temperature)  # the best is the end of the ladder
    best = queue.tuned("none", None)
    assert (best.temperature, best.scale, best.steps) == (evidence.TEMPERATURES[-1], 0.0, 16)
    assert {point.scale for point in queue.asked} == {0.0}


def test_an_order_without_temperature_has_scales_only():
    queue = Landscape(lambda p: abs(p.scale - 4.0))
    best = queue.tuned("self", order="random")
    assert (best.temperature, best.scale, best.order) == (0.0, 4.0, "random")
    queue.asked.clear()
    queue.tuned("none", order="halton")
    assert [(p.order, p.scale, p.temperature) for p in queue.asked] == [("halton", 0.0, 0.0)]


def test_a_stopped_queue_goes_on(trained, tmp_path, monkeypatch, capsys):
    small = {"FIRST": {"temperature": (2.0, 4.0), "scale": (0.5, 1.0)}, "TUNING": 10, "FINAL": 11,
             "MANY": 12, "TIMED": 10, "METHODS": (("none", None), ("self", None)),
             "LARGE": ("none",), "TEMPERATURES": (2.0, 4.0), "SCALES": (0.5, 1.0)}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(evidence, name, value)
    monkeypatch.setattr(evidence, "LADDERS", {"temperature": (2.0, 4.0), "scale": (0.5, 1.0)})
    monkeypatch.setattr(evidence, "FIGURE", (str(trained), (2.0,)))
    arguments = ["--models", str(trained), "--out", str(tmp_path)]
    assert evidence.main([*arguments, "--minutes", "0"]) == 0
    assert "goes on from here" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert evidence.main(arguments) == 0
    lines = {p.name: p.read_text().splitlines() for p in sorted(tmp_path.iterdir())}
    assert [len(found) for found in lines.values()] == [3, 2 + 3 + 4 + 3 + 2 + 3, 2]
    assert {json.loads(line)["num"] for line in lines[f"large-{trained.name}.jsonl"]} == {12}
    final = [json.loads(line) for line in lines[f"sweep-{trained.name}.jsonl"]]
    final = [record for record in final if record["num"] == 11]
    assert {record["settings"]["steps"] for record in final} == {8, 16}
    assert {record["timed"] for record in final} == {10}
    assert evidence.main(arguments) == 0  # all is there
    assert {p.name: p.read_text().splitlines() for p in sorted(tmp_path.iterdir())} == lines


def test_the_scale_of_a_push_gives_its_strength():
    plain, smooth = torch.randn(2, 50, 9, generator=torch.Generator().manual_seed(0))
    for scale in (0.25, 1.0, 6.0):
        wanted = controls.strength(plain, smooth, scale)
        assert controls.scale_of(plain, smooth, wanted) == pytest.approx(scale, rel=0.005)
    assert controls.strength(plain, smooth, 0.0) == pytest.approx(0, abs=1e-6)


def test_a_control_is_judged_at_true_tokens():
    tokens = torch.arange(6).view(2, 3)
    assert controls.unchanged(tokens, torch.zeros(2), None, None) is tokens


def test_pushes_of_equal_strength(trained, tmp_path, monkeypatch):
    small = {"TUNING": 10, "FINAL": 11, "IMAGES": 20, "TEMPERATURES": (2.0, 4.0),
        "FIRST": {"temperature": (2.0, 4.0)}, "ARMS": {
        "self": ("self", None, 0), "control, 2 steps": ("self", "smoother", 2),
        "weak, 3 steps": ("auto", "weak", 3), "cfg": ("cfg", None, 0)}}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(controls, name, value)
    pipeline = Pipeline.from_pretrained(trained, "cpu")
    best = Sampling(guidance="self", steps=8, scale=2.0, temperature=4.0)
    sweep(pipeline, [best], 11, [0, 1], tmp_path / f"sweep-{trained.name}.jsonl")
    arguments = ["--model", str(trained), "--work", str(tmp_path), "--out", str(tmp_path)]
    assert controls.main(arguments) == 0
    rows, tuning = reported(tmp_path / f"controls-{trained.name}.jsonl")
    names = {"self", "self (control, 2 steps)", "auto (weak, 3 steps)", "cfg"}
    assert {method(row["settings"]) for row in rows} == names
    assert all(row["seeds"] == 3 and row["nfe"] == 16 and row["tried"] == 2 for row in rows)
    assert len({record["strength"] for record in tuning}) == 1
    (own,) = (row for row in rows if method(row["settings"]) == "self")
    assert own["settings"]["scale"] == pytest.approx(2.0, rel=0.005)
    steps = (json.loads((tmp_path / f"{part}" / part.split("-")[0] / "training.json").read_text())
             ["step"] for part in ("smoother-2", "weak-3"))  # fmt: skip
    assert list(steps) == [2, 3]


def test_networks_trained_anew_are_sampled_at_the_same_settings(trained, tmp_path, monkeypatch):
    small = {"TRAININGS": (5,), "FINAL": 11, "SEEDS": [0, 1], "GUIDANCES": ("none", "self")}
    for name, value in small.items():
        monkeypatch.setattr(trainings, name, value)
    points = [Sampling(guidance="self", steps=8, scale=2.0), Sampling(steps=16, scale=0.0)]
    sweep(Pipeline.from_pretrained(trained, "cpu"), points, 11, [0],
          tmp_path / f"sweep-{trained.name}.jsonl")  # fmt: skip
    arguments = ["--model", str(trained), "--work", str(tmp_path), "--out", str(tmp_path)]
    assert trainings.main(arguments) == 0
    rows, _ = reported(tmp_path / f"trainings-{trained.name}.jsonl")
    assert sorted(row["settings"]["guidance"] for row in rows) == ["none", "self"]
    folder = tmp_path / "training-5"
    for row in rows:
        point = Sampling(**row["settings"])
        assert point in points and row["seeds"] == 2
        assert row["weights"] == fingerprint(folder, point) != fingerprint(trained, point)
    for part in ("transformer", "smoother", "weak"):
        assert json.loads((folder / part / "training.json").read_text())["seed"] == 5


def test_other_generators_smoothers_and_orders(trained, tmp_path, monkeypatch):
    grid = {"temperature": (2.0, 4.0), "scale": (1.0, 2.0)}
    for name, value in {"TUNING": 10, "LADDERS": grid, "FIRST": grid}.items():
        monkeypatch.setattr(evidence, name, value)
    small = {
        "FINAL": 11, "SEEDS": [0, 1], "GENERATORS": (2,), "ORDERS": ("random",),
        "SMOOTHERS": {"smoother, rate 60": {"rate": 0.6, "steps": 2}},
        "SOFTMAX_TEMPERATURES": (1.0, 0.5)}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(conditions, name, value)
    arguments = ["--model", str(trained), "--work", str(tmp_path / "w"), "--out", str(tmp_path)]
    assert conditions.main(arguments) == 0
    found = {kind: reported(tmp_path / f"{kind}-{trained.name}.jsonl") for kind in conditions.KINDS}
    methods = {kind: {method(row["settings"]) for row in rows} for kind, (rows, _) in found.items()}
    assert methods["generators"] == {"none (generator, 2 steps)", "self (generator, 2 steps)"}
    assert methods["smoothers"] == {"self (smoother, rate 60)"}
    tried = {kind: {row["settings"]["guidance"]: row["tried"] for row in rows}
             for kind, (rows, _) in found.items()}  # fmt: skip
    assert tried["generators"] == {"none": 2, "self": 4} and tried["smoothers"] == {"self": 4}
    rows, tuning = found["orders"]
    assert len(tuning) == 2 + 4 and {row["settings"]["order"] for row in rows} == {"random"}
    for row in rows:  # the softmax temperature of the lowest distance while tuning
        rivals = [r for r in tuning if r["settings"]["guidance"] == row["settings"]["guidance"]]
        best = min(rivals, key=lambda record: record["scores"]["frechet"])
        assert best["settings"] == row["settings"] and best["weights"] == row["weights"]
    report = tmp_path / "w" / "smoother-rate-60" / "smoother" / "training.json"
    assert json.loads(report.read_text())["step"] == 2


def test_a_softmax_temperature_divides_the_logits(trained, tmp_path):
    plain = Pipeline.from_pretrained(trained, "cpu").transformer
    cold = Pipeline.from_pretrained(conditions.cooled(trained, 0.5, tmp_path), "cpu").transformer
    canvas, labels = plain.blank, torch.tensor([1])
    with torch.no_grad():
        warm, cool = (model(canvas, labels).logits for model in (plain, cold))
    torch.testing.assert_close(cool, 2 * warm)
