"""A small image classifier, which is also the feature extractor of all scores.

Three uses: its features stand in for the Inception network's in the Fréchet distance, its logits
give the inception score and the class accuracy of samples, and the distance between its
activations is the tokenizer's feature loss.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .utils.distributed import rank_and_size, total
from .utils.errors import InputError
from .utils.hub import Pretrained


@dataclass
class ClassifierConfig:
    """Sizes of a `Classifier`; `widths` are the channels of its stages, each half as large."""

    num_classes: int = 10
    widths: tuple[int, ...] = (32, 64, 128, 256)

    def __post_init__(self):
        self.widths = tuple(self.widths)


class Features(NamedTuple):
    """What an extractor gives for B images."""

    features: Tensor  # (B, D) float32
    logits: Tensor  # (B, C) float32


class BatchNorm(nn.BatchNorm2d):
    """Batch norm over the equal shards of all processes together, on any device.

    torch's SyncBatchNorm does this on GPUs alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        size = rank_and_size()[1]
        if size == 1 or not self.training:
            return super().forward(x)
        shard, over = x.float(), (0, 2, 3)
        mean = total(shard.mean(over, keepdim=True)) / size  # (1, width, 1, 1)
        variance = total((shard - mean).square().mean(over, keepdim=True)) / size
        count = size * x.numel() / x.shape[1]
        with torch.no_grad():
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        y = (shard - mean) * (variance + self.eps).rsqrt()  # (B, width, H, W)
        return (y * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class Stage(nn.Module):
    """Half the resolution, then one residual block (He et al. 2016)."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.down = conv_norm(width_in, width, stride=2)
        self.conv1 = conv_norm(width, width)
        self.conv2 = conv_norm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(x))  # (B, width, H / 2, W / 2)
        return x + F.relu(self.conv2(F.relu(self.conv1(x))))


def conv_norm(width_in: int, width: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution and batch norm."""
    conv = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, BatchNorm(width))


class Classifier(Pretrained):
    """Residual network; also an extractor for `metrics` (images in, `Features` out)."""

    name = "classifier"
    labels_known = True  # its classes are the data set's, so class accuracy makes sense

    config_class = ClassifierConfig

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = conv_norm(3, widths[0])
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.stages = nn.ModuleList(Stage(i, o) for i, o in pairs)
        self.head = nn.Linear(widths[-1], config.num_classes)

    def activations(self, images: Tensor) -> list[Tensor]:
        """Activations after the stem and each stage, [(B, widths[i], H / 2^i, W / 2^i)]."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"the classifier takes images (B, 3, H, W), not {(*images.shape,)}.")
        x = F.relu(self.stem(images * 2 - 1))  # (B, widths[0], H, W)
        found = [x]
        for stage in self.stages:
            found.append(x := stage(x))  # (B, widths[i], H / 2^i, W / 2^i)
        return found

    def forward(self, images: Tensor) -> Features:
        """Features (B, D) and logits (B, C) of images (B, 3, H, W) in [0, 1]; D = widths[-1]."""
        features = self.activations(images)[-1].float().mean((2, 3))  # (B, D)
        return Features(features, self.head(features).float())  # (B, D) and (B, C)


def feature_distance(classifier: Classifier, a: Tensor, b: Tensor) -> Tensor:
    """Perceptual distance of two image batches (B, 3, H, W), a scalar.

    Mean squared difference of channel-normalised activations, averaged over the stages, as LPIPS
    does without its learned weights (Zhang et al. 2018, eq. 1).
    """
    layers = ([F.normalize(x, dim=1) for x in classifier.activations(y)] for y in (a, b))
    terms = [(x - y).square().sum(1).mean() for x, y in zip(*layers, strict=True)]
    return sum(terms[1:], terms[0]) / len(terms)
