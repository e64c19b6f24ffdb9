"""Checks of the exercises of lessons 04 to 08: guidance, smoothers, speed, evaluation."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...metrics import precision_recall
from .checks import (
    asked,
    elsewhere,
    number,
    random,
    returned,
    same,
    tensor,
    unlike,
    want,
)


# fmt: off
# --- 04 Smoothing ------------------------------------------------------------------------------
def guide(function: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """(plain, smooth, s) -> guided, all (B, N, K)."""
    plain, smooth = random(2, 4, 5), random(2, 4, 5, seed=1)
    landmarks = {
        0.0: ("plain", plain),
        -1.0: ("smooth", smooth),
        3.0: ("plain + 3 differences", plain + 3 * (plain - smooth)),
        0.5: ("plain + half a difference", plain + 0.5 * (plain - smooth)),
    }
    for s, (name, wanted) in landmarks.items():
        found = tensor(asked(function, plain, smooth, s), plain, "guide")
        known = {"smooth": smooth, "plain": plain, "-plain": -plain}
        yours = [word for word, value in known.items() if same(found, value)]
        want(same(found, wanted),
              f"at s = {s:g} guided must be {name}" + (f"; yours is {yours[0]}." if yours else "."))
    print("guide: right.")


def equal_temperature(function: Callable[[float], float]) -> None:
    """(s) -> the temperature T for which softmax(plain / T) is guidance away from uniform."""
    plain = random(1, 6)
    for s in (1.5, 3.0, -0.5):
        found = number(function(s), "equal_temperature")
        want(found > 0, f"a temperature is above 0; for s = {s:g} you return {found:g}.")
        uniform = torch.full_like(plain, -math.log(6))
        guided = (uniform + (1 + s) * (plain.log_softmax(-1) - uniform)).softmax(-1)
        mine = (plain / found).softmax(-1)
        want(same(mine, guided),
              f"for s = {s:g} guidance gives its favourite the probability {guided.max():.3f}; "
              f"softmax at your temperature {found:g} gives it {mine.max():.3f}.")
    print("equal_temperature: right.")


def box_blur(function: Callable[[Tensor], Tensor]) -> None:
    """logits (B, N, K) -> the mean over each position and its up to 8 neighbours on the grid."""
    logits = random(2, 16, 3)
    grid = logits.transpose(1, 2).unflatten(2, (4, 4))
    wanted = F.avg_pool2d(grid, 3, 1, 1, count_include_pad=False).flatten(2).transpose(1, 2)
    spot = torch.zeros(1, 16, 1)
    spot[0, 3] = 1  # the end of the first row
    found = tensor(function(spot), spot, "box_blur")
    want(found[0, 4, 0] == 0, "the value at position 3 reaches position 4, but 3 is the right end "
          "of a row of the grid, and 4 the left end of the next.")
    found = tensor(asked(function, logits), logits, "box_blur")
    codes = logits.mean(-1, keepdim=True).expand_as(logits)
    unlike(found, {"you blur over the codes; blur over the places, code by code": codes})
    flat = function(torch.ones(1, 16, 1)).flatten()
    worst = int((flat - 1).abs().argmax())
    want(same(flat[worst], 1.0), f"where all logits are 1, position {worst} becomes "
          f"{float(flat[worst]):.2f}: divide by the number of positions that exist.")
    inner = [5, 6, 9, 10]
    want(same(found, wanted) or not same(found[:, inner], wanted[:, inner]),
          "right in the middle, not at the edge: what is outside the grid does not count.")
    apart = torch.tensor([0.0, 1.0]).expand(1, 16, 2)
    want(same(function(apart.clone()), apart),
          "the codes are mixed up: from (B, N, K) to (B, K, h, w) one has to transpose.")
    want(same(found, wanted), "the means are not those of 3 x 3 positions of the grid.")
    found = elsewhere(function, torch.ones(1, 9, 1))
    want(found is not None and found.shape == (1, 9, 1) and same(found, torch.ones(1, 9, 1)),
          "on a grid of 3 x 3 it is wrong: take the side from N.")
    print("box_blur: right.")


# --- 05 Adapters -------------------------------------------------------------------------------
def corrupt(function: Callable) -> None:
    """(tokens (B, N), masked, rate, K, generator) -> tokens, a share of the visible ones wrong."""
    tokens = torch.randint(4, (50, 64), generator=torch.Generator().manual_seed(0))
    masked = torch.zeros(50, 64, dtype=torch.bool)
    masked[:, :32] = True

    def answer(rate: float = 0.3, seed: int = 1, codes: int = 4) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return tensor(asked(function, tokens, masked, rate, codes, generator), tokens, "corrupt")

    found = answer()
    wrong = found != tokens
    want(not wrong[masked].any(), "a masked token was changed: corrupt the visible ones only.")
    want(bool(((found >= 0) & (found < 4)).all()),
          f"there are 4 codes, 0 to 3; yours go from {int(found.min())} to {int(found.max())}.")
    want(len(wrong.unique(dim=0)) > 40,
          "all images are wrong at the same positions: choose them for each.")
    share = wrong[~masked].double().mean().item()
    want(0.26 < share < 0.34, f"{share:.0%} of the visible tokens are wrong, where 30 % should be"
          + (": a random code is at times the true one." if 0.18 < share < 0.26 else "."))
    for rate in (0.6, 1.0):
        more = (answer(rate) != tokens)[~masked].double().mean().item()
        want(abs(more - rate) < 0.05 * (rate < 1) + 1e-6,
              f"at a rate of {100 * rate:g} % you make {more:.0%} of them wrong.")
    want(bool((answer(codes=5) == 4).any()), "with K = 5 code 4 never comes: use K.")
    for shift in (1, 2, 3):
        part = ((found - tokens) % 4 == shift)[wrong].double().mean().item()
        want(0.25 < part < 0.42, f"{part:.0%} of your wrong codes are the true one plus {shift} "
              "(mod 4): all three other codes must be equally likely.")
    want(torch.equal(found, answer()) and not torch.equal(found, answer(seed=2)),
          "all chance must come from the generator: equal seeds, equal tokens; others, others.")
    print("corrupt: right.")


def select(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """(x (B, N, D), anchor (B, 1, D)) -> x times its cosine to the anchor, clamped to [0, 1]."""
    x, anchor = random(2, 5, 4), random(2, 1, 4, seed=1)
    cosine = F.cosine_similarity(x, anchor, dim=-1)[..., None]  # (2, 5, 1)
    weight, least = cosine.clamp(0, 1), cosine.min()
    dot = (x * anchor).sum(-1, keepdim=True).clamp(0, 1)
    found = tensor(asked(function, x, anchor), x, "select")
    unlike(found, {
        f"a token with the cosine {least:.2f} changes its sign; clamp it to [0, 1]": x * cosine,
        "that is the dot product; the cosine has both lengths divided out": x * dot,
        "the tokens have lost their length: scale x itself": weight * F.normalize(x, dim=-1),
    })
    want(same(found, x * weight), "the result is not x times its clamped cosine.")
    print("select: right.")


def lora(function: Callable) -> None:
    """(x (B, I), weight (O, I), a (r, I), b (O, r), alpha) -> x through weight + alpha / r b a."""
    x, weight, a, b = random(3, 6), random(5, 6), random(2, 6, seed=1), random(5, 2, seed=2)
    nothing = torch.zeros_like(b)
    zero = tensor(asked(function, x, weight, a, nothing, 7.0), x @ weight.T, "lora")
    want(same(zero, x @ weight.T), "with b = 0 an adapter must change nothing: x @ weight.T.")
    found = tensor(function(x, weight, a, b, 7.0), zero, "lora")
    low = x @ a.T @ b.T
    unlike(found, {
        "you add 1 x (x a b): alpha is not used": zero + low,
        "you add 7 x (x a b): alpha must be divided by the rank r": zero + 7 * low,
    })
    want(same(found, zero + 3.5 * low), "the adapter's part is not alpha / r times x a^T b^T.")
    thin = tensor(function(x, weight, a[:1], b[:, :1], 2.5), zero, "lora")
    one = 2.5 * x @ a[:1].T @ b[:, :1].T
    want(same(thin, zero + one), "alpha and r must come from the arguments: r is a's first size.")
    with FlopCounterMode(display=False) as counter:
        function(random(1, 64), random(64, 64), random(2, 64), random(64, 2), 1.0)
    want(counter.get_total_flops() < 2 * 2 * 64 * 64,
          "you build the large matrix b a: send x through a, and the result through b.")
    print("lora: right.")


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
    print("passes: right.")


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
    print("last_layer_flops: right.")


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
    print("frechet_1d: right.")


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
    print("extrapolate: right.")


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
    print("coverage: right.")


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
    print("honest: right.")


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
    print("verdict: right.")


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
    print("border: right.")
