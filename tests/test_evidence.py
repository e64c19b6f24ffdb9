"""The queue of the evidence: the same grid for all, no optimum at an edge, and a clock."""

import json

import pytest

from scripts import evidence
from sgmgm.evidence.sweep import TUNING_SEED


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


def test_a_stopped_queue_goes_on(trained, tmp_path, monkeypatch, capsys):
    small = {"FIRST": {"temperature": (2.0, 4.0), "scale": (0.5, 1.0)}, "TUNING": 10, "FINAL": 11,
             "MANY": 12, "METHODS": (("none", None), ("self", None)), "LARGE": ("none",),
             "TEMPERATURES": (2.0, 4.0), "SCALES": (0.5, 1.0)}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(evidence, name, value)
    monkeypatch.setattr(evidence, "LADDERS", {"temperature": (2.0, 4.0), "scale": (0.5, 1.0)})
    monkeypatch.setattr(evidence, "FIGURE", (str(trained), (2.0,)))
    arguments = ["--models", str(trained), "--out", str(tmp_path)]
    assert evidence.main([*arguments, "--minutes", "0"]) == 0
    assert "goes on from here" in capsys.readouterr().out and not list(tmp_path.iterdir())
    assert evidence.main(arguments) == 0
    lines = {p.name: p.read_text().splitlines() for p in sorted(tmp_path.iterdir())}
    assert [len(found) for found in lines.values()] == [3, 2 + 3 + 4 + 3, 2]
    assert {json.loads(line)["num"] for line in lines[f"large-{trained.name}.jsonl"]} == {12}
    assert evidence.main(arguments) == 0  # all is there
    assert {p.name: p.read_text().splitlines() for p in sorted(tmp_path.iterdir())} == lines
