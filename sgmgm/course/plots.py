"""Plots: the lessons' images, tokens and canvases in one style (curves are in `charts`).

Every function takes the library's own shapes (images float32 (B, 3, H, W) in [0, 1], tokens
int64 (B, N)) and returns a `Plot`: a matplotlib figure that shows itself in a notebook together
with a text for those who cannot see it. Colours are Okabe and Ito's, which colour-blind readers
can tell apart.
"""

import io
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..utils.errors import InputError

WIDTH = 7.2  # inches, at 100 dots each: no wider than a notebook's page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MASK_GREY = 0.55  # stands for [MASK]
MASKED, KNOWN, NEW = "0.35", "0.85", "#F0E442"  # of positions, where a map shows them
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
styled = matplotlib.rc_context(STYLE)  # decorates the functions that make plots


DPI = 200  # sharp on a screen of twice the usual density


class Plot(Figure):
    """A figure with a text, `alt`, that says what it shows."""

    alt = "figure"

    @styled
    def png(self) -> bytes:
        """The figure as a PNG file's content."""
        file = io.BytesIO()
        for text in self.findobj(Text):
            text.set_text(printable(text.get_text()))
        self.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        return file.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"image/png": self.png(), "text/plain": self.alt}
        shown = int(100 * self.get_figwidth())  # pixels of a usual screen
        return data, {"image/png": {"alt": self.alt, "width": shown}}


def printable(text: str) -> str:
    """A text whose characters matplotlib's own font can show; others by their number, U+732B."""
    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(c if c == "\n" or ord(c) in known else f"U+{ord(c):X}" for c in text)


def new_plot(height: float, alt: str, rows: int = 1, columns: int = 1, width=WIDTH, **grid):
    """A plot of this height [inches] and its axes, (rows, columns)."""
    plot = Plot(figsize=(width, height), layout="constrained")
    plot.alt = alt
    return plot, plot.subplots(rows, columns, squeeze=False, **grid)


def one_line(texts: Iterable[str], between: str = "; ") -> str:
    """Texts behind each other, their line breaks as spaces."""
    return between.join(" ".join(text.split()) for text in texts)


def pixels(images: Tensor):
    """(B, 3, H, W) in [0, 1] -> what matplotlib shows."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images have shape (B, 3, H, W), not {tuple(images.shape)}.")
    return images.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()


def as_grid(values: Tensor) -> Tensor:
    """One number a token, (..., N) -> (..., side, side)."""
    count = values.shape[-1]
    side = math.isqrt(count)
    if side * side != count:
        raise InputError(f"{count} tokens do not fill a square grid.")
    return values.detach().cpu().unflatten(-1, (side, side))


def enlarge(images: Tensor, zoom: int) -> Tensor:
    """Images (B, C, H, W) with `zoom` x `zoom` pixels in place of each."""
    return images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)


def bare(axes, title: str = "") -> None:
    """No ticks, no frame: an image."""
    axes.set(xticks=[], yticks=[], title=title)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def show(axes, content, title: str = "", **how):
    """An image alone: no ticks, no frame; returns matplotlib's own of it, for a colour bar."""
    bare(axes, title)
    return axes.imshow(content, **how)


def write_numbers(axes, numbers: Tensor, dark: Tensor) -> None:
    """Whole numbers (h, w) in the cells of an image: white where the cell is dark."""
    middle = {"ha": "center", "va": "center", "size": 8}
    for row, column in itertools.product(*map(range, numbers.shape)):
        ink, edge = ("white", "black") if dark[row, column] else ("black", "white")
        text = axes.text(column, row, int(numbers[row, column]), color=ink, **middle)
        text.set_path_effects([withStroke(linewidth=1.5, foreground=edge)])


@styled
def image_rows(
    rows: dict[str, Tensor], titles: Sequence[str] | Mapping[str, Sequence[str]] = ()
) -> Plot:
    """Rows of images (B, 3, H, W) under each other, their names on the left.

    `titles` head the columns; as a mapping, row -> titles, they stand above that row's images only.
    """
    heads = titles if isinstance(titles, Mapping) else {next(iter(rows)): titles}
    columns = max(len(images) for images in rows.values())
    label = 0.12 * max(len(line) for name in rows for line in name.split("\n"))
    label = min(label * 0.6 + 0.1, 1.6)
    cell = min((WIDTH - label) / columns, 0.9)
    alt = f"{columns} images a row: {one_line(rows)}"
    for name, texts in heads.items():
        of = f" of {one_line([name])}" if isinstance(titles, Mapping) else ""
        alt += f". Columns{of}: {one_line(texts, ', ')}" if texts else ""
    lines = sum(1 + max(text.count("\n") for text in texts) for texts in heads.values() if texts)
    height = cell * len(rows) + 0.05 + 0.2 * lines
    plot, grid = new_plot(height, alt, len(rows), columns, cell * columns + label)
    plot.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes in line:
            bare(axes)
        for axes, image in zip(line, pixels(images), strict=False):
            axes.imshow(image)
        for axes, title in zip(line, heads.get(name, ()), strict=False):
            axes.set_title(title)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return plot


@styled
def strips(rows: Mapping[str, Sequence[tuple[str, Tensor]]]) -> Plot:
    """Rows of strips, a strip being a title and images (B, 3, H, W) side by side."""
    columns = len(next(iter(rows.values())))
    count = max(len(images) for strip in rows.values() for _, images in strip)
    lines = [1 + max(title.count("\n") for title, _ in strip) for strip in rows.values()]
    height = len(rows) * WIDTH / columns / count + 0.19 * sum(lines)
    said = "; ".join(f"{n}: {one_line((t for t, _ in s), ' against ')}" for n, s in rows.items())
    plot, grid = new_plot(height, f"{count} images a strip. {said}", len(rows), columns)
    plot.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0)
    for line, (name, strip) in zip(grid, rows.items(), strict=True):
        for axes, (title, images) in zip(line, strip, strict=True):
            show(axes, pixels(torch.cat(list(images), 2)[None])[0], title)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return plot


def cells_of(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) cut along a grid: their patches (B side^2, 3, h, w), row by row."""
    cell = images.shape[-1] // side
    cut = F.unfold(images, cell, stride=cell).transpose(1, 2)  # (B, side^2, 3 h w)
    return cut.reshape(-1, images.shape[1], cell, cell)


def mean_patches(patches: Tensor, tokens: Tensor, codes: int) -> Tensor:
    """The mean of all patches (M, 3, h, w) with the same token, (M,); grey for codes without any.

    Returns (K, 3, h, w) for K = `codes`.
    """
    total = torch.zeros(codes, *patches.shape[1:]).index_add(0, tokens, patches)
    uses = torch.bincount(tokens, minlength=codes).view(-1, 1, 1, 1)
    return torch.where(uses > 0, total / uses.clamp(min=1), 0.85)


@styled
def token_grid(image: Tensor, tokens: Tensor, patches: Tensor | None = None) -> Plot:
    """One image (1, 3, H, W) under a grid, and its tokens (1, N): each its code's patch and number.

    `patches`, (K, 3, h, w), says what each code looks like. Without it a code looks like the mean
    of this image's cells that have it.
    """
    numbers = as_grid(tokens[0])
    side, image, flat = len(numbers), image.detach().cpu(), tokens[0].cpu()
    if patches is None:
        patches = mean_patches(cells_of(image, side), flat, int(flat.max()) + 1)
    painted = patches.detach().cpu()[flat].clamp(0, 1)  # (N, 3, h, w)
    different = len(flat.unique())
    alt = f"An image under a {side} x {side} grid, and the {side * side} tokens that stand for it"
    alt += f", {different} different ones, each with its code's patch"
    plot, ((left, right),) = new_plot(3.6, alt, columns=2)
    show(left, pixels(image)[0], "the image and the grid")
    for cut in range(1, side):
        for line in (left.axhline, left.axvline):
            line(cut * image.shape[-1] / side - 0.5, color="white", linewidth=0.7, alpha=0.8)
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)  # one unit a cell
    title = f"its {side * side} tokens, {different} different ones"
    show(right, pixels(tile(painted, side)[None])[0], title, extent=extent)
    for cut in range(1, side):
        for line in (right.axhline, right.axvline):
            line(cut - 0.5, color="white", linewidth=1.5)
    write_numbers(right, numbers, as_grid(painted.mean((1, 2, 3))) <= 0.45)
    return plot


@styled
def codebook(patches: Tensor, uses: Tensor) -> Plot:
    """A codebook's entries as small images (K, 3, h, w), the 120 most used first; uses is (K,)."""
    shown = patches[uses.argsort(descending=True)[:120].to(patches.device)].cpu()
    columns = 24
    edges = (0, 1, 0, 1, 0, 0, 0, -len(shown) % columns)  # white, and so is the last row's rest
    sheet = tile(F.pad(enlarge(shown, 4), edges, value=1.0), columns)
    alt = f"{len(shown)} of {len(patches)} codebook entries as small images"
    plot, ((axes,),) = new_plot(WIDTH * sheet.shape[1] / sheet.shape[2] + 0.3, alt)
    title = f"{len(shown)} of {len(patches)} codes, row by row, the most used first"
    show(axes, pixels(sheet[None])[0], title)
    return plot


def tile(patches: Tensor, columns: int) -> Tensor:
    """Patches (K, 3, h, w), row by row, as one image (3, H, W)."""
    return patches.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


@styled
def colour_codes(image: Tensor, quantised: Tensor, tokens: Tensor, codes: Tensor) -> Plot:
    """One image (1, 3, H, W), its version of few colours, and some of its tokens as numbers.

    Each pixel's token, (H W,), is the number of its colour in `codes`, (K, 3).
    """
    size, part = image.shape[-1], 12
    top = (size - part) // 2
    few = f"in {len(codes)} colours"
    alt = f"An image, the same image {few}, and its centre as integers"
    plot, (line,) = new_plot(2.65, alt, 1, 3)
    numbers = tokens.view(size, size)[top : top + part, top : top + part]
    shown = codes.clamp(0, 1)[numbers].cpu()  # (part, part, 3)
    contents = (pixels(image)[0], pixels(quantised)[0], shown.numpy())
    titles = ("the image", few, "the framed part: tokens")
    for axes, title, content in zip(line, titles, contents, strict=True):
        show(axes, content, title)
    frame: dict[str, Any] = {"fill": False, "edgecolor": COLOURS[1], "linewidth": 2}
    line[1].add_patch(Rectangle((top - 0.5, top - 0.5), part, part, **frame))
    write_numbers(line[2], numbers, shown.mean(-1) <= 0.45)
    return plot


def overlay_masked(images: Tensor, masked: Tensor) -> Tensor:
    """A copy of images (B, 3, H, W) with the cells where masked, bool (B, N), is True in grey."""
    grid = as_grid(masked)[:, None].to(images.device)
    return torch.where(enlarge(grid, images.shape[-1] // grid.shape[-1]), MASK_GREY, images)


@styled
def masks(masked: Tensor, titles: Sequence[str]) -> Plot:
    """Which positions are masked, bool (T, N): one small grid after another."""
    grids, count = as_grid(masked), len(masked)
    side = grids.shape[-1]
    alt = f"{count} grids of {side} x {side} positions; dark ones are masked. {one_line(titles)}"
    plot, (line,) = new_plot(WIDTH / count + 0.65, alt, columns=count, subplot_kw={"anchor": "N"})
    for axes, mask, title in zip(line, grids, titles, strict=True):
        show(axes, mask.numpy(), title, cmap=ListedColormap([NEW, MASKED]), vmin=0, vmax=1)
    colour_key(plot, {"known": NEW, "masked": MASKED})
    return plot


def colour_key(plot: Plot, colours: Mapping[str, str]) -> None:
    """What the colours of a map mean, below the plot."""
    patches = [Rectangle((0, 0), 1, 1, fc=colour, ec="0.4", lw=0.5) for colour in colours.values()]
    plot.legend(patches, list(colours), loc="outside lower center", ncols=len(colours))


@styled
def heat_maps(
    images: Tensor, values: Tensor | Mapping[str, Tensor], label: str, titles: Sequence[str],
    visible: Tensor | None = None, root: bool = False, name: str = "",
) -> Plot:  # fmt: skip
    """Images (B, 3, H, W) over maps of one number a position, (B, N); nan stays white.

    Args:
        values: the maps; or row -> maps, for several rows with their names on the left.
        label: names the number with its unit.
        titles: of the B columns.
        visible: bool (B, N), the positions to frame in white in every map.
        root: colours go with the square root of the number, which shows small ones better.
        name: of the row of images.

    The colours go from 0 to the largest value of all rows.
    """
    rows = values if isinstance(values, Mapping) else {"": values}
    columns, alt = len(images), f"Images, and below each a map of: {one_line([label])}"
    alt += "".join(f"; {one_line([row])}" for row in rows if row)
    side = 0.07 * max(len(line) for row in (name, *rows) for line in row.split("\n"))
    height = (1 + len(rows)) * (WIDTH - 1 - side) / columns + 0.35
    plot, grid = new_plot(height, alt, 1 + len(rows), columns)
    plot.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    top = max(float(each[~each.isnan()].max()) for each in rows.values())
    norm = PowerNorm(0.5 if root else 1, vmin=0, vmax=top)
    for axes, image, title in zip(grid[0], pixels(images), titles, strict=True):
        show(axes, image, title)
    for line, row in zip(grid, (name, *rows), strict=True):
        line[0].set_ylabel(row, rotation=0, ha="right", va="center")
    for line, maps in zip(grid[1:], rows.values(), strict=True):
        for axes, numbers in zip(line, as_grid(maps), strict=True):
            shown = show(axes, numbers.numpy(), norm=norm)
        for axes, cells in zip(line, () if visible is None else as_grid(visible), strict=False):
            for row, column in cells.nonzero().tolist():
                corner = column - 0.42, row - 0.42
                axes.add_patch(Rectangle(corner, 0.84, 0.84, fill=False, ec="white", lw=0.6))
    plot.colorbar(shown, ax=grid, label=label, shrink=0.9)
    return plot


def frame_cells(images: Tensor, cells: Tensor, zoom: int = 6) -> Tensor:
    """Images (B, 3, H, W) enlarged `zoom` times, the cells where bool (B, N) is True framed."""
    grid = as_grid(cells)[:, None]
    side = grid.shape[-1]
    cell = images.shape[-1] // side * zoom
    edge = torch.ones(cell, cell, dtype=torch.bool)
    edge[zoom // 2 : -(zoom // 2), zoom // 2 : -(zoom // 2)] = False
    frame = (enlarge(grid, cell) & edge.repeat(side, side)).to(images.device)
    ink = torch.tensor([0xD5, 0x5E, 0x00], device=images.device).view(1, 3, 1, 1) / 255
    return torch.where(frame, ink, enlarge(images, zoom))


@styled
def decoding(seen: Tensor, sampled: Tensor, confidence: Tensor, kept: Tensor) -> Plot:
    """One image's T decoding steps, a column each.

    Args:
        seen: the canvases, images (T, 3, H, W) with grey where they are masked.
        sampled: the images if all tokens sampled so far were kept, (T, 3, H, W).
        confidence: the score that each sampled token was ranked by, (T, N); +inf is known.
        kept: bool (T, N), which positions are known after the step.
    """
    steps, kept, scores = len(kept), kept.cpu(), confidence.detach().cpu()
    alt = f"{steps} decoding steps; each one's canvas, sampled tokens, confidence and kept tokens"
    plot, grid = new_plot(4 * (WIDTH - 0.95) / steps + 0.75, alt, 4, steps)
    plot.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    ranked = scores.isfinite()
    rank = scores.where(ranked, math.inf).argsort(1).argsort(1)  # 0 is the least confident
    rank = (rank / ranked.sum(1, keepdim=True).sub(1).clamp(min=1)).where(ranked, torch.nan)
    fates = kept.int() + (kept & ranked)  # masked, known before, new
    colours = ListedColormap([MASKED, KNOWN, NEW])
    images = zip(pixels(seen), pixels(sampled), as_grid(rank), as_grid(fates), strict=True)
    for k, (column, (canvas, sample, ranks, fate)) in enumerate(zip(grid.T, images, strict=True)):
        show(column[0], canvas)
        title = f"step {k + 1}: {int((~kept[k]).sum())}\nstay masked"
        column[0].set_title(title, size=8 if steps < 10 else 6)
        show(column[1], sample)
        show(column[2], ranks.numpy(), vmin=0, vmax=1)
        show(column[3], fate.numpy(), cmap=colours, vmin=0, vmax=2)
    names = ("canvas,\ngrey: masked", "sampled", "confidence,\nbright is high", "kept")
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    colour_key(plot, {"masked": MASKED, "known before": KNOWN, "kept in this step": NEW})
    return plot


@styled
def fields(maps: dict[str, Tensor], label: str, top: float | None = None) -> Plot:
    """Numbers over a plane, (h, w) each, side by side in the same colours; 0 is the darkest.

    The brightest colour is the largest of all numbers, or `top`, so that two plots can share it.
    """
    alt = f"Heat maps of {one_line([label])}: {one_line(maps, ', ')}"
    lines = max(name.count("\n") for name in maps)
    plot, (line,) = new_plot((WIDTH - 0.8) / len(maps) + 0.35 + 0.15 * lines, alt, 1, len(maps))
    top = top or max(float(each.max()) for each in maps.values())
    colours: dict[str, Any] = {"vmin": 0, "vmax": top, "cmap": "magma", "origin": "lower"}
    for axes, (name, values) in zip(line, maps.items(), strict=True):
        shown = show(axes, values.detach().cpu().numpy(), name, **colours)
    plot.colorbar(shown, ax=list(line), label=label, shrink=0.8, ticks=MaxNLocator(4))
    return plot


@styled
def difference_maps(
    images: dict[str, Tensor], maps: dict[str, Tensor], titles: Sequence[str], label: str = "nats"
) -> Plot:
    """Rows of images (B, 3, H, W), and below them rows of signed numbers, (B, N), as colours.

    `label` names the number with its unit.

    Orange is above 0, purple below it, white is 0 and grey nan. All maps share one scale, which
    reaches as far as 98 of 100 numbers do; each map's mean stands below it.
    """
    alt = f"Images: {one_line(images)}; and maps of differences: {one_line(maps)}"
    rows, columns = len(images) + len(maps), len(titles)
    side = 0.09 * max(len(line) for name in (*images, *maps) for line in name.split("\n"))
    height = rows * (WIDTH - side - 0.6) / columns + 0.8 + 0.2 * len(maps)
    plot, grid = new_plot(height, alt, rows, columns)
    plot.get_layout_engine().set(w_pad=0.06, h_pad=0.03, wspace=0, hspace=0)
    numbers = torch.cat([each.flatten() for each in maps.values()])
    reach = float(numbers[~numbers.isnan()].abs().quantile(0.98)) or 1.0
    colours: dict[str, Any] = {"cmap": "PuOr_r", "vmin": -reach, "vmax": reach}
    for line, name in zip(grid, (*images, *maps), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for line, row in zip(grid, images.values(), strict=False):
        for axes, image in zip(line, pixels(row), strict=True):
            show(axes, image)
    for line, row in zip(grid[len(images) :], maps.values(), strict=True):
        for axes, values in zip(line, as_grid(row), strict=True):
            shown = show(axes, values.numpy(), **colours)
            axes.set_facecolor("0.6")
            axes.set_xlabel(f"{values.nanmean():+.2f} nats", size=8)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title)
    bar = {"location": "bottom", "shrink": 0.6, "aspect": 40, "extend": "both"}
    plot.colorbar(shown, ax=grid, label=label, **bar)
    return plot
