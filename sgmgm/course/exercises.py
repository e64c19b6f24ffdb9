"""Exercises: checks that say in words what is wrong with your function.

One check for each exercise in `notebooks/exercises/`. It calls the learner's function on a small
case whose answer is known, prints one line when all is well, and raises `NotYet` with one sentence
otherwise.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..masking import masked_after, random_mask
from ..metrics import precision_recall
from ..sampling import temperatures


class NotYet(Exception):
    """What is wrong, in one sentence. Jupyter shows the sentence alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


# fmt: off
def _want(right: bool | Tensor, otherwise: str) -> None:
    """A check is a condition, and below it the sentence for those who do not meet it."""
    if not right:
        raise NotYet(otherwise)


def _returned(value, what: str) -> None:
    _want(value is not None, f"{what} returns None: write its body, and return the result.")


def _tensor(value, like: Tensor, what: str) -> Tensor:
    """`value`, if it is a tensor of the shape and kind (integers, floats, bools) of `like`."""
    _returned(value, what)
    _want(isinstance(value, Tensor), f"{what} returns a {type(value).__name__}, not a tensor.")
    _want(value.shape == like.shape,
          f"{what} returns the shape {tuple(value.shape)} where {tuple(like.shape)} is wanted.")
    kinds = [(t.is_floating_point(), t.dtype == torch.bool) for t in (value, like)]
    _want(kinds[0] == kinds[1], f"{what} returns {value.dtype} where {like.dtype} is wanted.")
    return value


def _number(value, what: str, kind: str = "a number", read: Callable = float):
    _returned(value, what)
    try:
        return read(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise NotYet(f"{what} returns a {type(value).__name__}, not {kind}.") from None


def _numbers(value, what: str) -> list[float]:
    numbers = _number(value, what, "a list of numbers", lambda value: [float(n) for n in value])
    _want(all(map(math.isfinite, numbers)), f"{what} returns a number that is not finite.")
    return numbers


def _asked(function: Callable, *given):
    """The function's answer; it must leave the tensors that it is given as they are."""
    own = [g.clone() if isinstance(g, Tensor) else g for g in given]
    answer = function(*own)
    for mine, before in zip(own, given, strict=True):
        if isinstance(before, Tensor):
            _want(torch.equal(mine, before), "it changes a tensor that is given: make a new one.")
    return answer


def _elsewhere(function: Callable, *given):
    """The answer for another size; None where the function knows only the first one."""
    try:
        return function(*given)
    except (RuntimeError, IndexError, ValueError):
        return None


def _same(a, b, tolerance: float = 1e-4) -> bool:
    a, b = (torch.as_tensor(t).double() for t in (a, b))
    return torch.allclose(a, b, atol=tolerance, rtol=tolerance)


def _unlike(found, mistakes: dict, yours: str = "", tolerance: float = 1e-4) -> None:
    """Refuse the result of a known mistake; `yours` and the mistake's words make the sentence."""
    for words, value in mistakes.items():
        _want(not _same(found, value, tolerance), f"{yours}{words}.")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- 00 The tour -------------------------------------------------------------------------------
def saving(function: Callable[[int, int, int], float]) -> None:
    """(side, N, K) -> how many times smaller an image is as N tokens out of K codes."""
    for side, count, codes in ((32, 64, 1024), (256, 256, 1024), (32, 64, 1000)):
        pixels, bits = side * side * 24, count * math.log2(codes)
        found = _number(function(side, count, codes), "saving")
        _unlike(found, {
            "a pixel has three colours of 8 bits each": pixels / 3 / bits,
            "one of K codes takes log2(K) bits, not K": pixels / (count * codes),
            "that is the inverse: divide the pixels' bits by the tokens'": bits / pixels,
            "count bits on both sides; a token has log2(K)": side * side * 3 / count,
        }, f"you get {found:.4g}: ")
        _want(_same(found, pixels / bits),
              f"{side} x {side} pixels as {count} of {codes} codes are {pixels / bits:.4g} times "
              f"smaller, not {found:.4g}.")
    print("saving: right.")


def mask_tokens(function: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """(tokens, masked, id of [MASK]) -> the canvas that the model sees."""
    tokens = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    masked = torch.tensor([[True, False, False, True], [False, True, False, False]])
    canvas = _tensor(_asked(function, tokens, masked, 17), tokens, "mask_tokens")
    swapped = torch.where(masked, tokens, 17)
    _unlike(canvas, {"you mask what should be visible, and show what should be masked": swapped})
    held = canvas[masked]
    _want(bool((held == 17).all()),
          f"a masked position must hold the id of [MASK], 17; yours holds {held.tolist()}.")
    _want(_same(canvas[~masked], tokens[~masked]), "a visible token must stay as it is.")
    print("mask_tokens: right.")


# --- 01 VQ tokenization ------------------------------------------------------------------------
def nearest_code(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """(vectors (B, D), codebook (K, D)) -> the nearest code of each vector, int64 (B,)."""
    vectors, codebook = _random(20, 3), _random(8, 3, seed=1)
    distance = torch.cdist(vectors, codebook)
    wanted = distance.argmin(1)
    found = _tensor(_asked(function, vectors, codebook), wanted, "nearest_code")
    _want(bool(((found >= 0) & (found < 8)).all()),
          f"there are 8 codes, 0 to 7; yours go from {int(found.min())} to {int(found.max())}.")
    for i in (found != wanted).nonzero().flatten().tolist():
        far, near = distance[i, found[i]], distance[i, wanted[i]]
        raise NotYet(f"vector {i} is {near:.2f} from code {wanted[i]}, but you chose code "
                     f"{found[i]}, which is {far:.2f} away.")
    print("nearest_code: right.")


def straight_through(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """(z (B, D), e (B, D)) -> the value of e, with a gradient that goes to z as if it were z."""
    z, e = _random(4, 3).requires_grad_(), _random(4, 3, seed=1).requires_grad_()
    before = z.detach().clone()
    out = _tensor(function(z, e), z, "straight_through")
    _want(_same(z.detach(), before), "it overwrites z, which the commitment loss still needs.")
    _want(_same(out.detach(), e.detach()), "forward, the result must be the codes e; it is not.")
    _want(out.requires_grad, "no gradient comes back at all: something is detached that is needed.")
    back = _random(4, 3, seed=2)
    out.backward(back)
    got = "none" if z.grad is None else f"{z.grad[0, 0]:.2f} for {back[0, 0]:.2f}"
    _want(z.grad is not None and _same(z.grad, back),
          f"backward, z must receive the result's gradient unchanged; it receives {got}.")
    _want(e.grad is None or not e.grad.any(),
          "backward, the codes e receive a gradient too; detach the difference, not z.")
    print("straight_through: right.")


def perplexity(function: Callable[[Tensor, int], float]) -> None:
    """(tokens (B, N), K) -> how many codes are in use, as exp of the entropy in nats."""
    even = torch.arange(8).repeat_interleave(8).view(2, 32)  # 8 of 16 codes, 4 in each image
    skewed = torch.tensor([[0] * 30 + [1, 2]])
    p = torch.tensor([30.0, 1.0, 1.0]) / 32
    for tokens, wanted in ((even, 8.0), (skewed, float((-(p * p.log()).sum()).exp()))):
        found = _number(function(tokens, 16), "perplexity")
        used = len(tokens.unique())
        _want(not math.isnan(found), "you return nan: 0 log 0 counts as 0; leave such codes out.")
        how = "equally" if used == 8 else "30, 1 and 1 times"
        _want(abs(found - wanted) < 1e-3,
              f"{used} codes are used {how}: the perplexity is {wanted:.2f}, yours {found:.2f}.")
    print("perplexity: right.")


# --- 02 Masked transformer ---------------------------------------------------------------------
def cosine_mask(function: Callable[[float, int, torch.Generator], Tensor]) -> None:
    """(t in [0, 1], N, generator) -> bool (N,): True at round(cos(pi t / 2) N) >= 1 places."""
    wanted = random_mask(1, 64, torch.Generator())[0]
    for t in (0.0, 0.25, 0.5, 0.84, 1.0):
        count = max(1, round(math.cos(math.pi * t / 2) * 64))
        seeded = [torch.Generator().manual_seed(seed) for seed in (0, 1, 0)]
        masks = [_tensor(function(t, 64, each), wanted, "cosine_mask") for each in seeded]
        masked = int(masks[0].sum())
        _want(masked == count,
              f"at t = {t:g} your mask covers {masked} of 64 tokens and keeps {64 - masked}, where "
              f"the cosine schedule masks {count} and keeps {64 - count}.")
        _want(count == 64 or not torch.equal(*masks[:2]),
              "two generators of different seeds give the same mask: choose the places at random.")
        _want(torch.equal(masks[0], masks[2]),
              "the same seed gives two masks: take all randomness from the generator.")
    one = torch.Generator().manual_seed(0)
    first, second = function(0.5, 64, one), function(0.5, 64, one)
    _want(not torch.equal(first, second),
          "the same generator gives the same mask again: do not seed it anew.")
    _want(int((first != first.roll(1)).sum()) > 2,
          "the masked positions are side by side: choose each of them at random.")
    other = _elsewhere(function, 0.5, 36, one)
    _want(other is not None and other.shape == (36,) and int(other.sum()) == 25,
          "of 36 tokens 25 should be masked at t = 0.5: take their number from N.")
    print("cosine_mask: right.")


def masked_loss(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """(logits (B, N, K), tokens (B, N), masked bool (B, N)) -> mean cross-entropy where masked."""
    logits, tokens = _random(2, 6, 5), torch.arange(12).view(2, 6) % 5
    masked = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]]).bool()
    each = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")  # (2, 6)
    found = _number(_asked(function, logits, tokens, masked), "masked_loss")
    per_image = torch.stack([each[i][masked[i]].mean() for i in (0, 1)]).mean()
    _unlike(found, {
        "that is the mean over all positions; the visible ones can be read off": each.mean(),
        "that is the mean over the visible positions, which can be read off": each[~masked].mean(),
        "that is the sum; divide by the number of masked positions": each[masked].sum(),
        "that is a mean of means: every masked position must count the same": per_image,
    }, f"your loss is {found:.3f}: ")
    wanted = each[masked].mean().item()
    _want(_same(found, wanted), f"your loss is {found:.3f}, the right one {wanted:.3f}.")
    print("masked_loss: right.")


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
        found = _number(function(torch.tensor(images)), "one_step_chance")
        _want(abs(found - wanted) < 1e-6,
              f"in a world of {name} one step is right with probability {wanted:.4f}, not "
              f"{found:.4f}: multiply the positions' probabilities, and add the images up.")
    print("one_step_chance: right.")


# --- 03 Parallel decoding ----------------------------------------------------------------------
def tokens_kept(function: Callable[[int, int], list]) -> None:
    """(T, N) -> how many tokens each of T steps keeps under the cosine schedule."""
    for steps, n in ((4, 16), (8, 64), (1, 64), (8, 4)):
        left = [n] + [masked_after(k, steps, n) for k in range(1, steps + 1)]
        wanted = [a - b for a, b in zip(left[:-1], left[1:], strict=True)]
        counts = _numbers(function(steps, n), "tokens_kept")
        found = [int(count) for count in counts]
        total = sum(found)
        _want(found == counts, "a step keeps a whole number of tokens: round down the masked ones.")
        _want(len(found) == steps, f"T = {steps} steps keep {steps} numbers, not {len(found)}.")
        _want(total == n, f"with T = {steps} your steps keep {total} tokens in all; there are {n}.")
        for k, (mine, right) in enumerate(zip(found, wanted, strict=True), start=1):
            _want(mine == right, f"with T = {steps} step {k} keeps {mine} of {n} tokens, where the "
                  f"cosine schedule, rounded down, keeps {right}.")
    print("tokens_kept: right.")


def keep(function: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """(score (B, N), known bool (B, N), left) -> bool (B, N), what is kept: all but `left`."""
    score = _random(3, 10) + 100 * torch.arange(3)[:, None]  # noise can lift a score anywhere
    known = torch.zeros(3, 10, dtype=torch.bool)
    known[0, :3], known[1, 5:], known[2, ::4] = True, True, True
    score -= 20 * known  # known tokens may have been unlikely
    places = score.masked_fill(known, torch.inf).argsort(1)
    for left in (4, 0):
        wanted = places.argsort(1) >= left
        found = _tensor(_asked(function, score, known, left), wanted, "keep")
        mistakes = {
            "True is what is kept; you return what stays masked": ~wanted,
            "argsort lists places in order; a place's rank is the argsort of that": places >= left,
        }
        _unlike(found, mistakes if left else {})
        for row, count in enumerate((~found).sum(1).tolist()):
            _want(count == left, f"in row {row} {count} positions stay masked, but left = {left}.")
        _want(bool(found[known].all()),
              "a token that was known is masked again: known ones are kept, whatever their score.")
        _want(torch.equal(found, wanted), "you keep tokens with a low score and mask better ones.")
    print("keep: right.")


def compounding(function: Callable[[float, int], list]) -> None:
    """(tau, T) -> the temperature of each step, when the factors (1 - k / T) multiply up."""
    for tau, steps in ((25.0, 4), (45.0, 12)):
        found = _numbers(function(tau, steps), "compounding")
        _want(len(found) == steps, f"{steps} steps have {steps} temperatures, not {len(found)}.")
        _want(not _same(found, temperatures(tau, steps, "linear")),
              "that is the linear schedule: each step must start from the temperature of the last.")
        wanted = temperatures(tau, steps, "compounding")
        for k, (mine, right) in enumerate(zip(found, wanted, strict=True), start=1):
            _want(_same(mine, right), f"from tau = {tau:g} in {steps} steps, step {k} has the "
                  f"temperature {right:.3f}, not {mine:.3f}.")
    print("compounding: right.")


# --- 04 Smoothing ------------------------------------------------------------------------------
def guide(function: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """(plain, smooth, s) -> guided, all (B, N, K)."""
    plain, smooth = _random(2, 4, 5), _random(2, 4, 5, seed=1)
    landmarks = {
        0.0: ("plain", plain),
        -1.0: ("smooth", smooth),
        3.0: ("plain + 3 differences", plain + 3 * (plain - smooth)),
        0.5: ("plain + half a difference", plain + 0.5 * (plain - smooth)),
    }
    for s, (name, wanted) in landmarks.items():
        found = _tensor(_asked(function, plain, smooth, s), plain, "guide")
        known = {"smooth": smooth, "plain": plain, "-plain": -plain}
        yours = [word for word, value in known.items() if _same(found, value)]
        _want(_same(found, wanted),
              f"at s = {s:g} guided must be {name}" + (f"; yours is {yours[0]}." if yours else "."))
    print("guide: right.")


def equal_temperature(function: Callable[[float], float]) -> None:
    """(s) -> the temperature T for which softmax(plain / T) is guidance away from uniform."""
    plain = _random(1, 6)
    for s in (1.5, 3.0, -0.5):
        found = _number(function(s), "equal_temperature")
        _want(found > 0, f"a temperature is above 0; for s = {s:g} you return {found:g}.")
        uniform = torch.full_like(plain, -math.log(6))
        guided = (uniform + (1 + s) * (plain.log_softmax(-1) - uniform)).softmax(-1)
        mine = (plain / found).softmax(-1)
        _want(_same(mine, guided),
              f"for s = {s:g} guidance gives its favourite the probability {guided.max():.3f}; "
              f"softmax at your temperature {found:g} gives it {mine.max():.3f}.")
    print("equal_temperature: right.")


def box_blur(function: Callable[[Tensor], Tensor]) -> None:
    """logits (B, N, K) -> the mean over each position and its up to 8 neighbours on the grid."""
    logits = _random(2, 16, 3)
    grid = logits.transpose(1, 2).unflatten(2, (4, 4))
    wanted = F.avg_pool2d(grid, 3, 1, 1, count_include_pad=False).flatten(2).transpose(1, 2)
    spot = torch.zeros(1, 16, 1)
    spot[0, 3] = 1  # the end of the first row
    found = _tensor(function(spot), spot, "box_blur")
    _want(found[0, 4, 0] == 0, "the value at position 3 reaches position 4, but 3 is the right end "
          "of a row of the grid, and 4 the left end of the next.")
    found = _tensor(_asked(function, logits), logits, "box_blur")
    codes = logits.mean(-1, keepdim=True).expand_as(logits)
    _unlike(found, {"you blur over the codes; blur over the places, code by code": codes})
    flat = function(torch.ones(1, 16, 1)).flatten()
    worst = int((flat - 1).abs().argmax())
    _want(_same(flat[worst], 1.0), f"where all logits are 1, position {worst} becomes "
          f"{float(flat[worst]):.2f}: divide by the number of positions that exist.")
    inner = [5, 6, 9, 10]
    _want(_same(found, wanted) or not _same(found[:, inner], wanted[:, inner]),
          "right in the middle, not at the edge: what is outside the grid does not count.")
    apart = torch.tensor([0.0, 1.0]).expand(1, 16, 2)
    _want(_same(function(apart.clone()), apart),
          "the codes are mixed up: from (B, N, K) to (B, K, h, w) one has to transpose.")
    _want(_same(found, wanted), "the means are not those of 3 x 3 positions of the grid.")
    found = _elsewhere(function, torch.ones(1, 9, 1))
    _want(found is not None and found.shape == (1, 9, 1) and _same(found, torch.ones(1, 9, 1)),
          "on a grid of 3 x 3 it is wrong: take the side from N.")
    print("box_blur: right.")


# --- 05 Adapters -------------------------------------------------------------------------------
def corrupt(function: Callable) -> None:
    """(tokens (B, N), masked, rate, K, generator) -> tokens, a share of the visible ones wrong."""
    tokens = torch.randint(4, (50, 64), generator=torch.Generator().manual_seed(0))
    masked = torch.zeros(50, 64, dtype=torch.bool)
    masked[:, :32] = True

    def answer(rate: float = 0.3, seed: int = 1, codes: int = 4) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return _tensor(_asked(function, tokens, masked, rate, codes, generator), tokens, "corrupt")

    found = answer()
    wrong = found != tokens
    _want(not wrong[masked].any(), "a masked token was changed: corrupt the visible ones only.")
    _want(bool(((found >= 0) & (found < 4)).all()),
          f"there are 4 codes, 0 to 3; yours go from {int(found.min())} to {int(found.max())}.")
    _want(len(wrong.unique(dim=0)) > 40,
          "all images are wrong at the same positions: choose them for each.")
    share = wrong[~masked].double().mean().item()
    _want(0.26 < share < 0.34, f"{share:.0%} of the visible tokens are wrong, where 30 % should be"
          + (": a random code is at times the true one." if 0.18 < share < 0.26 else "."))
    for rate in (0.6, 1.0):
        more = (answer(rate) != tokens)[~masked].double().mean().item()
        _want(abs(more - rate) < 0.05 * (rate < 1) + 1e-6,
              f"at a rate of {100 * rate:g} % you make {more:.0%} of them wrong.")
    _want(bool((answer(codes=5) == 4).any()), "with K = 5 code 4 never comes: use K.")
    for shift in (1, 2, 3):
        part = ((found - tokens) % 4 == shift)[wrong].double().mean().item()
        _want(0.25 < part < 0.42, f"{part:.0%} of your wrong codes are the true one plus {shift} "
              "(mod 4): all three other codes must be equally likely.")
    _want(torch.equal(found, answer()) and not torch.equal(found, answer(seed=2)),
          "all chance must come from the generator: equal seeds, equal tokens; others, others.")
    print("corrupt: right.")


def select(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """(x (B, N, D), anchor (B, 1, D)) -> x times its cosine to the anchor, clamped to [0, 1]."""
    x, anchor = _random(2, 5, 4), _random(2, 1, 4, seed=1)
    cosine = F.cosine_similarity(x, anchor, dim=-1)[..., None]  # (2, 5, 1)
    weight, least = cosine.clamp(0, 1), cosine.min()
    dot = (x * anchor).sum(-1, keepdim=True).clamp(0, 1)
    found = _tensor(_asked(function, x, anchor), x, "select")
    _unlike(found, {
        f"a token with the cosine {least:.2f} changes its sign; clamp it to [0, 1]": x * cosine,
        "that is the dot product; the cosine has both lengths divided out": x * dot,
        "the tokens have lost their length: scale x itself": weight * F.normalize(x, dim=-1),
    })
    _want(_same(found, x * weight), "the result is not x times its clamped cosine.")
    print("select: right.")


def lora(function: Callable) -> None:
    """(x (B, I), weight (O, I), a (r, I), b (O, r), alpha) -> x through weight + alpha / r b a."""
    x, weight, a, b = _random(3, 6), _random(5, 6), _random(2, 6, seed=1), _random(5, 2, seed=2)
    nothing = torch.zeros_like(b)
    zero = _tensor(_asked(function, x, weight, a, nothing, 7.0), x @ weight.T, "lora")
    _want(_same(zero, x @ weight.T), "with b = 0 an adapter must change nothing: x @ weight.T.")
    found = _tensor(function(x, weight, a, b, 7.0), zero, "lora")
    low = x @ a.T @ b.T
    _unlike(found, {
        "you add 1 x (x a b): alpha is not used": zero + low,
        "you add 7 x (x a b): alpha must be divided by the rank r": zero + 7 * low,
    })
    _want(_same(found, zero + 3.5 * low), "the adapter's part is not alpha / r times x a^T b^T.")
    thin = _tensor(function(x, weight, a[:1], b[:, :1], 2.5), zero, "lora")
    one = 2.5 * x @ a[:1].T @ b[:, :1].T
    _want(_same(thin, zero + one), "alpha and r must come from the arguments: r is a's first size.")
    with FlopCounterMode(display=False) as counter:
        function(_random(1, 64), _random(64, 64), _random(2, 64), _random(64, 2), 1.0)
    _want(counter.get_total_flops() < 2 * 2 * 64 * 64,
          "you build the large matrix b a: send x through a, and the result through b.")
    print("lora: right.")


# --- 06 What guidance costs --------------------------------------------------------------------
def passes(function: Callable[[str, int], int]) -> None:
    """(guidance, T) -> network passes for one image."""
    rules = {
        "none": (1, "one prediction a step"),
        "spatial": (1, "blurring logits needs no second prediction"),
        "cfg": (2, "with and without the class; one batch of 2 B is still two passes an image"),
        "self": (2, "the generator's and the smoother's"),
        "self+cfg": (3, "plain, without the class, and smoothed"),
    }
    for guidance, (each, why) in rules.items():
        for steps in (1, 12):
            found = _number(function(guidance, steps), "passes")
            _want(found == each * steps,
                  f"{guidance} with T = {steps} takes {each * steps} passes, not {found:g}: {why}.")
    print("passes: right.")


def last_layer_flops(function: Callable[[int, int, int, int], float]) -> None:
    """(L, M, D, F) -> FLOP of a layer of width D that is asked for M of its L tokens."""
    for length, wanted, width, wide in ((65, 40, 192, 768), (257, 100, 768, 3072)):
        square, pairs = width * width, wanted * length * width
        every, some = 2 * square, 2 * square + 2 * width * wide  # a token's matrices
        right = 2 * (length * every + wanted * some + 2 * pairs)
        all_tokens = 2 * length * (every + some + 2 * length * width)
        few_keys = 2 * (wanted * (every + some) + 2 * pairs)
        few_pairs = right - 4 * wanted * (length - wanted) * width
        found = _number(function(length, wanted, width, wide), "last_layer_flops")
        _unlike(found, {
            "a multiplication and an addition are two operations": right / 2,
            "attention has products without weights, too": right - 4 * pairs,
            "scores and weighted sum are two products, and each multiplies and adds":
                right - 2 * pairs,
            "that is the layer for all its tokens": all_tokens,
            "the M tokens look at all L, which need keys and values": few_keys,
            "each of the M tokens is compared with all L": few_pairs,
        }, f"you get {found / right:.2f} x the number: ", 1e-9)
        _want(_same(found, right, 1e-9), f"with L = {length}, M = {wanted}, D = {width}, "
              f"F = {wide} these are {right:,} FLOP, not {found:,.0f}.")
    print("last_layer_flops: right.")


# --- 07 Evaluation -----------------------------------------------------------------------------
def frechet_1d(function: Callable[[Tensor, Tensor], float]) -> None:
    """(x (N,), y (M,)) -> the Fréchet distance of two samples of numbers."""
    x, y = 4 * _random(500).double(), 3 + _random(400, seed=1).double()
    mean, spread = (x.mean() - y.mean()) ** 2, (x.std() - y.std()) ** 2
    found = _number(function(x, y), "frechet_1d")
    _unlike(found, {
        "the difference of the means has to be squared": mean.sqrt() + spread,
        "the difference of the standard deviations has to be squared": mean + spread.sqrt(),
        "compare standard deviations, not variances": mean + (x.var() - y.var()) ** 2,
        "only the means are compared": mean,
        "the distance is the square, without a root": (mean + spread).sqrt(),
    }, f"you get {found:.2f}: ")
    wanted = float(mean + spread)
    _want(_same(found, wanted, 0.003), f"the distance is {wanted:.2f}, yours is {found:.2f}.")
    print("frechet_1d: right.")


def extrapolate(function: Callable[[list, list], float]) -> None:
    """(counts N, distances) -> the distance without end, by a straight line over 1 / N."""
    counts = [100, 200, 400, 800]
    for limit, slope in ((2.0, 50.0), (0.0, 30.0)):
        found = _number(function(counts, [limit + slope / n for n in counts]), "extrapolate")
        _want(abs(found - slope) > 1e-3, f"{found:.2f} is the slope; the limit is at 1 / N = 0.")
        _want(abs(found - limit) < 1e-3, f"the distances are exactly {limit:g} + {slope:g} / N, so "
              f"the limit is {limit:g}; you get {found:.3f}. Is the line fitted over 1 / N, and "
              "read off at 0?")
    found = _number(function([100, 250, 400, 1000], [1.0, 0.1, 0.2, -0.2]), "extrapolate")
    _want(abs(found + 0.277) < 1e-3, "the best line through four points that are on no line (least "
          f"squares) ends at -0.277, yours at {found:.3f}. Use all points, and let it end below 0.")
    print("extrapolate: right.")


def coverage(function: Callable[[Tensor, Tensor, int], float]) -> None:
    """(real (N, D), fake (M, D), k) -> the share of balls around reals that hold a fake."""
    real, fake = _random(200, 2).double(), 0.5 * _random(150, 2, seed=1).double()  # fakes alike
    right = {k: precision_recall(real, fake, k) for k in (2, 3, 4)}
    low, wanted, high = (right[k]["coverage"] for k in (2, 3, 4))
    found = _number(function(real, fake, 3), "coverage")
    _unlike(found, {
        "that is precision, the share of fakes; count the balls": right[3]["precision"],
        "that is recall; the balls belong around the reals": right[3]["recall"],
        "your balls reach to neighbour k - 1; the nearest row is the row itself": low,
        "your balls reach to neighbour k + 1": high,
    }, f"you get {found:.3f}: ", 1e-6)
    _want(_same(found, wanted, 1e-6), f"coverage is {wanted:.3f} here, you get {found:.3f}.")
    found = _number(function(real, fake, 2), "coverage")
    _want(_same(found, low, 1e-6), "with k = 2 it is wrong: use k.")
    print("coverage: right.")


# --- 08 Capstone -------------------------------------------------------------------------------
def honest(function: Callable[[dict, int], float]) -> None:
    """({setting: {seed: distance}}, tuning seed) -> what may be reported of the best setting."""
    table = {
        "tau 2": {0: 4.1, 1: 5.4, 3: 6.1, 9: 3.0},
        "tau 4": {0: 3.2, 1: 3.7, 3: 3.3, 9: 3.1},
        "tau 8": {0: 6.3, 1: 2.0, 3: 7.1, 9: 8.2},
    }
    wanted = {9: 5.2, 0: 10.1 / 3, 1: 7.2}
    copy = {name: dict(row) for name, row in table.items()}
    for tuning, value in wanted.items():
        found = _number(function(table, tuning), "honest")
        _want(table == copy, "it changes the table that it was given.")
        best = min(table, key=lambda name: table[name][tuning])
        chosen = table[best]
        rest = min(sum(v for s, v in row.items() if s != tuning) / 3 for row in table.values())
        chance = {"choosing by the seeds that you report rewards chance: use the tuning seed": rest}
        _unlike(found, {} if _same(value, rest) else chance)
        _unlike(found, {
            "your mean contains the tuning seed, which chose the setting and is too good: leave it "
            "out": sum(chosen.values()) / 4,
            "that is the distance on the tuning seed itself: report the others": chosen[tuning],
        })
        _want(_same(found, value), f"tuned on seed {tuning}, {best!r} is best, and its other "
              f"seeds give {value:.3g}; you get {found:g}.")
    print("honest: right.")


def verdict(function: Callable[[list, list], str]) -> None:
    """(distances of A, distances of B), one for each seed -> "A", "B" or "tie"."""
    cases = [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], "A"),
        ([5.0, 5.2, 4.8], [3.0, 3.2, 2.8], "B"),
        ([1.0, 1.4, 0.6], [1.2, 1.6, 0.8], "tie"),
        ([2.0, 2.0, 2.0], [2.0, 2.0, 2.0], "tie"),
        ([1.0, 3.0, 2.0], [2.9, 3.1, 3.0], "tie"),
        ([1.0, 1.0, 1.9], [1.8, 1.8, 1.8], "tie"),  # no medians, no ranges
        ([1.0, 1.0, 1.9], [1.8, 3.0, 3.0], "A"),  # one stray seed decides nothing
        ([1.0, 3.0, 2.0], [3.1, 3.1, 4.0], "tie"),  # nor does the gap between the nearest two
    ]
    _returned(function([1.0, 1.1], [2.0, 2.1]), "verdict")
    for a, b, wanted in cases:
        found, case = function(list(a), list(b)), f"A = {a}, B = {b}"
        _want(found in ("A", "B", "tie"),
              f"for {case} the answer is 'A', 'B' or 'tie', not {found!r}.")
        _want(wanted == "tie" or found in (wanted, "tie"),
              f"{case}: a small distance is a good one, so {wanted} wins.")
        _want(wanted != "tie" or found == "tie", f"{case} is a tie: mean +- standard deviation "
              "(n - 1) of the two overlap or touch.")
        _want(found == wanted, f"{case}: their spreads do not overlap, so {wanted} wins.")
    print("verdict: right.")


def border(function: Callable[[int, int], Tensor]) -> None:
    """(side, width) -> which cells an out-painting masks, bool (side * side,)."""
    for side, width in ((4, 1), (8, 2), (8, 3)):
        wanted = torch.ones(side, side, dtype=torch.bool)
        wanted[width : side - width, width : side - width] = False
        wanted = wanted.flatten()
        masked = _tensor(function(side, width), wanted, "border")
        _unlike(masked, {"that is in-painting: the middle must stay visible": ~wanted})
        count, right = int(masked.sum()), int(wanted.sum())
        other = ", but other ones" if count == right else ""
        _want(torch.equal(masked, wanted), f"a border of {width} on a side of {side} masks {right} "
              f"cells, all around the middle; yours masks {count}{other}.")
    print("border: right.")
