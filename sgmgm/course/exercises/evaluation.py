"""Checks of the exercises of lessons 06 to 08: speed, scores, claims."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...metrics import precision_recall
from ..done import passed
from .checks import number, random, returned, same, tensor, unlike, want


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


def extrapolate(function: Callable[[list, list], float]) -> None:
    """(counts N, distances) -> the distance without end, by a straight line over 1 / N."""
    counts = [100, 200, 400, 800]
    for limit, slope in ((2.0, 50.0), (0.0, 30.0)):
        found = number(function(counts, [limit + slope / n for n in counts]), "extrapolate")
        want(abs(found - slope) > 1e-3, f"{found:.2f} is the slope; the limit is at 1 / N = 0.")
        want(abs(found - limit) < 1e-3, f"the distances are exactly {limit:g} + {slope:g} / N, so "
              f"the limit is {limit:g}; you get {found:.3f}. Is the line fitted over 1 / N, and "
              "read off at 0?")
    found = number(function([100, 250, 400, 1000], [1.0, 0.1, 0.2, -0.2]), "extrapolate")
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
