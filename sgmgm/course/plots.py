"""Plots: the lessons' images, tokens and canvases in one style (curves are in `charts`).

Every function takes the library's own shapes (images float32 (B, 3, H, W) in [0, 1], tokens
int64 (B, N)) and returns a `Plot`: a matplotlib figure that shows itself in a notebook together
with a text for those who cannot see it. Colours are Okabe and Ito's, which colour-blind readers
can tell apart.
"""

import functools
import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..utils.errors import InputError

WIDTH = 7.2  # inches, at 100 dots each: no wider than a notebook's page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MASK_GREY = 0.55  # stands for [MASK]
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.parse_math": False,  # a class may be called "$5"
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "legend.frameon": False,
    "image.cmap": "viridis",  # its lightness rises evenly, so it works in grey
    "image.interpolation": "nearest",
}


class Plot(Figure):
    """A figure with a text, `alt`, that says what it shows."""

    alt = "figure"

    def png(self) -> bytes:
        """The figure as a PNG file's content."""
        with matplotlib.rc_context(STYLE):
            file = io.BytesIO()
            for text in self.findobj(Text):
                text.set_text(printable(text.get_text()))
            small = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
            self.savefig(file, format="png", dpi=100, **small)
        return file.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"image/png": self.png(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def printable(text: str) -> str:
    """A text whose characters matplotlib's own font can show; others by their number, U+732B."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(c if c == "\n" or ord(c) in known else f"U+{ord(c):X}" for c in text)


def styled(function):
    """Make a function's plots in this style."""

    @functools.wraps(function)
    def in_style(*args, **options) -> Plot:
        with matplotlib.rc_context(STYLE):
            return function(*args, **options)

    return in_style


def new_plot(
    height: float, alt: str, rows: int = 1, columns: int = 1, width: float = WIDTH, **grid
):
    """A plot of this height [inches] and its axes, (rows, columns)."""
    plot = Plot(figsize=(width, height), layout="constrained")
    plot.alt = alt
    return plot, plot.subplots(rows, columns, squeeze=False, **grid)


def pixels(images: Tensor):
    """(B, 3, H, W) in [0, 1] -> what matplotlib shows."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images have shape (B, 3, H, W), not {tuple(images.shape)}.")
    return images.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()


def side_of(count: int) -> int:
    """The side of a square grid of this many tokens."""
    side = math.isqrt(count)
    if side * side != count:
        raise InputError(f"{count} tokens do not fill a square grid.")
    return side


def bare(axes) -> None:
    """No ticks, no frame: an image."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


# --- images ----------------------------------------------------------------------------------


@styled
def image_rows(rows: dict[str, Tensor], titles: Sequence[str] = ()) -> Plot:
    """Rows of images under each other, e.g. originals and reconstructions.

    Args:
        rows: name of each row -> images (B, 3, H, W); the names stand on the left.
        titles: one for each column.
    """
    columns = max(len(images) for images in rows.values())
    label = 0.12 * max(len(line) for name in rows for line in name.split("\n"))
    label = min(label * 0.6 + 0.1, 1.6)
    cell = min((WIDTH - label) / columns, 0.9)
    alt = f"{columns} images a row: {'; '.join(' '.join(name.split()) for name in rows)}"
    plot, grid = new_plot(
        cell * len(rows) + (0.25 if titles else 0.05),
        alt + (f". Columns: {', '.join(titles)}" if titles else ""),
        len(rows),
        columns,
        width=cell * columns + label,
    )
    plot.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes in line:
            bare(axes)
        for axes, image in zip(line, pixels(images), strict=False):
            axes.imshow(image)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title)
    return plot


@styled
def token_grid(image: Tensor, tokens: Tensor) -> Plot:
    """One image (1, 3, H, W) with the grid laid over it, and its tokens (1, N) as numbers."""
    side = side_of(tokens.shape[-1])
    numbers = tokens.detach().cpu().view(side, side)
    plot, ((left, right),) = new_plot(
        3.4,
        f"An image under a {side} x {side} grid, and the {side * side} tokens that stand for it",
        columns=2,
    )
    bare(left)
    left.imshow(pixels(image)[0])
    for cut in range(1, side):
        for line in (left.axhline, left.axvline):
            line(cut * image.shape[-1] / side - 0.5, color="white", linewidth=0.7, alpha=0.8)
    left.set_title("the image and the grid")
    bare(right)
    right.imshow(torch.zeros(side, side).numpy(), cmap=ListedColormap(["white"]))
    for row, column in itertools.product(range(side), repeat=2):
        right.text(column, row, int(numbers[row, column]), ha="center", va="center", size=8)
    right.set_title("its tokens")
    return plot


@styled
def codebook(patches: Tensor, uses: Tensor | None = None) -> Plot:
    """A codebook's entries as small images (K, 3, h, w), 256 of the most used ones first.

    Args:
        patches: what the decoder makes of each code.
        uses: how often each code was chosen, (K,).
    """
    order = torch.arange(len(patches)) if uses is None else uses.argsort(descending=True)
    shown = patches[order[:256].to(patches.device)]
    columns = 32 if len(shown) > 128 else 16
    rows = math.ceil(len(shown) / columns)
    _, _, high, wide = shown.shape
    sheet = torch.ones(3, rows * (high + 1), columns * (wide + 1))
    for i, patch in enumerate(shown.cpu().clamp(0, 1)):
        top, left = i // columns * (high + 1), i % columns * (wide + 1)
        sheet[:, top : top + high, left : left + wide] = patch
    plot, ((axes,),) = new_plot(
        WIDTH * rows * (high + 1) / (columns * (wide + 1)) + 0.3,
        f"{len(shown)} of {len(patches)} codebook entries as small images",
    )
    bare(axes)
    axes.imshow(pixels(sheet[None])[0])
    first = "" if uses is None else ", the most used first"
    axes.set_title(f"{len(shown)} of {len(patches)} codes{first}")
    return plot


@styled
def colour_codes(image: Tensor, quantised: Tensor, tokens: Tensor, codes: Tensor) -> Plot:
    """One image (1, 3, H, W), its version of few colours, and some of its tokens as numbers.

    Args:
        quantised: the image with each pixel replaced by its code's colour, same shape.
        tokens: int64 (H W,), the number of each pixel's colour.
        codes: the palette, (K, 3).
    """
    size, part = image.shape[-1], 12
    top = (size - part) // 2
    plot, (line,) = new_plot(
        2.6, f"An image, the same image in {len(codes)} colours, and its centre as integers", 1, 3
    )
    titles = ("the image", f"in {len(codes)} colours", "the framed part: tokens")
    for axes, title in zip(line, titles, strict=True):
        bare(axes)
        axes.set_title(title)
    line[0].imshow(pixels(image)[0])
    line[1].imshow(pixels(quantised)[0])
    frame: dict[str, Any] = {"fill": False, "edgecolor": COLOURS[1], "linewidth": 2}
    line[1].add_patch(Rectangle((top - 0.5, top - 0.5), part, part, **frame))
    numbers = tokens.view(size, size)[top : top + part, top : top + part]
    shown = codes.clamp(0, 1)[numbers]  # (part, part, 3)
    line[2].imshow(shown.cpu().numpy())
    for row, column in itertools.product(range(part), repeat=2):
        ink = "black" if shown[row, column].mean() > 0.45 else "white"
        place = {"ha": "center", "va": "center", "size": 8, "color": ink}
        line[2].text(column, row, int(numbers[row, column]), **place)
    return plot


def overlay_masked(images: Tensor, masked: Tensor) -> Tensor:
    """A copy of images (B, 3, H, W) with the cells where masked, bool (B, N), is True in grey."""
    side = side_of(masked.shape[1])
    cell = images.shape[-1] // side
    mask = masked.view(-1, 1, side, side)
    mask = mask.repeat_interleave(cell, 2).repeat_interleave(cell, 3).to(images.device)
    return torch.where(mask, MASK_GREY, images)


@styled
def masks(masked: Tensor, titles: Sequence[str]) -> Plot:
    """Which positions are masked, bool (T, N): one small grid after another."""
    side = side_of(masked.shape[1])
    plot, (line,) = new_plot(
        WIDTH / len(masked) + 0.45,
        f"{len(masked)} grids of {side} x {side} positions; dark ones are masked. "
        f"{'; '.join(' '.join(title.split()) for title in titles)}",
        columns=len(masked),
    )
    for axes, mask, title in zip(line, masked.cpu(), titles, strict=True):
        bare(axes)
        axes.imshow(
            mask.view(side, side).numpy(), cmap=ListedColormap(["#F0E442", "0.35"]), vmin=0, vmax=1
        )
        axes.set_title(title)
    return plot


@styled
def heat_maps(images: Tensor, values: Tensor, label: str, titles: Sequence[str]) -> Plot:
    """Images (B, 3, H, W) over maps of one number a position, (B, N); nan stays white.

    Args:
        label: what the number is, with its unit; the colours go from 0 to the largest value.
    """
    side = side_of(values.shape[1])
    columns = len(images)
    plot, (upper, lower) = new_plot(
        2 * (WIDTH - 1) / columns + 0.35,
        f"Images, and below each a map of: {' '.join(label.split())}",
        2,
        columns,
    )
    top = float(values[~values.isnan()].max())
    for above, below, image, numbers, title in zip(
        upper, lower, pixels(images), values.detach().cpu(), titles, strict=True
    ):
        bare(above)
        bare(below)
        above.imshow(image)
        above.set_title(title)
        shown = below.imshow(numbers.view(side, side).numpy(), vmin=0, vmax=top)
    plot.colorbar(shown, ax=[*upper, *lower], label=label, shrink=0.9)
    return plot


def frame_cells(images: Tensor, cells: Tensor, zoom: int = 6) -> Tensor:
    """Images (B, 3, H, W) enlarged `zoom` times, the cells where bool (B, N) is True framed."""
    side = side_of(cells.shape[1])
    cell = images.shape[-1] // side * zoom
    large = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    edge = torch.ones(cell, cell, dtype=torch.bool)
    edge[zoom // 2 : -(zoom // 2), zoom // 2 : -(zoom // 2)] = False
    chosen = cells.cpu().view(-1, 1, side, side)
    chosen = chosen.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    frame = (chosen & edge.repeat(side, side)).to(images.device)
    ink = torch.tensor([0xD5, 0x5E, 0x00], device=images.device).view(1, 3, 1, 1) / 255
    return torch.where(frame, ink, large)


@styled
def decoding(seen: Tensor, sampled: Tensor, confidence: Tensor, kept: Tensor) -> Plot:
    """One image's T decoding steps, a column each.

    Args:
        seen: the canvases, images (T, 3, H, W) with grey where they are masked.
        sampled: the images if all tokens sampled so far were kept, (T, 3, H, W).
        confidence: the score that each sampled token was ranked by, (T, N); +inf is known.
        kept: bool (T, N), which positions are known after the step.
    """
    side, steps = side_of(kept.shape[1]), len(kept)
    names = ("canvas", "sampled", "confi-\ndence", "kept")
    alt = f"{steps} decoding steps; each one's canvas, sampled tokens, confidence and kept tokens"
    plot, grid = new_plot(4 * (WIDTH - 0.6) / steps + 0.3, alt, 4, steps)
    plot.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    scores = confidence.detach().cpu().clone()
    scores[~scores.isfinite()] = float("nan")
    rank = scores.nan_to_num(math.inf).argsort(1).argsort(1).float()  # 0 is the least confident
    rank /= (~scores.isnan()).sum(1, keepdim=True).sub(1).clamp(min=1)
    rank[scores.isnan()] = float("nan")
    fates = torch.where(kept.cpu(), 1, 0) + (kept.cpu() & ~scores.isnan())
    colours = ListedColormap(["0.35", "0.85", "#F0E442"])  # masked, known before, new
    for k, column in enumerate(grid.T):
        for axes in column:
            bare(axes)
        column[0].set_title(f"step {k + 1}")
        column[0].imshow(pixels(seen[k : k + 1])[0])
        column[1].imshow(pixels(sampled[k : k + 1])[0])
        column[2].imshow(rank[k].view(side, side).numpy(), vmin=0, vmax=1)
        column[3].imshow(fates[k].view(side, side).numpy(), cmap=colours, vmin=0, vmax=2)
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    return plot


@styled
def fields(maps: dict[str, Tensor], label: str) -> Plot:
    """Numbers over a plane, (h, w) each, side by side in the same colours; 0 is the darkest."""
    plot, (line,) = new_plot(
        (WIDTH - 0.8) / len(maps) + 0.35,
        f"Heat maps of {' '.join(label.split())}: {', '.join(' '.join(n.split()) for n in maps)}",
        columns=len(maps),
    )
    top = max(float(values.max()) for values in maps.values())
    for axes, (name, values) in zip(line, maps.items(), strict=True):
        bare(axes)
        shown = axes.imshow(
            values.detach().cpu().numpy(), vmin=0, vmax=top, cmap="magma", origin="lower"
        )
        axes.set_title(name)
    plot.colorbar(shown, ax=list(line), label=label, shrink=0.8, ticks=MaxNLocator(4))
    return plot
