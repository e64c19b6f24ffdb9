"""The second feature extractor: for scores only, never for training or search.

The classifier's features are part of the tokenizer's loss, so the Fréchet distance of these
features may fall faster than the images improve. This extractor has another architecture: patches
and depthwise convolutions in place of a residual network with batch norm. Nothing is trained with
it or chosen by it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classifier import Features
from .utils.errors import InputError
from .utils.hub import Pretrained, check_sizes


@dataclass
class SecondConfig:
    """Sizes of a `SecondExtractor`: widths and numbers of blocks of its stages."""

    num_classes: int = 10
    patch: int = 2  # side of the first patches, in pixels
    widths: tuple[int, ...] = (32, 64, 128)  # each stage has half the resolution of the one before
    blocks: tuple[int, ...] = (2, 3, 2)
    expansion: int = 3  # hidden width of a block's MLP, in widths
    kernel: int = 5  # side of the depthwise convolutions, odd

    def __post_init__(self):
        self.widths, self.blocks = tuple(self.widths), tuple(self.blocks)
        check_sizes(self)
        if len(self.widths) != len(self.blocks):
            raise InputError("widths and blocks must have one entry for each stage.")
        if self.kernel % 2 == 0:
            raise InputError(f"kernel must be odd, not {self.kernel}.")


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W), at each position on its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MixingBlock(nn.Module):
    """Mix positions (depthwise convolution), then channels (MLP); (B, C, H, W) -> the same.

    The block of ConvNeXt (Liu et al. 2022, figure 4), without its layer scale.
    """

    def __init__(self, width: int, expansion: int, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, expansion * width)
        self.mlp_out = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # (B, H, W, C)
        return x + self.mlp_out(F.gelu(self.mlp_in(h))).permute(0, 3, 1, 2)  # (B, C, H, W)


class SecondExtractor(Pretrained):
    """Patches, then stages of `MixingBlock`s; an extractor for `metrics` as `Classifier` is."""

    name = "second"
    labels_known = True  # its classes are the data set's, so class accuracy makes sense

    config_class = SecondConfig

    def __init__(self, config: SecondConfig):
        super().__init__()
        self.config = c = config
        self.stem = nn.Conv2d(3, c.widths[0], c.patch, stride=c.patch)
        self.stem_norm = ChannelNorm(c.widths[0])
        self.stages = nn.ModuleList()
        last = 0
        for width, blocks in zip(c.widths, c.blocks, strict=True):
            # the first stage works on the patches as they are
            down = [ChannelNorm(last), nn.Conv2d(last, width, 2, stride=2)] if last else []
            mixing = (MixingBlock(width, c.expansion, c.kernel) for _ in range(blocks))
            self.stages.append(nn.Sequential(*down, *mixing))
            last = width
        self.norm = ChannelNorm(c.widths[-1])
        self.head = nn.Linear(c.widths[-1], c.num_classes)

    def forward(self, images: Tensor) -> Features:
        """Features (B, widths[-1]) and logits (B, C) of images (B, 3, H, W) in [0, 1]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"the extractor takes images (B, 3, H, W), not {(*images.shape,)}.")
        # channels last: the permutations to and from the MLPs then move nothing
        x = self.stem_norm(self.stem(images * 2 - 1)).contiguous(memory_format=torch.channels_last)
        for stage in self.stages:
            x = stage(x)  # (B, widths[i], h / 2^i, w / 2^i)
        features = self.norm(x).float().mean((2, 3))  # (B, widths[-1])
        return Features(features, self.head(features).float())  # and (B, C)
