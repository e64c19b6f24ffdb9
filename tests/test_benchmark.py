import json
import subprocess
import sys

import pytest
import torch

from scripts import benchmark
from sgmgm import fast, pipeline
from sgmgm.course import charts
from sgmgm.settings import Sampling
from sgmgm.utils.errors import InputError


@pytest.fixture(scope="module", params=["as it is", "without bfloat16"])
def record(request):
    """Of this machine, and of one without bfloat16 (what this one lacks it cannot be given)."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "as it is":
            for module in (benchmark, fast, pipeline):
                patch.setattr(module, "has_bf16", lambda device: False)
            patch.setattr(torch, "autocast", Refused)
        return measure()


class Refused(torch.autocast):
    def __init__(self, kind, dtype=None, enabled=True):
        assert not enabled, "bfloat16 in software is many times slower than float32"
        super().__init__(kind, dtype, enabled)


def measure():
    kept = []
    found = benchmark.benchmark("smoke", "cpu", [1, 12], 1, 3, lambda r: kept.append(dict(r)))
    assert kept[0]["speedup"] and "training" not in kept[-2] and kept[-1] == found
    return found


def test_times_are_medians_without_the_first_call(monkeypatch):
    ticks = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))
    calls = []
    found = benchmark.Clock(torch.device("cpu"), 3)(lambda: calls.append(1))
    assert found == {"median": 3.0, "low": 1.0, "high": 5.0} and len(calls) == 4


def test_flops_by_hand():
    """smoke: 2 layers of width 48, 64 tokens, 64 codes; every product counted on paper."""
    pipeline = benchmark.random_pipeline("smoke", "cpu", bf16=True)
    d, n, layers, codes, vocabulary = 48, 64, 2, 64, 64 + 10 + 1
    length = n + 1
    layer = 2 * length * (12 * d * d) + 2 * 2 * length * length * d
    head = 2 * n * (d * d + d * vocabulary)
    chain = 2 * length * d * d  # a product of TOAST, over all positions
    # select, A and B of each layer, and the values' second product; the anchor's one vector
    toast = chain * (1 + 3 * layers) + 2 * d * d
    found = benchmark.decoding_flops(pipeline, Sampling(steps=1, guidance="self"), 1)
    assert found["eager"] == 2 * (layers * layer + head) + toast
    # fast: one product of TOAST a layer; pass 2's first layer has constant queries, keys, values;
    # its last layer and both heads see the n image positions; the last product runs once
    first = layer - 2 * length * 3 * d * d - 2 * length * length * d
    last = layer - 2 * (length - n) * (10 * d * d) - 2 * 2 * (length - n) * length * d
    heads = 2 * n * (2 * d * d + d * codes)
    passes = layers * layer + first + last + chain * layers + 2 * d * d
    assert found["fast"] == passes + heads


def test_only_masked_positions_and_distinct_blank_canvases_cost():
    pipeline = benchmark.random_pipeline("smoke", "cpu", bf16=True)
    counts = {
        (batch, steps): benchmark.decoding_flops(pipeline, Sampling(steps=steps), batch)
        for batch in (10, 20) for steps in (1, 2)
    }  # fmt: skip
    assert counts[20, 1]["eager"] == 2 * counts[10, 1]["eager"]
    assert counts[20, 1]["fast"] == counts[10, 1]["fast"]  # ten classes
    second = [counts[b, 2]["fast"] - counts[b, 1]["fast"] for b in (10, 20)]
    assert second[1] == 2 * second[0] < 2 * counts[10, 1]["fast"]


@pytest.mark.check
def test_a_record_holds_together(record):
    assert record["steps"] == 3 and [row["batch"] for row in record["batches"]] == [1, 12]
    for row in record["batches"]:
        for way in record["ways"]:
            r, kind = row[way], way.split()[1]
            assert r["low"] <= r["images_per_second"] <= r["high"]
            assert r["ms_per_step"] * r["images_per_second"] * 3 == pytest.approx(
                1000 * row["batch"]
            )
            share = r["flops_per_second"] / record["peak_flops_per_second"][kind]
            assert r["share"] == share > 0
        speeds = [row[way]["images_per_second"] for way in record["ways"]]
        assert row["speedup"] == pytest.approx(speeds[1] / speeds[0])
    assert record["speedup"] == record["batches"][-1]["speedup"]
    assert set(record["split_seconds_per_image"]) == {
        "pass 1",
        "pass 2",
        "token choice",
        "tokenizer",
    }
    assert record["training"]["images_per_second"] > 0 and record["peak_memory_bytes"] > 1e7


@pytest.mark.check
def test_without_bfloat16_nothing_is_said_of_it(record):
    able = "fast bf16" in record["ways"]
    assert record["ways"] == ["eager float32", "fast bf16" if able else "fast float32"]
    for text in (json.dumps(record), benchmark.report(record)):
        assert ("bf16" in text) == able


@pytest.mark.check
def test_the_text_and_the_plot_say_what_the_record_says(record):
    text = benchmark.report(record)
    assert f"speedup {record['speedup']:.2f}" in text and "training" in text
    plot = charts.limit(record)
    speed, share = plot.axes
    last = record["batches"][-1][record["ways"][1]]
    assert speed.lines[1].get_ydata()[-1] == last["images_per_second"]
    assert share.lines[1].get_ydata()[-1] == 100 * last["share"]
    assert "limit" in plot.alt and record["ways"][1] in plot.alt


@pytest.mark.check
def test_the_command_prints_a_report_and_keeps_the_record(record, tmp_path, monkeypatch, capsys):
    seen = []

    def pretend(*arguments):
        seen.append(arguments[:-1])
        arguments[-1](record)
        return record

    monkeypatch.setattr(benchmark, "benchmark", pretend)
    out = tmp_path / "new" / "machine.json"
    options = ["--preset", "smoke", "--batch-sizes", "1, 12", "--steps", "3", "--repeats", "2",
               "--device", "cpu", "--out", str(out)]  # fmt: skip
    assert benchmark.main(options) == 0
    assert seen == [("smoke", "cpu", [1, 12], 2, 3)]
    assert capsys.readouterr().out == benchmark.report(record) + "\n"
    assert json.loads(out.read_text())["speedup"] == record["speedup"]
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_the_package_can_be_imported_where_there_is_no_resource_module():
    others = "import sys, sgmgm.pipeline"  # transformers wants it where it believes in Linux
    ours = "scripts.benchmark, sgmgm.commands.cli"
    code = f"{others}; sys.modules['resource'] = None; import {ours}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_papers_size_is_the_papers():
    c, tokens, sampling = benchmark.sizes_of("imagenet256")
    assert (c.num_hidden_layers, c.hidden_size, c.num_vq_tokens) == (24, 768, 256)
    assert tokens.num_tokens == 256 and sampling.steps == 18


@pytest.mark.parametrize(
    "arguments, fragment",
    [
        (("huge", "cpu", [1]), "unknown size 'huge'"),
        (("smoke", "cpu", [0]), "batch size must be a whole number of at least 1"),
        (("smoke", "cpu", [1], 0), "repeats must be a whole number of at least 1"),
        (("smoke", "cpu", [1], 1, 0), "steps must be a whole number of at least 1"),
    ],
)
def test_bad_input(arguments, fragment, monkeypatch):
    monkeypatch.setattr(benchmark, "matrix_peak", lambda clock: {"float32": 1e9, "bf16": 1e9})
    with pytest.raises(InputError, match=fragment):
        benchmark.benchmark(*arguments)


@pytest.mark.parametrize("out, fragment", [("x.png", "end it in .json"), ("/", "cannot write")])
def test_a_place_that_cannot_be_written_is_one_sentence(out, fragment, capsys):
    assert benchmark.main(["--preset", "smoke", "--device", "cpu", "--out", out]) == 2
    assert fragment in capsys.readouterr().err
