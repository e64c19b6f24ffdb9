"""Checks of the exercises of lesson 04: guidance and decoding with it."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..done import passed
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
def guide(function: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """(plain, smooth, s) -> guided, all probabilities (B, N, K)."""
    plain, smooth = random(2, 4, 5).softmax(-1), random(2, 4, 5, seed=1).softmax(-1)
    ratio = (plain / smooth).log()
    for s in (0.0, -1.0, 2.0, 0.5):
        wanted = (plain.log() + s * ratio).softmax(-1)
        name = {0.0: "plain", -1.0: "smooth"}.get(s, f"plain (plain / smooth)^{s:g}, normalised")
        found = tensor(asked(function, plain, smooth, s), plain, "guide")
        known = {"smooth": smooth, "plain": plain, "the logarithm of it": wanted.log()}
        yours = [word for word, value in known.items() if same(found, value)]
        yours = [] if same(found, wanted) else yours
        want(not yours, f"at s = {s:g} guided must be {name}; yours is {''.join(yours[:1])}.")
        unlike(found, {} if s in (0.0, -1.0) else {
            "that is the straight line through the probabilities, which can fall below 0 (yours: "
            f"{found.min():.2f}); take the step in logarithms": plain + s * (plain - smooth),
        })
        total = found.sum(-1)[0, 0]
        want(same(total, 1.0), f"at s = {s:g} the codes' probabilities at the first position add "
              f"up to {total:.2f}: divide by their sum over the codes.")
        want(same(found, wanted), f"at s = {s:g} guided must be {name}.")
    passed("guide")


def equal_temperature(function: Callable[[float, float], float]) -> None:
    """(s, u) -> v: softmax(plain / v) is guidance away from softmax(plain / u)."""
    plain = random(1, 6)
    for s, u in ((1.5, math.inf), (1.5, 2.0), (3.0, 1.25), (-0.5, 2.0), (1.5, 0.8)):
        found = number(function(s, u), "equal_temperature")
        want(found > 0, f"a temperature is above 0; for s = {s:g}, u = {u:g} you return {found:g}.")
        guided = ((1 + s) * plain - s * plain / u).softmax(-1)
        mine = (plain / found).softmax(-1)
        hint = " With u = inf smooth is uniform, and 1 / u is 0." if u == math.inf else ""
        want(same(mine, guided),
              f"for s = {s:g}, u = {u:g} guidance gives its favourite the probability "
              f"{guided.max():.3f}; softmax at your temperature {found:g} gives it "
              f"{mine.max():.3f}.{hint}")
    passed("equal_temperature")


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
    passed("box_blur")


def classifier_free(function: Callable) -> None:
    """(model, canvas (B, N), labels (B,), C, s) -> guided logits (B, N, K), by one call."""
    table, calls = random(7, 6, 4), []  # 7 classes and "no class" among them, 6 ids, 4 codes
    canvas, labels = torch.tensor([[0, 4, 2], [4, 4, 1]]), torch.tensor([2, 5])

    def model(canvas: Tensor, labels: Tensor) -> Tensor:
        calls.append((canvas, labels))
        mean = canvas.float().mean(1)[:, None, None]
        return mean.sin() * table[labels, 0][:, None] + table[labels[:, None], canvas]

    free = torch.full_like(labels, 6)
    with_class, without = model(canvas, labels), model(canvas, free)
    for s in (2.0, 0.0):
        calls.clear()
        found = tensor(asked(function, model, canvas, labels, 6, s), with_class, "classifier_free")
        want(len(calls) == 1, f"the model was called {len(calls)} times: put both predictions into "
              "one batch of 2 B rows, and call it once.")
        rows, classes = calls[0][0], calls[0][1].tolist()
        want(len(rows) == 4, f"your batch has {len(rows)} rows; 2 images need 4, each with its "
              "class and without.")
        want(sorted(classes) == [2, 5, 6, 6], f"the labels of your batch are {classes}: it needs "
              "the classes 2 and 5, and twice the label C = 6, \"no class\".")
        first, second = canvas.tolist()
        pairs = [(first, 2), (first, 6), (second, 5), (second, 6)]
        want(sorted(zip(rows.tolist(), classes, strict=True)) == pairs,
              "both halves must see the canvases as they are, each with the label of its image.")
        unlike(found, {} if s == 0 else {
            "you walk away from the class: plain is the prediction with the class":
                without + s * (without - with_class),
            "you walk from plain towards smooth; guidance goes the other way":
                with_class + s * (without - with_class),
            "that is the other convention, w = 1 + s; here s = 0 is no guidance":
                without + s * (with_class - without),
        })
        want(same(found, with_class + s * (with_class - without)),
              f"at s = {s:g} the result is not plain + s (plain - smooth)"
              + (", which is plain." if s == 0 else ". Do both halves belong to the same image?"))
    passed("classifier_free")


def fill(plain, smooth, canvas: Tensor, steps: int, scale, noise: Tensor, fault="") -> Tensor:
    """The answer of `guided_decode`, or that of a known mistake."""
    codes, first = noise.shape[-1], canvas
    m = (first >= codes).sum(1)  # (B,)
    for k in range(1, steps + 1):
        masked = canvas >= codes
        known = ((first if fault == "first" else canvas) < codes).float().mean(1)  # (B,)
        known = known.mean().expand_as(known) if fault == "batch" else known
        known = torch.full_like(known, (k - 1) / steps) if fault == "progress" else known
        s = scale(known)[:, None, None]
        p, q = plain(canvas), smooth(canvas)  # (B, N, K) each
        guided = {"towards": p + s * (q - p), "w": q + s * (p - q), "plain": p}.get(
            fault, p + s * (p - q))
        log_p = guided.log_softmax(-1)
        gumbel = torch.zeros_like(p) if fault == "greedy" else noise[0 if fault == "one" else k - 1]
        tokens = (log_p + gumbel).argmax(-1)
        judge = {"logits": guided, "noisy": log_p + gumbel, "unguided": p.log_softmax(-1)}
        score = judge.get(fault, log_p).gather(-1, tokens[..., None])[..., 0]
        score = (-score if fault == "worst" else score).masked_fill(~masked, math.inf)
        left = (m * math.cos(math.pi * k / 2 / steps)).floor()
        kept = score.argsort(1).argsort(1) >= left[:, None]
        canvas = torch.where(kept & masked, tokens, canvas)
    return canvas


MISTAKES = {
    "towards": "you walk from plain towards smooth; guided is plain + s (plain - smooth)",
    "w": "that is the other convention, w = 1 + s; here s = 0 is no guidance",
    "plain": "these are the tokens of plain sampling: the guidance has no effect",
    "first": "the scale must follow the canvas of each step; yours follows the first canvas",
    "progress": "the scale wants the share of known tokens in the canvas, not k / T",
    "batch": "each image has a share of known tokens of its own; do not average over the batch",
    "greedy": "you take the most likely token; a sample is the argmax of log p + noise",
    "one": "every step has noise of its own: step k uses noise[k - 1]",
    "logits": "compare log-probabilities: logits of two positions are on no common scale",
    "noisy": "the confidence is log p of the sampled token, without the noise that sampled it",
    "unguided": "guidance also decides which tokens stay: rank by the guided log p, not by plain's",
    "worst": "you keep the least confident tokens; the highest ranks stay",
}


def guided_decode(function: Callable) -> None:
    """(plain, smooth, canvas (B, N), T, scale, noise (T, B, N, K)) -> tokens (B, N)."""
    codes, seen = 5, []
    weights = [random(16, codes + 1, 16, codes, seed=seed) / 4 for seed in (0, 1)]
    first = torch.full((3, 16), codes)
    first[1, 2:8] = torch.arange(6) % codes  # the second image is partly known

    def predict(which: int, canvas: Tensor) -> Tensor:
        seen.append((which, canvas.clone()))
        return torch.einsum("bnv,nvmk->bmk", F.one_hot(canvas, codes + 1).float(), weights[which])

    generator = torch.Generator().manual_seed(2)
    for steps in (4, 1):
        exponential = torch.empty(steps, 3, 16, codes).exponential_(generator=generator)
        given = (lambda canvas: predict(0, canvas), lambda canvas: predict(1, canvas),
                 first, steps, lambda known: 1 + 5 * known, -exponential.log())
        wanted = fill(*given)
        path = [canvas for which, canvas in seen if not which]
        seen.clear()
        found = tensor(asked(function, *given), wanted, "guided_decode")
        mine, smoothed = ([c for which, c in seen if which == kind] for kind in (0, 1))
        seen.clear()
        want(len(mine) == len(smoothed) == steps, f"in T = {steps} steps plain is asked "
              f"{len(mine)} times and smooth {len(smoothed)} times; once a step is enough.")
        want(all(map(torch.equal, mine, smoothed)),
              "in a step smooth must see the same canvas as plain.")
        for k, canvas in enumerate([*mine, found]):
            given_too = (canvas == first)[first < codes].all()
            want(given_too, f"after step {k} a token that was given has changed: fill masked "
                  "positions only.")
            for i, m in enumerate([16, 10, 16]):
                left = math.floor(m * math.cos(math.pi * k / 2 / steps))
                count = int((canvas[i] >= codes).sum())
                want(count == left, f"after step {k} of {steps} image {i}, with M = {m}, has "
                      f"{count} masked positions; floor(M cos(pi k / (2 T))) is {left}.")
        for fault, words in MISTAKES.items() if steps > 1 else ():
            wrong = fill(*given, fault=fault)
            want(not torch.equal(found, wrong), f"{words}.")
        seen.clear()
        k = [*map(torch.equal, [*mine, found], [*path, wanted]), False].index(False)
        want(k > steps, f"{k - 1} of {steps} steps are right, and the next one is not: follow its "
              "tokens and its confidences.")
    passed("guided_decode")
