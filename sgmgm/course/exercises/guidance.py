"""Checks of the exercises of lessons 04 and 05: guidance and smoothers."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .checks import (
    asked,
    elsewhere,
    number,
    random,
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
