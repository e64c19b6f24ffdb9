import itertools
import math

import numpy as np
import pytest
import torch

from sgmgm.sampling import (
    ANNEALS,
    ORDERS,
    decode,
    exponential,
    generators_for,
    halton_ranks,
    noise_keys,
    temperatures,
)
from sgmgm.transformer import MaskedTransformer, TransformerConfig
from sgmgm.utils.errors import InputError

K, MASK = 11, 16


def table_logits(n, codes=K, seed=0):
    """A model without a network: its logits depend on position, class and the whole canvas."""
    draw = torch.Generator().manual_seed(seed)
    own = torch.randn(n, codes, generator=draw)
    by_class = torch.randn(5, n, codes, generator=draw)
    by_token = torch.randn(MASK + 1, codes, generator=draw)

    def logits(canvas, labels):
        return own + by_class[labels] + by_token[canvas].mean(1, keepdim=True)

    return logits


def blank(batch, n):
    return torch.full((batch, n), MASK)


def run(batch=3, n=16, **options):
    labels = torch.arange(batch) % 5
    return decode(table_logits(n), labels, options.pop("canvas", blank(batch, n)), **options)


# ------------------------------------------------------------------------------- how many are kept


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n, steps", [(1, 1), (1, 4), (4, 9), (9, 1), (16, 5), (64, 12), (64, 18),
                                      (64, 80), (256, 18), (36, 36)])  # fmt: skip
def test_the_cosine_counts_are_exact(n, steps, order):
    trajectory = run(2, n, steps=steps, order=order)
    assert trajectory.canvases.shape == trajectory.kept.shape == (steps, 2, n)
    masked = n
    for k in range(1, steps + 1):
        wanted = math.floor(n * math.cos(math.pi * k / steps / 2) + 1e-9) if k < steps else 0
        if k < steps:  # at least 1, at most one less than before
            wanted = max(1, min(wanted, masked - 1))
        masked = wanted
        assert (~trajectory.kept[k - 1]).sum(1).tolist() == [masked] * 2
        if k < steps:
            assert (trajectory.canvases[k] >= K).sum(1).tolist() == [masked] * 2
    assert (trajectory.tokens < K).all()


def test_the_paper_counts_for_64_tokens_in_8_steps():
    """By hand: 64 cos(11.25 degrees) = 62.77, 59.13, 53.21, 45.25, 35.56, 24.49, 12.49, 0."""
    left = (~run(1, 64, steps=8).kept).sum(2)[:, 0].tolist()
    assert left == [62, 59, 53, 45, 35, 24, 12, 0]


def test_what_stands_keeps_standing_and_the_trajectory_is_one_story():
    t = run(4, 16, steps=7, temperature=20.0)
    for k in range(6):
        assert (t.canvases[k + 1] == torch.where(t.kept[k], t.sampled[k], MASK)).all()
        assert (t.kept[k] <= t.kept[k + 1]).all()
        stands = t.kept[k]
        assert (t.tokens[stands] == t.sampled[k][stands]).all()
        assert t.confidence[k + 1][stands].eq(math.inf).all()
    assert t.tokens.equal(t.sampled[-1]) and t.kept[-1].all()
    assert t.canvases[0].equal(blank(4, 16))


def test_remasking_takes_back_what_was_drawn_with_little_confidence():
    """At temperature 0 the ranking is the held log-probability, for old and new tokens alike."""
    t = run(40, 16, steps=8, order="remask", temperature=0.0)
    taken_back = t.kept[:-1] & ~t.kept[1:]
    assert taken_back.any()
    for k in range(8):
        for image in range(40):
            kept, left = t.kept[k, image], ~t.kept[k, image]
            if left.any():
                score = t.confidence[k, image]
                assert score[kept].min() >= score[left].max()
    for k in range(7):  # a token that stands carries its log-probability on
        stands = t.kept[k]
        assert t.confidence[k + 1][stands].equal(t.confidence[k][stands])
    given = blank(3, 16)
    given[:, :5] = torch.arange(5)
    t = run(3, 16, canvas=given, steps=6, order="remask", temperature=50.0)
    assert t.tokens[:, :5].equal(given[:, :5]) and (t.canvases[:, :, :5] < K).all()


# ------------------------------------------------------------------------------------ temperature


def test_linear_anneal():
    assert temperatures(8.0, 4) == [6.0, 4.0, 2.0, 0.0]


def test_compounding_anneal_by_hand():
    # 10 x 3/4, x 2/4, x 1/4, x 0
    assert temperatures(10.0, 4, "compounding") == [7.5, 3.75, 0.9375, 0.0]


def test_compounding_anneal_of_the_paper():
    taus = temperatures(25, 18, "compounding")
    closed = [25 * math.prod((18 - j) / 18 for j in range(1, k + 1)) for k in range(1, 19)]
    assert taus == pytest.approx(closed, abs=1e-12)
    # in closed form 25 x 17! / (17 - k)! / 18^k
    assert taus[4] == pytest.approx(25 * math.factorial(17) / math.factorial(12) / 18**5)
    assert taus[-1] == 0 and len(taus) == 18


@pytest.mark.parametrize("anneal", ANNEALS)
def test_one_step_is_without_noise(anneal):
    assert temperatures(5, 1, anneal) == [0.0]


def test_temperature_zero_keeps_the_most_likely():
    t = run(3, 16, steps=5, temperature=0.0)
    again = run(3, 16, steps=5, temperature=0.0)
    assert all(a.equal(b) for a, b in zip(t, again, strict=True))
    for k in range(5):
        log_p = table_logits(16)(t.canvases[k], torch.arange(3)).log_softmax(-1)
        log_p = log_p.gather(-1, t.sampled[k][..., None])[..., 0]
        log_p[t.canvases[k] < K] = math.inf
        assert torch.allclose(t.confidence[k], log_p, atol=1e-5)
        for image in range(3):
            kept, left = log_p[image][t.kept[k, image]], log_p[image][~t.kept[k, image]]
            assert not len(left) or kept.min() >= left.max()


def test_a_high_temperature_forgets_confidence():
    """The share of the surest half that is kept first: all of it at 0, about half at 1000."""
    share = {}
    for tau in (0.0, 1000.0):
        t = run(200, 16, steps=3, temperature=tau)
        log_p = table_logits(16)(t.canvases[0], torch.arange(200) % 5).log_softmax(-1)
        log_p = log_p.gather(-1, t.sampled[0][..., None])[..., 0]
        kept = t.kept[0].sum(1)[0]
        best = log_p.argsort(1, descending=True)[:, :kept]
        share[tau] = t.kept[0].gather(1, best).float().mean().item()
    assert share[0.0] == 1.0
    assert share[1000.0] == pytest.approx(int(kept) / 16, abs=0.05)


# -------------------------------------------------------------------------------------- the draw


def test_tokens_are_drawn_from_the_distribution():
    """Chi-square of 20,000 draws at one position, 5 degrees of freedom; 25 is p = 0.0001."""
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    count = 20_000
    logits = p.log()[None, None].expand(count, 1, -1)
    labels = torch.zeros(count, dtype=torch.int64)
    t = decode(lambda c, x: logits, labels, torch.full((count, 1), 6), steps=1)
    seen = torch.bincount(t.tokens[:, 0], minlength=6).double()
    expected = p.double() * count
    assert ((seen - expected).square() / expected).sum() < 25


def test_the_ranking_noise_is_gumbel():
    """The order of two equally likely tokens' log p + Gumbel noise is Plackett-Luce.

    With log-probabilities log 0.8 and log 0.2 and tau = 1 the first is kept first in 80 %.
    """
    count = 20_000
    logits = torch.tensor([[0.8, 0.2 / 4] + [0.15 / 3] * 3, [0.2] * 5]).log()
    labels = torch.zeros(count, dtype=torch.int64)
    t = decode(lambda c, x: logits.expand(count, -1, -1), labels, torch.full((count, 2), 5),
               steps=2, temperature=2.0)  # fmt: skip
    both = (t.sampled[0] == 0).all(1)  # position 0 has 0.8, position 1 has 0.2
    first = t.kept[0][both][:, 0].float().mean().item()
    assert first == pytest.approx(0.8, abs=0.03)


# ------------------------------------------------------------------------------------------ orders


@pytest.mark.parametrize("n", [1, 4, 9, 16, 49, 64, 256])
def test_halton_ranks_are_a_permutation(n):
    assert sorted(halton_ranks(n).tolist()) == list(range(n))


def test_the_first_halton_positions_are_spread():
    ranks = halton_ranks(64).view(8, 8)
    assert ranks[4, 2] == 0 and ranks[2, 5] == 1 and ranks[6, 0] == 2  # (1/2, 1/3), (1/4, 2/3)...
    quarters = ranks.unflatten(0, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 1, 3).flatten(2)
    assert ((quarters < 8).sum(2) >= 1).all()
    rows, columns = zip(*[divmod(int(i), 8) for i in halton_ranks(64).argsort()[:16]], strict=True)
    assert len(set(rows)) == len(set(columns)) == 8


def test_halton_keeps_its_first_positions():
    t = run(2, 16, steps=4, order="halton", temperature=50.0)
    ranks = halton_ranks(16)
    for k in range(4):
        standing = int(t.kept[k][0].sum())
        assert (t.kept[k] == (ranks < standing)).all()


def test_random_order_does_not_look_at_confidence():
    sure = torch.zeros(2000, 4, 6)
    sure[:, 0, 0] = 20.0
    labels = torch.zeros(2000, dtype=torch.int64)
    t = decode(lambda c, x: sure, labels, torch.full((2000, 4), 6), 2, order="random")
    kept = t.kept[0].float().mean(0)
    assert torch.allclose(kept, kept.mean().expand(4), atol=0.05)


# ---------------------------------------------------------------------------------- given tokens


def test_given_tokens_never_change_and_each_image_has_its_own_counts():
    canvas = blank(3, 16)
    canvas[0, :3] = 7
    canvas[1, :] = torch.arange(16) % K
    canvas[2, 5:] = 2
    before = canvas.clone()
    for remask in (False, True):
        t = run(3, 16, canvas=canvas, steps=6, temperature=300.0, remask_known=remask)
        given = before < K
        assert canvas.equal(before)
        assert (t.tokens[given] == before[given]).all()
        assert t.kept[:, given].all() and (t.canvases[:, given] == before[given]).all()
        for image, free in enumerate((13, 0, 5)):
            counts = [(c >= K).sum().item() for c in t.canvases[:, image]]
            expected, masked = [free], free
            for k in range(1, 6):
                floor = math.floor(free * math.cos(math.pi * k / 12) + 1e-9)
                masked = max(min(1, free), min(masked - 1, floor))
                expected.append(masked)
            assert counts == expected


@pytest.mark.parametrize("schedule", ["cosine", "linear", "square", "exponential", "arccos"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_full_canvas_returns_itself(schedule, order):
    canvas = torch.arange(32).view(2, 16) % K
    t = run(2, 16, canvas=canvas, steps=4, schedule=schedule, order=order)
    assert t.tokens.equal(canvas) and t.kept.all()


def test_known_tokens_are_masked_again_only_when_asked():
    options = {"steps": 8, "temperature": 400.0}
    usual, released = run(20, 16, **options), run(20, 16, **options, remask_known=True)

    def lost(t):
        return int((t.kept[:-1] & ~t.kept[1:]).sum())

    assert lost(usual) == 0
    assert lost(released) > 0
    assert lost(run(20, 16, steps=8, temperature=1.0, remask_known=True)) == 0
    # the counts stay those of the schedule
    assert (~usual.kept).sum(2).equal((~released.kept).sum(2))
    assert (released.tokens < K).all()


# ------------------------------------------------------------------------- seeds and repeatability


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = MaskedTransformer(TransformerConfig(16, 32, 2, 4, 64, 40, 5, dropout=0.1)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(8)  # logits that say something
    return model


def sampled(model, seeds, labels, **options):
    canvas = model.blank.expand(len(seeds), -1)
    return decode(lambda c, x: model(c, x).logits, labels, canvas, 6, temperature=4.0,
                  generators=generators_for(seeds), **options).tokens  # fmt: skip


def test_a_seed_is_the_same_image_in_every_batch(network):
    seeds, labels = list(range(100, 164)), torch.arange(64) % 5
    together = sampled(network, seeds, labels)
    assert len(torch.unique(together, dim=0)) == 64
    for size in (1, 2, 7):
        for start in (0, 30, 64 - size):
            part = slice(start, start + size)
            assert sampled(network, seeds[part], labels[part]).equal(together[part])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = sampled(network, [seeds[i] for i in order], labels[order])
    assert shuffled.equal(together[order])


def test_generators_default_to_seeds_from_zero():
    by_hand = run(3, 16, steps=4, generators=generators_for([0, 1, 2])).tokens
    assert by_hand.equal(run(3, 16, steps=4).tokens)


def test_global_random_state_is_neither_used_nor_moved():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = run(2, 16, steps=3).tokens
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(2)
    assert run(2, 16, steps=3).tokens.equal(first)


def test_the_callers_tensors_are_left_alone(network):
    labels = torch.tensor([3, 1])
    canvas = torch.full((2, 16), network.config.mask_id)
    canvas[0, 2] = 5
    before = labels.clone(), canvas.clone()
    decode(lambda c, x: network(c, x).logits, labels, canvas, 3)
    assert labels.equal(before[0]) and canvas.equal(before[1])


# --------------------------------------------------------------- an independent second opinion


def slow_noise(key, codes):
    """The mixer in Python's own integers, shifts and all, instead of torch's."""
    out = []
    for code in range(codes):
        x = int(np.int32(key ^ np.int32(np.uint32(code * 0x9E3779B9 % 2**32))))
        for shift, factor in ((16, 0x21F0AAAD), (15, 0xD35A2D97)):
            x = (x ^ (x >> shift)) * factor % 2**32
            x -= 2**32 if x >= 2**31 else 0
        out.append(-math.log(((x % 2**32 >> 9) + 0.5) / 2**23))
    return np.array(out)


def slow_decode(logits, label, canvas, steps, taus, seed):
    """One image, numpy, written from the method note: draw, score, keep the best, mask again."""
    canvas, blanks = canvas.copy(), int((canvas >= K).sum())
    draw = torch.Generator().manual_seed(seed)
    size = (steps, 2, len(canvas))
    keys = torch.randint(-(2**31), 2**31, size, generator=draw, dtype=torch.int32).numpy()
    left = blanks
    for k in range(1, steps + 1):
        scores = logits(torch.tensor(canvas)[None], torch.tensor([label]))[0].double().numpy()
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        confidence = {}
        guess = canvas.copy()
        for i in np.flatnonzero(canvas >= K):
            guess[i] = np.argmax(p[i] / slow_noise(keys[k - 1, 0, i], K))
            gumbel = -np.log(slow_noise(keys[k - 1, 1, i], 1)[0])
            confidence[i] = np.log(p[i, guess[i]]) + taus[k - 1] * gumbel
        floor = int(np.floor(blanks * np.cos(np.pi * k / steps / 2) + 1e-9))
        left = 0 if k == steps else max(1, min(floor, left - 1))
        for i in sorted(confidence, key=confidence.get)[:left]:
            guess[i] = MASK
        canvas = guess
    return canvas


@pytest.mark.parametrize("tau, anneal", [(0.0, "linear"), (6.0, "linear"), (25.0, "compounding")])
def test_a_brute_force_decoder_agrees(tau, anneal):
    n, steps, batch = 16, 7, 6
    canvas = blank(batch, n)
    canvas[1, :6], canvas[2, 3] = 4, 0
    labels = torch.arange(batch) % 5
    tokens = run(batch, n, canvas=canvas, steps=steps, temperature=tau, anneal=anneal).tokens
    taus = [tau * (1 - k / steps) for k in range(1, steps + 1)]
    if anneal == "compounding":
        taus = [tau * math.prod(1 - j / steps for j in range(1, k + 1))
                for k in range(1, steps + 1)]  # fmt: skip
    for i in range(batch):
        slow = slow_decode(table_logits(n), int(labels[i]), canvas[i].numpy(), steps, taus, i)
        assert tokens[i].tolist() == slow.tolist()


# --------------------------------------------------------------------------------------- the noise


def test_noise_is_exponential_and_independent():
    """Moments, tail and correlations of 4 million numbers; each bound is about 5 deviations."""
    draws = [torch.Generator().manual_seed(seed) for seed in range(4)]
    keys = noise_keys(draws, 4, 128)
    assert keys.shape == (4, 2, 4, 128) and keys.dtype == torch.int32
    noise = exponential(keys, 1024).double()
    assert noise.shape == (4, 2, 4, 128, 1024) and (noise > 0).all() and noise.isfinite().all()
    assert abs(noise.mean() - 1) < 0.003 and abs(noise.var() - 1) < 0.008
    for tail in (1e-4, 0.01, 1.0, 5.0, 9.0):
        p = 1 - math.exp(-tail)
        share = (noise < tail).double().mean().item()
        assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / noise.numel())
    uniform = (-noise).exp() - 0.5
    for dim in range(5):  # steps, the two rows, images, positions, codes
        a, b = uniform.narrow(dim, 0, 1), uniform.narrow(dim, 1, 1)
        assert abs((a * b).mean() * 12) < 5 / math.sqrt(a.numel())
    ahead = (uniform[..., 1:] * uniform[..., :-1]).mean() * 12
    assert abs(ahead) < 5 / math.sqrt(uniform.numel())


def test_each_code_has_the_same_noise_whatever_else_is_asked():
    keys = noise_keys([torch.Generator().manual_seed(0)], 1, 9)[0, 0]
    whole = exponential(keys, 40)
    assert exponential(keys[:, 4:], 20).equal(whole[:, 4:, :20])


@pytest.mark.parametrize("far", [2**32, 2**33, 2**62])
def test_all_63_bits_of_a_seed_count(far):
    """A CPU generator looks at 32 of them: seeds that far apart gave the same image."""
    near, other = (noise_keys(generators_for([seed]), 2, 500) for seed in (7, 7 + far))
    generator = torch.Generator().manual_seed(7)
    size = {"size": (2, 2, 500), "dtype": torch.int32, "generator": generator}
    # below 2^32 nothing is added to what the generator gives
    assert near[:, :, 0].equal(torch.randint(-(2**31), 2**31, **size))
    assert not (near == other).any()
    a, b = (exponential(keys, 8).flatten() for keys in (near, other))
    assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 5 / len(a) ** 0.5
    images = [run(1, 16, steps=3, generators=generators_for([s])).tokens for s in (7, 7 + far)]
    assert not images[0].equal(images[1])


# --------------------------------------------------------------------------------------- bad input


def broken_at(step, value):
    count = itertools.count(1)

    def logits(canvas, labels):
        out = torch.zeros(*canvas.shape, K)
        if next(count) == step:
            out[0, 0, 0] = value
        return out

    return logits


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_name_the_step(value):
    with pytest.raises(InputError, match="logits of step 3 hold NaN or infinity"):
        decode(broken_at(3, value), torch.zeros(1, dtype=torch.int64), blank(1, 16), 5)


def test_half_precision_logits_are_ranked_in_single():
    rough = torch.randn(2, 16, K, generator=torch.Generator().manual_seed(0)).bfloat16()
    half, single = (
        decode(lambda c, x, of=of: of, torch.zeros(2).long(), blank(2, 16), 3)
        for of in (rough, rough.float())
    )
    assert half.confidence.dtype == torch.float32 and half.confidence.equal(single.confidence)
    assert half.tokens.equal(single.tokens)
