"""Parallel decoding: from a masked canvas to a full one in a few steps.

MaskGIT's iterative decoding (Chang et al. 2022, section 3.2) with the self-guidance paper's
schedules. `decode` holds no model: it takes a callable that gives guided logits, so editing,
in-painting and every kind of guidance are this one function.
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import InputError, check_choice, check_count, is_finite
from .masking import masked_after

ANNEALS = ("linear", "compounding")
MAX_STEPS = 10_000  # a slip of the finger would fill the memory with noise


class Trajectory(NamedTuple):
    """The whole way from the first canvas to the image; T steps of B images of N tokens."""

    tokens: Tensor  # (B, N) int64, the result
    canvases: Tensor  # (T, B, N) int64, what the model saw at each step
    drawn: Tensor  # (T, B, N) int64, the tokens on the table after each step's draw
    confidence: Tensor  # (T, B, N) float32, the score each drawn token was ranked by; known: +inf
    kept: Tensor  # (T, B, N) bool, the positions that stand after each step


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
    taus = []
    for fall in falls:
        temperature *= fall
        taus.append(temperature)
    return taus


def halton_ranks(n: int) -> Tensor:
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
    return torch.tensor([ranks[position] for position in range(n)])


@lru_cache  # a copy to the device is no part of a step
def _halton(n: int, device: torch.device) -> Tensor:
    return halton_ranks(n).float().to(device)


def _radical_inverse(index: int, base: int) -> float:
    """Mirror the digits of `index` at the decimal point."""
    value, scale = 0.0, 1 / base
    while index:
        value += index % base * scale
        index, scale = index // base, scale / base
    return value


def noise_keys(generators: Sequence[torch.Generator], steps: int, n: int) -> Tensor:
    """What all noise of B images comes from, int32 (T, 2, B, N); image i's from generator i alone.

    Of each step's two rows the first is for the draw, the second for the ranking.
    """
    limits: dict[str, Any] = {"low": -(2**31), "high": 2**31, "dtype": torch.int32}
    keys = [torch.randint(size=(steps, 2, n), generator=g, device=g.device, **limits)
            for g in generators]  # fmt: skip
    return torch.stack(keys, 2)


def exponential(keys: Tensor, codes: int) -> Tensor:
    """Exp(1) noise float32 (..., K) for keys int32 (...).

    A hash of key and code (the 32-bit mixer of C. Wellons, "Prospecting for hash functions"):
    the same on every device and in every batch, whichever part of it is asked for, and faster
    than a generator.
    """
    weyl = torch.arange(codes, device=keys.device).mul_(0x9E3779B9).to(torch.int32)
    x = keys[..., None] ^ weyl  # then in place: fresh memory is half of the cost on a CPU
    x.bitwise_xor_(x >> 16).mul_(0x21F0AAAD)
    x.bitwise_xor_(x >> 15).mul_(0xD35A2D97 - 2**32)
    x.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF)
    uniform = x.float().add_(0.5).mul_(2**-23)  # exact, and never 0 or 1
    return uniform.log_().neg_()


def draw(logits: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens int64 (...) drawn from logits float32 (..., K), and their log-probabilities.

    An exponential race: argmax p / E is a draw from p (the Gumbel-max trick, without its logs).
    """
    rows, flat = logits.flatten(0, -2), keys.flatten()
    # a CPU keeps a small block in its cache: several times as fast as all rows at once
    block = 512 if rows.device.type == "cpu" else len(rows)
    tokens, log_p = [], []
    for some, key in zip(rows.split(block), flat.split(block), strict=True):
        p = some.softmax(-1)
        tokens.append((p / exponential(key, p.shape[-1])).argmax(-1, keepdim=True))
        log_p.append(p.gather(-1, tokens[-1]).log())
    return torch.cat(tokens).view(keys.shape), torch.cat(log_p).view(keys.shape)


def rank(
    held: Tensor,
    keys: Tensor,
    masked: Tensor,
    to_fill: Tensor,
    leave: Tensor,
    tau: float,
    order: str,
    remask_known: bool = False,
) -> tuple[Tensor, Tensor]:
    """Score the drawn tokens and say which stand: float32 (B, N) and bool (B, N).

    Args:
        held: float32 (B, N), the log-probabilities that the tokens were drawn with.
        keys: int32 (B, N), for the noise.
        masked, to_fill: bool (B, N), what is masked now, and what was at the start.
        leave: int64 (B,), how many positions of each image stay masked.
        tau, order, remask_known: see `decode`.
    """
    gumbel = -exponential(keys, 1)[..., 0].log()
    score = ORDERS[order](held, tau, gumbel)
    if order != "remask":
        known = 88.7 + tau * gumbel if remask_known else math.inf
        score = torch.where(masked, score, known)
    score = torch.where(to_fill, score, math.inf)  # what was given always stands
    place = score.argsort(dim=1, stable=True).argsort(1)  # 0 is the least certain
    return score, place >= leave[:, None]


def generators_for(seeds: Sequence[int]) -> list[torch.Generator]:
    """One torch.Generator per image, so that a seed means the same picture in any batch.

    Raises:
        InputError: a seed is no whole number in 0..2^63 - 1.
    """
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError:
        numbers = [-1]
    if any(not 0 <= number < 2**63 for number in numbers):
        raise InputError(f"seeds must be whole numbers in 0..2^63 - 1, not {seeds!r}.")
    return [torch.Generator().manual_seed(number) for number in numbers]


# Orders that rank by confidence, and so listen to the temperature.
TEMPERED = ("confidence", "remask")
# An order scores the drawn tokens (B, N); the best of them are kept. `gumbel` (B, N) is fresh.
ORDERS = {
    "confidence": lambda log_p, tau, gumbel: log_p + tau * gumbel,
    "random": lambda log_p, tau, gumbel: gumbel,
    "remask": lambda log_p, tau, gumbel: log_p + tau * gumbel,
    "halton": lambda log_p, tau, gumbel: -_halton(log_p.shape[1], log_p.device).expand_as(log_p),
}


@torch.no_grad()
def decode(
    guided_logits: Callable[[Tensor, Tensor], Tensor],
    labels: Tensor,
    canvas: Tensor,
    steps: int = 18,
    schedule: str = "cosine",
    temperature: float = 6.0,
    anneal: str = "linear",
    order: str = "confidence",
    generators: Sequence[torch.Generator] | None = None,
    remask_known: bool = False,
) -> Trajectory:
    """Fill the masked positions of a canvas in `steps` rounds.

    Each round predicts, draws a token for every masked position from the guided distribution,
    scores the draws (`order`), keeps the best and masks the others again, so that after step k
    exactly floor(M ratio(k / T)) of an image's M masked positions are masked (at least 1, at
    most one less than before; none after the last step). Tokens given in the first canvas are
    never changed: another first canvas is in-painting, out-painting or editing.

    Orders: "confidence" is MaskGIT's, log p + tau Gumbel; "random" and "halton" do not look at the
    prediction. "remask" ranks by confidence too, but a token that stands competes again with the
    log-probability that it was drawn with, so that an early poor choice is masked and drawn anew
    (training-free remasking in the spirit of ReMDM, Wang et al. 2025, arXiv 2503.00307).

    Args:
        guided_logits: (canvas (B, N), labels (B,)) -> logits (B, N, K).
        labels: int64 (B,).
        canvas: int64 (B, N); an id of K or more is [MASK].
        steps: T >= 1 rounds.
        schedule: a name in `masking.SCHEDULES`.
        temperature: tau >= 0 of the Gumbel noise on log-confidences; see `temperatures`.
        anneal: "linear" or "compounding".
        order: a name in `ORDERS`.
        generators: one per image, all noise of image i comes from the i-th.
        remask_known: give tokens of earlier steps the released code's finite confidence 88.7
            instead of infinity, so that a high temperature may mask a few again.

    Raises:
        InputError: an unknown name, a number out of range, shapes that do not fit, or logits
            that are not finite (with the step).
    """
    taus, keys = prepare(labels, canvas, steps, temperature, anneal, order, generators)
    first = canvas
    to_fill: Any = None
    leaves: Any = None
    held = torch.zeros(canvas.shape, device=canvas.device)  # log p that a standing token had
    trace = []
    for step, tau in enumerate(taus):
        logits = guided_logits(canvas, labels).float()
        if logits.ndim != 3 or logits.shape[:2] != canvas.shape:
            raise InputError(
                f"the logits must be (B, N, K) with (B, N) = {tuple(canvas.shape)}, not "
                f"{tuple(logits.shape)}."
            )
        codes = logits.shape[-1]
        if to_fill is None:
            to_fill = first >= codes
            leaves = leave_masked(to_fill.sum(1), steps, schedule)
        drawn, log_p = draw(logits, keys[step, 0])
        if not torch.isfinite(log_p).all():
            raise InputError(f"the logits of step {step + 1} hold NaN or infinity.")
        masked = canvas >= codes
        drawn = torch.where(masked, drawn, canvas)
        held = torch.where(masked, log_p, held)
        score, kept = rank(
            held, keys[step, 1], masked, to_fill, leaves[step], tau, order, remask_known
        )
        trace.append((canvas, drawn, score, kept))
        # where it is masked again, the first canvas holds [MASK]
        canvas = torch.where(kept, drawn, first)
    return Trajectory(canvas, *(torch.stack(parts) for parts in zip(*trace, strict=True)))


def prepare(
    labels: Tensor,
    canvas: Tensor,
    steps: int,
    temperature: float,
    anneal: str,
    order: str,
    generators: Sequence[torch.Generator] | None,
) -> tuple[list[float], Tensor]:
    """Check what `decode` was given; the temperatures and the noise keys of its steps."""
    check_choice("order", order, ORDERS)
    taus = temperatures(temperature, steps, anneal)
    if canvas.ndim != 2 or labels.shape != canvas.shape[:1]:
        raise InputError(
            f"canvas must be (B, N) and labels (B,), not {tuple(canvas.shape)} and "
            f"{tuple(labels.shape)}."
        )
    batch, n = canvas.shape
    if not canvas.numel() or canvas.dtype != torch.int64 or canvas.min() < 0:
        raise InputError("the canvas must hold int64 ids of at least 0, for at least one image.")
    generators = generators_for(range(batch)) if generators is None else generators
    if len(generators) != batch:
        raise InputError(f"{batch} images need {batch} generators, not {len(generators)}.")
    return taus, noise_keys(generators, steps, n).to(canvas.device)


def leave_masked(to_fill: Tensor, steps: int, schedule: str) -> Tensor:
    """How many positions of each image stay masked after each step, int64 (T, B)."""
    table, masked = [], to_fill.tolist()
    for step in range(1, steps):
        totals = zip(masked, to_fill.tolist(), strict=True)
        masked = [
            max(min(1, total), min(now - 1, masked_after(step, steps, total, schedule)))
            for now, total in totals
        ]
        table.append(masked)
    return torch.tensor([*table, [0] * len(masked)], device=to_fill.device)
