"""Checks of the exercises of lesson 02: masks, loss, attention, a block, a training loop."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...masking import random_mask
from ..done import passed
from .checks import asked, elsewhere, number, numbers, random, same, tensor, unlike, want


# fmt: off
# --- What goes into the model, and what comes out
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


# --- Attention and the block -------------------------------------------------------------------
class ByHand(TorchFunctionMode):
    """Inside of it, nobody calls PyTorch's own attention."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        own = func in (F.scaled_dot_product_attention, F.multi_head_attention_forward)
        want(not own, "write the attention by hand, without the ready one of PyTorch.")
        return func(*args, **kwargs or {})


def _attend(x, query, key, value, out, heads, width=None, dim=-1, cut=None, join=None):
    """The right attention, and with another `width`, `dim`, `cut` or `join` a wrong one."""
    cut = cut or (lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2))
    join = join or (lambda y: y.transpose(1, 2).flatten(2))
    q, k, v = (cut(x @ weight.T) for weight in (query, key, value))  # (B, heads, L, d) each
    scores = q @ k.transpose(-1, -2) / math.sqrt(width or q.shape[-1])  # (B, heads, L, L)
    return join(scores.softmax(dim) @ v) @ out.T


def attention(function: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], Tensor]) -> None:
    """(x (B, L, D), four weights (D, D): query, key, value, out, heads) -> (B, L, D)."""
    for heads, batch, length, size in ((1, 2, 3, 4), (2, 2, 5, 8), (4, 3, 6, 8)):
        x = random(batch, length, size)
        weights = [random(size, size, seed=seed) for seed in (1, 2, 3, 4)]
        query, key, value, out = weights
        with ByHand():
            found = asked(function, x, *weights, heads)
        tensor(found, x, "attention")
        mistakes = {
            "the scores are not divided by the square root of the width of a head":
                _attend(x, query, key, value, out, heads, width=1),
            "the weights of one query sum to 1 over all keys: take the softmax over the last "
            "dimension": _attend(x, query, key, value, out, heads, dim=-2),
            "a weight W acts as in nn.Linear, x @ W.T":
                _attend(x, query.T, key.T, value.T, out.T, heads),
            "w_out is not used": _attend(x, query, key, value, torch.eye(size), heads),
            "a row of the scores belongs to a query and a column to a key; yours are exchanged":
                _attend(x, key, query, value, out, heads),
        }
        if heads > 1:
            shape = batch, heads, length, size // heads
            mistakes |= {
                "that is one head of width D: cut queries, keys and values into heads":
                    _attend(x, query, key, value, out, 1),
                "divide by the square root of d = D / heads, the width of a head, not of D":
                    _attend(x, query, key, value, out, heads, width=size),
                "view(B, heads, L, d) mixes positions: cut the last dimension into (heads, d), "
                "then transpose":
                    _attend(x, query, key, value, out, heads, cut=lambda y, s=shape: y.view(s)),
                "a head takes d neighbouring numbers: cut D into (heads, d), not (d, heads)":
                    _attend(x, query, key, value, out, heads, cut=lambda y, h=heads:
                            y.unflatten(-1, (-1, h)).permute(0, 3, 1, 2)),
                "transpose heads and positions back before you join the heads":
                    _attend(x, query, key, value, out, heads,
                            join=lambda y: y.reshape(len(y), y.shape[2], -1)),
            }
        unlike(found, mistakes, f"with heads = {heads}: ")
        want(same(found, _attend(x, query, key, value, out, heads)),
             f"with heads = {heads} your result is not that of equation D.")
    passed("attention")


def block(function: Callable[..., Tensor]) -> None:
    """(x (B, L, D), attend, norm_1, w_1, b_1, w_2, b_2, norm_2) -> (B, L, D)."""
    x, mixer = 2 * random(2, 5, 6), random(5, 5, seed=1)
    w_1, b_1, w_2, b_2 = (random(*shape, seed=2 + i)
                          for i, shape in enumerate(((12, 6), (12,), (6, 12), (6,))))
    norms = []
    for seed in (6, 8):
        norms.append(nn.LayerNorm(6).requires_grad_(False))
        norms[-1].weight.copy_(1 + 0.3 * random(6, seed=seed))
        norms[-1].bias.copy_(random(6, seed=seed + 1))
    first, second = norms

    def attend(x: Tensor) -> Tensor:
        return mixer.softmax(-1) @ x

    def feed(a: Tensor, bent: Callable = F.gelu, bias_1: Tensor = b_1, bias_2: Tensor = b_2):
        return F.linear(bent(F.linear(a, w_1, bias_1)), w_2, bias_2)

    given = x, attend, first, w_1, b_1, w_2, b_2, second
    found = tensor(asked(function, *given), x, "block")
    a = first(x + attend(x))
    before = x + attend(first(x))
    swapped = second(x + attend(x))
    unlike(found, {
        "that is pre-norm: each LayerNorm comes after the sum": before + feed(second(before)),
        "attention needs its residual connection: add x to its result":
            second(first(attend(x)) + feed(first(attend(x)))),
        "the feed-forward network needs its residual connection: add a": second(feed(a)),
        "the second residual connection adds a, the first half's result, not x":
            second(x + feed(a)),
        "the feed-forward network reads a, the first half's result, not x": second(a + feed(x)),
        "norm_1 comes after attention and norm_2 at the end; you exchange them":
            first(swapped + feed(swapped)),
        "the last LayerNorm is missing": a + feed(a),
        "the first LayerNorm is missing": second(x + attend(x) + feed(x + attend(x))),
        "LayerNorm takes the sum, residual included": second(
            (x + first(attend(x))) + feed(x + first(attend(x)))),
        "the activation is GELU, not ReLU": second(a + feed(a, F.relu)),
        "the activation between the two linear layers is missing":
            second(a + feed(a, lambda h: h)),
        "GELU is meant exactly, not by its tanh approximation":
            second(a + feed(a, lambda h: F.gelu(h, approximate="tanh"))),
        "the biases are not used": second(a + feed(a, bias_1=0 * b_1, bias_2=0 * b_2)),
    }, tolerance=1e-5)
    want(same(found, second(a + feed(a)), 1e-5), "your result is not that of equation E.")
    passed("block")


# --- A training loop ---------------------------------------------------------------------------
SIDE, CODES, CLASSES = 4, 4, 2
MASK = CODES + CLASSES


def striped(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens (count, 16) and labels: each row of class 0 and column of class 1 has one token."""
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randint(CODES, (count, SIDE), generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    rows, columns = lines.repeat_interleave(SIDE, 1), lines.repeat(1, SIDE)
    return torch.where(labels[:, None] == 0, rows, columns), labels


class Predictor(nn.Module):
    """A canvas (B, 16) and labels (B,) -> logits (B, 16, 4): two linear layers, fast to train."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []  # the inputs of all calls
        self.inner = nn.Linear((SIDE**2 + 1) * (MASK + 1), 128)
        self.outer = nn.Linear(128, SIDE**2 * CODES)
        with torch.no_grad():
            self.inner.weight.copy_(0.1 * random(*self.inner.weight.shape))
            for zero in (self.inner.bias, self.outer.weight, self.outer.bias):
                zero.zero_()  # all codes are equally likely at first

    def forward(self, canvas: Tensor, labels: Tensor) -> Tensor:
        self.seen.append((canvas.detach().clone(), labels.detach().clone()))
        ids = torch.cat((labels[:, None] + CODES, canvas), 1)  # (B, 17)
        x = F.one_hot(ids, MASK + 1).float().flatten(1)
        return self.outer(F.gelu(self.inner(x))).unflatten(1, (SIDE**2, CODES))


@torch.no_grad()
def paid(model: Predictor, tokens: Tensor, labels: Tensor, masked: Tensor) -> float:
    """Mean NLL of the masked tokens [nats]."""
    logits = model(torch.where(masked, MASK, tokens), labels)
    return F.cross_entropy(logits[masked], tokens[masked]).item()


def train(function: Callable[..., list]) -> None:
    """(model, tokens (M, N), labels (M,), K, C, generator) -> the loss of each step."""
    model, (tokens, labels) = Predictor(), striped(2000, 1)
    before = model.outer.weight.detach().clone()
    sums: list[bool] = []  # did a step add its gradient to an older one?
    fresh: list[Tensor] = []
    weight = model.outer.weight
    weight.register_hook(lambda gradient: fresh.append(gradient.detach().clone()))
    weight.register_post_accumulate_grad_hook(
        lambda w: sums.append(not same(w.grad, fresh.pop(), 1e-6)))
    generator = torch.Generator().manual_seed(0)
    losses = numbers(asked(function, model, tokens, labels, CODES, CLASSES, generator), "train")
    seen, model.seen = model.seen, []

    want(len(losses) > 0 and len(seen) > 0, "no step was made: the list of losses is empty.")
    want(same(losses[0], math.log(CODES), 1e-3),
         f"the model knows nothing at first, so the first loss must be log 4 = 1.386 nats; yours "
         f"is {losses[0]:.3f}. The loss is the mean NLL of the masked tokens.")
    want(not same(model.outer.weight.detach(), before, 1e-7),
         "no weight has changed: a step needs loss.backward() and optimizer.step().")
    want(not any(sums), "the gradients of several steps are added up: set them to zero in each "
                        "step, with optimizer.zero_grad().")

    canvases, classes = (torch.cat(each) for each in zip(*seen, strict=True))
    masked = canvases == MASK
    share, blank = masked.float().mean().item(), masked.all(1).float().mean().item()
    want(share > 0, "the model saw no [MASK]: give it the canvas, not the tokens.")
    first = masked[:len(seen[0][0])]
    want(len(first) == 1 or not (first == first[0]).all(),
         "all images of a step have the same mask: each needs a mask of its own.")
    want(len(masked.unique(dim=0)) > 100,
         "the masks are the same at every step: make new ones inside of the loop.")
    want(abs(share - 2 / math.pi) < 0.05,
         f"your canvases mask {share:.0%} of the tokens on average; the cosine of a uniform t "
         f"masks {2 / math.pi:.0%}.")
    want(blank > 0.05, f"{blank:.0%} of your canvases are blank; with a new t for each image, "
                       "about 16 % are.")
    grids = canvases.view(-1, SIDE, SIDE)
    grids = torch.where((classes == 1)[:, None, None], grids.transpose(1, 2), grids)  # as class 0
    top = grids.masked_fill(grids == MASK, -1).amax(2)
    broken = (grids.amin(2) < top) & (classes < CLASSES)[:, None]
    want(not broken.any(), "an image and its label do not belong together: take both by the same "
                           "random indices.")
    dropped = (classes == CLASSES).float().mean().item()
    want(abs(dropped - 0.1) < 0.03,
         f"{dropped:.0%} of the images lose their class; 10 % should get the label C = 2.")

    own = random_mask(len(tokens), SIDE**2, torch.Generator().manual_seed(2))
    reported, real = sum(losses[-10:]) / len(losses[-10:]), paid(model, tokens, labels, own)
    want(abs(reported - real) < 0.2 * real + 0.05,
         f"your last losses are {reported:.2f} on average, but the model pays {real:.2f} nats for "
         "a masked token: take the mean over the masked positions, and over no others.")
    held, their = striped(500, 3)
    half = torch.rand(held.shape, generator=torch.Generator().manual_seed(4)).argsort(1) < 8
    nll = paid(model, held, their, half)
    want(nll <= 0.4,
         f"after {len(losses)} steps the model pays {nll:.2f} nats a token for held-out images "
         "with half of their tokens masked; 0.40 are wanted. Take more steps, or a larger learning "
         "rate.")
    passed("train")
