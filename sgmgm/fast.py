"""Fast decoding: the same pictures as `sampling.decode`, for less work.

What is saved: logits and draws at masked positions only; half the bits (bfloat16 weights and
activations, draws in float32); TOAST's chain of matrices, A_l, B_l and W_v, multiplied out to one
for each layer; its first layer's attention, which no image changes, computed once; guidance on
features before the last linear layer, which need not run twice.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .guidance import (
    AutoGuidance,
    ClassifierFree,
    Guidance,
    SelfAndClassifierFree,
    SelfGuidance,
    Sharpened,
)
from .sampling import Trajectory, draw, leave_masked, prepare, rank
from .smoothing import LoraSmoother, ToastSmoother
from .transformer import MaskedTransformer, TransformerLayer


def take(x: Tensor, at: Tensor) -> Tensor:
    """Rows at (B, M) of x (B or 1, L, D): (B, M, D)."""
    return x.expand(len(at), -1, -1).gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


class FastLayer:
    """A `TransformerLayer` of which only some positions may be wanted; weights in `dtype`."""

    def __init__(self, layer: TransformerLayer, dtype: torch.dtype):
        def cast(*tensors):
            return tuple(t.detach().to(dtype) for t in tensors)

        a, f = layer.attention, layer.ffn
        self.heads = a.heads
        scale = (a.query.out_features // a.heads) ** -0.5
        three = (a.query, a.key, a.value)
        weight = torch.cat([p.weight * (scale if p is a.query else 1) for p in three])
        bias = torch.cat([p.bias * (scale if p is a.query else 1) for p in three])
        self.qkv = cast(weight, bias)
        self.out = cast(a.out.weight, a.out.bias)
        self.up = cast(f.intermediate_output.weight, f.intermediate_output.bias)
        self.down = cast(f.layer_output.weight, f.layer_output.bias)
        self.norms = [(n.normalized_shape, *cast(n.weight, n.bias), n.eps)
                      for n in (layer.attn_layer_norm, f.layer_norm)]  # fmt: skip

    def split(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, heads, L, D / heads)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def __call__(self, x: Tensor, push=None, at: Tensor | None = None, weights=None) -> Tensor:
        """The layer's output at positions `at` (B, M), or at all.

        Args:
            x: (B, L, D); (1, L, D) if the same for all images.
            push: what is added to the values, (B, L, D).
            weights: attention probabilities (heads, L, L), if they are known already.
        """
        d = x.shape[-1]
        rows = x if at is None else take(x, at)
        if weights is not None:
            v = F.linear(x, self.qkv[0][2 * d :], self.qkv[1][2 * d :])
        elif at is None:
            q, k, v = F.linear(x, *self.qkv).chunk(3, -1)
        else:
            q = F.linear(rows, self.qkv[0][:d], self.qkv[1][:d])
            k, v = F.linear(x, self.qkv[0][d:], self.qkv[1][d:]).chunk(2, -1)
        v = v if push is None else v + push
        if weights is not None:
            y = weights @ self.split(v)
        else:
            y = attend(self.split(q), self.split(k), self.split(v))
        y = y.transpose(1, 2).flatten(2)
        if weights is not None and at is not None:
            y = take(y, at)
        x = F.layer_norm(F.linear(y, *self.out) + rows, *self.norms[0])
        y = F.linear(F.gelu(F.linear(x, *self.up)), *self.down)
        return F.layer_norm(y + x, *self.norms[1])


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k) v for (B, heads, L, d); q is scaled already."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


class FastTransformer:
    """A `MaskedTransformer` with weights in `dtype`, asked for some positions."""

    def __init__(self, model: MaskedTransformer, dtype: torch.dtype):
        self.config, self.model, self.dtype = model.config, model, dtype
        embed, head = copy.deepcopy(model.embed), copy.deepcopy(model.mlm_layer)
        self.embed_words, self.head = embed.to(dtype), head.to(dtype)
        codes, out = model.config.codebook_size, self.head.to_logits
        self.last = out.weight.detach()[:codes], out.bias.detach()[:codes]
        self.layers = [FastLayer(layer, dtype) for layer in model.transformer_layers]

    def embed(self, canvas: Tensor, labels: Tensor) -> Tensor:
        """Canvas (B, N) and labels (B,) -> the first layer's input (B, N + 1, D)."""
        classes = (labels + self.config.codebook_size)[:, None]
        return self.embed_words(self.embed_words.word_embeddings(torch.cat((classes, canvas), 1)))

    def encode(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Last hidden states (B, M, D) at `at` (B, M), or (B, N + 1, D)."""
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1](x, at=at)

    def features(self, hidden: Tensor) -> Tensor:
        """The head without its last linear layer."""
        return self.head.mlm_ln(F.gelu(self.head.mlm_dense(hidden)))

    def logits(self, features: Tensor) -> Tensor:
        """The head's last linear layer: float32 (B, M, K)."""
        return F.linear(features.to(self.dtype), *self.last).float()

    def __call__(self, canvas: Tensor, labels: Tensor, at: Tensor) -> Tensor:
        """Logits float32 (B, M, K) of the image positions `at` (B, M)."""
        return self.logits(self.features(self.encode(self.embed(canvas, labels), at + 1)))


class FastToast:
    """A `ToastSmoother`, multiplied out for one transformer."""

    def __init__(self, smoother: ToastSmoother, net: FastTransformer):
        self.smoother, self.net = smoother, net
        chain = smoother.top_down_transform.detach().double().T  # acts on columns
        self.pushes = []
        for decoder, layer in zip(
            reversed(smoother.decoders), reversed(net.model.transformer_layers), strict=True
        ):
            chain = decoder.linear.weight.detach().double() @ chain
            value = layer.attention.value
            matrix = value.weight.detach().double() @ decoder.linear2.weight.detach().double()
            self.pushes.insert(
                0, ((matrix @ chain).to(net.dtype), value.bias.detach().to(net.dtype))
            )
        config, model = net.config, net.model
        self.nobody = torch.full((1,), config.num_classes, device=model.blank.device)
        self.blank = self.weights = None
        if not smoother.config.keep_class:
            self.blank = net.embed(model.blank, self.nobody)
            x = model.embed(model.words(model.blank, self.nobody))
            self.weights = model.transformer_layers[0].attention.weights(x)[0].to(net.dtype)

    def encode(self, hidden: Tensor, labels: Tensor, at: Tensor) -> Tensor:
        """Pass 2's hidden states at `at`, from pass 1's (B, N + 1, D)."""
        anchor = self.smoother.cls_anchor_gen(labels)
        similarity = F.cosine_similarity(hidden.float(), anchor.float(), dim=-1)
        selected = hidden * similarity.clamp(0, 1)[..., None].to(hidden.dtype)
        net = self.net
        x = self.blank
        if x is None:
            x = net.embed(net.model.blank.expand(len(labels), -1), labels)
        for i, (layer, push) in enumerate(zip(net.layers, self.pushes, strict=True)):
            last = at if i == len(net.layers) - 1 else None
            x = layer(x, F.linear(selected, *push), last, self.weights if i == 0 else None)
        return x


class FastGuidance:
    """A `Guidance` asked for M positions: (canvas, labels, at (B, M)) -> float32 (B, M, K).

    Guidances that look at neighbouring positions (spatial, SAG) run as they are.
    """

    def __init__(self, guidance: Guidance, dtype: torch.dtype = torch.bfloat16):
        self.guidance, self.dtype = guidance, dtype
        self.codes = guidance.model.config.codebook_size
        self.net = self.other = None
        if type(guidance) in (Guidance, Sharpened, ClassifierFree, AutoGuidance, SelfGuidance,
                              SelfAndClassifierFree):  # fmt: skip
            self.net = FastTransformer(guidance.model, dtype)
        if isinstance(guidance, AutoGuidance):
            self.other = FastTransformer(guidance.weak, dtype)
        elif isinstance(guidance, SelfGuidance):
            smoother = guidance.smoother
            if isinstance(smoother, LoraSmoother):
                merged = copy.deepcopy(smoother.peft).merge_and_unload()
                self.other = FastTransformer(merged, dtype)
            elif isinstance(smoother, ToastSmoother):
                self.other = FastToast(smoother, self.net)
            else:  # of a kind that is not known here: run as it is
                self.net = None

    def __call__(self, canvas: Tensor, labels: Tensor, at: Tensor) -> Tensor:
        guidance, net = self.guidance, self.net
        if not canvas.is_cuda and at.shape == canvas.shape and (canvas >= self.codes).all():
            # a blank canvas is told by its class alone
            classes, of = labels.unique(return_inverse=True)
            if len(classes) < len(labels):
                few = slice(len(classes))
                return self(canvas[few], classes, at[few])[of]
        if net is None:
            with torch.autocast(canvas.device.type, self.dtype, self.dtype != torch.float32):
                return take(guidance(canvas, labels), at)
        if type(guidance) is Guidance:
            return net(canvas, labels, at)
        known = (canvas < self.codes).float().mean(1)
        scale = guidance.scale * guidance.weight(known)[:, None, None]
        if isinstance(guidance, Sharpened):
            return (1 + scale) * net(canvas, labels, at)
        if isinstance(guidance, AutoGuidance):
            plain = net(canvas, labels, at)
            return plain + scale * (plain - self.other(canvas, labels, at))
        # one head for both: guide its features, so that its largest product runs once
        plain, smooth = self.both(canvas, labels, at + 1)
        return net.logits(plain.float() + scale * (plain.float() - smooth.float()))

    def both(self, canvas: Tensor, labels: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Plain and smooth features (B, M, D) at `at` (B, M), the class being position 0."""
        net, x, free = self.net, self.net.embed(canvas, labels), 0.0
        recycle = isinstance(self.other, FastToast)
        if isinstance(self.guidance, ClassifierFree | SelfAndClassifierFree):
            nobody = torch.full_like(labels, net.config.num_classes)
            x = torch.cat((x, net.embed(canvas, nobody)))
            hidden = net.encode(x) if recycle else net.encode(x, at.repeat(2, 1))
            hidden, free = hidden.chunk(2)
            free = net.features(take(free, at) if recycle else free)
            x = x.chunk(2)[0]
        else:
            hidden = net.encode(x) if recycle else net.encode(x, at)
        plain = net.features(take(hidden, at) if recycle else hidden)
        if self.other is None:
            return plain, free
        rest = self.other.encode(hidden, labels, at) if recycle else self.other.encode(x, at)
        smooth = net.features(rest)
        if isinstance(self.guidance, SelfAndClassifierFree):
            smooth = smooth + free - plain
        return plain, smooth


@torch.no_grad()
def decode(
    guided: FastGuidance,
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
    """`sampling.decode`, with the same arguments but for the first, and the same result."""
    taus, keys = prepare(labels, canvas, steps, temperature, anneal, order, generators)
    to_fill = canvas >= guided.codes
    leaves = leave_masked(to_fill.sum(1), steps, schedule)
    widths = [max(1, int(to_fill.sum(1).max())), *leaves[:-1].amax(1).clamp_min(1).tolist()]
    rounds = (guided, labels, canvas, keys, to_fill, leaves, widths, taus, order, remask_known)
    trajectory, finite = run(*rounds)
    if not finite.all():
        step = int(finite.int().argmin()) + 1
        raise InputError(f"the logits of step {step} hold NaN or infinity.")
    return trajectory


def run(
    guided, labels, first, keys, to_fill, leaves, widths, taus, order, remask_known
) -> tuple[Trajectory, Tensor]:
    """All steps without a look at a value, so that the host never waits.

    Returns the trajectory and whether each step's logits were finite, bool (T,).
    """
    canvas, held = first, torch.zeros(first.shape, device=first.device)
    trace, finite = [], []
    for step, tau in enumerate(taus):
        masked = canvas >= guided.codes
        # the masked positions of each image, filled up with known ones if it has fewer
        at = masked.int().argsort(dim=1, descending=True, stable=True)[:, : widths[step]]
        logits = guided(canvas, labels, at)
        tokens, log_p = draw(logits, keys[step, 0].gather(1, at))
        finite.append(log_p.isfinite().all())
        drawn = torch.where(masked, canvas.scatter(1, at, tokens), canvas)
        held = torch.where(masked, held.scatter(1, at, log_p), held)
        score, kept = rank(
            held, keys[step, 1], masked, to_fill, leaves[step], tau, order, remask_known
        )
        trace.append((canvas, drawn, score, kept))
        canvas = torch.where(kept, drawn, first)
    parts = (torch.stack(each) for each in zip(*trace, strict=True))
    return Trajectory(canvas, *parts), torch.stack(finite)
