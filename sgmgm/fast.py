"""Fast decoding: the same pictures as `sampling.decode`, for less work.

What is saved: logits and draws at masked positions only; half the bits (bfloat16 weights and
activations, draws in float32); TOAST's chain of matrices, A_l, B_l and W_v, multiplied out to one
for each layer; its first layer's attention, which no image changes, computed once; guidance on
features before the last linear layer, which need not run twice. On a CPU the products are oneDNN's
with GELU and residual sums fused; on CUDA the layers are compiled, and the whole trajectory is one
CUDA graph.
"""

import copy
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ops import mkldnn

from .devices import has_bf16
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


@lru_cache
def can_compile() -> bool:
    """Whether layers can be compiled for CUDA, found out by compiling something small."""
    try:
        torch.compile(torch.neg)(torch.ones(8, device="cuda"))
    except Exception as error:  # no Triton, no C compiler, no headers: each has its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"nothing can be compiled here ({reason}): the fast path runs its operations one by "
            "one.",
            stacklevel=2,
        )
        return False
    # all models share the layers' code: a dozen widths and kinds of call, not eight
    torch._dynamo.config.recompile_limit = 64
    return True


def quicken(decoder: nn.Module) -> None:
    """Ready a tokenizer's decoder on CUDA for bfloat16, in place: channels last, and compiled."""
    decoder.to(memory_format=torch.channels_last)
    if can_compile():
        decoder.compile()


class Product(nn.Module):
    """x W^T + b, then GELU or + y; on a CPU in bfloat16 one fused oneDNN call."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("weight", weight.detach().to(dtype).contiguous())
        self.register_buffer("bias", bias.detach().to(dtype))
        self.packed = None
        if dtype == torch.bfloat16 and weight.device.type == "cpu" and has_bf16("cpu"):
            self.packed = mkldnn._reorder_linear_weight(self.weight, 4096)

    def forward(self, x: Tensor, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
        if self.packed is not None:
            fused = mkldnn._linear_pointwise
            if plus is not None and plus.shape[0] == x.shape[0]:
                return fused.binary(x, plus.contiguous(), self.packed, self.bias, "add")
            y = fused(x, self.packed, self.bias, "gelu" if gelu else "none", [], "none")
        else:
            y = F.linear(x, self.weight, self.bias)
            y = F.gelu(y) if gelu else y
        return y if plus is None else y + plus


class FastLayer(nn.Module):
    """A `TransformerLayer` of which only some positions may be wanted; weights in `dtype`."""

    def __init__(self, layer: TransformerLayer, dtype: torch.dtype):
        super().__init__()
        a, f = layer.attention, layer.ffn
        d, self.heads = a.query.out_features, a.heads
        scale = (d // a.heads) ** -0.5
        weight = torch.cat((a.query.weight * scale, a.key.weight, a.value.weight))
        bias = torch.cat((a.query.bias * scale, a.key.bias, a.value.bias))
        self.qkv = Product(weight, bias, dtype)
        self.q, self.kv = (Product(weight[p], bias[p], dtype) for p in (slice(d), slice(d, None)))
        self.out = Product(a.out.weight, a.out.bias, dtype)
        self.up = Product(f.intermediate_output.weight, f.intermediate_output.bias, dtype)
        self.down = Product(f.layer_output.weight, f.layer_output.bias, dtype)
        self.norms = copy.deepcopy(nn.ModuleList((layer.attn_layer_norm, f.layer_norm))).to(dtype)

    def split(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, heads, L, D / heads)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, push: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """The layer's output at positions `at` (B, M), or at all; `push` is added to the values.

        x is (B, L, D), or (1, L, D) if it is the same for all images, which `push` tells apart.
        """
        rows = x if at is None else take(x, at)
        if at is None:
            q, k, v = self.qkv(x).chunk(3, -1)
        else:
            q, (k, v) = self.q(rows), self.kv(x).chunk(2, -1)
        v = v if push is None else v + push
        return self.finish(attend(self.split(q), self.split(k), self.split(v)), rows)

    def finish(self, y: Tensor, rows: Tensor) -> Tensor:
        """What attention gathered (B, heads, M, d), and its input (B or 1, M, D) -> output."""
        x = self.norms[0](self.out(y.transpose(1, 2).flatten(2), plus=rows))
        return self.norms[1](self.down(self.up(x, gelu=True), plus=x))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k) v for (B, heads, L, d); q is scaled already."""
    if v.is_cuda:
        q, k = (x.expand(len(v), -1, -1, -1) for x in (q, k))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


class FastTransformer:
    """A `MaskedTransformer` with weights in `dtype`, asked for some positions."""

    def __init__(self, model: MaskedTransformer, dtype: torch.dtype):
        self.config, self.model, self.dtype = model.config, model, dtype
        self.embeddings = copy.deepcopy(model.embed).to(dtype)
        head, codes = model.mlm_layer, model.config.codebook_size
        self.dense = Product(head.mlm_dense.weight, head.mlm_dense.bias, dtype)
        self.norm = copy.deepcopy(head.mlm_ln).to(dtype)
        self.last = Product(head.to_logits.weight[:codes], head.to_logits.bias[:codes], dtype)
        self.layers = [FastLayer(layer, dtype) for layer in model.transformer_layers]
        if model.blank.is_cuda and can_compile():
            for layer in self.layers:
                layer.compile()

    def embed(self, canvas: Tensor, labels: Tensor) -> Tensor:
        """Canvas (B, N) and labels (B,) -> the first layer's input (B, N + 1, D)."""
        classes = (labels + self.config.codebook_size)[:, None]
        return self.embeddings(self.embeddings.word_embeddings(torch.cat((classes, canvas), 1)))

    def encode(self, x: Tensor, at: Tensor | None = None) -> Tensor:
        """Last hidden states (B, M, D) at `at` (B, M), or (B, N + 1, D)."""
        for layer in self.layers[:-1]:
            x = layer(x)
        return self.layers[-1](x, at=at)

    def features(self, hidden: Tensor) -> Tensor:
        """The head without its last linear layer."""
        return self.norm(self.dense(hidden, gelu=True))

    def logits(self, features: Tensor) -> Tensor:
        """The head's last linear layer: float32 (B, M, K)."""
        return self.last(features.to(self.dtype)).float()

    def __call__(self, canvas: Tensor, labels: Tensor, at: Tensor) -> Tensor:
        """Logits float32 (B, M, K) of the image positions `at` (B, M)."""
        return self.logits(self.features(self.encode(self.embed(canvas, labels), at + 1)))


class FastToast:
    """A `ToastSmoother`, multiplied out for one transformer."""

    def __init__(self, smoother: ToastSmoother, net: FastTransformer):
        self.smoother, self.net = smoother, net
        self.pushes: list[Product] = []
        chain = smoother.top_down_transform.detach().double().T  # acts on columns
        for decoder, layer in zip(
            reversed(smoother.decoders), reversed(net.model.transformer_layers), strict=True
        ):
            chain = decoder.linear.weight.detach().double() @ chain
            value = layer.attention.value
            matrix = value.weight.detach().double() @ decoder.linear2.weight.detach().double()
            self.pushes.insert(0, Product(matrix @ chain, value.bias, net.dtype))
        self.blank = None
        if not smoother.config.keep_class:  # then no image and no class changes the first layer
            blank, config = net.model.blank, net.config
            nobody = torch.full((1,), config.num_classes, device=blank.device)
            self.blank = net.embed(blank, nobody)
            first = net.layers[0]
            q, k, self.values = first.qkv(self.blank).chunk(3, -1)
            self.weights = (first.split(q) @ first.split(k).transpose(-1, -2)).softmax(-1)

    def encode(self, hidden: Tensor, labels: Tensor, at: Tensor) -> Tensor:
        """Pass 2's hidden states at `at`, from pass 1's (B, N + 1, D)."""
        anchor = self.smoother.cls_anchor_gen(labels)
        similarity = F.cosine_similarity(hidden.float(), anchor.float(), dim=-1)
        selected = hidden * similarity.clamp(0, 1)[..., None].to(hidden.dtype)
        pushes = [push(selected) for push in self.pushes]
        layers = list(self.net.layers)
        if self.blank is None:
            x = self.net.embed(self.net.model.blank.expand(len(labels), -1), labels)
        else:
            first, v = layers.pop(0), self.values + pushes.pop(0)
            x = first.finish(self.weights @ first.split(v), self.blank)
        if not layers:
            return take(x, at)
        for layer, push in zip(layers[:-1], pushes, strict=False):
            x = layer(x, push)
        return layers[-1](x, pushes[-1], at)


FAST = (Guidance, Sharpened, ClassifierFree, AutoGuidance, SelfGuidance, SelfAndClassifierFree)


class FastGuidance:
    """A `Guidance` asked for M positions: (canvas, labels, at (B, M)) -> float32 (B, M, K).

    Guidances that are not in `FAST` (those that look at neighbouring positions) run as they are,
    and so do those with another kind of smoother.
    """

    @torch.no_grad()
    def __init__(self, guidance: Guidance, dtype: torch.dtype | None = None):
        if dtype is None:  # the fastest
            half = has_bf16(guidance.model.blank.device.type)
            dtype = torch.bfloat16 if half else torch.float32
        self.guidance, self.dtype = guidance, dtype
        self.codes = guidance.model.config.codebook_size
        self.net: Any = None  # a FastTransformer, or None: asked without any haste
        self.other: Any = None  # what gives the smooth answer
        self.graphs: dict = {}
        self.records = True  # until a recording fails
        smoother = getattr(guidance, "smoother", None)
        known = type(smoother) in (type(None), LoraSmoother, ToastSmoother)
        if type(guidance) in FAST and known:
            self.net = FastTransformer(guidance.model, dtype)
        if self.net and isinstance(guidance, AutoGuidance):
            self.other = FastTransformer(guidance.weak, dtype)
        elif self.net and isinstance(smoother, LoraSmoother):
            merged = copy.deepcopy(smoother.peft).merge_and_unload()
            self.other = FastTransformer(merged, dtype)
        elif self.net and smoother is not None:
            self.other = FastToast(smoother, self.net)

    def __call__(self, canvas: Tensor, labels: Tensor, at: Tensor) -> Tensor:
        guidance, net = self.guidance, self.net
        cpu, all_of_them = canvas.device.type == "cpu", at.shape == canvas.shape
        if cpu and all_of_them and (canvas >= self.codes).all():
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

    def replay(self, inputs: tuple[Tensor, ...], settings: tuple) -> tuple[Trajectory, Tensor]:
        """`run` on CUDA, all its steps recorded once as one graph."""
        shapes = tuple(tuple(x.shape) for x in inputs)
        key = (shapes, settings, self.guidance.scale, self.guidance.weight)
        if key not in self.graphs:
            if any(held > shapes and rest == list(key[1:]) for held, *rest in self.graphs):
                # the last batch of a job is smaller, and not worth a recording of its own
                return run(self, *inputs, *settings)
            self.graphs.clear()  # one at a time: each holds the memory of a whole trajectory
            mine = [x.clone() for x in inputs]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):  # compile, and let libraries choose, before recording
                    run(self, *mine, *settings)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    results = run(self, *mine, *settings)
            except RuntimeError as error:
                warnings.warn(f"no CUDA graph: {error}; its steps run one by one.", stacklevel=2)
                self.records = False
                return run(self, *inputs, *settings)
            self.graphs[key] = graph, mine, results
        graph, mine, (trajectory, finite) = self.graphs[key]
        for old, new in zip(mine, inputs, strict=True):
            old.copy_(new)
        graph.replay()
        return Trajectory(*(part.clone() for part in trajectory)), finite.clone()

    def both(self, canvas: Tensor, labels: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Plain and smooth features (B, M, D) at `at` (B, M), the class being position 0."""
        net, x = self.net, self.net.embed(canvas, labels)
        free: Any = None  # the features without the class, for the guidances that ask
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
    inputs = (labels, canvas, keys, to_fill, leaves)
    settings = (tuple(widths), tuple(taus), order, remask_known)
    if canvas.is_cuda and guided.net is not None and guided.records:
        trajectory, finite = guided.replay(inputs, settings)
    else:
        trajectory, finite = run(guided, *inputs, *settings)
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
