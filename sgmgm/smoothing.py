"""Smoothing: predictions with the fine detail taken out, on the grid or in meaning.

Spatial smoothing blurs over the grid. Semantic smoothing (Hur et al. 2024, section 3 and appendix
A) asks a fine-tuned adapter, TOAST or LoRA, for a prediction that does not trust single tokens.
"""

import copy
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transformer import MaskedTransformer, Prediction
from .utils.errors import CheckpointError, InputError, listed
from .utils.files import read_json, write_json
from .utils.hub import Pretrained, read_tensors, save_tensors


def gaussian_kernel(sigma: float) -> Tensor:
    """Weights (k,) of a Gaussian of `sigma` grid cells, cut at 3 sigma, with sum 1."""
    if not sigma > 0:
        raise InputError(f"sigma must be above 0 grid cells, not {sigma!r}.")
    radius = max(1, round(3 * sigma))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    return torch.softmax(-(x**2) / (2 * sigma**2), 0)


def blur(grid: Tensor, sigma: float = 1.0) -> Tensor:
    """Gaussian blur M x M^T of (B, N, C) over its N = h x h positions, edges repeated."""
    side = math.isqrt(grid.shape[1])  # h
    if side * side != grid.shape[1]:
        raise InputError(f"blurring needs a square grid; {grid.shape[1]} positions are none.")
    matrix = blur_matrix(side, sigma, grid.device).to(grid.dtype)  # (h, h)
    x = grid.unflatten(1, (side, side))  # (B, h, h, C)
    return torch.einsum("ir,js,brsc->bijc", matrix, matrix, x).flatten(1, 2)  # (B, N, C)


@lru_cache  # a copy to the device is no part of a step
def blur_matrix(side: int, sigma: float, device: torch.device) -> Tensor:
    """M (h, h): the blur along one axis of h cells; what reaches beyond an edge counts for it."""
    kernel = gaussian_kernel(sigma)  # (k,)
    reach = torch.arange(side)[:, None] + torch.arange(len(kernel)) - len(kernel) // 2  # (h, k)
    columns = reach.clamp(0, side - 1)
    return torch.zeros(side, side).scatter_add_(1, columns, kernel.expand(side, -1)).to(device)


def blur_ids(tokens: Tensor) -> Tensor:
    """Blur token *ids* (B, N) as if they were grey values: meaningless, and here to show it."""
    return blur(tokens.float()[..., None])[..., 0].round().long()


def blur_embeddings(model, canvas: Tensor, labels: Tensor, sigma: float = 1.0) -> Prediction:
    """Prediction of a canvas whose token embeddings are blurred over the grid (one pass)."""
    tokens = model.embed_tokens(canvas, labels)  # (B, N + 1, D)
    tokens = torch.cat((tokens[:, :1], blur(tokens[:, 1:], sigma)), 1)  # (B, N + 1, D)
    hidden = model.hidden_states(tokens)  # (B, N + 1, D)
    return Prediction(model.logits(hidden), hidden)


@dataclass
class ToastConfig:
    """Sizes of a `ToastSmoother`; the defaults are the released ImageNet-256 model's."""

    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_classes: int = 1000
    tg_factor: int = 16  # factors F of the class anchor
    keep_class: bool = False  # pass 2 sees the class token; the paper's blank canvas does not


class ClassAnchor(nn.Module):
    """The anchor xi_c = W LayerNorm(sum_f f (p + e_c)) of each class (appendix A, step 1)."""

    def __init__(self, c: ToastConfig):
        super().__init__()
        self.mlp_p = nn.Embedding(1, c.hidden_size * c.tg_factor)
        self.mlp_c = nn.Embedding(c.num_classes, c.hidden_size * c.tg_factor)
        self.mlp_f = nn.Embedding(1, c.tg_factor)
        self.layer_norm = nn.LayerNorm(c.hidden_size, eps=1e-5)
        self.mlp_t = nn.Linear(c.hidden_size, c.hidden_size)
        for table in (self.mlp_p, self.mlp_c, self.mlp_f):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.ones_(self.mlp_f.weight)

    def forward(self, labels: Tensor) -> Tensor:
        """Labels (B,) -> anchors (B, 1, D); the label C ("no class") adds no e_c."""
        e = F.pad(self.mlp_c.weight, (0, 0, 0, 1))[labels]  # (B, D F)
        factors = (self.mlp_p.weight + e).unflatten(1, (-1, self.mlp_f.weight.shape[1]))
        x = (factors * self.mlp_f.weight).sum(-1)  # (B, D, F) -> (B, D)
        return self.mlp_t(self.layer_norm(x))[:, None]  # (B, 1, D)


class TopDown(nn.Module):
    """One layer's top-down decoder: A_l leads to the layer below, B_l A_l is its own signal."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)  # A_l
        self.linear2 = nn.Linear(width, width, bias=False)  # B_l


class Smoothed(NamedTuple):
    """The smoothed prediction."""

    logits: Tensor  # (B, N, K); (M, K) if M positions were asked for
    hidden: Tensor  # (B, N + 1, D) last hidden states of pass 2
    reconstruction: Tensor  # scalar: sum over layers of |A_l out_l - in_l|^2 (mean squared)


class ToastSmoother(Pretrained):
    """H_phi of the paper: select features of pass 1, feed them back down into a blank pass 2.

    The parameter names are the released ones. The transformer is no part of it and stays frozen.
    """

    config_class = ToastConfig

    def __init__(self, config: ToastConfig):
        super().__init__()
        self.config = config
        self.cls_anchor_gen = ClassAnchor(config)
        self.top_down_transform = nn.Parameter(torch.eye(config.hidden_size))
        layers = range(config.num_hidden_layers)
        self.decoders = nn.ModuleList(TopDown(config.hidden_size) for _ in layers)

    @classmethod
    def for_transformer(cls, model: MaskedTransformer, **options) -> "ToastSmoother":
        """A fresh smoother that fits this transformer."""
        c = model.config
        return cls(ToastConfig(c.hidden_size, c.num_hidden_layers, c.num_classes, **options))

    @classmethod
    def fresh(cls, model: MaskedTransformer, settings) -> "ToastSmoother":
        """A fresh smoother after `presets.Smoothing`."""
        return cls.for_transformer(model, keep_class=settings.keep_class)

    @classmethod
    def load(cls, folder: Path, model: MaskedTransformer) -> "ToastSmoother":
        """The smoother kept in a folder; CheckpointError unless it was made for `model`."""
        smoother = cls.from_pretrained(folder)
        sizes = ("hidden_size", "num_hidden_layers", "num_classes")
        if any(getattr(smoother.config, s) != getattr(model.config, s) for s in sizes):
            raise CheckpointError(f"the smoother in {folder} was made for another transformer.")
        return smoother

    def inputs(self, model, canvas: Tensor, labels: Tensor, hidden=None) -> tuple:
        """What `forward` takes; `hidden` are the states of pass 1, if that has run already."""
        if hidden is None:
            with torch.no_grad():
                hidden = model.hidden_states(model.embed_tokens(canvas, labels))  # (B, N + 1, D)
        return model, hidden, labels

    def select(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Of hidden states x (B, N + 1, D): x clamp(cos(x, xi_c), 0, 1) P (appendix A)."""
        anchor = self.cls_anchor_gen(labels)  # (B, 1, D)
        similarity = F.cosine_similarity(hidden, anchor, dim=-1)  # (B, N + 1)
        return (hidden * similarity.clamp(0, 1)[..., None]) @ self.top_down_transform

    def signals(self, hidden: Tensor, labels: Tensor) -> list[Tensor]:
        """The top-down signals td_l (B, N + 1, D), first layer first (appendix A, step 4)."""
        x, signals = self.select(hidden, labels), []  # (B, N + 1, D)
        for decoder in reversed(self.decoders):
            x = decoder.linear(x)  # A_l x
            signals.append(decoder.linear2(x))  # B_l x
        return signals[::-1]

    def forward(
        self, model: MaskedTransformer, hidden: Tensor, labels: Tensor, only: Tensor | None = None
    ) -> Smoothed:
        """Pass 2 (appendix A, steps 5 and 6): a blank canvas, and the signals in the values.

        `hidden` (B, N + 1, D) are pass 1's last states, labels int64 (B,) are 0..C-1, or C for "no
        class"; `only`, bool (B, N), selects the M positions whose logits (M, K) are wanted.
        """
        canvas = model.blank.expand(len(labels), -1)  # (B, N)
        no_class = torch.full_like(labels, model.config.num_classes)
        tokens = model.embed_tokens(canvas, labels if self.config.keep_class else no_class)
        x = model.embed(tokens)  # (B, N + 1, D)
        reconstruction = x.new_zeros((), dtype=torch.float32)
        signals = self.signals(hidden, labels)  # L times (B, N + 1, D)
        layers = zip(model.transformer_layers, self.decoders, signals, strict=True)
        for layer, decoder, signal in layers:
            out = layer(x, signal)
            if self.training:  # |A_l out_l - in_l|^2 (appendix C)
                back = decoder.linear(out.detach()).float()
                reconstruction = reconstruction + F.mse_loss(back, x.detach().float())
            x = out
        return Smoothed(model.logits(x, only), x, reconstruction)


CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"  # peft's names


class LoraSmoother(nn.Module):
    """The smoother as a LoRA adapter on the attention projections (Hu et al. 2021; peft).

    With the adapter a prediction is smoothed, without it plain. The transformer's weights are
    shared, not copied, and frozen: train it before it gets an adapter. Merging the adapter would
    change the plain prediction as well, so a merged one is refused.
    """

    TARGETS = r".*attention\.(query|key|value|out)"

    def __init__(self, model: MaskedTransformer, rank: int = 8):
        super().__init__()
        from peft import LoraConfig, get_peft_model  # a second to import, for LoRA alone

        shared = copy.deepcopy(model, {id(p): p for p in model.parameters()})
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=self.TARGETS)
        self.peft = get_peft_model(shared, config)

    @classmethod
    def fresh(cls, model: MaskedTransformer, settings) -> "LoraSmoother":
        """A fresh adapter after `presets.Smoothing`."""
        return cls(model, settings.rank)

    @classmethod
    def load(cls, folder: Path, model: MaskedTransformer) -> "LoraSmoother":
        """The adapter kept in a folder; CheckpointError unless it fits `model`.

        Of peft's configuration only the rank counts, and only if the weights have it too.
        """
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        config, (weights, _) = read_json(folder / CONFIG), read_tensors(folder / ADAPTER)
        have = {name: tuple(value.shape) for name, value in weights.items()}
        ranks = {shape[:1] for name, shape in have.items() if name.endswith("lora_A.weight")}
        rank = config.get("r") if isinstance(config, dict) else None
        if type(rank) is not int or ranks != {(rank,)}:
            raise CheckpointError(f"{folder / CONFIG} does not give the rank of {ADAPTER}.")
        made_here = {"peft_type": "LORA", "lora_alpha": 2 * rank, "target_modules": cls.TARGETS}
        if other := [name for name, value in made_here.items() if config.get(name) != value]:
            raise CheckpointError(f"{folder / CONFIG} has another {listed(other)} than ours.")
        smoother = cls(model, rank)
        fresh = get_peft_model_state_dict(smoother.peft)
        want = {name: tuple(value.shape) for name, value in fresh.items()}
        unfit = sorted(name for name in want | have if want.get(name) != have.get(name))
        if unfit:
            raise CheckpointError(f"{folder} does not fit this transformer: {listed(unfit)}.")
        set_peft_model_state_dict(smoother.peft, weights)
        return smoother

    def inputs(self, model, canvas: Tensor, labels: Tensor, hidden=None) -> tuple:
        """What `forward` takes: the canvas itself, and nothing of pass 1."""
        return canvas, labels

    def forward(self, canvas: Tensor, labels: Tensor, only: Tensor | None = None) -> Prediction:
        """The smoothed prediction of canvas (B, N) and labels (B,): one pass."""
        self.check_adapter()
        return self.peft(canvas, labels, only)

    def check_adapter(self) -> None:
        """InputError if the adapter has been merged into the shared weights, or taken out."""
        adapted = [module.merged for module in self.peft.modules() if hasattr(module, "lora_A")]
        if not adapted or any(adapted):
            what = "the LoRA adapter was merged into the weights of the transformer, or removed"
            raise InputError(f"{what}: load transformer and smoother again.")

    def save_pretrained(self, folder: str | Path) -> None:
        """Keep the adapter in peft's own format."""
        from peft import get_peft_model_state_dict

        config = self.peft.peft_config["default"].to_dict()
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        save_tensors(Path(folder) / ADAPTER, get_peft_model_state_dict(self.peft))
        write_json(Path(folder) / CONFIG, config)


# A smoother is a module with `fresh`, `load`, `save_pretrained`, `inputs`, and a `forward` that
# takes these inputs and a mask `only`; the result has `logits`, and may have a `reconstruction`
# loss.
SMOOTHERS: dict[str, Any] = {"toast": ToastSmoother, "lora": LoraSmoother}


def smoother_kind(folder: str | Path) -> str:
    """The name in `SMOOTHERS` of the smoother in a folder; CheckpointError if it is unknown here.

    Released smoothers name no kind: they are TOAST.
    """
    if (Path(folder) / CONFIG).is_file():
        return "lora"
    path = Path(folder) / "training.json"
    report = read_json(path) if path.is_file() else {}
    trained = report.get("smoothing") if isinstance(report, dict) else None
    kind = trained.get("kind", "toast") if isinstance(trained, dict) else "toast"
    if kind not in list(SMOOTHERS):  # the file may hold anything
        raise CheckpointError(f"{path} names an unknown smoother, {kind!r}.")
    return kind


def load_smoother(folder: str | Path, model: MaskedTransformer) -> nn.Module:
    """The smoother kept in a folder, of whichever kind, for this transformer."""
    return SMOOTHERS[smoother_kind(folder)].load(Path(folder), model)
