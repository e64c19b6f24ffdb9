"""Benchmark: how fast this machine samples and trains, and how close that is to its limit.

Run `python -m scripts.benchmark --preset laptop`; `--out FILE.json` keeps the record, and a plot.
The limit is measured, not looked up: the fastest large matrix product in float32 and in bfloat16.
On a processor without bfloat16 everything is computed, and measured, in float32.
Every time is the median of repeats after one call that does not count. Weights are random, because
speed does not depend on them. FLOP count the matrix products that really run.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sgmgm import fast, presets
from sgmgm.course.charts import limit
from sgmgm.guidance import make_guidance
from sgmgm.pipeline import Card, Pipeline
from sgmgm.sampling import mask_counts
from sgmgm.settings import Sampling
from sgmgm.smoothing import ToastSmoother
from sgmgm.tasks import TransformerTask
from sgmgm.tokenizer import TokenizerConfig, VQTokenizer
from sgmgm.training import parameter_groups
from sgmgm.transformer import MaskedTransformer, TransformerConfig
from sgmgm.utils.devices import (
    check_device,
    default_device,
    describe_device,
    has_bf16,
    peak_memory,
)
from sgmgm.utils.errors import InputError, check_choice, check_count
from sgmgm.utils.files import check_writable, write_bytes, write_json

from . import exit_code

SIZES = (*presets.PRESETS, "imagenet256")


def sizes_of(size: str) -> tuple[TransformerConfig, TokenizerConfig, Sampling]:
    """The sizes of a preset, or the paper's for 256 x 256 images of ImageNet."""
    if check_choice("size", size, SIZES) == "imagenet256":
        return TransformerConfig(), TokenizerConfig(), Sampling(steps=18)
    plan = presets.get("any", size, 10)
    return plan.transformer, plan.tokenizer, plan.sampling


def random_pipeline(size: str, device: str, bf16: bool = False) -> Pipeline:
    """A pipeline of these sizes, with random weights and a TOAST smoother."""
    sizes, tokens, sampling = sizes_of(size)
    torch.manual_seed(0)
    model = MaskedTransformer(sizes)
    card = Card("random", size, [str(i) for i in range(sizes.num_classes)], sampling)
    pipeline = Pipeline(card, VQTokenizer(tokens), model, None, device, bf16)
    pipeline.guidance_parts["smoother"] = ToastSmoother.for_transformer(model).eval().to(device)
    return pipeline


class Clock:
    """Times work on one device."""

    def __init__(self, device: torch.device, repeats: int):
        self.device, self.repeats = device, check_count("repeats", repeats)

    def wait(self) -> None:
        """Return when the device has finished all its work."""
        if self.device.type in ("cuda", "mps"):
            getattr(torch, self.device.type).synchronize()

    def __call__(self, work: Callable[..., object]) -> dict[str, float]:
        """{"median", "low", "high"} seconds of `work()`, after one call that does not count."""
        work()
        times = []
        for _ in range(self.repeats):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - begun)
        return {"median": statistics.median(times), "low": min(times), "high": max(times)}


def matrix_peak(clock: Clock) -> dict[str, float]:
    """FLOP/s of the fastest large matrix product, by precision that the device has."""
    peak, cuda = {}, clock.device.type == "cuda"
    precisions = {"float32": torch.float32}
    if has_bf16(clock.device.type):
        precisions["bf16"] = torch.bfloat16
    many = 100 if cuda else 1  # one is a burst that no GPU keeps up within its power limit
    for name, dtype in precisions.items():
        speeds = []
        for n in (4096, 8192) if cuda else (1024, 2048):
            matrix = torch.rand(n, n, device=clock.device).to(dtype)

            def products(matrix=matrix):
                for _ in range(many):  # each result is freed: memory holds two, not a hundred
                    matrix @ matrix

            speeds.append(many * 2 * n**3 / clock(products)["low"])
        peak[name] = max(speeds)
    return peak


def flops(work: Callable[..., object]) -> int:
    """FLOP of the matrix products and convolutions of `work()`, on tensors without data."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


def decoding_flops(pipeline: Pipeline, settings: Sampling, batch: int) -> dict[str, int]:
    """FLOP of decoding a batch from blank canvases, by the eager and by the fast path."""
    model = deepcopy(pipeline.transformer).to("meta")
    smoother = deepcopy(pipeline.guidance_part("smoother")).to("meta")
    guidance = make_guidance("self", model, settings.scale, smoother=smoother)
    quick = fast.FastGuidance(guidance, torch.bfloat16)
    n, classes = model.config.num_vq_tokens, model.config.num_classes
    per_class = pipeline.device.type == "cpu"  # there the first step runs once for each class
    canvas = model.blank.expand(batch, -1)
    labels = torch.zeros(batch, dtype=torch.int64, device="meta")
    masked = mask_counts(n, settings.steps, settings.schedule)[:, n].tolist()
    total = 0
    for step, width in enumerate([n, *masked[:-1]]):
        rows = min(batch, classes) if step == 0 and per_class else batch
        at = torch.zeros(rows, width, dtype=torch.int64, device="meta")
        total += flops(lambda r=rows, at=at: quick(canvas[:r], labels[:r], at))
    eager = settings.steps * flops(lambda: guidance(canvas, labels))
    return {"eager": eager, "fast": total}


def rates(batch: int, seconds: float, flop: int, peak: float) -> dict[str, float]:
    """How fast a batch was computed, and how close that is to the peak in FLOP/s."""
    speed = flop / seconds
    found = {"images_per_second": batch / seconds, "flops_per_second": speed}
    return found | {"share": speed / peak}


def sampling_row(variants: dict, settings: Sampling, batch: int, clock: Clock, peak: dict) -> dict:
    """One row of the table: whole guided images, eager float32 next to the fast path."""
    _, quick = variants.values()
    labels = [i % len(quick.card.classes) for i in range(batch)]
    work = decoding_flops(quick, settings, batch)
    c = quick.tokenizer.config
    states = torch.empty(batch, c.z_channels, c.grid, c.grid, device="meta")
    decoder = deepcopy(quick.tokenizer.decoder).to("meta")
    to_pixels = flops(lambda: decoder(states))
    row: dict[str, Any] = {"batch": batch}
    for name, pipeline in variants.items():
        took = clock(lambda p=pipeline: p(labels, **vars(settings)))
        path, precision = name.split()
        row[name] = rates(batch, took["median"], work[path] + to_pixels, peak[precision])
        row[name] |= {"low": batch / took["high"], "high": batch / took["low"]}
        row[name]["ms_per_step"] = 1000 * took["median"] / settings.steps
    eager, fast = (row[name]["images_per_second"] for name in variants)
    return row | {"speedup": fast / eager}


class CachedLogits(fast.FastGuidance):
    """The same logits at every step: decoding without the network."""

    def __init__(self, like: fast.FastGuidance, logits: Tensor):
        vars(self).update(vars(like), graphs={})
        self.logits = logits

    def __call__(self, canvas: Tensor, labels: Tensor, at: Tensor) -> Tensor:
        return self.logits[:, : at.shape[1]]


def split(pipeline: Pipeline, settings: Sampling, batch: int, clock: Clock) -> dict[str, float]:
    """Seconds per image of each part of a fast guided batch, measured by leaving parts out."""
    classes, config = len(pipeline.card.classes), pipeline.transformer.config
    labels = (torch.arange(batch) % classes).to(pipeline.device)
    canvas = pipeline.first_canvas(None, batch)
    logits = torch.zeros(batch, config.num_vq_tokens, config.codebook_size, device=canvas.device)
    rest = labels, canvas, settings.steps, settings.schedule, settings.temperature
    both = settings, settings.updated(guidance="none")
    guided, plain = (pipeline.fast_guidance(each, pipeline.guidance(each)) for each in both)
    guidances = guided, plain, CachedLogits(plain, logits)  # two, one and no passes a step
    two, one, none = (clock(lambda g=g: fast.decode(g, *rest))["median"] for g in guidances)
    tokens = torch.zeros_like(canvas)
    with torch.autocast(canvas.device.type, torch.bfloat16, enabled=pipeline.bf16):
        pixels = clock(lambda: pipeline.tokenizer.decode(tokens))["median"]
    parts = {"pass 1": one - none, "pass 2": two - one, "token choice": none, "tokenizer": pixels}
    return {name: seconds / batch for name, seconds in parts.items()}


def training(pipeline: Pipeline, batch: int, clock: Clock, peak: dict[str, float]) -> dict:
    """Throughput of the generator's training, in bfloat16 where the device has it."""
    model = deepcopy(pipeline.transformer).train()
    c = model.config
    tokens = torch.randint(c.codebook_size, (1, batch, c.num_vq_tokens))
    task = TransformerTask(model, tokens, torch.arange(batch) % c.num_classes)
    task.to(clock.device)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), 1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step():
        with torch.autocast(clock.device.type, torch.bfloat16, enabled=pipeline.bf16):
            loss = task.losses(model, torch.arange(batch), slice(None), generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    took = clock(step)["median"]
    bare = deepcopy(pipeline.transformer).to("meta")
    hidden = torch.empty(batch, c.num_vq_tokens + 1, c.hidden_size, device="meta")
    masked = round(2 / math.pi * c.num_vq_tokens)  # the cosine's mean
    head = flops(lambda: bare.mlm_layer(hidden[:, :masked]))
    forward = head + flops(lambda: bare.hidden_states(hidden))
    limit = peak["bf16" if pipeline.bf16 else "float32"]
    return {"batch": batch} | rates(batch, took, 3 * forward, limit)  # backward is twice forward


def benchmark(
    size: str, device: str, batches: list[int], repeats: int = 5, steps: int | None = None,
    keep: Callable[[dict], object] = lambda record: None,
) -> dict:  # fmt: skip
    """All measurements of this module for one of `SIZES`, as a record that JSON can hold.

    Each batch size is a row of the table; the largest is measured part by part. `keep` is called
    with the record so far after every part, because a large model takes a while.
    """
    batches = sorted(check_count("batch size", batch) for batch in batches)
    clock = Clock(check_device(device), repeats)
    eager = random_pipeline(size, device)
    tokenizer = deepcopy(eager.tokenizer)  # the fast pipeline changes its own
    quick = Pipeline(eager.card, tokenizer, eager.transformer, None, device, bf16=True)
    quick.guidance_parts = eager.guidance_parts
    settings = eager.card.sampling.updated(guidance="self", steps=steps)
    peak = matrix_peak(clock)
    variants = {"eager float32": eager, f"fast {'bf16' if quick.bf16 else 'float32'}": quick}
    record: dict[str, Any] = {
        "size": size, "device": describe_device(clock.device), "torch": torch.__version__,
        "steps": settings.steps, "repeats": repeats,
        "ways": list(variants),  # what records of earlier versions call it
        "speedup": None, "peak_flops_per_second": peak, "batches": [],
    }  # fmt: skip
    with torch.no_grad():
        for batch in batches:
            record["batches"].append(sampling_row(variants, settings, batch, clock, peak))
            record["speedup"] = record["batches"][-1]["speedup"]
            keep(record)
        record["split_seconds_per_image"] = split(quick, settings, batches[-1], clock)
        record["peak_memory_bytes"] = peak_memory(clock.device)
        keep(record)
    record["training"] = training(quick, batches[-1], clock, peak)
    keep(record)
    return record


def report(record: dict) -> str:
    """A record of `benchmark` as text."""
    peak = record["peak_flops_per_second"]
    lines = [
        f"{record['size']} on {record['device']}: {record['steps']} steps, self-guided (two "
        f"passes a step), tokenizer included; medians of {record['repeats']}",
        "matrix products at most: "
        + ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in peak.items()),
        f"{'batch':>5}  {'path':<13} {'images/s':>9} {'(spread)':>17} {'ms/step':>9} "
        f"{'GFLOP/s':>9} {'of limit':>8}",
    ]
    for row in record["batches"]:
        for name in record["ways"]:
            r = row[name]
            spread = f"({r['low']:.2f}-{r['high']:.2f})"
            lines.append(
                f"{row['batch']:>5}  {name:<13} {r['images_per_second']:>9.2f} {spread:>17} "
                f"{r['ms_per_step']:>9.2f} {r['flops_per_second'] / 1e9:>9,.0f} {r['share']:>8.0%}"
            )
        lines.append(f"{row['batch']:>5}  speedup {row['speedup']:.2f}")
    parts = record["split_seconds_per_image"]
    t = record["training"]
    lines += [
        "fast, ms an image: " + ", ".join(f"{k} {1000 * v:.2f}" for k, v in parts.items()),
        f"training, batch {t['batch']}: {t['images_per_second']:.1f} images/s, "
        f"{t['share']:.0%} of the limit",
        f"peak memory: {record['peak_memory_bytes'] / 2**20:,.0f} MiB",
    ]
    return "\n".join(lines)


def whole_numbers(text: str) -> list[int]:
    """Whole numbers, separated by commas."""
    return [int(word) for word in text.split(",")]


def run(args) -> None:
    """Measure, print the report, and keep record and plot where `--out` says."""
    keep = (lambda record: write_json(args.out, record)) if args.out else (lambda record: None)
    if args.out:
        if args.out.suffix.lower() == ".png":
            raise InputError(f"--out {args.out}: the plot goes there; end it in .json.")
        check_writable(args.out)
    what = args.preset, args.device or default_device(), args.batch_sizes, args.repeats, args.steps
    record = benchmark(*what, keep)
    if args.out:
        write_bytes(args.out.with_suffix(".png"), limit(record).png())
    print(report(record))


def main(arguments=None) -> int:
    """`python -m scripts.benchmark`; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="laptop", choices=SIZES,
                        help="sizes of the networks, whose weights are random")  # fmt: skip
    parser.add_argument("--batch-sizes", type=whole_numbers, default="1,8,64",
                        help="images at once, a list")  # fmt: skip
    parser.add_argument("--steps", type=int, help="decoding steps; the preset's if not given")
    parser.add_argument("--repeats", type=int, default=5, help="timings; the median is reported")
    parser.add_argument("--device", help="cpu, cuda or mps; the best there is if not given")
    parser.add_argument("--out", type=Path, help="a .json file to write, and a plot beside it")
    args = parser.parse_args(arguments)
    return exit_code(run, args)


if __name__ == "__main__":
    sys.exit(main())
