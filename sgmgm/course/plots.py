"""Plots: the lessons' pictures in one style.

Every function takes the library's own shapes (images float32 (B, 3, H, W) in [0, 1], tokens
int64 (B, N)) and returns a `Plot`: a matplotlib figure that shows itself in a notebook together
with a text for those who cannot see it. Colours are Okabe and Ito's, which colour-blind readers
can tell apart; lines differ in dashes and markers too, so that they can be read in grey.
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
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ..masking import SCHEDULES, mask_ratio
from ..utils.errors import InputError

WIDTH = 7.2  # inches, at 100 dots each: no wider than a notebook's page
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")
HIDDEN = 0.55  # the grey that stands for [MASK]
STYLE: dict[Any, Any] = {
    "font.size": 9,
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
            options: dict[str, Any] = {
                "metadata": {"Software": None},
                "pil_kwargs": {"optimize": True},
            }
            self.savefig(file, format="png", dpi=100, **options)
        return file.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"image/png": self.png(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def _styled(function):
    @functools.wraps(function)
    def draw(*args, **options) -> Plot:
        with matplotlib.rc_context(STYLE):
            return function(*args, **options)

    return draw


def _plot(height: float, alt: str, rows: int = 1, columns: int = 1, width: float = WIDTH, **grid):
    plot = Plot(figsize=(width, height), layout="constrained")
    plot.alt = alt
    return plot, plot.subplots(rows, columns, squeeze=False, **grid)


def _pixels(images: Tensor):
    """(B, 3, H, W) in [0, 1] -> what matplotlib shows."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise InputError(f"images have shape (B, 3, H, W), not {tuple(images.shape)}.")
    return images.detach().float().cpu().clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _side(count: int) -> int:
    side = math.isqrt(count)
    if side * side != count:
        raise InputError(f"{count} tokens do not fill a square grid.")
    return side


def _bare(axes) -> None:
    """No ticks, no frame: a picture."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


# --- pictures --------------------------------------------------------------------------------


@_styled
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
    alt = f"{columns} pictures a row: {'; '.join(' '.join(name.split()) for name in rows)}"
    plot, grid = _plot(
        cell * len(rows) + (0.25 if titles else 0.05),
        alt + (f". Columns: {', '.join(titles)}" if titles else ""),
        len(rows),
        columns,
        width=cell * columns + label,
    )
    plot.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        for axes in line:
            _bare(axes)
        for axes, picture in zip(line, _pixels(images), strict=False):
            axes.imshow(picture)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axes, title in zip(grid[0], titles, strict=False):
        axes.set_title(title)
    return plot


@_styled
def token_grid(image: Tensor, tokens: Tensor) -> Plot:
    """One image (1, 3, H, W) with the grid laid over it, and its tokens (1, N) as numbers."""
    side = _side(tokens.shape[-1])
    numbers = tokens.detach().cpu().view(side, side)
    plot, ((left, right),) = _plot(
        3.4,
        f"An image under a {side} x {side} grid, and the {side * side} tokens that stand for it",
        columns=2,
    )
    _bare(left)
    left.imshow(_pixels(image)[0])
    for cut in range(1, side):
        for line in (left.axhline, left.axvline):
            line(cut * image.shape[-1] / side - 0.5, color="white", linewidth=0.7, alpha=0.8)
    left.set_title("the image and the grid")
    _bare(right)
    right.imshow(torch.zeros(side, side).numpy(), cmap=ListedColormap(["white"]))
    for row, column in itertools.product(range(side), repeat=2):
        right.text(column, row, int(numbers[row, column]), ha="center", va="center", size=8)
    right.set_title("its tokens")
    return plot


@_styled
def codebook(patches: Tensor, uses: Tensor | None = None) -> Plot:
    """A codebook's entries as small pictures (K, 3, h, w), 256 of the most used ones first.

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
    plot, ((axes,),) = _plot(
        WIDTH * rows * (high + 1) / (columns * (wide + 1)) + 0.3,
        f"{len(shown)} of {len(patches)} codebook entries as small pictures",
    )
    _bare(axes)
    axes.imshow(_pixels(sheet[None])[0])
    first = "" if uses is None else ", the most used first"
    axes.set_title(f"{len(shown)} of {len(patches)} codes{first}")
    return plot


@_styled
def colour_codes(image: Tensor, quantised: Tensor, tokens: Tensor, codes: Tensor) -> Plot:
    """One image (1, 3, H, W), its version of few colours, and some of its tokens as numbers.

    Args:
        quantised: the image with each pixel replaced by its code's colour, same shape.
        tokens: int64 (H W,), the number of each pixel's colour.
        codes: the palette, (K, 3).
    """
    size, part = image.shape[-1], 12
    top = (size - part) // 2
    plot, (line,) = _plot(
        2.6, f"An image, the same image in {len(codes)} colours, and its centre as integers", 1, 3
    )
    titles = ("the image", f"in {len(codes)} colours", "the framed part: tokens")
    for axes, title in zip(line, titles, strict=True):
        _bare(axes)
        axes.set_title(title)
    line[0].imshow(_pixels(image)[0])
    line[1].imshow(_pixels(quantised)[0])
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


def overlay_masked(images: Tensor, hidden: Tensor) -> Tensor:
    """A copy of images (B, 3, H, W) with the cells where hidden, bool (B, N), is True in grey."""
    side = _side(hidden.shape[1])
    cell = images.shape[-1] // side
    mask = hidden.view(-1, 1, side, side)
    mask = mask.repeat_interleave(cell, 2).repeat_interleave(cell, 3).to(images.device)
    return torch.where(mask, HIDDEN, images)


@_styled
def masks(hidden: Tensor, titles: Sequence[str]) -> Plot:
    """Which positions are hidden, bool (T, N): one small grid after another."""
    side = _side(hidden.shape[1])
    plot, (line,) = _plot(
        WIDTH / len(hidden) + 0.45,
        f"{len(hidden)} grids of {side} x {side} positions; dark ones are hidden. "
        f"{'; '.join(' '.join(title.split()) for title in titles)}",
        columns=len(hidden),
    )
    for axes, mask, title in zip(line, hidden.cpu(), titles, strict=True):
        _bare(axes)
        axes.imshow(
            mask.view(side, side).numpy(), cmap=ListedColormap(["#F0E442", "0.35"]), vmin=0, vmax=1
        )
        axes.set_title(title)
    return plot


@_styled
def heat_maps(images: Tensor, values: Tensor, label: str, titles: Sequence[str]) -> Plot:
    """Images (B, 3, H, W) over maps of one number a position, (B, N); nan stays white.

    Args:
        label: what the number is, with its unit; the colours go from 0 to the largest value.
    """
    side = _side(values.shape[1])
    columns = len(images)
    plot, (upper, lower) = _plot(
        2 * (WIDTH - 1) / columns + 0.35,
        f"Pictures, and below each a map of: {' '.join(label.split())}",
        2,
        columns,
    )
    top = float(values[~values.isnan()].max())
    for above, below, picture, numbers, title in zip(
        upper, lower, _pixels(images), values.detach().cpu(), titles, strict=True
    ):
        _bare(above)
        _bare(below)
        above.imshow(picture)
        above.set_title(title)
        shown = below.imshow(numbers.view(side, side).numpy(), vmin=0, vmax=top)
    plot.colorbar(shown, ax=[*upper, *lower], label=label, shrink=0.9)
    return plot


# --- curves and bars -------------------------------------------------------------------------


@_styled
def lines(
    curves: dict[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    log_y: bool = False,
    markers: bool = True,
) -> Plot:
    """Named curves, name -> (x values, y values); `x` and `y` name the axes with their units."""
    plot, ((axes,),) = _plot(2.9, f"{y} against {x}: {', '.join(curves)}")
    for i, (name, (xs, ys)) in enumerate(curves.items()):
        axes.plot(
            xs,
            ys,
            label=name,
            color=COLOURS[i % len(COLOURS)],
            linestyle=DASHES[i % len(DASHES)],
            marker=MARKERS[i % len(MARKERS)] if markers else None,
        )
    axes.set(xlabel=x, ylabel=y)
    if all(float(value).is_integer() for xs, _ in curves.values() for value in xs):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if log_y:
        axes.set_yscale("log")
    if len(curves) > 1:
        axes.legend()
    return plot


def training_curve(report: dict, terms: dict[str, str], y: str, log_y: bool = False) -> Plot:
    """The history of a training report (see `training.fit`).

    Args:
        terms: key in the history -> name in the legend.
        y: the axis' name, with its unit.
    """
    history = report["history"]
    steps = [entry["step"] for entry in history]
    curves = {name: (steps, [entry[key] for entry in history]) for key, name in terms.items()}
    return lines(curves, "training step", y, log_y=log_y, markers=False)


def code_use(counts: dict[str, Tensor]) -> Plot:
    """How often each code is chosen, sorted; name -> counts (K,). Unused codes end the line."""
    curves = {}
    for name, count in counts.items():
        share = (count.float() / count.sum()).sort(descending=True).values
        share = share[share > 0] * 100
        curves[name] = (range(1, len(share) + 1), share.tolist())
    return lines(
        curves, "codes, the most used first", "share of all tokens [%]", log_y=True, markers=False
    )


def schedules(n: int) -> Plot:
    """Share of n tokens that is hidden against progress, for each schedule."""
    progress = [i / 50 for i in range(51)]
    curves = {
        name: (progress, [100 * mask_ratio(r, name, n) for r in progress]) for name in SCHEDULES
    }
    return lines(
        curves, "progress r (0 = blank canvas, 1 = finished)", "hidden tokens [%]", markers=False
    )


@_styled
def bars(groups: dict[str, Sequence[float]], names: Sequence[str], x: str, y: str) -> Plot:
    """Bars side by side: group -> one height for each of `names`."""
    plot, ((axes,),) = _plot(2.6, f"{y} of {x}: {', '.join(groups)}")
    width = 0.8 / len(groups)
    for i, (group, heights) in enumerate(groups.items()):
        places = [k + (i - (len(groups) - 1) / 2) * width for k in range(len(names))]
        hatch = (None, "///", "...")[i % 3]
        axes.bar(places, heights, width, label=group, color=COLOURS[i], hatch=hatch, ec="white")
    crowded = len(names) > 10
    axes.set_xticks(range(len(names)), names, rotation=45 if crowded else 0)
    axes.grid(axis="x", visible=False)
    axes.set(xlabel=x, ylabel=y)
    plot.legend(loc="outside upper center", ncols=len(groups))
    return plot


@_styled
def intervals(values: dict[str, tuple[float, float]], x: str) -> Plot:
    """A dot with whiskers for each name: mean and spread, in the order given."""
    said = "; ".join(f"{name} {mean:.2f} ± {spread:.2f}" for name, (mean, spread) in values.items())
    plot, ((axes,),) = _plot(0.3 * len(values) + 0.8, f"{x}: {said}")
    means, spreads = zip(*values.values(), strict=True)
    style = {"fmt": "o", "color": COLOURS[0], "capsize": 3, "ms": 5}
    axes.errorbar(means, range(len(values)), xerr=spreads, **style)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_xlabel(x)
    return plot


@_styled
def histogram(values: Tensor, x: str, y: str) -> Plot:
    """How often a number falls where."""
    plot, ((axes,),) = _plot(2.2, f"Histogram of {x}")
    axes.hist(values.tolist(), bins=32, color=COLOURS[0], ec="white", lw=0.3)
    axes.set(xlabel=x, ylabel=y)
    return plot


# --- adapters and speed ------------------------------------------------------------------------


def frame_cells(images: Tensor, cells: Tensor, zoom: int = 6) -> Tensor:
    """Images (B, 3, H, W) enlarged `zoom` times, the cells where bool (B, N) is True framed."""
    side = _side(cells.shape[1])
    cell = images.shape[-1] // side * zoom
    large = images.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    edge = torch.ones(cell, cell, dtype=torch.bool)
    edge[zoom // 2 : -(zoom // 2), zoom // 2 : -(zoom // 2)] = False
    chosen = cells.cpu().view(-1, 1, side, side)
    chosen = chosen.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    frame = (chosen & edge.repeat(side, side)).to(images.device)
    ink = torch.tensor([0xD5, 0x5E, 0x00], device=images.device).view(1, 3, 1, 1) / 255
    return torch.where(frame, ink, large)


@_styled
def panels(
    charts: dict[str, dict[str, Sequence[float]]],
    xs: Sequence[float],
    x: str,
    log_x: bool = False,
) -> Plot:
    """Charts side by side with one legend: name of the y axis -> curve -> a value for each x."""
    first = next(iter(charts.values()))
    plot, (line,) = _plot(
        2.9, f"{'; '.join(charts)} against {x}: {', '.join(first)}", columns=len(charts)
    )
    for axes, (y, curves) in zip(line, charts.items(), strict=True):
        for i, values in enumerate(curves.values()):
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
            axes.plot(xs, values, marker=MARKERS[i % len(MARKERS)], **style)
        axes.set(xlabel=x, title=y)
        if log_x:
            axes.set_xscale("log", base=2)
            axes.set_xticks(xs, [f"{value:g}" for value in xs])
    plot.legend(line[0].lines, first, loc="outside upper center", ncols=len(first))
    return plot


@_styled
def hyperparameters(
    charts: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]], y: str
) -> Plot:
    """Charts side by side that share the y axis, one for each thing that was turned.

    Args:
        charts: what was turned (the x axis) -> curve -> (x values, y values).
    """
    names = list(dict.fromkeys(name for curves in charts.values() for name in curves))
    alt = f"{y} against {'; '.join(charts)}: {', '.join(names)}"
    plot, (line,) = _plot(2.9, alt, columns=len(charts))
    shown = {}
    for axes, (x, curves) in zip(line, charts.items(), strict=True):
        if axes is not line[0]:
            axes.sharey(line[0])
        for name, (xs, ys) in curves.items():
            i = names.index(name)
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
            (shown[name],) = axes.plot(xs, ys, marker=MARKERS[i % len(MARKERS)], **style)
        ticks = sorted({value for xs, _ in curves.values() for value in xs})
        if ticks[0] > 0:
            axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks], size=7)
        axes.minorticks_off()
        axes.set(xlabel=x, yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.label_outer()
    line[0].set_ylabel(y)
    plot.legend(shown.values(), shown, loc="outside upper center", ncols=len(names))
    return plot


@_styled
def stacked_bars(parts: dict[str, Sequence[float]], names: Sequence[str], x: str) -> Plot:
    """Lying bars, one for each of `names`, cut into parts: part -> its length in every bar."""
    plot, ((axes,),) = _plot(0.42 * len(names) + 1.0, f"{x} of {', '.join(names)}, by part")
    left = [0.0] * len(names)
    for i, (part, lengths) in enumerate(parts.items()):
        hatch = (None, "///", "...", "xx")[i % 4]
        axes.barh(names, lengths, 0.7, left, label=part, color=COLOURS[i], hatch=hatch, ec="white")
        left = [a + b for a, b in zip(left, lengths, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(x)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(parts))
    return plot


def limit(record: dict) -> Plot:
    """A record of `benchmark.benchmark`: images/s and share of the machine's limit, by batch."""
    rows, ways = record["batches"], record["ways"]
    charts = {
        "images/s": {way: [row[way]["images_per_second"] for row in rows] for way in ways},
        "share of the measured limit [%]": {
            way: [100 * row[way]["share"] for row in rows] for way in ways
        },
    }
    return panels(charts, [row["batch"] for row in rows], "images in a batch", log_x=True)


# --- decoding and guidance -------------------------------------------------------------------


@_styled
def decoding(seen: Tensor, drawn: Tensor, confidence: Tensor, kept: Tensor) -> Plot:
    """One image's way through T decoding steps, a column each.

    Args:
        seen: what the model saw, pictures (T, 3, H, W) with grey where it is hidden.
        drawn: the pictures if all tokens drawn so far stood, (T, 3, H, W).
        confidence: the score that each drawn token was ranked by, (T, N); +inf is known.
        kept: bool (T, N), which positions stand after the step.
    """
    side, steps = _side(kept.shape[1]), len(kept)
    names = ("sees", "draws", "is how\nsure", "keeps")
    alt = f"{steps} decoding steps, and for each what the model sees, draws, is how sure of, keeps"
    plot, grid = _plot(4 * (WIDTH - 0.6) / steps + 0.3, alt, 4, steps)
    plot.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    scores = confidence.detach().cpu().clone()
    scores[~scores.isfinite()] = float("nan")
    rank = scores.nan_to_num(math.inf).argsort(1).argsort(1).float()  # 0 is the least sure
    rank /= (~scores.isnan()).sum(1, keepdim=True).sub(1).clamp(min=1)
    rank[scores.isnan()] = float("nan")
    fates = torch.where(kept.cpu(), 1, 0) + (kept.cpu() & ~scores.isnan())
    for k, column in enumerate(grid.T):
        for axes in column:
            _bare(axes)
        column[0].set_title(f"step {k + 1}")
        column[0].imshow(_pixels(seen[k : k + 1])[0])
        column[1].imshow(_pixels(drawn[k : k + 1])[0])
        column[2].imshow(rank[k].view(side, side).numpy(), vmin=0, vmax=1)
        colours = ListedColormap(["0.35", "0.85", "#F0E442"])  # hidden, known before, new
        column[3].imshow(fates[k].view(side, side).numpy(), cmap=colours, vmin=0, vmax=2)
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    return plot


@_styled
def trade_off(fronts: dict[str, Sequence[tuple[float, float, str]]]) -> Plot:
    """Fréchet distance against inception score, one line a method (the paper's figure 5).

    Args:
        fronts: name -> points (inception score, Fréchet distance, a word to write next to it),
            in the order in which the line joins them.
    """
    plot, ((axes,),) = _plot(4.2, "Fréchet distance against inception score: " + "; ".join(fronts))
    colours = dict(zip(("self", "none", "cfg", "auto", "spatial"), COLOURS, strict=False))
    for i, (name, points) in enumerate(fronts.items()):
        colour = colours.get(name.split(",")[0], "0.65")
        look = {"color": colour, "marker": MARKERS[i % len(MARKERS)]}
        dash = DASHES[(i + i // len(MARKERS)) % len(DASHES)]  # no pair of both comes twice
        scores, distances, _ = zip(*points, strict=True)
        axes.plot(scores, distances, label=name, linestyle=dash, **look)
        if colour != "0.65":  # the others stand in the background
            for score, distance, word in points:
                place = {"xytext": (3, 3), "textcoords": "offset points"}
                axes.annotate(word, (score, distance), size=7, color=colour, **place)
    axes.set(xlabel="inception score (higher is better)", yscale="log")
    axes.set_ylabel("Fréchet distance (lower is better)")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return plot


@_styled
def seed_lines(
    curves: dict[str, tuple[Sequence[float], Sequence[Sequence[float]]]],
    x: str,
    y: str,
    levels: dict[str, float] | None = None,
    ticks: Sequence[float] | None = None,
) -> Plot:
    """Curves that were measured with several seeds: the mean as a line, each seed as a dot.

    Args:
        curves: name -> (x values, for each of them the values of all seeds).
        levels: name -> a height to compare with, drawn as a thin line across.
        ticks: the x values to write down; then the axis is logarithmic.
    """
    plot, ((axes,),) = _plot(2.9, f"{y} against {x}, each seed a dot: {', '.join(curves)}")
    for i, (name, (xs, seeds)) in enumerate(curves.items()):
        look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        means = [sum(values) / len(values) for values in seeds]
        axes.plot(xs, means, label=name, linestyle=DASHES[i % len(DASHES)], **look)
        for at, values in zip(xs, seeds, strict=True):
            axes.scatter([at] * len(values), values, s=14, alpha=0.5, **look)
    if ticks is not None:
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    for i, (name, height) in enumerate((levels or {}).items()):
        axes.axhline(height, color="0.4", linewidth=1)
        place = {"xy": (0.995 - 0.08 * i, height), "xycoords": ("axes fraction", "data")}
        # the first level is the upper one: its name stands above the line, the others' below
        side = {"xytext": (0, -2), "va": "top"} if i else {"xytext": (0, 2), "va": "bottom"}
        axes.annotate(name, color="0.3", size=8, ha="right", textcoords="offset points",
                      **place, **side)  # fmt: skip
    axes.set(xlabel=x, ylabel=y)
    if len(curves) > 1:
        axes.legend()
    return plot


@_styled
def fields(maps: dict[str, Tensor], label: str) -> Plot:
    """Numbers over a plane, (h, w) each, side by side in the same colours; 0 is the darkest."""
    plot, (line,) = _plot(
        (WIDTH - 0.8) / len(maps) + 0.35,
        f"Heat maps of {' '.join(label.split())}: {', '.join(' '.join(n.split()) for n in maps)}",
        columns=len(maps),
    )
    top = max(float(values.max()) for values in maps.values())
    for axes, (name, values) in zip(line, maps.items(), strict=True):
        _bare(axes)
        shown = axes.imshow(
            values.detach().cpu().numpy(), vmin=0, vmax=top, cmap="magma", origin="lower"
        )
        axes.set_title(name)
    plot.colorbar(shown, ax=list(line), label=label, shrink=0.8, ticks=MaxNLocator(4))
    return plot


# --- scores ------------------------------------------------------------------------------------


@_styled
def clouds(pairs: dict[str, tuple[Tensor, Tensor]]) -> Plot:
    """Pairs of point clouds, (N, 2) and (M, 2), each with its Gaussian's ellipse of two sigma."""
    plot, (line,) = _plot(
        WIDTH / len(pairs) + 0.4,
        f"Pairs of clouds of dots with ellipses: {'; '.join(' '.join(p.split()) for p in pairs)}",
        columns=len(pairs),
        sharex=True,
        sharey=True,
    )
    angle = torch.linspace(0, 2 * math.pi, 100)
    circle = 2 * torch.stack((angle.cos(), angle.sin()))  # (2, 100)
    reach = 0.0
    for axes, (title, pair) in zip(line, pairs.items(), strict=True):
        for i, points in enumerate(pair):
            points = points.detach().cpu().float()
            axes.scatter(*points[:300].T, s=5, alpha=0.45, lw=0, color=COLOURS[i])
            ellipse = torch.linalg.cholesky(points.T.cov()) @ circle + points.mean(0)[:, None]
            axes.plot(*ellipse, color=COLOURS[i], ls=DASHES[i])
            reach = max(reach, 1.05 * float(ellipse.abs().max()))  # a stray dot may lie outside
        axes.set_title(title)
        axes.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
    names = [f"cloud {which}, ellipse: 2 standard deviations" for which in "AB"]
    plot.legend(line[0].lines, names, loc="outside lower center", ncols=2)
    return plot


@_styled
def to_infinity(
    curves: dict[str, tuple[Sequence[int], Sequence[Sequence[float]], tuple[float, float]]],
    y: str,
) -> Plot:
    """A score against 1 / N, N the number of samples, and a line that goes on to N = infinity.

    Args:
        curves: name -> (counts N, for each the values of all groups, (limit, slope)); the line is
            limit + slope / N.
    """
    names = ", ".join(curves)
    plot, ((axes,),) = _plot(2.9, f"{y} against 1 / N with lines to N = infinity: {names}")
    for i, (name, (counts, groups, (limit, slope))) in enumerate(curves.items()):
        look = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for n, values in zip(counts, groups, strict=True):
            axes.scatter([1 / n] * len(values), values, s=16, alpha=0.6, **look)
        ends = [0, 1 / min(counts)]
        heights = [limit + slope * end for end in ends]
        line = {"linestyle": DASHES[i % len(DASHES)], "markevery": [0], "markersize": 8}
        axes.plot(ends, heights, label=name, **look, **line)
    axes.axhline(0, color="0.4", linewidth=1)
    axes.set_xticks([0, *(1 / n for n in counts)], ["∞", *map(str, counts)])
    axes.set(xlabel="number of pictures N, on a scale of 1 / N", ylabel=y)
    axes.legend()
    return plot
