"""VQ tokenizer: an image becomes a grid of tokens, and back.

The VQGAN of Esser et al. 2021 (arXiv 2012.09841) as MaskGIT (Chang et al. 2022) and the
self-guidance paper use it: a convolutional encoder, a codebook, a convolutional decoder. The
released ImageNet tokenizer and the course's are this one class with the released parameter names.

`PatchEncoder` and `ShuffleDecoder` cost less. A wide receptive field spreads an image over all
tokens, which then say little about each other, and a generator learns from what tokens say about
each other. A patch encoder's token depends on a window of a few pixels.
"""

from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .utils.errors import InputError, check_choice
from .utils.hub import Pretrained, check_sizes


@dataclass
class TokenizerConfig:
    """Sizes of a `VQTokenizer`; the defaults are the released ImageNet-256 tokenizer's."""

    resolution: int = 256
    num_channels: int = 3
    hidden_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    num_embeddings: int = 1024
    quantized_embed_dim: int = 256
    commitment_cost: float = 0.25
    norm_groups: int = 32
    encoder: str = "vqgan"  # a name in ENCODERS
    decoder: str = "vqgan"  # a name in DECODERS
    window: int = 4  # "patch" encoder: side of what a token depends on, in pixels
    # of the moving averages that are the codes; 0: gradient descent, 1: the first codes stay
    codebook_decay: float = 0.0

    def __post_init__(self):
        self.channel_mult = tuple(self.channel_mult)  # JSON has lists only
        check_sizes(self)
        check_choice("encoder", self.encoder, ENCODERS)
        check_choice("decoder", self.decoder, DECODERS)
        if not 0 <= self.codebook_decay <= 1:
            raise InputError(f"codebook_decay must lie in [0, 1], not {self.codebook_decay}.")
        if self.z_channels != self.quantized_embed_dim:
            raise InputError("z_channels and quantized_embed_dim must be equal.")
        halvings = len(self.channel_mult) - 1
        if self.resolution % 2**halvings:
            raise InputError(f"resolution {self.resolution} cannot be halved {halvings} times.")
        if any(width % self.norm_groups for width in self.widths):
            raise InputError(f"widths {self.widths} are not multiples of {self.norm_groups}.")
        side, numbers = self.patch, self.num_channels * self.patch**2
        if "patch" in (self.encoder, self.decoder) and self.z_channels != numbers:
            raise InputError(f"z_channels must be {numbers}: a code starts as a patch.")
        if self.encoder == "patch" and (self.window < side or (self.window - side) % 2):
            even = f"{side} or an even number of pixels more"
            raise InputError(f"window must be {even}, not {self.window}.")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, the finest first."""
        return [self.hidden_channels * m for m in self.channel_mult]

    @property
    def patch(self) -> int:
        """Side of the patch that belongs to one token, in pixels."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def grid(self) -> int:
        """Tokens along one side of the image."""
        return self.resolution // self.patch

    @property
    def num_tokens(self) -> int:
        """Tokens of one image, N."""
        return self.grid**2


class Quantized(NamedTuple):
    """What the codebook makes of the encoder's output."""

    states: Tensor  # (B, D, h, w) code vectors; gradients go straight through to the encoder
    tokens: Tensor  # (B, N) int64, row-major over the grid
    loss: Tensor  # scalar: commitment_cost x commitment loss, + codebook loss if it moves the codes
    encoded: Tensor  # (B, D, h, w) the encoder's output


class ResBlock(nn.Module):
    """(norm, SiLU, conv) twice plus a shortcut."""

    def __init__(self, width_in: int, width: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width_in, eps=1e-6)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, width, eps=1e-6)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        if width_in != width:
            self.nin_shortcut = nn.Conv2d(width, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, width, h, w)
        h = self.conv2(F.silu(self.norm2(h)))
        # Where the width changes, the released model feeds the shortcut with the block's own
        # output instead of its input; its weights depend on that.
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


def res_blocks(width_in: int, width: int, count: int, groups: int) -> nn.Sequential:
    widths = chain([width_in], repeat(width, count))  # no list: a file may ask for 10^9 blocks
    return nn.Sequential(*(ResBlock(*pair, groups) for pair in pairwise(widths)))


class Level(nn.Module):
    """The residual blocks at one resolution."""

    def __init__(self, width_in: int, width: int, blocks: int, groups: int, upsample: bool = False):
        super().__init__()
        self.block = res_blocks(width_in, width, blocks, groups)
        if upsample:
            self.upsample_conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)  # (B, width, h, w)
        if hasattr(self, "upsample_conv"):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")  # (B, width, 2 h, 2 w)
            x = self.upsample_conv(x)
        return x


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) -> (B, D, h, w)."""

    def __init__(self, c: TokenizerConfig):
        super().__init__()
        self.conv_in = nn.Conv2d(c.num_channels, c.hidden_channels, 3, padding=1, bias=False)
        pairs = pairwise([c.hidden_channels, *c.widths])
        self.down = nn.ModuleList(Level(*pair, c.num_res_blocks, c.norm_groups) for pair in pairs)
        top = c.widths[-1]
        self.mid = res_blocks(top, top, c.num_res_blocks, c.norm_groups)
        self.norm_out = nn.GroupNorm(c.norm_groups, top, eps=1e-6)
        self.conv_out = nn.Conv2d(top, c.z_channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(pixels)  # (B, hidden_channels, H, W)
        for i, level in enumerate(self.down):
            x = level(x if i == 0 else F.avg_pool2d(x, 2))  # (B, widths[i], H / 2^i, W / 2^i)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))  # (B, D, h, w)


class Decoder(nn.Module):
    """Code vectors (B, D, h, w) -> pixels (B, 3, H, W)."""

    def __init__(self, c: TokenizerConfig):
        super().__init__()
        widths, top = c.widths, c.widths[-1]
        self.conv_in = nn.Conv2d(c.z_channels, top, 3, padding=1)
        self.mid = res_blocks(top, top, c.num_res_blocks, c.norm_groups)
        self.up = nn.ModuleList(  # up.0 is the finest level, as in the released names
            Level(wider, width, c.num_res_blocks, c.norm_groups, upsample=index > 0)
            for index, (width, wider) in enumerate(pairwise([*widths, top]))
        )
        self.norm_out = nn.GroupNorm(c.norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], c.num_channels, 3, padding=1)

    def forward(self, states: Tensor) -> Tensor:
        x = self.mid(self.conv_in(states))  # (B, widths[-1], h, w)
        for level in reversed(self.up):
            x = level(x)  # twice as high and wide, except the last: up.0
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, 3, H, W)


class PatchEncoder(nn.Module):
    """Pixels (B, 3, H, W) -> (B, D, h, w); each vector depends on a window of pixels.

    The vector is the patch itself, D = 3 x side^2, so the nearest code is the patch of least
    squared error. Where the window is wider, what one hidden layer makes of it is added. That is
    nothing at first.
    """

    def __init__(self, c: TokenizerConfig):
        super().__init__()
        self.side, border, top = c.patch, (c.window - c.patch) // 2, c.widths[-1]
        self.padding = (border,) * 4
        if border:
            self.hidden = nn.Conv2d(c.num_channels, top, c.window, stride=c.patch)
            self.out = nn.Conv2d(top, c.z_channels, 1)
            for tensor in (self.out.weight, self.out.bias):
                nn.init.zeros_(tensor)  # type: ignore[arg-type]

    def forward(self, pixels: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(pixels, self.side)  # (B, D, h, w)
        if not hasattr(self, "out"):
            return patches
        x = F.pad(pixels, self.padding, mode="replicate")  # (B, 3, H + 2 border, W + 2 border)
        return patches + self.out(F.silu(self.hidden(x)))  # (B, D, h, w)


class ShuffleDecoder(nn.Module):
    """Code vectors (B, D, h, w) -> pixels (B, 3, H, W), each from all codes around it.

    The wide convolutions work on the token grid. Pixel shuffles (Shi et al. 2016) double the
    resolution, and only the narrowest layer works at full resolution, where convolutions cost most.
    The network corrects an image in which each code is a patch.
    """

    def __init__(self, c: TokenizerConfig):
        super().__init__()
        widths, top, self.side = c.widths, c.widths[-1], c.patch
        self.paste = nn.Conv2d(c.z_channels, c.z_channels, 1)
        self.whiten = nn.Conv2d(c.z_channels, c.z_channels, 1)
        self.conv_in = nn.Conv2d(c.z_channels, top, 3, padding=1)
        self.mid = res_blocks(top, top, c.num_res_blocks, c.norm_groups)
        self.up = nn.ModuleList()
        for i in reversed(range(len(widths) - 1)):  # up.0 is the coarsest level
            level = [nn.Conv2d(widths[i + 1], 4 * widths[i], 1), nn.PixelShuffle(2)]
            if i > 0:
                level.append(ResBlock(widths[i], widths[i], c.norm_groups))
            self.up.append(nn.Sequential(*level))
        self.norm_out = nn.GroupNorm(c.norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], c.num_channels, 3, padding=1)
        for layer in (self.paste, self.whiten):
            nn.init.dirac_(layer.weight)  # the identity
        for tensor in (self.paste.bias, self.whiten.bias, self.conv_out.weight, self.conv_out.bias):
            nn.init.zeros_(tensor)  # type: ignore[arg-type]

    @torch.no_grad()
    def init_from_codebook(self, codes: Tensor) -> None:
        """Show the network codes (K, D) of mean 0 and variance 1 in every direction.

        Patches differ in brightness most. Without this their detail is too faint to learn from.
        """
        mean = codes.mean(0)  # (D,)
        centred = codes - mean  # (K, D)
        variances, axes = torch.linalg.eigh(centred.T @ centred / len(codes))  # (D,), (D, D)
        floor = 1e-5 * variances.max()  # grey images do not vary in colour
        matrix = (axes * variances.clamp_min(floor).rsqrt()).T  # (D, D)
        self.whiten.weight.copy_(matrix[..., None, None])
        self.whiten.bias.copy_(-matrix @ mean)  # type: ignore[union-attr]

    def forward(self, states: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.whiten(states)))  # (B, top, h, w)
        for level in self.up:
            x = level(x)  # twice as high and wide
        patches = F.pixel_shuffle(self.paste(states), self.side)  # (B, 3, H, W)
        return patches + self.conv_out(F.silu(self.norm_out(x)))


ENCODERS: dict[str, type] = {"vqgan": Encoder, "patch": PatchEncoder}
DECODERS: dict[str, type] = {"vqgan": Decoder, "patch": ShuffleDecoder}


def nearest(rows: Tensor, codes: Tensor) -> Tensor:
    """Index of the code (K, D) that is nearest to each row (M, D), int64 (M,)."""
    # |z - e|^2 without |z|^2, which is the same for every code
    with torch.autocast(rows.device.type, enabled=False):  # rounded, other codes would be nearest
        return (codes.square().sum(1) - 2 * rows @ codes.T).argmin(1)


@torch.no_grad()
def kmeans(rows: Tensor, count: int, generator: torch.Generator, steps: int = 20) -> Tensor:
    """Centres (count, D) of rows float32 (M, D), by Lloyd's algorithm from random rows.

    A centre that no row is nearest to moves onto a random row.
    """
    if len(rows) < count:
        raise InputError(f"{count} centres need as many rows, not {len(rows)}.")
    pick = torch.randperm(len(rows), generator=generator)[:count]
    centres = rows[pick.to(rows.device)]
    for _ in range(steps):
        sums, sizes = torch.zeros_like(centres), centres.new_zeros(count)
        for block in rows.split(8192):
            own = nearest(block, centres)
            sums.index_add_(0, own, block)
            sizes += torch.bincount(own, minlength=count)
        spare = torch.randint(len(rows), (count,), generator=generator).to(rows.device)
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), rows[spare])
    return centres


class Quantizer(nn.Module):
    """Replace every vector by its nearest code (van den Oord et al. 2017, eq. 1-3).

    Eq. 1 and 2: z_q = e_k, k = argmin_j |z - e_j|. Eq. 3, without the reconstruction loss:
    |sg(z) - e|^2 + commitment_cost |z - sg(e)|^2, sg being the stop-gradient. With a
    `codebook_decay`, moving averages take the place of the first term (see `TokenizerTask`).
    """

    def __init__(self, c: TokenizerConfig):
        super().__init__()
        self.embedding = nn.Embedding(c.num_embeddings, c.quantized_embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / c.num_embeddings, 1 / c.num_embeddings)
        self.commitment_cost, self.decay = c.commitment_cost, c.codebook_decay
        self.embedding.weight.requires_grad_(not self.decay)

    def forward(self, encoded: Tensor) -> Quantized:
        z = encoded.float().permute(0, 2, 3, 1)  # (B, h, w, D)
        codes = self.embedding.weight.float()  # (K, D)
        tokens = nearest(z.flatten(0, 2), codes).view(len(z), -1)  # (B, N), eq. 1
        e = F.embedding(tokens, codes).view_as(z)  # (B, h, w, D), eq. 2
        commitment = F.mse_loss(z, e.detach())
        loss = self.commitment_cost * commitment
        if not self.decay:
            loss = F.mse_loss(e, z.detach()) + loss  # eq. 3
        straight_through = (z + (e - z).detach()).permute(0, 3, 1, 2)  # (B, D, h, w)
        return Quantized(straight_through, tokens, loss, encoded.detach())

    @torch.no_grad()
    def revive(self, unused: Tensor, encoded: Tensor, generator: torch.Generator) -> None:
        """Move the codes `unused`, bool (K,), onto random vectors of `encoded` (B, D, h, w)."""
        z = encoded.float().permute(0, 2, 3, 1).flatten(0, 2)  # (B h w, D)
        pick = torch.randint(len(z), (int(unused.sum()),), generator=generator)  # (U,)
        self.embedding.weight[unused] = z[pick.to(z.device)].to(self.embedding.weight)


class VQTokenizer(Pretrained):
    """Images (B, 3, H, W) in [0, 1] <-> tokens int64 (B, N) in 0..K-1, row-major."""

    config_class = TokenizerConfig
    # numbers in a layer that are decoded at once: above 2^31 a GPU counts in 64 bits, if at all
    LARGEST = 2**29

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = ENCODERS[config.encoder](config)
        self.decoder = DECODERS[config.decoder](config)
        self.quantize = Quantizer(config)

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Reconstruction (B, 3, H, W), not clamped, and the quantizer's output, for training."""
        quantized = self.quantize(self.encoder(images))  # encoded and states: (B, D, h, w)
        return self.decoder(quantized.states), quantized

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Tokens int64 (B, N) of float images (B, 3, H, W) in [0, 1]."""
        channels, side = self.config.num_channels, self.config.resolution
        if images.shape[1:] != (channels, side, side) or not images.is_floating_point():
            want = f"float images of shape (B, {channels}, {side}, {side})"
            found = f"{images.dtype} {tuple(images.shape)}"
            raise InputError(f"the tokenizer takes {want}, not {found}.")
        return self.quantize(self.encoder(images)).tokens

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W) in [0, 1] of tokens int64 (B, N) in 0..K-1."""
        grid, n = self.config.grid, self.config.num_tokens
        if tokens.ndim != 2 or tokens.shape[1] != n or tokens.dtype != torch.int64:
            found = f"{tokens.dtype} {tuple(tokens.shape)}"
            raise InputError(f"the tokenizer takes int64 tokens of shape (B, {n}), not {found}.")
        if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < self.num_codes:
            found = f"{tokens.min().item()}..{tokens.max().item()} (is a [MASK] left?)"
            raise InputError(f"tokens must be in 0..{self.num_codes - 1}; found {found}.")
        states = self.quantize.embedding(tokens)  # (B, N, D)
        states = states.view(len(tokens), grid, grid, -1).permute(0, 3, 1, 2)  # (B, D, h, w)
        most = max(1, self.LARGEST // (self.config.hidden_channels * self.config.resolution**2))
        images = [self.decoder(some) for some in states.split(most)]  # (b, 3, H, W) each
        return torch.cat(images).float().clamp(0, 1)  # (B, 3, H, W)

    @property
    def num_codes(self) -> int:
        """Size of the codebook, K."""
        return self.config.num_embeddings


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, (B,); both (B, 3, H, W) in [0, 1]."""
    return -10 * (images - reconstructions).square().mean((1, 2, 3)).clamp_min(1e-12).log10()
