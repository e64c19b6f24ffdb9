"""Fast decoding: the same images as `sampling.decode`, for less work.

What is saved: logits and sampling at masked positions only; half the bits (bfloat16 weights and
activations, sampling in float32); TOAST's chain of matrices, A_l, B_l and W_v, multiplied out to
one for each layer; its first layer's attention, which no image changes, computed once; guidance on
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

from .guidance import Guidance
from .sampling import Trajectory, check_finite, fill, prepare, sample_tokens
from .smoothing import LoraSmoother, ToastSmoother
from .transformer import Attention, MaskedTransformer, Prediction, TransformerLayer
from .utils.devices import has_bf16, is_out_of_memory


def gather_positions(x: Tensor, at: Tensor) -> Tensor:
    """x (B or 1, L, D) at the positions at (B, M): (B, M, D)."""
    return x.expand(len(at), -1, -1).gather(1, at[..., None].expand(-1, -1, x.shape[-1]))


@lru_cache
def can_compile() -> bool:
    """Whether layers can be compiled for CUDA, found out by compiling a small function."""
    try:
        torch.compile(torch.neg)(torch.ones(8, device="cuda"))
    except Exception as error:  # no Triton, no C compiler, no headers: each has its own
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        text = f"nothing can be compiled here ({why}): the fast path runs one operation at a time."
        warnings.warn(text, stacklevel=2)
        return False
    # all models share the layers' code: a dozen widths and kinds of call, not eight
    torch._dynamo.config.recompile_limit = 64
    return True


def prepare_decoder(decoder: nn.Module) -> None:
    """Ready a tokenizer's decoder on CUDA for bfloat16, in place: channels last, and compiled."""
    decoder.to(memory_format=torch.channels_last)
    if can_compile():
        decoder.compile()


class FusedLinear(nn.Module):
    """x W^T + b, then GELU or + y, (..., D) -> (..., D'); on a CPU one call of oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("weight", weight.detach().to(dtype).contiguous())
        self.register_buffer("bias", bias.detach().to(dtype))
        self.packed = None
        able = dtype == torch.float32 or (dtype == torch.bfloat16 and has_bf16("cpu"))
        if able and weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
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
        self.qkv = FusedLinear(weight, bias, dtype)
        self.q = FusedLinear(weight[:d], bias[:d], dtype)
        self.kv = FusedLinear(weight[d:], bias[d:], dtype)
        self.out = FusedLinear(a.out.weight, a.out.bias, dtype)
        self.up = FusedLinear(f.intermediate_output.weight, f.intermediate_output.bias, dtype)
        self.down = FusedLinear(f.layer_output.weight, f.layer_output.bias, dtype)
        self.norms = copy.deepcopy(nn.ModuleList((layer.attn_layer_norm, f.layer_norm))).to(dtype)

    split: Any = Attention.split  # (B, L, D) -> (B, heads, L, d), d = D / heads

    def forward(self, x: Tensor, top_down: Tensor | None = None, at=None) -> Tensor:
        """The output at positions `at` (B, M), or all; `top_down` (B, L, D) adds to the values.

        x is (B, L, D), or (1, L, D) if it is the same for all images.
        """
        if at is None:
            some, (q, k, v) = x, self.qkv(x).chunk(3, -1)  # (B, L, 3 D) -> (B, L, D) each
        else:
            some = gather_positions(x, at)  # (B, M, D)
            q, (k, v) = self.q(some), self.kv(x).chunk(2, -1)  # (B, M, D); (B, L, D) each
        v = v if top_down is None else v + top_down
        q, k, v = self.split(q), self.split(k), self.split(v)  # (B, heads, M or L, d) each
        if v.is_cuda:
            q, k = (x.expand(len(v), -1, -1, -1) for x in (q, k))
            y = F.scaled_dot_product_attention(q, k, v, scale=1.0)  # q is scaled already
        else:
            y = (q @ k.transpose(-1, -2)).softmax(-1) @ v  # (B, heads, M or L, d)
        return self.finish(y, some)

    def finish(self, y: Tensor, x: Tensor) -> Tensor:
        """Attention's y (B, heads, M, d) and the layer's input x (B or 1, M, D) -> output."""
        x = self.norms[0](self.out(y.transpose(1, 2).flatten(2), plus=x))  # (B, M, D)
        return self.norms[1](self.down(self.up(x, gelu=True), plus=x))  # (B, M, D)


class FastTransformer:
    """A `MaskedTransformer` with weights in `dtype`, which predicts at some positions only.

    All other attributes are those of the model.
    """

    def __init__(self, model: MaskedTransformer, dtype: torch.dtype):
        self.model, self.dtype = model, dtype
        self.at: Any = None  # int64 (B, M), the image positions to predict; None: all
        self.features_only = False  # leave out the last layer of the head
        self.all_hidden = False  # hidden states of all positions are wanted
        self.embeddings = copy.deepcopy(model.embed).to(dtype)
        head, codes = model.mlm_layer, model.config.codebook_size
        self.dense = FusedLinear(head.mlm_dense.weight, head.mlm_dense.bias, dtype)
        self.norm = copy.deepcopy(head.mlm_ln).to(dtype)
        self.last = FusedLinear(head.to_logits.weight[:codes], head.to_logits.bias[:codes], dtype)
        self.layers = [FastLayer(layer, dtype) for layer in model.transformer_layers]
        if model.blank.is_cuda and can_compile():
            for layer in self.layers:
                layer.compile()

    def __getattr__(self, name: str):
        if name == "model":  # not there yet: a copy in the making
            raise AttributeError(name)
        return getattr(self.model, name)

    def __call__(self, canvas: Tensor, labels: Tensor) -> Prediction:
        """The prediction for canvas (B, N) and labels (B,), at the positions `at`."""
        at = self.positions(len(canvas))  # (B, M)
        x = self.first_input(canvas, labels)  # (B, N + 1, D)
        for layer in self.layers[:-1]:
            x = layer(x)  # (B, N + 1, D)
        hidden = self.layers[-1](x, at=None if self.all_hidden else at)  # (B, N + 1 or M, D)
        chosen = gather_positions(hidden, at) if self.all_hidden else hidden  # (B, M, D)
        return Prediction(self.predict(chosen), hidden)

    def positions(self, batch: int) -> Tensor:
        """The positions to predict, int64 (batch, M), in a sequence that begins with the class."""
        if self.at is None:
            n = self.model.config.num_vq_tokens
            return torch.arange(1, n + 1, device=self.model.blank.device).expand(batch, -1)
        return (self.at + 1).repeat(batch // len(self.at), 1)

    def first_input(self, canvas: Tensor, labels: Tensor) -> Tensor:
        """Canvas (B, N) and labels (B,) -> the first layer's input (B, N + 1, D)."""
        classes = (labels + self.model.config.codebook_size)[:, None]  # (B, 1)
        ids = torch.cat((classes, canvas), 1)  # (B, N + 1)
        return self.embeddings(self.embeddings.word_embeddings(ids))

    def predict(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, M, D) -> logits float32 (B, M, K), or features (B, M, D)."""
        features = self.norm(self.dense(hidden, gelu=True))  # (B, M, D)
        return features if self.features_only else self.finish(features)

    def finish(self, features: Tensor) -> Tensor:
        """The head's last linear layer: features (B, M, D) -> logits float32 (B, M, K)."""
        return self.last(features.to(self.dtype)).float()


class FastLora(FastTransformer):
    """A `LoraSmoother`: its adapter merged into a copy of the weights."""

    inputs = LoraSmoother.inputs


class FastToast:
    """A `ToastSmoother`, multiplied out for one transformer."""

    def __init__(self, smoother: ToastSmoother, net: FastTransformer):
        self.smoother, self.net = smoother, net
        self.top_downs: list[FusedLinear] = []
        chain = exact(smoother.top_down_transform).T  # A_l ... A_L P, (D, D), acts on columns
        layers = zip(smoother.decoders, net.model.transformer_layers, strict=True)
        for decoder, layer in reversed(list(layers)):
            value, chain = layer.attention.value, exact(decoder.linear.weight) @ chain
            matrix = exact(value.weight) @ exact(decoder.linear2.weight) @ chain  # W_v B_l A_l ...
            matrix = matrix.to(net.dtype).to(value.weight.device)
            self.top_downs.insert(0, FusedLinear(matrix, value.bias, net.dtype))
        self.blank = None
        if not smoother.config.keep_class:  # then no image and no class changes the first layer
            blank, config = net.model.blank, net.model.config
            no_class = torch.full((1,), config.num_classes, device=blank.device)
            self.blank = net.first_input(blank, no_class)  # (1, N + 1, D)
            first = net.layers[0]
            q, k, self.values = first.qkv(self.blank).chunk(3, -1)  # (1, N + 1, D) each
            weights = first.split(q) @ first.split(k).transpose(-1, -2)  # (1, heads, L, L)
            self.weights = weights.softmax(-1)

    inputs = ToastSmoother.inputs

    def __call__(self, model, hidden: Tensor, labels: Tensor) -> Prediction:
        """Pass 2 from pass 1's hidden states (B, N + 1, D), at the net's positions."""
        at = self.net.positions(len(labels))  # (B, M)
        anchor = self.smoother.cls_anchor_gen(labels)  # (B, 1, D)
        similarity = F.cosine_similarity(hidden.float(), anchor.float(), dim=-1)  # (B, N + 1)
        selected = hidden * similarity.clamp(0, 1)[..., None].to(hidden.dtype)  # (B, N + 1, D)
        top_downs = [top_down(selected) for top_down in self.top_downs]  # (B, N + 1, D) each
        layers = list(self.net.layers)
        if self.blank is None:
            x = self.net.first_input(self.net.model.blank.expand(len(labels), -1), labels)
        else:
            first, v = layers.pop(0), self.values + top_downs.pop(0)  # (B, N + 1, D)
            x = first.finish(self.weights @ first.split(v), self.blank)  # (B, N + 1, D)
        for layer, top_down in zip(layers[:-1], top_downs, strict=False):
            x = layer(x, top_down)
        x = layers[-1](x, top_downs[-1], at) if layers else gather_positions(x, at)  # (B, M, D)
        return Prediction(self.net.predict(x), x)


def exact(weight: Tensor) -> Tensor:
    """A weight in float64; from MPS, which has none, on the CPU."""
    weight = weight.detach()
    return (weight.cpu() if weight.device.type == "mps" else weight).double()


class FastGuidance:
    """A `Guidance` at M positions: (canvas, labels, at (B, M)) -> logits float32 (B, M, K).

    The guidance itself runs, on fast networks in place of its own (see `Guidance.combine_at`).
    One with another kind of smoother than TOAST and LoRA runs as it is.
    """

    @torch.no_grad()
    def __init__(self, guidance: Guidance, dtype: torch.dtype | None = None):
        if dtype is None:  # the fastest
            bf16 = has_bf16(guidance.model.blank.device.type)
            dtype = torch.bfloat16 if bf16 else torch.float32
        self.dtype, self.codes = dtype, guidance.model.config.codebook_size
        self.guidance = copy.copy(guidance)
        self.net: Any = None  # a FastTransformer, or None: the guidance runs as it is
        self.graphs: dict = {}
        self.records = True  # until a recording fails
        self.last_batch = 0  # images of the last replay
        smoother, weak = guidance.smoother, guidance.weak
        if type(smoother) not in (type(None), LoraSmoother, ToastSmoother):
            return
        net: Any = FastTransformer(guidance.model, dtype)
        self.net = self.guidance.model = net
        if weak is not None:
            self.guidance.weak = FastTransformer(weak, dtype)
        if isinstance(smoother, LoraSmoother):
            smoother.check_adapter()
            merged = copy.deepcopy(smoother.peft).merge_and_unload()
            self.guidance.smoother = FastLora(merged, dtype)
        elif smoother is not None:
            self.guidance.smoother = FastToast(smoother, self.net)
            self.net.all_hidden = True
        others = self.guidance.smoother, self.guidance.weak
        self.nets = [self.net, *(o for o in others if isinstance(o, FastTransformer))]
        for net in self.nets:
            net.features_only = guidance.combine_at == "features"

    def adopt(self, other: Guidance) -> "FastGuidance":
        """Take another guidance's scale and schedule; the networks stay as they are."""
        self.guidance.scale, self.guidance.weight = other.scale, other.weight
        return self

    def __call__(self, canvas: Tensor, labels: Tensor, at: Tensor) -> Tensor:
        guidance, net = self.guidance, self.net
        cpu, all_of_them = canvas.device.type == "cpu", at.shape == canvas.shape
        if cpu and all_of_them and (canvas >= self.codes).all():
            # the prediction for a blank canvas depends on its class alone
            classes, which = labels.unique(return_inverse=True)  # (C',), (B,)
            if len(classes) < len(labels):
                few = slice(len(classes))
                return self(canvas[few], classes, at[few])[which]  # (B, M, K)
        if net is None or guidance.combine_at == "grid":
            with torch.autocast(canvas.device.type, self.dtype, self.dtype != torch.float32):
                return gather_positions(guidance(canvas, labels), at)
        for each in self.nets:
            each.at = at
        guided = guidance(canvas, labels)  # (B, M, K), or features (B, M, D)
        return net.finish(guided) if net.features_only else guided

    def record(self, inputs: list[Tensor], settings: tuple) -> tuple:
        """A CUDA graph of `run` and its results; (None, None), with a warning, if it cannot be."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                return graph, run(self, *inputs, *settings)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0].rstrip(".")
            warnings.warn(f"no CUDA graph: {reason}; its steps run one by one.", stacklevel=2)
            self.records = False
            return None, None

    def replay(self, inputs: tuple[Tensor, ...], settings: tuple) -> tuple[Trajectory, Tensor]:
        """`run` on CUDA, all its steps recorded once as one graph.

        The guidance scale is an input of the graph. A batch smaller than the recorded one is
        filled up with copies of its first image; the second one of that size in a row gets a
        graph of its own.
        """
        (labels, canvas, keys, counts), scale = inputs, self.guidance.scale
        key = (canvas.shape[1:], keys.shape[:2], settings, self.guidance.weight)
        batch, recorded = len(labels), len(self.graphs[key][1][0]) if key in self.graphs else 0
        if batch > recorded or batch == self.last_batch < recorded:
            self.graphs.clear()  # one at a time: each holds the memory of a whole trajectory
            mine: Any = [x.clone() for x in (*inputs, torch.tensor(scale, device=canvas.device))]
            self.guidance.scale = mine[-1]
            here, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(here)
            try:
                with torch.cuda.stream(side):
                    for _ in range(2):  # compile, and let libraries choose, before recording
                        run(self, *mine[:-1], *settings)
                    here.wait_stream(side)
                    graph, results = self.record(mine[:-1], settings)
            finally:
                self.guidance.scale = scale
            if graph is None:
                return run(self, *inputs, *settings)
            self.graphs[key] = graph, mine, results
        self.last_batch = batch
        graph, mine, (trajectory, finite) = self.graphs[key]
        labels, canvas, keys = (
            torch.cat((x, x.narrow(dim, 0, 1).repeat_interleave(len(mine[0]) - batch, dim)), dim)
            for x, dim in ((labels, 0), (canvas, 0), (keys, 2))
        )
        for old, new in zip(mine, (labels, canvas, keys, counts), strict=False):
            old.copy_(new)
        mine[-1].fill_(scale)
        graph.replay()
        tokens, *steps = trajectory
        steps = [x[:, :batch].clone() for x in steps]
        return Trajectory(tokens[:batch].clone(), *steps), finite.clone()


@torch.no_grad()
def decode(
    guided: FastGuidance, labels: Tensor, canvas: Tensor,
    steps: int = 18, schedule: str = "cosine", temperature: float = 6.0, anneal: str = "linear",
    order: str = "confidence", generators: Sequence[torch.Generator] | None = None,
    remask_known: bool = False,
) -> Trajectory:  # fmt: skip
    """`sampling.decode`, with the same arguments but for the first, and the same result."""
    rest = steps, schedule, temperature, anneal, order, generators
    taus, keys, counts = prepare(labels, canvas, *rest)
    to_fill = (canvas >= guided.codes).sum(1)  # (B,)
    widths = torch.cat((to_fill.max()[None], counts[:-1, to_fill].amax(1))).clamp_min(1)  # (T,)
    settings = tuple(widths.tolist()), tuple(taus), order, remask_known
    inputs = (labels, canvas, keys, counts)
    if canvas.is_cuda and guided.net is not None and guided.records:
        return check_finite(*guided.replay(inputs, settings))
    return check_finite(*run(guided, *inputs, *settings))


def run(guided, labels, first, keys, counts, widths, *rest) -> tuple[Trajectory, Tensor]:
    """`sampling.fill`, asking for the masked positions only: `widths` many at each step."""

    def propose(canvas: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        masked = canvas >= guided.codes  # (B, N)
        # the masked positions of each image, filled up with known ones if it has fewer: (B, M)
        at = masked.int().argsort(dim=1, descending=True, stable=True)[:, : widths[step]]
        tokens, log_p = sample_tokens(guided(canvas, labels, at), keys[step, 0].gather(1, at))
        some = torch.zeros(canvas.shape, device=canvas.device)
        return masked, canvas.scatter(1, at, tokens), some.scatter(1, at, log_p)

    return fill(propose, first, keys, counts, *rest)
