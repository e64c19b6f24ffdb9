import math
from fractions import Fraction

import pytest
import torch

from sgmgm.masking import (
    SCHEDULES,
    corrupt,
    drop_labels,
    mask_ratio,
    masked_after,
    random_mask,
)
from sgmgm.utils.errors import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [4, 64, 256])
def test_schedules_fall_from_all_to_nothing(name, n):
    values = [mask_ratio(k / 200, name, n) for k in range(201)]
    assert values[0] == pytest.approx(1 - 1 / n if name == "exponential" else 1)
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in zip(values[:-1], values[1:], strict=True))


def test_schedules_at_half_way():
    expected = {
        "cosine": math.sqrt(0.5),
        "linear": 0.5,
        "square": 0.75,
        "exponential": 1 - 1 / 8,
        "arccos": 2 / 3,
    }
    assert {name: mask_ratio(0.5, name, 64) for name in SCHEDULES} == pytest.approx(expected)


@pytest.mark.parametrize("n", [1, 7, 64, 100, 256, 1024])
@pytest.mark.parametrize("steps", [1, 3, 10, 18, 48])
def test_counts_are_the_exact_floor(n, steps):
    """Also where a float falls a hair short: 100 (1 - 9/10) is 10, in floats 9.999999999999998."""
    for k in range(1, steps):
        r = Fraction(k, steps)
        assert masked_after(k, steps, n, "linear") == math.floor(n * (1 - r))
        assert masked_after(k, steps, n, "square") == math.floor(n * (1 - r * r))
        # a cosine of a rational angle in (0, 90) degrees is rational at 60 degrees only
        cosine = Fraction(1, 2) if r == Fraction(2, 3) else math.cos(math.pi * k / steps / 2)
        assert masked_after(k, steps, n) == math.floor(n * cosine)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [0, 1, 5])
def test_nothing_is_left_after_the_last_step(name, n):
    counts = [masked_after(k, 9, n, name) for k in range(1, 10)]
    assert counts[-1] == 0 and all(0 <= count <= n for count in counts)
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("name", SCHEDULES)
def test_training_masks_hide_the_schedules_share(name):
    n = 64
    mask = random_mask(4000, n, seeded(), name)
    assert mask.shape == (4000, n) and mask.dtype == torch.bool
    assert mask.sum(1).min() >= 1
    grid = [(k + 0.5) / 2000 for k in range(2000)]
    expected = sum(mask_ratio(r, name, n) for r in grid) / len(grid)
    assert mask.float().mean().item() == pytest.approx(expected, abs=0.02)
    # no position is favoured
    assert (mask.float().mean(0) - expected).abs().max() < 0.04


def test_training_masks_hide_one_even_when_the_schedule_hides_none():
    assert random_mask(500, 2, seeded(), "exponential").sum(1).min() == 1


def test_training_masks_follow_the_generator():
    assert random_mask(5, 9, seeded(1)).equal(random_mask(5, 9, seeded(1)))
    assert not random_mask(5, 9, seeded(1)).equal(random_mask(5, 9, seeded(2)))


def test_dropped_labels():
    labels = torch.arange(10).repeat(1000)
    kept = labels.clone()
    dropped = drop_labels(labels, 0.1, 10, seeded())
    assert labels.equal(kept)
    assert ((dropped == labels) | (dropped == 10)).all()
    assert (dropped == 10).float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert drop_labels(labels, 0.0, 10, seeded()).equal(labels)
    assert (drop_labels(labels, 1.0, 10, seeded()) == 10).all()


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_corruption_touches_a_share_of_the_visible_tokens_only(rate):
    tokens = torch.randint(50, (400, 64), generator=seeded(1))
    wrong = tokens + 50  # so that every replacement shows
    mask = random_mask(400, 64, seeded(2))
    before = [x.clone() for x in (tokens, mask, wrong)]
    corrupted, replaced = corrupt(tokens, mask, rate, wrong, seeded(3))
    assert all(a.equal(b) for a, b in zip(before, (tokens, mask, wrong), strict=True))
    assert not (replaced & mask).any()
    assert corrupted.equal(torch.where(replaced, wrong, tokens))
    assert replaced[~mask].float().mean().item() == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize(
    "call, fragment",
    [
        (lambda: mask_ratio(0.5, "sine"), "unknown schedule 'sine': choose one of cosine"),
        (lambda: mask_ratio(1.5), "progress must be in [0, 1], not 1.5"),
        (lambda: mask_ratio(math.nan), "progress must be in [0, 1], not nan"),
        (lambda: masked_after(5, 4, 64), "progress must be in [0, 1]"),
        (lambda: corrupt(None, None, 1.1, None, None), "rate must be in [0, 1], not 1.1"),
        (lambda: corrupt(None, None, -0.1, None, None), "rate must be in [0, 1], not -0.1"),
        (lambda: random_mask(2, 4, seeded(), "sine"), "unknown schedule 'sine'"),
    ],
)
def test_bad_arguments_give_one_sentence(call, fragment):
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert fragment in text and text.endswith(".") and "\n" not in text


def test_the_number_of_masked_positions_is_rounded():
    """Of three positions round(3 (1 - t)) are masked, t ~ U(0, 1), but at least one."""
    masks = random_mask(6000, 3, torch.Generator().manual_seed(0), "linear")
    shares = masks.sum(1).bincount(minlength=4) / len(masks)
    assert shares.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 6], abs=0.02)
