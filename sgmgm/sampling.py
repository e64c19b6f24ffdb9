"""Parallel decoding: from a masked canvas to a full one in a few steps.

MaskGIT's iterative decoding (Chang et al. 2022, section 3.2) with the self-guidance paper's
schedules. `decode` holds no model: it takes a callable that gives guided logits, so editing,
in-painting and every kind of guidance are this one function.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .masking import masked_after
from .utils.errors import InputError, check_choice, check_count, is_finite

ANNEALS = ("linear", "compounding")
MAX_STEPS = 10_000  # the noise of all steps is allocated up front


class Trajectory(NamedTuple):
    """Every step from the first canvas to the image; T steps of B images of N tokens."""

    tokens: Tensor  # (B, N) int64, the result
    canvases: Tensor  # (T, B, N) int64, what the model saw at each step
    sampled: Tensor  # (T, B, N) int64, known tokens and those sampled at each step
    confidence: Tensor  # (T, B, N) float32, the score each token was ranked by; known: +inf
    kept: Tensor  # (T, B, N) bool, the positions that are known after each step


@torch.no_grad()
def decode(
    guided_logits: Callable[[Tensor, Tensor], Tensor], labels: Tensor, canvas: Tensor,
    steps: int = 18, schedule: str = "cosine", temperature: float = 6.0, anneal: str = "linear",
    order: str = "confidence", generators: Sequence[torch.Generator] | None = None,
    remask_known: bool = False,
) -> Trajectory:  # fmt: skip
    """Fill the masked positions of a canvas in `steps` steps.

    Each step predicts, samples a token for every masked position from the guided distribution,
    ranks these tokens (`order`), keeps the best and masks the others again, so that after step k
    exactly floor(M ratio(k / T)) of an image's M masked positions are masked (at least 1, at
    most one less than before; none after the last step). Tokens given in the first canvas are
    never changed: another first canvas is in-painting, out-painting or editing.

    Orders: "confidence" is MaskGIT's, log p + tau Gumbel; "random" and "halton" do not look at the
    prediction. "remask" ranks by confidence too, but a known token competes again with the
    log-probability that it was sampled with, so that an early poor choice is masked and sampled
    anew (training-free remasking in the spirit of ReMDM, Wang et al. 2025, arXiv 2503.00307).

    Args:
        guided_logits: (canvas (B, N), labels (B,)) -> logits (B, N, K).
        labels, canvas: int64 (B,) and (B, N); an id of K or more is [MASK].
        steps: T >= 1.
        schedule, order: names in `masking.SCHEDULES` and `ORDERS`.
        temperature, anneal: tau >= 0 of the Gumbel noise on log-confidences; see `temperatures`.
        generators: one per image, all noise of image i comes from the i-th.
        remask_known: give tokens of earlier steps the released code's finite confidence 88.7
            instead of infinity, so that a high temperature may mask a few again.

    Raises:
        InputError: an unknown name, a number out of range, shapes that do not fit, or logits
            that are not finite (with the step).
    """
    rest = steps, schedule, temperature, anneal, order, generators
    taus, keys, counts = prepare(labels, canvas, *rest)

    def propose(canvas: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        logits = guided_logits(canvas, labels).float()  # (B, N, K)
        if logits.ndim != 3 or logits.shape[:2] != canvas.shape:
            shape, found = tuple(canvas.shape), tuple(logits.shape)
            raise InputError(f"the logits must be (B, N, K) with (B, N) = {shape}, not {found}.")
        tokens, log_p = sample_tokens(logits, keys[step, 0])  # (B, N) each
        return canvas >= logits.shape[-1], tokens, log_p  # (B, N) each

    return check_finite(*fill(propose, canvas, keys, counts, taus, order, remask_known))


def fill(
    propose: Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]],
    first: Tensor, keys: Tensor, counts: Tensor,
    taus: Sequence[float], order: str, remask_known: bool,
) -> tuple[Trajectory, Tensor]:  # fmt: skip
    """The loop of `decode` (and of `fast.decode`); it looks at no value, so a GPU never waits.

    `propose` says for a canvas (B, N) and a step which positions are masked, bool (B, N), and gives
    a token for each of them with its log-probability, (B, N) each. `keys` (T, 2, B, N), `counts`
    (T, N + 1) and `taus` come from `prepare`.

    Returns the trajectory, and whether each step's log-probabilities were finite, bool (T,).
    """
    canvas, log_probs = first, torch.zeros(first.shape, device=first.device)  # (B, N) each
    trace, finite = [], []
    to_fill: Any = None
    for step, tau in enumerate(taus):
        masked, tokens, log_p = propose(canvas, step)  # (B, N) each
        to_fill = masked if to_fill is None else to_fill
        finite.append((log_p.isfinite() | ~masked).all())
        sampled = torch.where(masked, tokens, canvas)  # (B, N)
        log_probs = torch.where(masked, log_p, log_probs)  # (B, N)
        num_masked = counts[step][to_fill.sum(1)]  # (B,)
        gumbel = -exponential(keys[step, 1], 1)[..., 0].log()  # (B, N)
        score = ORDERS[order](log_probs, tau, gumbel)  # (B, N); MaskGIT's: log p + tau_k Gumbel
        if order != "remask":
            known = 88.7 + tau * gumbel if remask_known else math.inf  # (B, N), or one number
            score = torch.where(masked, score, known)  # (B, N)
        score = torch.where(to_fill, score, math.inf)  # (B, N); what was given is always kept
        place = score.argsort(dim=1, stable=True).argsort(1)  # (B, N), 0 is the least confident
        kept = place >= num_masked[:, None]  # (B, N)
        trace.append((canvas, sampled, score, kept))
        # what is not kept is masked again: there the first canvas holds [MASK]
        canvas = torch.where(kept, sampled, first)  # (B, N)
    steps = (torch.stack(each) for each in zip(*trace, strict=True))  # (T, B, N) each
    return Trajectory(canvas, *steps), torch.stack(finite)


def sample_tokens(logits: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Sample tokens int64 (...) from logits float32 (..., K); with their log-probabilities.

    An exponential race: argmax p / E is a sample from p (the Gumbel-max trick, without its logs).
    """
    rows, flat = logits.flatten(0, -2), keys.flatten()  # (R, K), (R,)
    # a CPU keeps a small block in its cache: several times as fast as all rows at once
    block = 512 if rows.device.type == "cpu" else len(rows)
    tokens, log_p = [], []
    for some, key in zip(rows.split(block), flat.split(block), strict=True):
        p = some.softmax(-1)  # (r, K)
        tokens.append((p / exponential(key, p.shape[-1])).argmax(-1, keepdim=True))  # (r, 1)
        log_p.append(p.gather(-1, tokens[-1]).log())  # (r, 1)
    return torch.cat(tokens).view(keys.shape), torch.cat(log_p).view(keys.shape)


# --- what is fixed before the first step -------------------------------------------------------
def temperatures(temperature: float, steps: int, anneal: str = "linear") -> list[float]:
    """Choice temperature tau_k of each step k = 1..T, with r = k / T.

    linear: tau (1 - r), the paper's formula and the original MaskGIT's.
    compounding: tau_k = tau_{k-1} (1 - r), what the released scripts compute; its 25 acts
    about like a linear 6.
    """
    check_choice("anneal", anneal, ANNEALS)
    check_count("steps", steps, most=MAX_STEPS)
    if not (is_finite(temperature) and temperature >= 0):
        raise InputError(f"temperature must be a finite number of at least 0, not {temperature!r}.")
    falls = [1 - k / steps for k in range(1, steps + 1)]
    if anneal == "linear":
        return [temperature * fall for fall in falls]
    return list(accumulate(falls, operator.mul, initial=temperature))[1:]


@lru_cache
def mask_counts(n: int, steps: int, schedule: str) -> Tensor:
    """How many of m masked positions are masked after each step, int64 (T, n + 1), m = 0..n.

    The schedule's number, but at least 1 and at most one less than before; 0 after the last step.
    """
    counts = [list(range(n + 1))]  # before the first step
    for step in range(1, steps):
        wanted = [masked_after(step, steps, m, schedule) for m in range(n + 1)]
        before = counts[-1]
        counts.append([max(min(1, m), min(before[m] - 1, wanted[m])) for m in range(n + 1)])
    return torch.tensor([*counts[1:], [0] * (n + 1)])


def prepare(
    labels: Tensor, canvas: Tensor, steps: int, schedule: str, temperature: float, anneal: str,
    order: str, generators: Sequence[torch.Generator] | None,
) -> tuple[list[float], Tensor, Tensor]:  # fmt: skip
    """Check what `decode` was given: its `temperatures` (T), `noise_keys` and `mask_counts`."""
    check_choice("order", order, ORDERS)
    taus = temperatures(temperature, steps, anneal)
    if canvas.ndim != 2 or labels.shape != canvas.shape[:1]:
        found = f"{tuple(canvas.shape)} and {tuple(labels.shape)}"
        raise InputError(f"canvas must be (B, N) and labels (B,), not {found}.")
    batch, n = canvas.shape
    if not canvas.numel() or canvas.dtype != torch.int64 or canvas.min() < 0:
        raise InputError("the canvas must hold int64 ids of at least 0, for at least one image.")
    generators = generators_for(range(batch)) if generators is None else generators
    if len(generators) != batch:
        raise InputError(f"{batch} images need {batch} generators, not {len(generators)}.")
    counts = mask_counts(n, steps, schedule)
    return taus, noise_keys(generators, steps, n).to(canvas.device), counts.to(canvas.device)


def check_finite(trajectory: Trajectory, finite: Tensor) -> Trajectory:
    """A trajectory whose steps were all finite, bool (T,); else an InputError names the first."""
    if not finite.all():
        step = int(finite.int().argmin()) + 1
        raise InputError(f"the logits of step {step} hold NaN or infinity.")
    return trajectory


# --- noise -------------------------------------------------------------------------------------
def generators_for(seeds: Sequence[int]) -> list[torch.Generator]:
    """One torch.Generator per image, so that a seed means the same image in any batch.

    InputError unless all seeds are whole numbers in 0..2^63 - 1.
    """
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError:
        numbers = [-1]
    if any(not 0 <= number < 2**63 for number in numbers):
        raise InputError(f"seeds must be whole numbers in 0..2^63 - 1, not {seeds!r}.")
    return [torch.Generator().manual_seed(number) for number in numbers]


def noise_keys(generators: Sequence[torch.Generator], steps: int, n: int) -> Tensor:
    """What all noise of B images comes from, int32 (T, 2, B, N); image i's from generator i alone.

    Of each step's two, the first is for sampling tokens, the second for ranking them.
    """
    limits: dict[str, Any] = {"low": -(2**31), "high": 2**31, "dtype": torch.int32}
    keys = []
    for g in generators:
        key = torch.randint(size=(steps, 2, n), generator=g, device=g.device, **limits)
        # a CPU generator uses the low 32 bits of its seed only: here the others count, too
        high = g.initial_seed() >> 32
        keys.append(key ^ (high if high < 2**31 else high - 2**32))  # (T, 2, N)
    return torch.stack(keys, 2)  # (T, 2, B, N)


def exponential(keys: Tensor, codes: int) -> Tensor:
    """Exp(1) noise float32 (..., K) for keys int32 (...).

    A hash of key and code (the 32-bit mixer of C. Wellons, "Prospecting for hash functions"):
    the same on every device and in every batch, however few of its values are asked for, and
    faster than a generator.
    """
    weyl = torch.arange(codes, device=keys.device).mul_(0x9E3779B9).to(torch.int32)  # (K,)
    x = keys[..., None] ^ weyl  # (..., K); then in place: fresh memory is half of the cost
    x.bitwise_xor_(x >> 16).mul_(0x21F0AAAD)
    x.bitwise_xor_(x >> 15).mul_(0xD35A2D97 - 2**32)
    x.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF)
    uniform = x.float().add_(0.5).mul_(2**-23)  # exact, and never 0 or 1
    return uniform.log_().neg_()


@lru_cache  # a copy to the device is no part of a step
def halton_ranks(n: int, device: torch.device | None = None) -> Tensor:
    """Rank of each of n = h x h positions in the Halton order, int64 (n,); 0 goes first.

    The 2-D low-discrepancy sequence of bases 2 and 3 spreads every step's tokens over the grid
    (Besnier et al. 2025, "Halton Scheduler for Masked Generative Image Transformer").
    """
    side = math.isqrt(n)
    if side * side != n:
        raise InputError(f"the Halton order needs a square grid; {n} tokens are none.")
    ranks: dict[int, int] = {}
    index = 0
    while len(ranks) < n:
        index += 1
        row, column = (int(_radical_inverse(index, base) * side) for base in (2, 3))
        ranks.setdefault(row * side + column, len(ranks))
    return torch.tensor([ranks[position] for position in range(n)], device=device)


def _radical_inverse(index: int, base: int) -> float:
    """Mirror the digits of `index` at the decimal point."""
    value, scale = 0.0, 1 / base
    while index:
        value += index % base * scale
        index, scale = index // base, scale / base
    return value


# Orders that rank by confidence, and so depend on the temperature.
TEMPERED = ("confidence", "remask")
# An order scores the sampled tokens (B, N); the best are kept. `gumbel` (B, N) is new each step.
ORDERS = {
    "confidence": lambda log_p, tau, gumbel: log_p + tau * gumbel,
    "random": lambda log_p, tau, gumbel: gumbel,
    "remask": lambda log_p, tau, gumbel: log_p + tau * gumbel,
    "halton": lambda p, *_: -halton_ranks(p.shape[1], p.device).float().expand_as(p),
}
