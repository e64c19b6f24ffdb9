"""Presets: sizes and training lengths that go together, by data set and by patience.

`smoke` shows in seconds that everything works, `laptop` gives recognisable images on two cores,
in an hour for the simplest data, `gpu` is for a GPU.
"""

from dataclasses import dataclass, replace

from .classifier import ClassifierConfig
from .datasets import whole_set
from .extractor import SecondConfig
from .settings import Sampling, Settings
from .smoothing import SMOOTHERS
from .tasks import LOSS_ON, WRONG_TOKENS
from .tokenizer import TokenizerConfig
from .training import TrainingConfig
from .transformer import TransformerConfig
from .utils.errors import InputError, check_choice, check_count

PRESETS = ("smoke", "laptop", "gpu")


@dataclass(frozen=True)
class Smoothing(Settings):
    """How a smoother is made and what it learns from."""

    kind: str = "toast"  # a name in smoothing.SMOOTHERS
    rate: float = 0.3  # share of the visible tokens that are substituted by wrong ones
    wrong: str = "uniform"  # a name in tasks.WRONG_TOKENS
    loss_on: str = "substituted"  # or "masked" (paper, eq. 7)
    keep_class: bool = False  # TOAST: pass 2 sees the class token
    rank: int = 8  # LoRA: rank of the adapter

    def __post_init__(self):
        check_choice("smoother kind", self.kind, SMOOTHERS)
        object.__setattr__(self, "rank", check_count("rank", self.rank))  # numpy's, for JSON
        if not 0 <= self.rate <= 1 or (self.loss_on == "substituted" and not self.rate):
            raise InputError(
                f"the substitution rate must lie in [0, 1], not {self.rate!r}; a loss on "
                "substituted tokens needs one above 0."
            )
        check_choice("wrong tokens", self.wrong, WRONG_TOKENS)
        check_choice("loss", self.loss_on, LOSS_ON)


@dataclass(frozen=True)
class Preset:
    """Everything that `sgmgm train` needs besides the data."""

    classifier: ClassifierConfig
    second: SecondConfig
    tokenizer: TokenizerConfig
    transformer: TransformerConfig
    classifier_training: TrainingConfig
    second_training: TrainingConfig
    tokenizer_training: TrainingConfig
    transformer_training: TrainingConfig
    weak_training: TrainingConfig
    smoother_training: TrainingConfig
    sampling: Sampling
    feature_weight: float = 0.1  # of the feature distance in the tokenizer's loss
    smoothing: Smoothing = Smoothing()
    images: int | None = None  # how many training images to use; None for all

    @property
    def weak(self) -> TransformerConfig:
        """Half as wide and half as deep, for autoguidance (Karras et al. 2024)."""
        sizes = "hidden_size", "intermediate_size", "num_hidden_layers"
        return replace(self.transformer, **{k: getattr(self.transformer, k) // 2 for k in sizes})


def get(dataset: str, preset: str, num_classes: int) -> Preset:
    """The preset of this name for a data set of `num_classes` classes."""
    check_choice("preset", preset, PRESETS)
    found = TABLE.get((whole_set(dataset), preset)) or TABLE["any", preset]
    return replace(
        found,
        classifier=replace(found.classifier, num_classes=num_classes),
        second=replace(found.second, num_classes=num_classes),
        transformer=replace(found.transformer, num_classes=num_classes),
    )


def _tokenizer(width: int, mult: tuple, blocks: int, codes: int, dim: int) -> TokenizerConfig:
    return TokenizerConfig(
        resolution=32, hidden_channels=width, channel_mult=mult, num_res_blocks=blocks,
        z_channels=dim, quantized_embed_dim=dim, num_embeddings=codes, norm_groups=8,
    )  # fmt: skip


def _transformer(width: int, layers: int, heads: int, codes: int, dropout=0.0) -> TransformerConfig:
    return TransformerConfig(
        num_vq_tokens=64, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, codebook_size=codes, num_classes=10,
        dropout=dropout,  # few epochs overfit nothing
    )  # fmt: skip


SMOKE = Preset(
    classifier=ClassifierConfig(widths=(8, 16, 32)),
    second=SecondConfig(widths=(16, 32), blocks=(1, 1), kernel=3),
    tokenizer=_tokenizer(8, (1, 1, 2), 1, 64, 8),
    transformer=_transformer(48, 2, 4, 64),
    classifier_training=TrainingConfig(40, 64, 3e-3, warmup=10, ema=0.9),
    second_training=TrainingConfig(40, 64, 3e-3, warmup=10, ema=0.9),
    tokenizer_training=TrainingConfig(40, 32, 3e-3, warmup=10, ema=0.9),
    transformer_training=TrainingConfig(60, 64, 2e-3, warmup=10, ema=0.9),
    weak_training=TrainingConfig(12, 64, 2e-3, warmup=4, ema=0.9),
    smoother_training=TrainingConfig(12, 64, 1e-3, warmup=4, ema=0.9),
    sampling=Sampling(steps=6, temperature=4.0),
    images=2000,
)
CLASSIFIER = TrainingConfig(1500, 128, 3e-3, 200, betas=(0.9, 0.99), weight_decay=0.05, ema=0.998)
SECOND = TrainingConfig(2500, 64, 5e-3, 300, betas=(0.9, 0.99), weight_decay=0.05, ema=0.998)
LAPTOP = Preset(
    classifier=ClassifierConfig(),
    second=SecondConfig(),
    tokenizer=_tokenizer(16, (1, 2, 4), 1, 1024, 8),
    transformer=_transformer(192, 4, 4, 1024),
    classifier_training=CLASSIFIER,
    second_training=SECOND,
    tokenizer_training=TrainingConfig(8000, 32, 1.7e-3, warmup=50, ema=0.998),
    transformer_training=TrainingConfig(4000, 64, 2e-3, warmup=200, weight_decay=0.05, ema=0.998),
    weak_training=TrainingConfig(400, 64, 2e-3, warmup=100, weight_decay=0.05, ema=0.99),
    smoother_training=TrainingConfig(400, 64, 1e-3, warmup=50, ema=0.99),
    sampling=Sampling(),
)
GPU = Preset(
    classifier=ClassifierConfig(widths=(64, 128, 256, 512)),
    second=SecondConfig(widths=(64, 128, 256), blocks=(3, 3, 3)),
    tokenizer=_tokenizer(64, (1, 2, 4), 2, 1024, 32),
    transformer=_transformer(384, 8, 6, 1024, dropout=0.1),
    classifier_training=TrainingConfig(12_000, 512, 3e-3, warmup=500, weight_decay=0.05),
    second_training=TrainingConfig(12_000, 512, 3e-3, warmup=500, weight_decay=0.05),
    tokenizer_training=TrainingConfig(30_000, 256, 1e-3, warmup=500),
    transformer_training=TrainingConfig(
        80_000, 256, 1e-3, warmup=2000, weight_decay=0.05, ema=0.9998
    ),
    weak_training=TrainingConfig(4000, 256, 1e-3, warmup=500, weight_decay=0.05),
    smoother_training=TrainingConfig(8000, 256, 3e-4, warmup=500),
    sampling=Sampling(steps=18),
)
# Tokens are far easier to predict if each depends on its own patch, or little more.
PATCH = replace(_tokenizer(32, (1, 2, 4), 2, 1024, 48), encoder="patch", decoder="patch")
PATCH_TRAINING = TrainingConfig(1600, 64, 2e-3, warmup=50, ema=0.998)
TABLE = {
    ("any", "smoke"): SMOKE,
    ("any", "laptop"): LAPTOP,
    ("any", "gpu"): GPU,
    ("sprites", "laptop"): replace(
        LAPTOP,
        classifier_training=replace(CLASSIFIER, steps=400),
        tokenizer=replace(PATCH, window=8, codebook_decay=0.99),
        tokenizer_training=PATCH_TRAINING,
        feature_weight=0.3,
        transformer_training=TrainingConfig(
            3000, 64, 2e-3, warmup=150, weight_decay=0.05, ema=0.998, muon=0.02
        ),
        # tuned: with 400 steps and 30 % wrong tokens guidance hardly gains anything here
        smoother_training=replace(LAPTOP.smoother_training, steps=100),
        smoothing=Smoothing(rate=0.6),
    ),
    ("fashion-mnist", "laptop"): replace(
        LAPTOP,
        second=SecondConfig(blocks=(1, 2, 1)),  # easier than photographs
        second_training=replace(SECOND, steps=6000),
        transformer_training=replace(LAPTOP.transformer_training, steps=5000),
        weak_training=replace(LAPTOP.weak_training, steps=1600),
    ),
    ("cifar10", "laptop"): replace(
        LAPTOP,
        classifier_training=replace(CLASSIFIER, steps=5470),
        second_training=replace(SECOND, steps=8000),
        tokenizer=replace(PATCH, codebook_decay=1.0),
        tokenizer_training=PATCH_TRAINING,
        feature_weight=0.3,
        transformer_training=TrainingConfig(
            8400, 64, 2e-3, warmup=150, weight_decay=0.05, ema=0.999, muon=0.02
        ),
        smoother_training=replace(LAPTOP.smoother_training, steps=250, warmup=31),
    ),
}
