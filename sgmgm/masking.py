"""Masking: how much of an image is masked, and which tokens.

Schedules and training masks follow MaskGIT (Chang et al. 2022, section 3.3 and appendix).
"""

import math

import torch
from torch import Tensor

from .utils.errors import InputError, check_choice

SCHEDULES = {
    "cosine": lambda r, n: math.cos(math.pi * r / 2),
    "linear": lambda r, n: 1 - r,
    "square": lambda r, n: 1 - r**2,
    "exponential": lambda r, n: 1 - max(n, 1) ** (r - 1) if r < 1 else 0.0,
    "arccos": lambda r, n: math.acos(r) / (math.pi / 2),
}


def mask_ratio(r: float, schedule: str = "cosine", n: int = 256) -> float:
    """Share of n tokens that are masked at progress r in [0, 1], by a schedule of `SCHEDULES`.

    All fall from 1 to 0; only "exponential" depends on n, and it begins with 1 - 1/n.
    """
    check_choice("schedule", schedule, SCHEDULES)
    if not 0 <= r <= 1:
        raise InputError(f"progress must be in [0, 1], not {r!r}.")
    return max(0.0, SCHEDULES[schedule](r, n))


def masked_after(step: int, steps: int, n: int, schedule: str = "cosine") -> int:
    """How many of n tokens the schedule leaves masked after step 1 <= step <= steps.

    floor(n x ratio(step / steps)), the paper's sampling rule; 0 after the last step.
    """
    if step == steps:
        return 0
    # 1e-9 keeps whole numbers whole: 100 x (1 - 0.9) is 9.999999999999998 in floats
    return math.floor(n * mask_ratio(step / steps, schedule, n) + 1e-9)


def random_mask(batch: int, n: int, generator: torch.Generator, schedule: str = "cosine") -> Tensor:
    """Training masks, bool (batch, n): True is masked (paper, eq. 1).

    Each row samples its own progress t ~ U(0, 1) and masks round(ratio(t) n) >= 1 positions
    at random.
    """
    t = torch.rand(batch, generator=generator).tolist()  # (batch,)
    num_masked = torch.tensor([max(1, round(mask_ratio(r, schedule, n) * n)) for r in t])
    rank = torch.rand(batch, n, generator=generator).argsort(1).argsort(1)  # (batch, n)
    return rank < num_masked[:, None]


def drop_labels(labels: Tensor, rate: float, num_classes: int, generator) -> Tensor:
    """A copy of labels (B,) in which a share `rate` is `num_classes`, i.e. "no class".

    This is what lets one model serve classifier-free guidance (Ho & Salimans 2022).
    """
    drop = torch.rand(len(labels), generator=generator) < rate
    return torch.where(drop.to(labels.device), num_classes, labels)


def corrupt(
    tokens: Tensor, mask: Tensor, rate: float, wrong: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace a share of the *visible* tokens by wrong ones (paper, eq. 7: z_t).

    Args:
        tokens: int64 (B, N), the true tokens x_0.
        mask: bool (B, N), True where the canvas will be masked.
        rate: share of the visible tokens to replace, in [0, 1].
        wrong: int64 (B, N), a candidate for every position.

    Returns:
        The corrupted tokens (B, N), before masking, and where they were replaced, bool (B, N).
    """
    if not 0 <= rate <= 1:
        raise InputError(f"the substitution rate must be in [0, 1], not {rate!r}.")
    replaced = (torch.rand(tokens.shape, generator=generator).to(mask.device) < rate) & ~mask
    return torch.where(replaced, wrong, tokens), replaced
