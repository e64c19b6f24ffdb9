"""Checks of the exercises of lessons 00 and 01: tokens and codes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..done import passed
from .checks import NotYet, asked, number, random, returned, same, tensor, unlike, want


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


def sequence(function: Callable[[Tensor, Tensor, Tensor, int, int], Tensor]) -> None:
    """(tokens, masked, labels, K, C) -> the ids that the transformer reads, int64 (B, N + 1)."""
    tokens = torch.tensor([[3, 1, 4, 1], [5, 0, 2, 6], [0, 6, 5, 3]])
    masked = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0]]).bool()
    for labels, codes, classes in (([2, 0, 3], 7, 3), ([4, 5, 1], 11, 5)):
        label, mask = torch.tensor(labels)[:, None], codes + classes
        canvas = torch.where(masked, mask, tokens)
        wanted = torch.cat((label + codes, canvas), 1)
        given = tokens, masked, label[:, 0], codes, classes
        found = tensor(asked(function, *given), wanted, "sequence")
        unlike(found, {
            "the class token comes first": torch.cat((canvas, label + codes), 1),
            "class c has the id K + c, because 0 to K - 1 are the codes":
                torch.cat((label, canvas), 1),
            "the id K belongs to class 0; [MASK] comes behind the C classes":
                torch.cat((label + codes, torch.where(masked, codes, tokens)), 1),
            "the classes are K to K + C - 1, so [MASK] is K + C":
                torch.cat((label + codes, torch.where(masked, mask + 1, tokens)), 1),
            "True is masked; you mask the visible tokens":
                torch.cat((label + codes, torch.where(masked, tokens, mask)), 1),
        })
        for row, (mine, right) in enumerate(zip(found.tolist(), wanted.tolist(), strict=True)):
            want(mine == right, f"with K = {codes} and C = {classes} the image {row} of class "
                  f"{labels[row]} must become {right}, not {mine}.")
    passed("sequence")


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


def quantize(function: Callable[[Tensor, Tensor, float], tuple]) -> None:
    """(z (B, D, h, w), codebook (K, D), beta) -> tokens (B, h w), states (B, D, h, w), loss."""
    z, codebook = random(2, 3, 4, 5).requires_grad_(), random(6, 3, seed=1).requires_grad_()
    answer = function(z, codebook, 0.25)
    returned(answer, "quantize")
    want(isinstance(answer, tuple) and len(answer) == 3,
         "quantize returns three things, in this order: tokens, states, loss.")
    rows = z.detach().permute(0, 2, 3, 1).reshape(-1, 3)  # (40, 3)
    distances = torch.cdist(rows, codebook.detach())
    nearest, wrong = distances.argmin(1), torch.cdist(z.detach().reshape(-1, 3), codebook.detach())
    tokens = tensor(answer[0], nearest.view(2, 20), "the first of the three results")
    unlike(tokens, {
        "a vector of z goes along its channels: permute z to (B, h, w, D) before you make rows of "
        "it": wrong.argmin(1).view(2, 20),
        "these are the farthest codes": distances.argmax(1).view(2, 20),
        "the tokens go down the columns; row by row, h before w, is wanted":
            nearest.view(2, 4, 5).transpose(1, 2).reshape(2, 20),
    })
    want(same(tokens, nearest.view(2, 20)), "a token is not the id of the nearest code.")

    codes = codebook.detach()[nearest]  # (40, 3)
    e = codes.view(2, 4, 5, 3).permute(0, 3, 1, 2)
    states = tensor(answer[1], z, "the second of the three results")
    unlike(states.detach(), {
        "the states have the values of z; they should have those of the codes": z.detach(),
        "view does not move the channels: make (B, h, w, D), then permute to (B, D, h, w)":
            codes.view(2, 3, 4, 5),
    })
    want(same(states.detach(), e), "the states must have the values of the chosen codes.")

    gap = (z.detach() - e).square().mean()
    loss = tensor(answer[2], gap, "the third of the three results")
    unlike(loss.detach(), {
        "take the means over all B h w D numbers, not the sums": 1.25 * gap * z.numel(),
        "take the mean over D, too; you have its sum": 1.25 * gap * 3,
        "the codebook loss is missing": 0.25 * gap,
        "the commitment loss is missing": gap,
        "multiply the commitment loss by beta": 2 * gap,
    }, f"your loss is {loss:.3f}: ")
    want(same(loss.detach(), 1.25 * gap),
         f"your loss is {loss:.3f}, the right one {1.25 * gap:.3f}.")

    def gradients(of: Tensor, what: str, back: Tensor | None = None) -> list[Tensor]:
        want(of.requires_grad, f"no gradient comes back from {what}: too much is detached.")
        found = torch.autograd.grad(of, (z, codebook), back, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g
                for g, x in zip(found, (z, codebook), strict=True)]

    to_z, to_codes = gradients(loss, "the loss")
    pull = 2 * (z.detach() - e) / z.numel()  # the gradient of `gap` by z
    push = torch.zeros(6, 3).index_add(0, nearest, -pull.permute(0, 2, 3, 1).reshape(-1, 3))
    unlike(to_codes, {
        "the commitment loss moves the codes, too: detach e in it": 1.25 * push,
        "the two stop-gradients are swapped: the codebook loss has sg(z), the commitment loss "
        "sg(e)": 0.25 * push,
        "the codebook loss moves no code: detach z in it, not e": 0 * push,
    }, tolerance=1e-5)
    unlike(to_z, {
        "the codebook loss moves z, too: detach z in it": 1.25 * pull,
        "the commitment loss does not move z: detach e in it, not z": 0 * pull,
    }, tolerance=1e-5)
    want(same(to_codes, push, 1e-5) and same(to_z, 0.25 * pull, 1e-5),
         "the loss has the right value, but other gradients than equation 3.")

    back = random(2, 3, 4, 5, seed=2)
    to_z, to_codes = gradients(states, "the states", back)
    want(not to_codes.any(),
         "the codes receive a gradient from the states: straight-through hands it to z alone.")
    want(same(to_z, back),
         "straight-through is missing: z must receive the states' gradient unchanged.")
    passed("quantize")
