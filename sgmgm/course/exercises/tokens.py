"""Checks of the exercises of lessons 00 to 03: tokens, the model, decoding."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...masking import masked_after, random_mask
from ...sampling import temperatures
from ..done import passed
from .checks import (
    NotYet,
    asked,
    elsewhere,
    number,
    numbers,
    random,
    same,
    tensor,
    unlike,
    want,
)


# fmt: off
# --- 00 The tour -------------------------------------------------------------------------------
def saving(function: Callable[[int, int, int], float]) -> None:
    """(side, N, K) -> how many times smaller an image is as N tokens out of K codes."""
    for side, count, codes in ((32, 64, 1024), (256, 256, 1024), (32, 64, 1000)):
        pixels, bits = side * side * 24, count * math.log2(codes)
        found = number(function(side, count, codes), "saving")
        unlike(found, {
            "a pixel has three colours of 8 bits each": pixels / 3 / bits,
            "one of K codes takes log2(K) bits, not K": pixels / (count * codes),
            "that is the inverse: divide the pixels' bits by the tokens'": bits / pixels,
            "count bits on both sides; a token has log2(K)": side * side * 3 / count,
        }, f"you get {found:.4g}: ")
        want(same(found, pixels / bits),
              f"{side} x {side} pixels as {count} of {codes} codes are {pixels / bits:.4g} times "
              f"smaller, not {found:.4g}.")
    passed("saving")


def mask_tokens(function: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """(tokens, masked, id of [MASK]) -> the canvas that the model sees."""
    tokens = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    masked = torch.tensor([[True, False, False, True], [False, True, False, False]])
    canvas = tensor(asked(function, tokens, masked, 17), tokens, "mask_tokens")
    swapped = torch.where(masked, tokens, 17)
    unlike(canvas, {"you mask what should be visible, and show what should be masked": swapped})
    held = canvas[masked]
    want(bool((held == 17).all()),
          f"a masked position must hold the id of [MASK], 17; yours holds {held.tolist()}.")
    want(same(canvas[~masked], tokens[~masked]), "a visible token must stay as it is.")
    passed("mask_tokens")


# --- 01 VQ tokenization ------------------------------------------------------------------------
def nearest_code(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """(vectors (B, D), codebook (K, D)) -> the nearest code of each vector, int64 (B,)."""
    vectors, codebook = random(20, 3), random(8, 3, seed=1)
    distance = torch.cdist(vectors, codebook)
    wanted = distance.argmin(1)
    found = tensor(asked(function, vectors, codebook), wanted, "nearest_code")
    want(bool(((found >= 0) & (found < 8)).all()),
          f"there are 8 codes, 0 to 7; yours go from {int(found.min())} to {int(found.max())}.")
    for i in (found != wanted).nonzero().flatten().tolist():
        far, near = distance[i, found[i]], distance[i, wanted[i]]
        raise NotYet(f"vector {i} is {near:.2f} from code {wanted[i]}, but you chose code "
                     f"{found[i]}, which is {far:.2f} away.")
    passed("nearest_code")


def straight_through(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """(z (B, D), e (B, D)) -> the value of e, with a gradient that goes to z as if it were z."""
    z, e = random(4, 3).requires_grad_(), random(4, 3, seed=1).requires_grad_()
    before = z.detach().clone()
    out = tensor(function(z, e), z, "straight_through")
    want(same(z.detach(), before), "it overwrites z, which the commitment loss still needs.")
    want(same(out.detach(), e.detach()), "forward, the result must be the codes e; it is not.")
    want(out.requires_grad, "no gradient comes back at all: something is detached that is needed.")
    back = random(4, 3, seed=2)
    out.backward(back)
    got = "none" if z.grad is None else f"{z.grad[0, 0]:.2f} for {back[0, 0]:.2f}"
    want(z.grad is not None and same(z.grad, back),
          f"backward, z must receive the result's gradient unchanged; it receives {got}.")
    want(e.grad is None or not e.grad.any(),
          "backward, the codes e receive a gradient too; detach the difference, not z.")
    passed("straight_through")


def perplexity(function: Callable[[Tensor, int], float]) -> None:
    """(tokens (B, N), K) -> how many codes are in use, as exp of the entropy in nats."""
    even = torch.arange(8).repeat_interleave(8).view(2, 32)  # 8 of 16 codes, 4 in each image
    skewed = torch.tensor([[0] * 30 + [1, 2]])
    p = torch.tensor([30.0, 1.0, 1.0]) / 32
    for tokens, wanted in ((even, 8.0), (skewed, float((-(p * p.log()).sum()).exp()))):
        found = number(function(tokens, 16), "perplexity")
        used = len(tokens.unique())
        want(not math.isnan(found), "you return nan: 0 log 0 counts as 0; leave such codes out.")
        how = "equally" if used == 8 else "30, 1 and 1 times"
        want(abs(found - wanted) < 1e-3,
              f"{used} codes are used {how}: the perplexity is {wanted:.2f}, yours {found:.2f}.")
    passed("perplexity")


# --- 02 Masked transformer ---------------------------------------------------------------------
def cosine_mask(function: Callable[[float, int, torch.Generator], Tensor]) -> None:
    """(t in [0, 1], N, generator) -> bool (N,): True at round(cos(pi t / 2) N) >= 1 places."""
    wanted = random_mask(1, 64, torch.Generator())[0]
    for t in (0.0, 0.25, 0.5, 0.84, 1.0):
        count = max(1, round(math.cos(math.pi * t / 2) * 64))
        seeded = [torch.Generator().manual_seed(seed) for seed in (0, 1, 0)]
        masks = [tensor(function(t, 64, each), wanted, "cosine_mask") for each in seeded]
        masked = int(masks[0].sum())
        want(masked == count,
              f"at t = {t:g} your mask covers {masked} of 64 tokens and keeps {64 - masked}, where "
              f"the cosine schedule masks {count} and keeps {64 - count}.")
        want(count == 64 or not torch.equal(*masks[:2]),
              "two generators of different seeds give the same mask: choose the places at random.")
        want(torch.equal(masks[0], masks[2]),
              "the same seed gives two masks: take all randomness from the generator.")
    one = torch.Generator().manual_seed(0)
    first, second = function(0.5, 64, one), function(0.5, 64, one)
    want(not torch.equal(first, second),
          "the same generator gives the same mask again: do not seed it anew.")
    want(int((first != first.roll(1)).sum()) > 2,
          "the masked positions are side by side: choose each of them at random.")
    other = elsewhere(function, 0.5, 36, one)
    want(other is not None and other.shape == (36,) and int(other.sum()) == 25,
          "of 36 tokens 25 should be masked at t = 0.5: take their number from N.")
    passed("cosine_mask")


def masked_loss(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """(logits (B, N, K), tokens (B, N), masked bool (B, N)) -> mean cross-entropy where masked."""
    logits, tokens = random(2, 6, 5), torch.arange(12).view(2, 6) % 5
    masked = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]).bool()
    each = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")  # (2, 6)
    found = number(asked(function, logits, tokens, masked), "masked_loss")
    per_image = torch.stack([each[i][masked[i]].mean() for i in (0, 1)]).mean()
    unlike(found, {
        "that is the mean over all positions; the visible ones can be read off": each.mean(),
        "that is the mean over the visible positions, which can be read off": each[~masked].mean(),
        "that is the sum; divide by the number of masked positions": each[masked].sum(),
        "that is a mean of means: every masked position must count the same": per_image,
    }, f"your loss is {found:.3f}: ")
    wanted = each[masked].mean().item()
    want(same(found, wanted), f"your loss is {found:.3f}, the right one {wanted:.3f}.")
    passed("masked_loss")


def one_step_chance(function: Callable[[Tensor], float]) -> None:
    """(all images there are, int64 (M, N)) -> the probability that one step gives one of them."""
    worlds = {
        "AAAA": ([[0, 0, 0, 0]], 1.0),
        "AAAA, BBBB and ABAB": ([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 1]], 24 / 81),
        "AC and CD": ([[0, 2], [2, 3]], 1 / 2),
        "ABAB and BABA": ([[0, 1, 0, 1], [1, 0, 1, 0]], 1 / 8),
        "ABAB, BABA and AAAA": ([[0, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]], 24 / 81),
    }
    for name, (images, wanted) in worlds.items():
        found = number(function(torch.tensor(images)), "one_step_chance")
        want(abs(found - wanted) < 1e-6,
              f"in a world of {name} one step is right with probability {wanted:.4f}, not "
              f"{found:.4f}: multiply the positions' probabilities, and add the images up.")
    passed("one_step_chance")


# --- 03 Parallel decoding ----------------------------------------------------------------------
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
