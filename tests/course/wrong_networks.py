"""Wrong answers to the longer exercises of lessons 00 to 03, with words of what is said to them."""

import math

import torch
import torch.nn.functional as F

# --- 00 and 01 ---------------------------------------------------------------------------------


def ids(tokens, masked, labels, codes, classes, mask=None, last=False, shift=None):
    canvas = torch.where(masked, codes + classes if mask is None else mask, tokens)
    label = labels[:, None] + (codes if shift is None else shift)
    return torch.cat((canvas, label) if last else (label, canvas), 1)


def vq(z, codebook, beta, stop_e=True, stop_z=True, exchange=False, reduce=torch.mean,
       through=None):  # fmt: skip
    """The right quantizer, or one with a mistake."""
    grid = z.permute(0, 2, 3, 1)
    tokens = torch.cdist(grid.flatten(0, 2), codebook).argmin(1)
    e = codebook[tokens].view_as(grid)
    z_in_first = grid.detach() if stop_z else grid
    e_in_second = e.detach() if stop_e else e
    first, second = reduce((e - z_in_first).square()), reduce((grid - e_in_second).square())
    if exchange:
        first, second = second, first
    states = grid + (e - grid).detach() if through is None else through(grid, e)
    return tokens.view(len(z), -1), states.permute(0, 3, 1, 2), first + beta * second


def channel_rows(z, codebook, beta):
    tokens = torch.cdist(z.reshape(-1, z.shape[1]), codebook).argmin(1)
    return tokens.view(len(z), -1), *vq(z, codebook, beta)[1:]


def viewed(z, codebook, beta):
    tokens, _, loss = vq(z, codebook, beta)
    return tokens, codebook[tokens].view(z.shape), loss


def down_the_columns(z, codebook, beta):
    tokens, states, loss = vq(z, codebook, beta)
    return tokens.view(2, 4, 5).transpose(1, 2).reshape(2, 20), states, loss


# --- 02 ----------------------------------------------------------------------------------------


def heads_of(y, heads):
    return y.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(x, q, k, v, out, heads, scale=None, dim=-1, cut=heads_of, join=None):
    q, k, v = (cut(x @ w.T, heads) for w in (q, k, v))
    scores = q @ k.transpose(-1, -2) / (scale or math.sqrt(q.shape[-1]))
    y = scores.softmax(dim) @ v
    return (join(y) if join else y.transpose(1, 2).flatten(2)) @ out.T


def ready_made(x, q, k, v, out, heads):
    q, k, v = (heads_of(x @ w.T, heads) for w in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) @ out.T


def overwriting(x, q, k, v, out, heads):
    return x.copy_(attend(x, q, k, v, out, heads))


def mlp(a, w_1, b_1, w_2, b_2, bend=F.gelu):
    return F.linear(bend(F.linear(a, w_1, b_1)), w_2, b_2)


def pre_norm(x, f, n, w_1, b_1, w_2, b_2, m):
    a = x + f(n(x))
    return a + mlp(m(a), w_1, b_1, w_2, b_2)


def masks(batch, n, generator, schedule=lambda t: torch.cos(math.pi * t / 2)):
    t = torch.rand(batch, 1, generator=generator)
    rank = torch.rand(batch, n, generator=generator).argsort(1).argsort(1)
    return rank < (schedule(t) * n).round().clamp(min=1)


def loop(
    model, tokens, labels, codes, classes, generator, steps=30, rate=0.01, mask=masks,
    drop=0.1, show=True, everywhere=False, clear=True, learn=True, shuffled=False, scale=1.0,
):  # fmt: skip
    """The right loop with few steps, or one with a mistake."""
    optimizer, losses = torch.optim.Adam(model.parameters(), rate), []
    for _ in range(steps):
        chosen = torch.randint(len(tokens), (64,), generator=generator)
        true, label = tokens[chosen], labels[chosen]
        label = label.roll(1) if shuffled else label
        masked = mask(64, tokens.shape[1], generator)
        lost = torch.rand(64, generator=generator) < drop
        canvas = torch.where(masked, codes + classes, true) if show else true
        logits = model(canvas, torch.where(lost, classes, label))
        where = torch.ones_like(masked) if everywhere else masked
        loss = scale * F.cross_entropy(logits[where], true[where])
        if clear:
            optimizer.zero_grad()
        loss.backward()
        if learn:
            optimizer.step()
        losses.append(loss.item())
    return losses


def looped(**mistake):
    return lambda *given: loop(*given, **mistake)


def always_the_same(batch, n, generator):
    return masks(batch, n, torch.Generator().manual_seed(0))


def one_for_all(batch, n, generator):
    return masks(1, n, generator).expand(batch, -1)


# --- 03 ----------------------------------------------------------------------------------------


def sample(
    predict, canvas, steps, tau, race, gumbel, whole=False, choose=lambda p, e: (p / e).argmax(-1),
    cool=lambda k, steps: 1 - k / steps, rate=lambda p, s: p.gather(-1, s[..., None])[..., 0].log(),
    sign=1, keep_known=True, again=False,
):  # fmt: skip
    """The right sampler, or one with a mistake."""
    first, n = canvas, canvas.shape[1]
    for k in range(1, steps + 1):
        p = predict(canvas).softmax(-1)
        p = predict(canvas).softmax(-1) if again else p
        masked = (canvas if keep_known else first) >= p.shape[-1]
        sampled = torch.where(masked, choose(p, race[k - 1]), canvas)
        score = sign * (rate(p, sampled) + tau * cool(k, steps) * gumbel[k - 1])
        score = torch.where(masked, score, torch.inf)
        m = (first >= p.shape[-1]).sum(1)
        left = (m * math.cos(math.pi * k / 2 / steps)).floor()
        if whole:
            left = (0 * m + n * math.cos(math.pi * k / 2 / steps)).floor()
        kept = score.argsort(1).argsort(1) >= left[:, None]
        canvas = torch.where(kept, sampled, first)
    return canvas


def sampled(**mistake):
    return lambda *given: sample(*given, **mistake)


def painted(call, tokens, box, count, mask_id, turn=False, invert=False, ends=False, one=False):
    """The right in-painting, or one with a mistake."""
    side = math.isqrt(len(tokens))
    top, left, height, width = (box[1], box[0], box[3], box[2]) if turn else box
    bottom, right = (height, width) if ends else (top + height, left + width)
    masked = torch.zeros(side, side, dtype=torch.bool)
    masked[top:bottom, left:right] = True
    masked = (~masked if invert else masked).flatten()
    canvas = torch.where(masked, mask_id, tokens)
    if one:
        return torch.cat([call(canvas[None]) for _ in range(count)])
    return call(canvas.expand(count, -1))


# check -> wrong answers, each with words that the message must hold
WRONG = {
    "sequence": [
        (lambda *g: ids(*g, last=True), "the class token comes first"),
        (lambda *g: ids(*g, shift=0), "class c has the id K + c"),
        (lambda *g: ids(*g, mask=g[3]), "belongs to class 0"),
        (lambda *g: ids(*g, mask=g[3] + g[4] + 1), "so [MASK] is K + C"),
        (lambda t, m, *g: ids(t, ~m, *g), "True is masked"),
        (lambda *g: ids(*g)[:, 1:], "shape (3, 4) where (3, 5)"),
        (lambda t, m, y, k, c: ids(t, m, y.clamp(max=c - 1), k, c), "of class 3 must become"),
        (lambda t, m, y, k, c: ids(t, m, y, 7, 3), "with K = 11 and C = 5"),
    ],
    "quantize": [
        (lambda *g: vq(*g)[0], "three things"),
        (lambda *g: vq(*g)[::-1], "the first of the three results"),
        (channel_rows, "goes along its channels"),
        (down_the_columns, "go down the columns"),
        (lambda z, c, b: vq(z, -c, b), "not the id of the nearest code"),
        (viewed, "view does not move the channels"),
        (lambda *g: vq(*g, through=lambda z, e: z), "they should have those of the codes"),
        (lambda *g: vq(*g, reduce=torch.sum), "not the sums"),
        (lambda *g: vq(*g, reduce=lambda x: x.sum(-1).mean()), "the mean over D, too"),
        (lambda z, c, b: vq(z, c, 0), "the commitment loss is missing"),
        (lambda z, c, b: vq(z, c, 1), "by beta"),
        (lambda *g: (*vq(*g)[:2], vq(*g)[2] / 5), "the codebook loss is missing"),
        (lambda *g: vq(*g, stop_e=False), "moves the codes, too: detach e"),
        (lambda *g: vq(*g, stop_z=False), "moves z, too: detach z"),
        (lambda *g: vq(*g, exchange=True), "swapped"),
        (lambda *g: (*vq(*g)[:2], vq(*g)[2].detach()), "no gradient comes back from the loss"),
        (lambda *g: vq(*g, through=lambda z, e: e), "straight-through hands it to z alone"),
        (lambda *g: vq(*g, through=lambda z, e: z + e - z.detach()), "hands it to z alone"),
        (lambda *g: vq(*g, through=lambda z, e: e.detach()), "gradient comes back from the states"),
        (lambda *g: vq(*g, through=lambda z, e: e.detach() + z * 2 - 2 * z.detach()),
         "straight-through is missing"),
    ],
    "attention": [
        (lambda *g: attend(*g, scale=1), "with heads = 1: the scores are not divided"),
        (lambda *g: attend(*g, scale=math.sqrt(g[0].shape[-1])), "d = D / heads"),
        (lambda *g: attend(*g, dim=-2), "over all keys"),
        (lambda x, q, k, v, out, h: attend(x, q.T, k.T, v.T, out.T, h), "x @ W.T"),
        (lambda x, q, k, v, out, h: attend(x, q, k, v, torch.eye(len(q)), h), "w_out is not used"),
        (lambda x, q, k, v, out, h: attend(x, k, q, v, out, h), "exchanged"),
        (lambda x, q, k, v, out, h: attend(x, q, k, v, out, 1), "with heads = 2: that is one head"),
        (lambda *g: attend(*g, cut=lambda y, h: y.view(len(y), h, y.shape[1], -1)), "mixes"),
        (lambda *g: attend(*g, cut=lambda y, h: y.unflatten(-1, (-1, h)).permute(0, 3, 1, 2)),
         "neighbouring numbers"),
        (lambda *g: attend(*g, join=lambda y: y.reshape(len(y), y.shape[2], -1)), "back before"),
        (lambda x, q, k, v, out, h: attend(x, q, k, x, out, h) if h > 9 else x, "equation D"),
        (lambda *g: attend(*g)[:, :1], "shape (2, 1, 4) where (2, 3, 4)"),
        (ready_made, "by hand"),
        (overwriting, "make a new one"),
    ],
    "block": [
        (pre_norm, "pre-norm"),
        (lambda x, f, n, *w: w[-1]((a := n(f(x))) + mlp(a, *w[:-1])), "residual connection: add x"),
        (lambda x, f, n, *w: w[-1](mlp(n(x + f(x)), *w[:-1])), "connection: add a"),
        (lambda x, f, n, *w: w[-1](x + mlp(n(x + f(x)), *w[:-1])), "not x"),
        (lambda x, f, n, *w: w[-1](n(x + f(x)) + mlp(x, *w[:-1])), "network reads a"),
        (lambda x, f, n, *w: n((a := w[-1](x + f(x))) + mlp(a, *w[:-1])), "you exchange them"),
        (lambda x, f, n, *w: (a := n(x + f(x))) + mlp(a, *w[:-1]), "last LayerNorm is missing"),
        (lambda x, f, n, *w: w[-1]((a := x + f(x)) + mlp(a, *w[:-1])), "first LayerNorm is"),
        (lambda x, f, n, *w: w[-1]((a := x + n(f(x))) + mlp(a, *w[:-1])), "residual included"),
        (lambda x, f, n, *w: w[-1]((a := n(x + f(x))) + mlp(a, *w[:-1], F.relu)), "not ReLU"),
        (lambda x, f, n, *w: w[-1]((a := n(x + f(x))) + mlp(a, *w[:-1], lambda h: h)), "between"),
        (lambda x, f, n, *w: w[-1]((a := n(x + f(x)))
                                   + mlp(a, *w[:-1], lambda h: F.gelu(h, approximate="tanh"))),
         "tanh approximation"),
        (lambda x, f, n, w, b, v, c, m: m((a := n(x + f(x))) + mlp(a, w, 0 * b, v, 0 * c)),
         "biases"),
        (lambda x, f, n, *w: n(x + f(x)), "not that of equation E"),
    ],
    "train": [
        (lambda *g: [], "list of losses is empty"),
        (lambda *g: 0.3, "not a list of numbers"),
        (looped(scale=64), "the first loss must be log 4"),
        (looped(learn=False), "no weight has changed"),
        (looped(clear=False), "optimizer.zero_grad()"),
        (looped(show=False), "saw no [MASK]"),
        (looped(mask=one_for_all), "the same mask"),
        (looped(mask=always_the_same), "inside of the loop"),
        (looped(mask=lambda b, n, g: masks(b, n, g, lambda t: 1 - t)), "on average; the cosine"),
        (looped(mask=lambda b, n, g: masks(b, n, g, lambda t: 0 * t + 2 / math.pi)), "are blank"),
        (looped(shuffled=True), "by the same random indices"),
        (looped(drop=0), "0% of the images lose their class"),
        (looped(everywhere=True, steps=150), "over no others"),
        (looped(steps=40), "after 40 steps the model pays"),
    ],
    "inpaint": [
        (lambda call, t, *g: t.expand(g[1], -1), "decode is not called"),
        (lambda call, t, box, count, mask: call(t.expand(count, -1)), "saw no [MASK]"),
        (lambda call, t, box, count, mask: call(t), "takes canvases (B, N)"),
        (lambda *g: painted(*g, turn=True), "rows and columns are exchanged"),
        (lambda *g: painted(*g, invert=True), "what should stay"),
        (lambda *g: painted(*g, ends=True), "are sizes"),
        (lambda *g: painted(*g, one=True), "all fills are alike"),
        (lambda *g: torch.where((p := painted(*g)) > 4, 11 - p, p), "not those that"),
        (lambda *g: torch.where(painted(*g) > 4, painted(*g), 0), "outside of the box"),
        (lambda c, t, *g: painted(c, 0 * t, *g), "must hold the given tokens"),
        (lambda c, *g: (painted(c, *g), painted(lambda x: x, *g))[1], "still holds [MASK]"),
        (lambda c, t, box, *g: painted(c, t, (1, 2, 4, 3), *g), "on a grid of 4 x 4"),
    ],
    "decode": [
        (sampled(whole=True), "not from N"),
        (sampled(again=True), "calls it 8 times"),
        (sampled(keep_known=False), "is masked or changed after it"),
        (sampled(choose=lambda p, e: p.argmax(-1)), "most likely token: sample"),
        (sampled(choose=lambda p, e: (p * e).argmax(-1)), "you multiply"),
        (sampled(cool=lambda k, steps: 0), "no Gumbel noise"),
        (sampled(cool=lambda k, steps: 1), "does not fall"),
        (sampled(cool=lambda k, steps: 1 - (k - 1) / steps), "with k from 1 to T"),
        (sampled(rate=lambda p, s: p.gather(-1, s[..., None])[..., 0]), "log p, not p"),
        (sampled(rate=lambda p, s: p.amax(-1).log()), "not of the most likely one"),
        (sampled(rate=lambda p, s: torch.zeros(s.shape)), "does not look at the prediction"),
        (sampled(sign=-1), "lowest scores"),
        (sampled(cool=lambda k, steps: -1), "step by step"),
        (lambda p, canvas, *g: sample(p, 0 * canvas + 5, *g), "is the given one"),
        (lambda p, canvas, *g: (sample(p, canvas, *g), canvas)[1], "still holds [MASK]"),
        (lambda p, canvas, *g: sample(p, canvas, *g) * 0, "of the given canvas has changed"),
        (lambda p, canvas, *g: sample(p, canvas, *g).clamp(max=3), "has changed"),
    ],
}  # fmt: skip
