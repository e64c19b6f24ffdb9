"""Checks of the exercises of lesson 03: parallel decoding and in-painting."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...masking import masked_after
from ...sampling import temperatures
from ..done import passed
from .checks import asked, numbers, random, same, tensor, unlike, want


# fmt: off
# --- The parts of a step
def tokens_kept(function: Callable[[int, int], list]) -> None:
    """(T, N) -> how many tokens each of T steps keeps under the cosine schedule."""
    for steps, n in ((4, 16), (8, 64), (1, 64), (8, 4)):
        left = [n] + [masked_after(k, steps, n) for k in range(1, steps + 1)]
        wanted = [a - b for a, b in zip(left[:-1], left[1:], strict=True)]
        counts = numbers(function(steps, n), "tokens_kept")
        found = [int(count) for count in counts]
        total = sum(found)
        want(found == counts, "a step keeps a whole number of tokens: round down the masked ones.")
        want(len(found) == steps, f"T = {steps} steps keep {steps} numbers, not {len(found)}.")
        want(total == n, f"with T = {steps} your steps keep {total} tokens in all; there are {n}.")
        for k, (mine, right) in enumerate(zip(found, wanted, strict=True), start=1):
            want(mine == right, f"with T = {steps} step {k} keeps {mine} of {n} tokens, where the "
                  f"cosine schedule, rounded down, keeps {right}.")
    passed("tokens_kept")


def keep(function: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """(score (B, N), known bool (B, N), left) -> bool (B, N), what is kept: all but `left`."""
    score = random(3, 10) + 100 * torch.arange(3)[:, None]  # noise can lift a score anywhere
    known = torch.zeros(3, 10, dtype=torch.bool)
    known[0, :3], known[1, 5:], known[2, ::4] = True, True, True
    score -= 20 * known  # known tokens may have been unlikely
    places = score.masked_fill(known, torch.inf).argsort(1)
    for left in (4, 0):
        wanted = places.argsort(1) >= left
        found = tensor(asked(function, score, known, left), wanted, "keep")
        mistakes = {
            "True is what is kept; you return what stays masked": ~wanted,
            "argsort lists places in order; a place's rank is the argsort of that": places >= left,
        }
        unlike(found, mistakes if left else {})
        for row, count in enumerate((~found).sum(1).tolist()):
            want(count == left, f"in row {row} {count} positions stay masked, but left = {left}.")
        want(bool(found[known].all()),
              "a token that was known is masked again: known ones are kept, whatever their score.")
        want(torch.equal(found, wanted), "you keep tokens with a low score and mask better ones.")
    passed("keep")


def compounding(function: Callable[[float, int], list]) -> None:
    """(tau, T) -> the temperature of each step, when the factors (1 - k / T) multiply up."""
    for tau, steps in ((25.0, 4), (45.0, 12)):
        found = numbers(function(tau, steps), "compounding")
        want(len(found) == steps, f"{steps} steps have {steps} temperatures, not {len(found)}.")
        want(not same(found, temperatures(tau, steps, "linear")),
              "that is the linear schedule: each step must start from the temperature of the last.")
        wanted = temperatures(tau, steps, "compounding")
        for k, (mine, right) in enumerate(zip(found, wanted, strict=True), start=1):
            want(same(mine, right), f"from tau = {tau:g} in {steps} steps, step {k} has the "
                  f"temperature {right:.3f}, not {mine:.3f}.")
    passed("compounding")


# --- The whole sampler -------------------------------------------------------------------------
def inpaint(function: Callable[..., Tensor]) -> None:
    """(decode, tokens (N,), box, count, id of [MASK]) -> int64 (count, N)."""
    for side, box, count in ((6, (1, 2, 4, 3), 3), (4, (2, 0, 1, 3), 2)):
        tokens, mask = torch.arange(side**2) % 5, 9
        seen: list[Tensor] = []

        def decode(canvas: Tensor, seen=seen, mask=mask, tokens=tokens) -> Tensor:
            """Image i has the noise of seed i; known tokens are kept."""
            want(canvas.ndim == 2 and canvas.shape[1] == tokens.numel(),
                 f"decode takes canvases (B, N), not {tuple(canvas.shape)}.")
            seen.append(canvas.clone())
            filled = torch.stack([5 + (random(canvas.shape[1], seed=i) > 0).long()
                                  for i in range(len(canvas))])
            return torch.where(canvas == mask, filled, canvas)

        top, left, height, width = box
        area = torch.zeros(side, side, dtype=torch.bool)
        area[top : top + height, left : left + width] = True
        like = tokens.expand(count, -1)
        found = tensor(asked(function, decode, tokens, box, count, mask), like, "inpaint")
        want(len(seen) > 0, "decode is not called: it generates the masked tokens.")
        want(bool((seen[0] == mask).any()), "decode saw no [MASK]: mask the box first.")
        masked = seen[0][0] == mask
        turned = torch.zeros_like(area)
        turned[left : left + width, top : top + height] = True
        corner = torch.zeros_like(area)
        corner[top:height, left:width] = True
        unlike(masked, {
            "you mask what should stay, and keep the box": ~area.flatten(),
            "rows and columns are exchanged: top and height are rows": turned.flatten(),
            "height and width are sizes; the box ends at top + height and left + width":
                corner.flatten(),
        }, f"on a grid of {side} x {side}: ")
        want(torch.equal(masked, area.flatten()),
             f"on a grid of {side} x {side} a box of {height} x {width} masks {int(area.sum())} "
             f"tokens from row {top} and column {left} on; yours masks {int(masked.sum())}, "
             "or others.")
        want(bool((seen[0][0] == tokens)[~masked].all()),
             "the canvas must hold the given tokens wherever it is not masked.")
        want(bool((found[:, ~masked] == tokens[~masked]).all()),
             "a token outside of the box has changed.")
        want(not bool((found == mask).any()), "the result still holds [MASK]: return what decode "
                                              "gives, not the canvas.")
        want(not torch.equal(found[0], found[1]),
             "all fills are alike: image i of a batch has the noise of seed i, so give decode one "
             "batch of `count` canvases.")
        want(torch.equal(found, decode(torch.where(area.flatten(), mask, like))),
             "the tokens in the box are not those that decode generated.")
    passed("inpaint")


def _race(p: Tensor, noise: Tensor) -> Tensor:
    return (p / noise).argmax(-1)


def _log_p(p: Tensor, sampled: Tensor) -> Tensor:
    return p.gather(-1, sampled[..., None])[..., 0].log()


def _decode(predict, canvas, steps, tau, race, gumbel, choose=_race, rate=_log_p,
            cool=lambda k, steps: 1 - k / steps, sign=1):  # fmt: skip
    """The right sampler, and with another `choose`, `rate`, `cool` or `sign` a wrong one."""
    first = canvas
    for k in range(1, steps + 1):
        p = predict(canvas).softmax(-1)  # (B, N, K)
        masked = canvas >= p.shape[-1]
        sampled = torch.where(masked, choose(p, race[k - 1]), canvas)
        score = rate(p, sampled) + cool(k, steps) * tau * gumbel[k - 1]
        score = torch.where(masked, sign * score, torch.inf)
        counts = (first >= p.shape[-1]).sum(1).tolist()
        left = torch.tensor([masked_after(k, steps, count) for count in counts])
        keep = score.argsort(1).argsort(1) >= left[:, None]
        canvas = torch.where(keep, sampled, first)
    return canvas


def decode(function: Callable[..., Tensor]) -> None:
    """(predict, canvas (B, N), T, tau, race (T, B, N, K), gumbel (T, B, N)) -> tokens (B, N)."""
    batch, n, codes, steps, tau = 4, 16, 5, 4, 2.0
    order = random(batch, n, seed=1).argsort(1).argsort(1)
    tokens = torch.arange(batch * n).view(batch, n) * 7 % codes
    masked_at_first = torch.tensor([16, 9, 6, 4])
    first = torch.where(order < masked_at_first[:, None], codes, tokens)
    inner, outer = random(codes + 1, 8, seed=2), random(n * 8, n * codes, seed=3) / 4
    seen: list[Tensor] = []

    def predict(canvas: Tensor) -> Tensor:
        seen.append(canvas.clone())
        hidden = F.one_hot(canvas, codes + 1).float() @ inner  # (B, N, 8)
        return (hidden.flatten(1) @ outer).unflatten(1, (n, codes))

    generator = torch.Generator().manual_seed(4)
    uniform = torch.rand(2, steps, batch, n, codes, generator=generator).clamp(1e-6, 1 - 1e-6)
    race, gumbel = -uniform[0].log(), -(-uniform[1, ..., 0].log()).log()
    given = first, steps, tau, race, gumbel
    found = tensor(asked(lambda *g: function(predict, *g), *given), first, "decode")
    canvases = list(seen)

    want(len(canvases) == steps,
         f"T = {steps} steps call predict {steps} times, once each; yours calls it "
         f"{len(canvases)} times.")
    want(torch.equal(canvases[0], first), "the first canvas that predict sees is the given one.")
    known = first < codes
    want(bool((found[known] == first[known]).all()), "a token of the given canvas has changed.")
    for k, canvas in enumerate(canvases[1:], start=1):
        for row, mine in enumerate((canvas >= codes).sum(1).tolist()):
            m = int(masked_at_first[row])
            right, whole = masked_after(k, steps, m), masked_after(k, steps, n)
            count = f"after step {k} {right} of the {m} masked tokens of image {row} stay masked"
            blank = mine == min(whole, m) != right
            want(not blank, f"{count}, not {mine}: count from the M masked positions of each "
                            "image, not from N.")
            want(mine == right, f"{count}, not {mine}: floor(M cos(pi k / (2 T))).")
        stays = canvases[k - 1] < codes
        want(bool((canvas[stays] == canvases[k - 1][stays]).all()),
             f"a token that was known before step {k} is masked or changed after it.")
    want(not bool((found >= codes).any()), "the result still holds [MASK]: nothing stays masked "
                                           "after step T.")

    def wrong(**changes) -> Tensor:
        return _decode(predict, *given, **changes)

    unlike(found, {
        "you take the most likely token: sample by the race, argmax of p / E":
            wrong(choose=lambda p, noise: p.argmax(-1)),
        "the race divides p by its noise; you multiply":
            wrong(choose=lambda p, noise: (p * noise).argmax(-1)),
        "the scores hold no Gumbel noise": wrong(cool=lambda k, steps: 0),
        "the temperature does not fall: tau (1 - k / T) in step k": wrong(cool=lambda k, steps: 1),
        "the temperature of step k is tau (1 - k / T), with k from 1 to T":
            wrong(cool=lambda k, steps: 1 - (k - 1) / steps),
        "the score takes log p, not p": wrong(rate=lambda p, s: _log_p(p, s).exp()),
        "the score takes the log-probability of the sampled token, not of the most likely one":
            wrong(rate=lambda p, s: p.amax(-1).log()),
        "the score does not look at the prediction: add log p of the sampled token":
            wrong(rate=lambda p, s: torch.zeros_like(s).float()),
        "you keep the tokens with the lowest scores": wrong(sign=-1),
    })
    right = _decode(predict, *given)
    want(torch.equal(found, right),
         f"{int((found != right).sum())} of {found.numel()} tokens are not those of the loop: "
         "compare your canvases step by step.")
    passed("decode")
