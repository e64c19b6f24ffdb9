"""Checks of the exercises of lesson 05: adapters that make a smoother."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..done import passed
from .checks import asked, number, random, returned, same, tensor, unlike, want


# fmt: off
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
    passed("corrupt")


def select(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """(x (B, N, D), anchors (C, D)) -> x times its clamped cosine to each anchor, (B, C, N, D)."""
    x, anchors = random(2, 5, 4), random(3, 4, seed=1)
    dot = torch.einsum("bnd,cd->bcn", x, anchors)[..., None]  # (2, 3, 5, 1)
    cosine = dot / x.norm(dim=-1)[:, None, :, None] / anchors.norm(dim=-1)[:, None, None]
    weight, least, x_c = cosine.clamp(0, 1), cosine.min(), x[:, None]  # (2, 1, 5, 4)
    found = tensor(asked(function, x, anchors), weight * x_c, "select")
    unlike(found, {
        f"a token with the cosine {least:.2f} changes its sign; clamp it to [0, 1]": x_c * cosine,
        "that is the dot product; the cosine has both lengths divided out": x_c * dot.clamp(0, 1),
        "the tokens have lost their length: scale x itself": weight * F.normalize(x_c, dim=-1),
    })
    want(same(found, x_c * weight), "the result is not x times its clamped cosine.")
    passed("select")


def lora(function: Callable) -> None:
    """(x (B, N, I), weight (O, I), a (r, I), b (O, r), alpha, on (B,)) -> (B, N, O)."""
    x, weight, a, b = random(3, 2, 6), random(5, 6), random(2, 6, seed=1), random(5, 2, seed=2)
    nothing, every, some = torch.zeros_like(b), torch.ones(3).bool(), torch.tensor([1, 0, 1]).bool()
    zero = tensor(asked(function, x, weight, a, nothing, 7.0, every), x @ weight.T, "lora")
    want(same(zero, x @ weight.T), "with b = 0 an adapter must change nothing: x @ weight.T.")
    found = tensor(function(x, weight, a, b, 7.0, every), zero, "lora")
    low = x @ a.T @ b.T
    unlike(found, {
        "you add 1 x (x a b): alpha is not used": zero + low,
        "you add 7 x (x a b): alpha must be divided by the rank r": zero + 7 * low,
    })
    want(same(found, zero + 3.5 * low), "the adapter's part is not alpha / r times x a^T b^T.")
    thin = tensor(function(x, weight, a[:1], b[:, :1], 2.5, every), zero, "lora")
    one = 2.5 * x @ a[:1].T @ b[:, :1].T
    want(same(thin, zero + one), "alpha and r must come from the arguments: r is a's first size.")
    found = tensor(function(x, weight, a, b, 7.0, some), zero, "lora")
    switch = some[:, None, None]
    unlike(found, {
        "the adapter works for image 1, too, where `on` is False": zero + 3.5 * low,
        "it is the other way round: True is on": zero + 3.5 * low * ~switch,
        "where the adapter is off the weight itself must stay": (zero + 3.5 * low) * switch,
    })
    want(same(found, zero + 3.5 * low * switch), "with on = [True, False, True] images 0 and 2 go "
          "through the adapter, image 1 through the weight alone.")
    with FlopCounterMode(display=False) as counter:
        function(random(1, 1, 64), random(64, 64), random(2, 64), random(64, 2), 1.0, every[:1])
    want(counter.get_total_flops() < 2 * 2 * 64 * 64,
          "you build the large matrix b a: send x through a, and the result through b.")
    passed("lora")


def auxiliary_loss(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """(logits (B, N, K), truth (B, N), z_t (B, N)) -> the mean NLL at the substituted tokens."""
    logits, codes = random(3, 8, 4), 4
    truth = torch.arange(24).view(3, 8) % codes
    masked, wrong = torch.zeros(3, 8).bool(), torch.zeros(3, 8).bool()
    masked[0, :3], masked[1, 2:7], wrong[0, 4:7], wrong[1, 7], wrong[2, ::3] = (True,) * 5
    canvas = torch.where(masked, codes, torch.where(wrong, (truth + 1) % codes, truth))
    log_p = logits.log_softmax(-1)
    each = -log_p.gather(-1, truth[..., None])[..., 0]  # (3, 8)
    seen = -log_p.gather(-1, canvas.clamp_max(codes - 1)[..., None])[..., 0]
    loss = asked(function, logits, truth, canvas)
    found = number(loss, "auxiliary_loss")
    want(math.isfinite(found), f"your loss is {found}.")
    unlike(found, {
        "you ask for what stands in the canvas; the targets are the true tokens":
            seen[wrong].mean(),
        "that is the loss at the masked positions, eq. (7) as the paper writes it; here judge the "
        "substituted ones": each[masked].mean(),
        "[MASK] differs from the truth, too: judge the visible tokens that are wrong":
            each[masked | wrong].mean(),
        "you judge all visible tokens; most of them are right": each[~masked].mean(),
        "you judge all positions": each.mean(),
        "that is the sum; take the mean over the judged positions": each[wrong].sum(),
        "you divide by all positions: the mean is over the judged ones": each[wrong].sum() / 24,
        "that is the mean over images of means over positions; every judged position counts alike":
            sum(each[i][wrong[i]].mean() for i in range(3)) / 3,
    }, f"your loss is {found:.3f}: ")
    right = float(each[wrong].mean())
    want(same(found, right), f"your loss is {found:.3f}, the right one {right:.3f}.")
    blank = torch.full_like(truth, codes)
    found = number(function(logits, truth, blank), "auxiliary_loss")
    want(found == 0, f"on a blank canvas nothing is substituted; the loss is 0 there, not {found}: "
          "one such batch would end a training.")
    passed("auxiliary_loss")


# A method, its push KL(plain || guided) at some scales, and what may be its control: invented.
METHOD = {"adapter": "TOAST", "wrong": 0.3, "judged": "substituted", "steps": 400, "passes": 2}
PUSH = {0.5: 0.10, 1.0: 0.30, 2.0: 0.90}
CANDIDATES = {
    "plain": (METHOD | {"adapter": None, "wrong": 0, "passes": 1}, {0.5: 0.0, 2.0: 0.0}),
    "LoRA": (METHOD | {"adapter": "LoRA"}, {1.0: 0.25, 2.0: 0.65}),
    "trained for long": (METHOD | {"wrong": 0, "steps": 900}, {1.0: 0.20, 4.0: 0.50}),
    "no wrong tokens": (METHOD | {"wrong": 0}, {1.0: 0.04, 2.0: 0.16, 6.0: 0.36}),
    "half of them": (METHOD | {"wrong": 0.15}, {1.0: 0.02, 2.0: 0.04, 4.0: 0.10}),
}


def fair_control(function: Callable) -> None:
    """(method, push, scale, ingredient, candidates) -> (name, scale) of the fair control."""
    cases = [("wrong", 1.0, 0.3, 4.8), ("adapter", 1.0, 0.3, 1.125), ("adapter", 1.5, 0.6, 1.875)]
    for ingredient, scale, push, right in cases:
        answer = function(dict(METHOD), dict(PUSH), scale, ingredient, dict(CANDIDATES))
        returned(answer, "fair_control")
        want(isinstance(answer, tuple) and len(answer) == 2,
              "fair_control returns two things, a name and a scale.")
        name, found = answer[0], number(answer[1], "fair_control")
        want(name in list(CANDIDATES), f"{name!r} is no candidate.")
        setup, curve = CANDIDATES[name]
        other = [key for key in METHOD if setup[key] != METHOD[key]]
        want(len(other) == 1, f"{name!r} differs from the method in {' and '.join(other)}: nobody "
              "could say which of them a gain is due to.")
        want(other == [ingredient], f"{name!r} differs in {other[0]}; in question is {ingredient}.")
        first, last = min(curve), max(curve)
        want(curve[last] >= push, f"{name!r} pushes by {curve[last]:g} nats at most, where the "
              f"method pushes by {push:g}: beyond the measured scales nobody knows.")
        want(scale == 1 or not same(found, 1.125), "the method's own push at scale 1.5 must be "
              f"interpolated as well: it is {push:g} nats.")
        slope = (last - first) / (curve[last] - curve[first])
        unlike(found, {
            f"at the method's own scale {name!r} pushes by less than {push:g} nats": scale,
            "that is the nearest measured scale; interpolate between its two neighbours":
                min(curve, key=lambda at: abs(curve[at] - push)),
            "the push is not proportional to the scale: interpolate between the two measured "
            "scales around it": first * push / curve[first],
        }, f"scale {found:.3g}: ")
        want(len(curve) == 2 or not same(found, first + slope * (push - curve[first])),
              "you draw a line from the first measured scale to the last; take the two neighbours.")
        want(same(found, right), f"{name!r} pushes by {push:g} nats at scale {right:.3g}, between "
              f"two measured ones; you return {found:.3g}.")
    passed("fair_control")


def steer(x, down, signal, blank, weights, values, fault="") -> Tensor:
    """The answer of `second_pass`, or that of a known mistake."""
    layers = range(len(down))
    signals, start = {}, x
    for layer in layers if fault == "upward" else reversed(layers):
        before = start if fault == "apart" else x
        x = before @ (down[layer] if fault == "transposed" else down[layer].T)
        signals[layer] = (before if fault == "early" else x) @ signal[layer].T
        signals[layer] = x if fault == "no B" else signals[layer]
    h = start if fault == "canvas" else blank
    for layer in layers:
        td = signals[len(down) - 1 - layer if fault == "order" else layer]
        v = values[layer]
        value = {
            "raw": v(h) + td, "bias": v(h + td), "alone": v(td), "nothing": v(h),
        }.get(fault, v(h) + v(td))
        mixed = weights(h + td if fault == "keys" else h) @ value
        h = mixed if fault == "residual" else h + mixed
    return h


DETOURS = {
    "upward": "go down: the last layer's A comes first",
    "apart": "the way down is one chain: A of a layer gets what A of the layer above has returned",
    "transposed": "A acts on each state as a column vector, A x: that is x @ A.T for rows",
    "early": "B of a layer gets what its own A has returned",
    "no B": "the signal is B A x: B is missing",
    "canvas": "pass 2 starts from the blank canvas, not from the states of pass 1",
    "order": "the signals meet the wrong layers: the first one made belongs to the last layer",
    "raw": "the signal must pass through W_v before it is added to the values",
    "bias": "W_v(h + td) has its bias once; W_v(h) + W_v(td) has it twice, as the released model",
    "alone": "the values are those of h plus those of the signal; yours are the signal's alone",
    "nothing": "the signals have no effect: they belong into the values",
    "keys": "the signal enters the values only; queries and keys, so the weights, see h alone",
    "residual": "a layer adds to its input: h + weights(h) @ values",
}


def attention(h: Tensor) -> Tensor:
    """Attention weights (B, N, N) of states (B, N, D)."""
    return (h @ h.transpose(1, 2) / h.shape[-1] ** 0.5).softmax(-1)


def second_pass(function: Callable) -> None:
    """(x (B, N, D), A, B, blank (B, N, D), weights, W_v) -> states of pass 2 (B, N, D)."""
    for count in (3, 1):
        x, blank = random(2, 4, 5), random(1, 1, 5, seed=1).expand(2, 4, 5)
        down, signal, weight = (list(random(count, 5, 5, seed=seed)) for seed in (2, 3, 4))
        bias = random(count, 5, seed=5)
        values = [partial(F.linear, weight=w, bias=b) for w, b in zip(weight, bias, strict=True)]
        blank = blank + random(1, 4, 5, seed=6)  # positions have embeddings
        given = x, down, signal, blank, attention, values
        wanted = steer(*given)
        found = tensor(asked(function, *given), wanted, "second_pass")
        wrong = {words: steer(*given, fault=fault) for fault, words in DETOURS.items()}
        unlike(found, wrong if count > 1 else {})
        want(same(found, wanted), f"with {count} layers the states of pass 2 are not right. Follow "
              "A.4 and A.5 line by line.")
    passed("second_pass")
