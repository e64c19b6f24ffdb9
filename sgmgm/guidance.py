"""Guidance: every kind is one formula (paper, eq. 2, 3 and 6) around another smooth prediction.

    guided = smooth + (1 + s) (plain - smooth)

A guidance is a callable (canvas, labels) -> guided logits (B, N, K); the sampler knows no more.
"""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .smoothing import blur, blur_embeddings
from .transformer import MaskedTransformer, Prediction
from .utils.errors import InputError, check_choice, is_finite

# How the scale changes with the share of known tokens, in [0, 1].
SCALE_SCHEDULES = {
    "constant": lambda known: torch.ones_like(known),
    "linear": lambda known: 2 * known,  # 0 at the blank canvas, 1 on average
    "interval": lambda known: ((known >= 0.2) & (known <= 0.8)).to(known),
}


def check_scale(scale: float) -> None:
    """InputError unless the guidance scale is a finite number."""
    if not is_finite(scale):
        raise InputError(f"the guidance scale must be finite, not {scale!r}.")


class Guidance:
    """The base of every guidance: a subclass says what `plain` and `smooth` are.

    `combine_at` tells the fast path where the two may be combined: "features" (before the last
    layer of the head, if both come from this model's head), "logits" (position by position), or
    "grid", which is always right: the logits of all positions.

    Args:
        model: the generator.
        scale: s; 0 is exactly the plain prediction.
        scale_schedule: how s changes while the canvas fills, a name in `SCALE_SCHEDULES`.
        weak, smoother: the other network, for a guidance that needs one.
    """

    passes = 1  # network passes for an image and step
    combine_at = "grid"

    def __init__(
        self, model: MaskedTransformer, scale=1.0, scale_schedule: str = "constant",
        *, weak: Any = None, smoother: Any = None,
    ):  # fmt: skip
        check_scale(scale)
        self.model, self.scale, self.weak, self.smoother = model, float(scale), weak, smoother
        check_choice("scale schedule", scale_schedule, SCALE_SCHEDULES)
        self.weight = SCALE_SCHEDULES[scale_schedule]

    def __call__(self, canvas: Tensor, labels: Tensor) -> Tensor:
        """Guided logits (B, N, K) of canvas int64 (B, N) and labels int64 (B,)."""
        return self.combine(canvas, *self.both(canvas, labels))

    def both(self, canvas: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Plain and smooth logits (B, N, K); None where nothing is to be combined."""
        raise NotImplementedError

    def combine(self, canvas: Tensor, plain: Tensor, smooth: Tensor | None) -> Tensor:
        """plain + s (plain - smooth): eq. 6, rearranged so that s = 0 is `plain` to the bit."""
        if smooth is None:
            return plain.float()
        known = (canvas < self.model.config.codebook_size).float().mean(1)  # (B,)
        scale = self.scale * self.weight(known)[:, None, None]  # (B, 1, 1)
        return plain.float() + scale * (plain.float() - smooth.float())  # (B, N, K)


class Unguided(Guidance):
    """The plain prediction."""

    combine_at = "logits"

    def both(self, canvas, labels):
        return self.model(canvas, labels).logits, None


class Sharpened(Guidance):
    """smooth = the uniform prediction, so guided = (1 + s) plain: a control of all others.

    It is the same as lowering the softmax temperature to 1 / (1 + s).
    """

    combine_at = "logits"

    def both(self, canvas, labels):
        plain = self.model(canvas, labels).logits
        return plain, torch.zeros_like(plain)


class ClassifierFree(Guidance):
    """smooth = the prediction without the class (Ho & Salimans 2022), in one batch of 2 B."""

    passes = 2
    combine_at = "features"

    def both(self, canvas, labels):
        no_class = torch.full_like(labels, self.model.config.num_classes)  # (B,)
        logits = self.model(torch.cat((canvas, canvas)), torch.cat((labels, no_class))).logits
        return tuple(logits.chunk(2))  # (2 B, N, K) -> (B, N, K) twice


class SpatialLogits(Guidance):
    """smooth = plain logits, Gaussian-blurred over the grid; costs no second pass."""

    sigma = 1.0  # grid cells

    def both(self, canvas, labels):
        plain = self.model(canvas, labels).logits
        return plain, blur(plain.float(), self.sigma)


class SpatialEmbeddings(Guidance):
    """smooth = the prediction from a canvas whose embeddings are blurred over the grid."""

    passes = 2
    sigma = 1.0  # grid cells

    def both(self, canvas, labels):
        plain = self.model(canvas, labels).logits
        return plain, blur_embeddings(self.model, canvas, labels, self.sigma).logits


class SelfAttentionGuidance(Guidance):
    """smooth = the prediction with the most attended tokens masked (after Hong et al. 2023, SAG).

    A position's attention is what the last layer's heads give it on average; positions above
    the mean are masked, as SAG blurs them.
    """

    passes = 2

    def both(self, canvas, labels):
        model = self.model
        x = model.embed(model.embed_tokens(canvas, labels))  # (B, N + 1, D)
        for layer in model.transformer_layers[:-1]:
            x = layer(x)
        last = model.transformer_layers[-1]
        received = last.attention.weights(x).mean((1, 2))[:, 1:]  # (B, heads, L, L) -> (B, N)
        plain = model.logits(last(x))  # (B, N, K)
        salient = received > received.mean(1, keepdim=True)  # (B, N)
        masked_canvas = torch.where(salient, model.config.mask_id, canvas)
        return plain, model(masked_canvas, labels).logits


class AutoGuidance(Guidance):
    """smooth = the prediction of a smaller or less trained model (Karras et al. 2024)."""

    passes = 2
    combine_at = "logits"

    def both(self, canvas, labels):
        return self.model(canvas, labels).logits, self.weak(canvas, labels).logits


class SelfGuidance(Guidance):
    """smooth = the semantic smoother's prediction (the paper).

    TOAST recycles pass 1's hidden states, so both kinds cost two passes a step.
    """

    passes = 2
    combine_at = "features"

    def both(self, canvas, labels):
        plain = self.model(canvas, labels)
        return plain.logits, self.smooth(plain, canvas, labels)

    def smooth(self, plain: Prediction, canvas: Tensor, labels: Tensor) -> Tensor:
        """Smoothed logits (B, N, K)."""
        return self.smoother(*self.smoother.inputs(self.model, canvas, labels, plain.hidden)).logits


class SelfAndClassifierFree(SelfGuidance):
    """smooth = smooth + no_class - plain: the directions of self- and cfg-guidance add up."""

    passes = 3

    def both(self, canvas, labels):
        no_class = torch.full_like(labels, self.model.config.num_classes)  # (B,)
        both = self.model(torch.cat((canvas, canvas)), torch.cat((labels, no_class)))
        plain = Prediction(*(each.chunk(2)[0] for each in both))  # first B of 2 B
        free = both.logits.chunk(2)[1]  # (B, N, K), the last B of 2 B
        return plain.logits, self.smooth(plain, canvas, labels) + free - plain.logits


# name -> class, and the keyword argument for the other network that it needs, if any
GUIDANCES: dict[str, tuple[type[Guidance], str | None]] = {
    "none": (Unguided, None),
    "sharpened": (Sharpened, None),
    "cfg": (ClassifierFree, None),
    "spatial": (SpatialLogits, None),
    "spatial-embeddings": (SpatialEmbeddings, None),
    "sag": (SelfAttentionGuidance, None),
    "auto": (AutoGuidance, "weak"),
    "self": (SelfGuidance, "smoother"),
    "self+cfg": (SelfAndClassifierFree, "smoother"),
}


def make_guidance(
    name: str, model: MaskedTransformer, scale: float = 1.0, scale_schedule: str = "constant",
    **others: nn.Module,
) -> Guidance:  # fmt: skip
    """The guidance of this name; of `others`, `weak=` and `smoother=`, it takes what it needs.

    InputError if the name is unknown, or the network that it needs is not there.
    """
    check_choice("guidance", name, GUIDANCES)
    kind, needs = GUIDANCES[name]
    if needs and others.get(needs) is None:
        raise InputError(f"guidance {name!r} needs {needs}=, a trained network.")
    return kind(model, scale, scale_schedule, **({needs: others[needs]} if needs else {}))


@contextmanager
def count_passes(*models: nn.Module):
    """Count `rows`, the images that run through the first layer of each transformer, while inside.

    `rows` / B is network passes per image (NFE).
    """
    passes = SimpleNamespace(rows=0)

    def count(module, args, output) -> None:
        passes.rows += len(output)

    named = [pair for model in models for pair in model.named_modules()]
    first = [layer for name, layer in named if name.endswith("transformer_layers.0")]
    hooks = [layer.register_forward_hook(count) for layer in first]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()
