"""Checks of the exercises of lessons 06 to 08: speed, scores, claims."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...metrics import GaussianStats, frechet_distance, precision_recall
from ..done import passed
from .checks import asked, number, random, returned, same, tensor, unlike, want


# fmt: off
# --- 06 What guidance costs --------------------------------------------------------------------
def passes(function: Callable[[str, int], int]) -> None:
    """(guidance, T) -> network passes for one image."""
    rules = {
        "none": (1, "one prediction a step"),
        "spatial": (1, "blurring logits needs no second prediction"),
        "cfg": (2, "with and without the class; one batch of 2 B is still two passes an image"),
        "self": (2, "the generator's and the smoother's"),
        "self+cfg": (3, "plain, without the class, and smoothed"),
    }
    for guidance, (each, why) in rules.items():
        for steps in (1, 12):
            found = number(function(guidance, steps), "passes")
            want(found == each * steps,
                  f"{guidance} with T = {steps} takes {each * steps} passes, not {found:g}: {why}.")
    passed("passes")


def last_layer_flops(function: Callable[[int, int, int, int], float]) -> None:
    """(L, M, D, F) -> FLOP of a layer of width D that is asked for M of its L tokens."""
    for length, wanted, width, wide in ((65, 40, 192, 768), (257, 100, 768, 3072)):
        square, pairs = width * width, wanted * length * width
        every, some = 2 * square, 2 * square + 2 * width * wide  # a token's matrices
        right = 2 * (length * every + wanted * some + 2 * pairs)
        all_tokens = 2 * length * (every + some + 2 * length * width)
        few_keys = 2 * (wanted * (every + some) + 2 * pairs)
        few_pairs = right - 4 * wanted * (length - wanted) * width
        found = number(function(length, wanted, width, wide), "last_layer_flops")
        unlike(found, {
            "a multiplication and an addition are two operations": right / 2,
            "attention has products without weights, too": right - 4 * pairs,
            "scores and weighted sum are two products, and each multiplies and adds":
                right - 2 * pairs,
            "that is the layer for all its tokens": all_tokens,
            "the M tokens look at all L, which need keys and values": few_keys,
            "each of the M tokens is compared with all L": few_pairs,
        }, f"you get {found / right:.2f} x the number: ", 1e-9)
        want(same(found, right, 1e-9), f"with L = {length}, M = {wanted}, D = {width}, "
              f"F = {wide} these are {right:,} FLOP, not {found:,.0f}.")
    passed("last_layer_flops")


class Device:
    """A pretended device with a queue, and a clock: calls return at once, work takes its time."""

    def __init__(self, times: list[float], first: float):
        self.times, self.first = times, first
        self.calls, self.now, self.free = 0, 0.0, 40.0  # somebody else's work is in the queue

    def work(self) -> None:
        span = self.times[(self.calls - 1) % len(self.times)] if self.calls else self.first
        self.calls, self.now = self.calls + 1, self.now + 0.001
        self.free = max(self.free, self.now) + span

    def wait(self) -> None:
        self.now = max(self.now, self.free)

    def clock(self) -> float:
        return self.now


def median_time(function: Callable) -> None:
    """(work, wait, clock, repeats) -> the median time of a call of work, in seconds."""
    # the third and the fourth of each five calls are disturbed by another program
    for times in ([1.0, 1.2, 9.0, 8.0, 1.1], [2.0, 2.3, 2.1]):
        device = Device(times, 30.0)
        found = number(function(device.work, device.wait, device.clock, len(times)), "median_time")
        calls, ordered = device.calls, sorted(times)
        want(calls > len(times), f"work was called {calls} times, with repeats = {len(times)}: the "
              "first call is slow and must not count, so call work once more before you measure.")
        right = ordered[len(times) // 2] + 0.001
        unlike(found, {
            "that is the time to put one call into the queue: wait before you read the clock":
                0.001,
            "your first time contains what was in the queue before: wait before you begin":
                sorted([99.0, *times[1:]])[len(times) // 2] + 0.001,
            "that is the mean, which two disturbed calls pull up; take the median":
                sum(times) / len(times) + 0.001,
            "that is the fastest call; take the median": ordered[0] + 0.001,
            "that is the slowest call; take the median": ordered[-1] + 0.001,
            "that is the time of all calls together": sum(times) + 0.001 * len(times),
        }, f"you get {found:.3f} s: ", 1e-5)
        want(same(found, right, 1e-5), f"the median call takes {right:.3f} s, you get {found:.3f}. "
              "Measure each call alone: wait, clock, work, wait, clock.")
    passed("median_time")


class Machine(Device):
    """A device with two kinds of work, on a machine that becomes half as fast after 9 calls."""

    def __init__(self):
        super().__init__([], 0.0)
        self.order: list[str] = []

    def run(self, kind: str) -> None:
        span = {"old": 3.0, "new": 2.0}[kind] * (1 if len(self.order) < 9 else 2)
        span = span if kind in self.order else 30.0
        self.order.append(kind)
        self.now += 0.001
        self.free = max(self.free, self.now) + span * (6 if len(self.order) == 13 else 1)


def speedup(function: Callable) -> None:
    """(old, new, wait, clock, repeats) -> how many times as fast new is."""
    machine = Machine()
    found = number(function(lambda: machine.run("old"), lambda: machine.run("new"), machine.wait,
                            machine.clock, 7), "speedup")
    counts = [machine.order.count(kind) for kind in ("old", "new")]
    want(min(counts) > 7, f"with repeats = 7 old ran {counts[0]} times and new {counts[1]} times: "
          "each needs a call more that does not count.")
    unlike(found, {
        "both times are those of the queue: wait before you read the clock": 1.0,
        "that is new / old; twice as fast is half the time, so it is old / new": 2 / 3,
    }, f"you get {found:.2f}: ", 0.005)
    turns = sum(a != b for a, b in zip(machine.order, machine.order[1:], strict=False))
    want(turns >= 7, f"you get {found:.2f}, because the machine became slower halfway, and you "
          "measure one kind after the other: let old and new take turns.")
    want(same(found, 1.5, 0.005), f"new is 1.50 times as fast; you get {found:.2f}. One call was "
          "disturbed: take the median of the ratios, pair by pair.")
    passed("speedup")


# --- 07 Evaluation -----------------------------------------------------------------------------
def frechet_1d(function: Callable[[Tensor, Tensor], float]) -> None:
    """(x (N,), y (M,)) -> the Fréchet distance of two samples of numbers."""
    x, y = 4 * random(500).double(), 3 + random(400, seed=1).double()
    mean, spread = (x.mean() - y.mean()) ** 2, (x.std() - y.std()) ** 2
    found = number(function(x, y), "frechet_1d")
    unlike(found, {
        "the difference of the means has to be squared": mean.sqrt() + spread,
        "the difference of the standard deviations has to be squared": mean + spread.sqrt(),
        "compare standard deviations, not variances": mean + (x.var() - y.var()) ** 2,
        "only the means are compared": mean,
        "the distance is the square, without a root": (mean + spread).sqrt(),
    }, f"you get {found:.2f}: ")
    wanted = float(mean + spread)
    want(same(found, wanted, 0.003), f"the distance is {wanted:.2f}, yours is {found:.2f}.")
    passed("frechet_1d")


def extrapolate(function: Callable[[list, list, float], float]) -> None:
    """(counts N, distances, another count) -> the distance to expect there, linear in 1 / N."""
    counts = [100, 200, 400, 800]
    for limit, slope in ((2.0, 50.0), (0.0, 30.0)):
        given = [limit + slope / n for n in counts]
        for other in (math.inf, 50.0, 50_000.0):
            found = number(function(counts, given, other), "extrapolate")
            want(abs(found - slope) > 1e-3, f"{found:.2f} is the slope of the line over 1 / N.")
            right = limit + slope / other
            want(other == math.inf or abs(found - limit) > 1e-4, f"{found:.2f} is the limit for "
                  f"infinitely many images; asked for is the distance of {other:g}.")
            want(abs(found - right) < 1e-4, f"the distances are exactly {limit:g} + {slope:g} / N, "
                  f"so {other:g} images give {right:.3f}; you get {found:.3f}. Is the line fitted "
                  "over 1 / N?")
    found = number(function([100, 250, 400, 1000], [1.0, 0.1, 0.2, -0.2], math.inf), "extrapolate")
    want(abs(found + 0.277) < 1e-3, "the best line through four points that are on no line (least "
          f"squares) ends at -0.277, yours at {found:.3f}. Use all points, and let it end below 0.")
    passed("extrapolate")


def coverage(function: Callable[[Tensor, Tensor, int], float]) -> None:
    """(real (N, D), fake (M, D), k) -> the share of balls around reals that hold a fake."""
    real, fake = random(200, 2).double(), 0.5 * random(150, 2, seed=1).double()  # fakes alike
    right = {k: precision_recall(real, fake, k) for k in (2, 3, 4)}
    low, wanted, high = (right[k]["coverage"] for k in (2, 3, 4))
    found = number(function(real, fake, 3), "coverage")
    unlike(found, {
        "that is precision, the share of fakes; count the balls": right[3]["precision"],
        "that is recall; the balls belong around the reals": right[3]["recall"],
        "your balls reach to neighbour k - 1; the nearest row is the row itself": low,
        "your balls reach to neighbour k + 1": high,
    }, f"you get {found:.3f}: ", 1e-6)
    want(same(found, wanted, 1e-6), f"coverage is {wanted:.3f} here, you get {found:.3f}.")
    found = number(function(real, fake, 2), "coverage")
    want(same(found, low, 1e-6), "with k = 2 it is wrong: use k.")
    passed("coverage")


def distance(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of feature rows."""
    return frechet_distance(*(GaussianStats().update(rows) for rows in (x, y)))


RANGES = {"[0, 1]": (1, 0), "[-1, 1]": (2, -1), "[-0.5, 0.5]": (1, -0.5), "[0, 255]": (255, 0)}


def to_unit(function: Callable[[Tensor], Tensor]) -> None:
    """images (B, 3, H, W) in one of four ranges -> the same images in [0, 1]."""
    real = 0.03 + 0.94 * torch.sigmoid(2 * random(200, 3, 2, 2)).double()
    for name, (width, low) in RANGES.items():
        found = tensor(asked(function, real * width + low), real, "to_unit")
        d = distance(found.flatten(1), real.flatten(1))
        yours = f"images in {name} come back in [{found.min():.2f}, {found.max():.2f}]"
        costs = f" (Fréchet distance to themselves: {d:.2f})"
        stretched = (real - real.min()) / (real.max() - real.min())
        own = [(x - x.min()) / (x.max() - x.min()) for x in real]
        mistakes = {
            "that is the stretch of the batch by its own minimum and maximum; the range is given "
            "by the format, not by the brightest pixel": stretched,
            "you stretch each image by its own minimum and maximum": torch.stack(own),
            "you clamp; the values have to be mapped": (real * width + low).clamp(0, 1),
        }
        mistakes |= {} if name == "[-1, 1]" else {
            "you take them for images in [-1, 1]": (real * width + low + 1) / 2}
        unlike(found, {} if same(found, real) else mistakes, f"{yours}{costs}: ")
        want(same(found, real), f"{yours}, where they were in [{real.min():.2f}, "
              f"{real.max():.2f}]{costs}.")
    passed("to_unit")


def same_classes(function: Callable) -> None:
    """(labels of reals (N,), of fakes (M,)) -> which rows to compare, bool (N,) and bool (M,)."""
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    real_labels = (torch.arange(300) % 3)[order]  # 100 of each class, shuffled
    fake_labels = torch.arange(3).repeat_interleave(torch.tensor([120, 60, 20]))  # by class
    centres = 3 * random(3, 2, seed=1).double()
    real = centres[real_labels] + random(300, 2, seed=2)
    fake = centres[fake_labels] + random(200, 2, seed=3)
    answer = function(real_labels.clone(), fake_labels.clone())
    returned(answer, "same_classes")
    want(isinstance(answer, tuple) and len(answer) == 2,
          "same_classes returns two things, the rows of the reals and those of the fakes.")
    kept = [tensor(each, labels >= 0, "same_classes")
            for each, labels in zip(answer, (real_labels, fake_labels), strict=True)]
    counts = [labels[rows].bincount(minlength=3).tolist()
              for rows, labels in zip(kept, (real_labels, fake_labels), strict=True)]
    wanted = [100, 60, 20]
    said = f"the classes occur {counts[0]} times among the reals and {counts[1]} times among the "
    said += "fakes"
    enough = min(map(sum, counts)) > 5
    d = distance(real[kept[0]], fake[kept[1]]) if enough else math.nan
    best = wanted_rows(real_labels, wanted), wanted_rows(fake_labels, wanted)
    least = distance(real[best[0]], fake[best[1]])
    cost = f" (Fréchet distance {d:.2f}, where the same classes give {least:.2f})"
    want(enough, f"{said}: that is too few to compare.")
    want(counts[0] == counts[1], f"{said}{cost}: each class must occur equally often in both.")
    want(counts[0] == wanted, f"{said}: right, but more could be kept, {wanted}.")
    passed("same_classes")


def wanted_rows(labels: Tensor, counts: list[int]) -> Tensor:
    """The first `counts[c]` rows of each class c, bool (N,)."""
    seen = (labels[:, None] == torch.arange(len(counts))).cumsum(0)  # (N, C)
    return seen.gather(1, labels[:, None])[:, 0] <= torch.tensor(counts)[labels]


# --- 08 Capstone -------------------------------------------------------------------------------
def honest(function: Callable[[dict, int], float]) -> None:
    """({setting: {seed: distance}}, tuning seed) -> what may be reported of the best setting."""
    table = {
        "tau 2": {0: 4.1, 1: 5.4, 3: 6.1, 9: 3.0},
        "tau 4": {0: 3.2, 1: 3.7, 3: 3.3, 9: 3.1},
        "tau 8": {0: 6.3, 1: 2.0, 3: 7.1, 9: 8.2},
    }
    wanted = {9: 5.2, 0: 10.1 / 3, 1: 7.2}
    copy = {name: dict(row) for name, row in table.items()}
    for tuning, value in wanted.items():
        found = number(function(table, tuning), "honest")
        want(table == copy, "it changes the table that it was given.")
        best = min(table, key=lambda name: table[name][tuning])
        chosen = table[best]
        rest = min(sum(v for s, v in row.items() if s != tuning) / 3 for row in table.values())
        chance = {"choosing by the seeds that you report rewards chance: use the tuning seed": rest}
        unlike(found, {} if same(value, rest) else chance)
        unlike(found, {
            "your mean contains the tuning seed, which chose the setting and is too good: leave it "
            "out": sum(chosen.values()) / 4,
            "that is the distance on the tuning seed itself: report the others": chosen[tuning],
        })
        want(same(found, value), f"tuned on seed {tuning}, {best!r} is best, and its other "
              f"seeds give {value:.3g}; you get {found:g}.")
    passed("honest")


def verdict(function: Callable[[list, list], str]) -> None:
    """(distances of A, distances of B), one for each seed -> "A", "B" or "tie"."""
    cases = [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], "A"),
        ([5.0, 5.2, 4.8], [3.0, 3.2, 2.8], "B"),
        ([1.0, 1.4, 0.6], [1.2, 1.6, 0.8], "tie"),
        ([2.0, 2.0, 2.0], [2.0, 2.0, 2.0], "tie"),
        ([1.0, 3.0, 2.0], [2.9, 3.1, 3.0], "tie"),
        ([1.0, 1.0, 1.9], [1.8, 1.8, 1.8], "tie"),  # no medians, no ranges
        ([1.0, 1.0, 1.9], [1.8, 3.0, 3.0], "A"),  # one stray seed decides nothing
        ([1.0, 3.0, 2.0], [3.1, 3.1, 4.0], "tie"),  # nor does the gap between the nearest two
    ]
    returned(function([1.0, 1.1], [2.0, 2.1]), "verdict")
    for a, b, wanted in cases:
        found, case = function(list(a), list(b)), f"A = {a}, B = {b}"
        want(found in ("A", "B", "tie"),
              f"for {case} the answer is 'A', 'B' or 'tie', not {found!r}.")
        want(wanted == "tie" or found in (wanted, "tie"),
              f"{case}: a small distance is a good one, so {wanted} wins.")
        want(wanted != "tie" or found == "tie", f"{case} is a tie: mean +- standard deviation "
              "(n - 1) of the two overlap or touch.")
        want(found == wanted, f"{case}: their spreads do not overlap, so {wanted} wins.")
    passed("verdict")


def claim(function: Callable) -> None:
    """(rows, ours, rival, nfe) -> ("wins", "loses" or "ties", gain in %) at equal passes."""
    def rows(method: str, steps: int, each: int, table: dict) -> list[dict]:
        """One row for each temperature and seed; `each` network passes a step."""
        return [{"method": method, "steps": steps, "nfe": steps * each, "tau": tau, "seed": seed,
                 "frechet": value}
                for tau, values in table.items() for seed, value in enumerate(values)]

    ours = {2: [2.0, 1.0, 1.2, 1.1], 4: [0.9, 1.6, 1.8, 1.7]}  # seed 0 tunes and chooses tau 4
    records = rows("self", 8, 2, ours) + rows("self", 16, 2, {4: [0.3, 0.4, 0.5, 0.6]})
    records += rows("none", 16, 1, {4: [1.2, 1.2, 1.4, 1.3], 8: [1.5, 2.5, 2.6, 2.7]})
    records += rows("none", 8, 1, {4: [0.8, 2.9, 3.0, 3.1]})
    records += rows("blurred", 16, 1, {2: [1.9, 1.9, 2.4, 2.3]})
    records += rows("cfg", 8, 2, {2: [3.0, 0.2, 0.2, 0.2], 4: [1.0, 2.8, 2.2, 2.5]})
    means = {"self": 1.7, "none": 1.3, "blurred": 2.2, "cfg": 2.5}
    cases = [("self", "none", "loses"), ("self", "blurred", "wins"), ("cfg", "blurred", "ties")]
    for name, rival, wanted in cases:
        answer = function([dict(row) for row in records], name, rival, 16)
        returned(answer, "claim")
        want(isinstance(answer, tuple) and len(answer) == 2,
              "claim returns two things, a verdict and a gain in per cent.")
        found, case = number(answer[1], "claim"), f"{name} against {rival} with 16 passes"
        a, b = means[name], means[rival]
        unlike(found, {} if name != "self" else {
            "you compare at 16 steps each; self takes two passes a step": 100 * (0.5 / b - 1),
            "you chose ours by the seeds that are reported; choose by seed 0": 100 * (1.1 / b - 1),
            "your means contain seed 0, which chose the setting": 100 * (
                {"none": 1.5 / 1.275, "blurred": 1.5 / 2.125}[rival] - 1),
            "you compare the tuning seeds; report the others": 100 * (
                0.9 / {"none": 1.2, "blurred": 1.9}[rival] - 1),
            "a lower distance is an improvement: its gain is negative": -100 * (a / b - 1),
            "divide by the rival's distance, not by ours": 100 * (1 - b / a),
            "that is a share; a gain in per cent is 100 times as large": a / b - 1,
        }, f"{case}: gain {found:.1f} %: ")
        want(same(found, 100 * (a / b - 1)), f"{case}: seed 0 chooses {a:g} against {b:g}, a gain "
              f"of {100 * (a / b - 1):.1f} %; you get {found:.1f} %.")
        want(answer[0] == wanted, f"{case}: {name} {wanted} with {a:g} against {b:g}, by mean +- "
              f"standard deviation; you say {answer[0]!r}.")
    passed("claim")


def border(function: Callable[[int, int], Tensor]) -> None:
    """(side, width) -> which cells an out-painting masks, bool (side * side,)."""
    for side, width in ((4, 1), (8, 2), (8, 3)):
        wanted = torch.ones(side, side, dtype=torch.bool)
        wanted[width : side - width, width : side - width] = False
        wanted = wanted.flatten()
        masked = tensor(function(side, width), wanted, "border")
        unlike(masked, {"that is in-painting: the middle must stay visible": ~wanted})
        count, right = int(masked.sum()), int(wanted.sum())
        other = ", but other ones" if count == right else ""
        want(torch.equal(masked, wanted), f"a border of {width} on a side of {side} masks {right} "
              f"cells, all around the middle; yours masks {count}{other}.")
    passed("border")
