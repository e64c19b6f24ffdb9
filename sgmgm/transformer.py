"""Masked transformer: from a partly masked grid of tokens to a prediction for every position.

The bidirectional, post-norm transformer of MaskGIT (Chang et al. 2022, arXiv 2202.04200) as the
self-guidance paper uses it, with the released parameter names. Vocabulary: K codes, then C class
ids (class c is id K + c), then [MASK] = K + C. The sequence is the class token followed by the
N image tokens.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .utils.errors import InputError
from .utils.hub import Pretrained, check_sizes


@dataclass
class TransformerConfig:
    """Sizes of a `MaskedTransformer`; the defaults are the released ImageNet-256 model's."""

    num_vq_tokens: int = 256
    hidden_size: int = 768
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 3072
    codebook_size: int = 1024
    num_classes: int = 1000
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self):
        check_sizes(self)
        size, heads = self.hidden_size, self.num_attention_heads
        if size % heads:
            found = f"num_attention_heads {heads}"
            raise InputError(f"hidden_size {size} must be a multiple of {found}.")

    @property
    def mask_id(self) -> int:
        """The id of [MASK], K + C."""
        return self.codebook_size + self.num_classes

    @property
    def vocabulary(self) -> int:
        """Number of ids: codes, classes and [MASK]."""
        return self.mask_id + 1


class Prediction(NamedTuple):
    """What the transformer predicts for a canvas."""

    logits: Tensor  # (B, N, K) over codes only; (M, K) if M positions were asked for
    hidden: Tensor  # (B, N + 1, D) last hidden states, class position first


class Embeddings(nn.Module):
    """LayerNorm(token + position)."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(c.vocabulary, c.hidden_size)
        self.position_embeddings = nn.Embedding(c.num_vq_tokens + 1, c.hidden_size)
        self.embeddings_ln = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token embeddings (B, N + 1, D) -> the first layer's input, same shape."""
        return self.dropout(self.embeddings_ln(tokens + self.position_embeddings.weight))


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2); d = D / heads.

    Its values may carry a top-down signal (Hur et al. 2024, appendix A).
    """

    def __init__(self, c: TransformerConfig):
        super().__init__()
        self.heads = c.num_attention_heads
        self.query = nn.Linear(c.hidden_size, c.hidden_size)
        self.key = nn.Linear(c.hidden_size, c.hidden_size)
        self.value = nn.Linear(c.hidden_size, c.hidden_size)
        self.out = nn.Linear(c.hidden_size, c.hidden_size)
        self.dropout = c.dropout

    def split(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, heads, L, d)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, top_down: Tensor | None = None) -> Tensor:
        """x (B, L, D) and an optional top-down signal of the same shape -> (B, L, D)."""
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, L, D) each
        if top_down is not None:
            v = v + self.value(top_down)  # the bias enters twice, as in the released model
        q, k, v = self.split(q), self.split(k), self.split(v)  # (B, heads, L, d) each
        dropout = self.dropout if self.training else 0.0
        if x.is_cuda:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (B, heads, L, d)
        else:  # for 64 tokens in bf16, forward and back: 13 ms where torch's fused kernel takes 45
            y = F.dropout(_probabilities(q, k), dropout) @ v  # (B, heads, L, d)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, L, D)

    def weights(self, x: Tensor) -> Tensor:
        """Attention probabilities (B, heads, L, L) for the input x (B, L, D)."""
        return _probabilities(self.split(self.query(x)), self.split(self.key(x)))


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) of queries and keys (B, heads, L, d): (B, heads, L, L)."""
    return (q / q.shape[-1] ** 0.5 @ k.transpose(-1, -2)).softmax(-1)


class FeedForward(nn.Module):
    """Two linear layers around an exact GELU, residual and LayerNorm."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        self.intermediate_output = nn.Linear(c.hidden_size, c.intermediate_size)
        self.layer_output = nn.Linear(c.intermediate_size, c.hidden_size)
        self.layer_norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.intermediate_output(x))  # (B, L, intermediate_size)
        h = self.layer_output(h)  # (B, L, D)
        return self.layer_norm(self.dropout(h) + x)


class TransformerLayer(nn.Module):
    """One post-norm layer (Vaswani et al. 2017)."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        self.attention = Attention(c)
        self.attn_layer_norm = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.ffn = FeedForward(c)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, top_down: Tensor | None = None) -> Tensor:
        """x (B, L, D) and an optional top-down signal of the same shape -> (B, L, D)."""
        attended = self.dropout(self.attention(x, top_down))
        return self.ffn(self.attn_layer_norm(attended + x))


class Head(nn.Module):
    """Hidden states (..., D) -> logits (..., vocabulary): Linear, GELU, LayerNorm, Linear."""

    def __init__(self, c: TransformerConfig):
        super().__init__()
        self.mlm_dense = nn.Linear(c.hidden_size, c.hidden_size)
        self.mlm_ln = nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps)
        self.to_logits = nn.Linear(c.hidden_size, c.vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlm_ln(F.gelu(self.mlm_dense(x)))  # (..., D)
        return self.to_logits(x)  # (..., vocabulary)


class MaskedTransformer(Pretrained):
    """Predict every token of a canvas from the visible tokens and the class.

    A label equal to C means "no class": its id K + C is [MASK], which is how the class is
    dropped for classifier-free guidance.
    """

    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embed = Embeddings(config)
        layers = (TransformerLayer(config) for _ in range(config.num_hidden_layers))
        self.transformer_layers = nn.ModuleList(layers)
        self.mlm_layer = Head(config)
        self.apply(self._init)

    @staticmethod
    def _init(module: nn.Module) -> None:
        """Truncated normal of deviation 0.02, biases zero (Devlin et al. 2019; MaskGIT)."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @torch.no_grad()
    def init_from_codebook(self, codebook: Tensor) -> None:
        """Start with embeddings in which near codes are near, instead of all codes unrelated.

        The codebook float32 (K, D'), whitened and projected at random, becomes the embedding and
        the output layer of the codes, at the usual deviation of 0.02. Not in the paper; it saves
        a small model most of the time it takes to learn which codes are alike.
        """
        centred = codebook.float() - codebook.float().mean(0)  # (K, D')
        white = torch.linalg.svd(centred, full_matrices=False).U * len(codebook) ** 0.5  # (K, D')
        for layer in (self.embed.word_embeddings, self.mlm_layer.to_logits):
            width = layer.weight.shape[1]
            projection = torch.randn(white.shape[1], width).to(white) / white.shape[1] ** 0.5
            codes = layer.weight[: self.config.codebook_size]  # (K, D)
            codes.mul_(0.1).add_(white @ projection, alpha=0.02)

    def embed_tokens(self, canvas: Tensor, labels: Tensor) -> Tensor:
        """Token embeddings (B, N + 1, D) of canvas int64 (B, N) and labels int64 (B,)."""
        self.check_inputs(canvas, labels)
        classes = (labels + self.config.codebook_size).unsqueeze(1)  # (B, 1), class c is id K + c
        ids = torch.cat((classes, canvas), 1)  # (B, N + 1)
        return self.embed.word_embeddings(ids)  # (B, N + 1, D)

    def hidden_states(self, embedded: Tensor) -> Tensor:
        """Token embeddings (B, N + 1, D) -> last hidden states (B, N + 1, D)."""
        x = self.embed(embedded)
        for layer in self.transformer_layers:
            x = layer(x)
        return x

    def logits(self, hidden: Tensor, only: Tensor | None = None) -> Tensor:
        """Last hidden states (B, N + 1, D) -> logits (B, N, K) of the image positions.

        With `only`, bool (B, N): (M, K), those of the M chosen positions.
        """
        image = hidden[:, 1:]  # (B, N, D), without the class position
        image = image if only is None else image[only]  # (M, D)
        return self.mlm_layer(image)[..., : self.config.codebook_size]  # (B, N, K) or (M, K)

    def forward(self, canvas: Tensor, labels: Tensor, only: Tensor | None = None) -> Prediction:
        """Logits and hidden states.

        Args:
            canvas: int64 (B, N), ids 0..K-1 or [MASK].
            labels: int64 (B,), 0..C-1, or C for "no class".
            only: bool (B, N), the M positions whose logits (M, K) are wanted; None for all.
        """
        hidden = self.hidden_states(self.embed_tokens(canvas, labels))  # (B, N + 1, D)
        return Prediction(self.logits(hidden, only), hidden)

    @property
    def blank(self) -> Tensor:
        """An all-[MASK] canvas for one image, int64 (1, N)."""
        device = self.embed.word_embeddings.weight.device
        return torch.full((1, self.config.num_vq_tokens), self.config.mask_id, device=device)

    def check_inputs(self, canvas: Tensor, labels: Tensor) -> None:
        """InputError on wrong shapes or types; a look at values would wait for the GPU."""
        n = self.config.num_vq_tokens
        if canvas.ndim != 2 or canvas.shape[1] != n or canvas.dtype != torch.int64:
            found = f"{canvas.dtype} {tuple(canvas.shape)}"
            raise InputError(f"the canvas must be int64 of shape (B, {n}), not {found}.")
        if labels.shape != canvas.shape[:1] or labels.dtype != torch.int64:
            found = f"{labels.dtype} {tuple(labels.shape)}"
            raise InputError(f"labels must be int64 of shape ({len(canvas)},), not {found}.")
