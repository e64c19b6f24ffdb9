"""Charts: the lessons' curves and bars, in the style of `plots`.

Every function returns a `plots.Plot`. Lines differ in colour, dash and marker: in grey, too, each
can be recognised.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator
from torch import Tensor

from ..masking import SCHEDULES, mask_ratio
from .plots import COLOURS, WIDTH, Plot, new_plot, one_line, styled

DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v")
HATCHES = (None, "///", "...", "xx")
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # name -> (x values, y values)


def ink(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th curve."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def look(i: int) -> dict[str, Any]:
    """Colour, marker and dash of the i-th curve."""
    return ink(i) | {"linestyle": DASHES[i % len(DASHES)]}


def new_chart(x: str, y: str, alt: str, height: float = 2.9):
    """A plot and its only axes, whose names are `x` and `y`."""
    plot, ((axes,),) = new_plot(height, alt)
    axes.set(xlabel=x, ylabel=y)
    return plot, axes


def log_ticks(axes, ticks: Iterable[float], **options) -> None:
    """A logarithmic x axis (if all ticks are above 0) with these ticks and no others."""
    ticks = sorted(set(ticks))
    if ticks[0] > 0:
        axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], **options)
    axes.minorticks_off()


def log_y_axis(axes) -> None:
    """A logarithmic y axis whose numbers are written out."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    ticks = LogLocator(subs=range(1, 10)).tick_values(low, high)
    if sum(low < tick < high for tick in ticks) < 4:
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.minorticks_off()
    # 9 has no room beside 10
    axes.yaxis.set_minor_formatter(lambda x, _: "" if f"{x:g}".strip("0.") == "9" else f"{x:g}")


def write_levels(axes, levels: Mapping[str, float]) -> None:
    """Heights to compare with, as thin lines across; the first is taken for the upper one."""
    for i, (name, height) in enumerate(levels.items()):
        axes.axhline(height, color="0.4", linewidth=1)
        # right of the axes no curve or bar is in the way; the second may be close below the first
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "color": "0.3", "size": 8}
        axes.annotate(name, (1.01, height), va="top" if i else "bottom", **place)


@styled
def mark(plot: Plot, x: float, y: float, text: str, place: tuple[int, int] = (8, 8)) -> Plot:
    """The same plot, whose only axes now have a dot at (x, y), and a text at `place` [points]."""
    (axes,) = plot.axes
    axes.plot([x], [y], "o", ms=8, mfc="none", mec="0.2", mew=1.5, zorder=3)
    side: dict[str, Any] = {"ha": ("center", "left", "right")[(place[0] > 0) - (place[0] < 0)]}
    side["va"] = "bottom" if place[1] > 0 else "top"
    axes.annotate(text, (x, y), place, textcoords="offset points", color="0.2", **side)
    plot.alt += f"; marked: {one_line([text])}"
    return plot


@styled
def lines(
    curves: Curves, x: str, y: str, log_y: bool = False, markers: bool = True,
    levels: Mapping[str, float] | None = None,
) -> Plot:  # fmt: skip
    """Named curves; `x` and `y` name the axes with their units, `levels` are lines across."""
    plot, axes = new_chart(x, y, f"{y} against {x}: {', '.join(curves)}")
    for i, (name, points) in enumerate(curves.items()):
        axes.plot(*points, label=name, **look(i) | ({} if markers else {"marker": None}))
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    write_levels(axes, levels or {})
    if all(float(value).is_integer() for xs, _ in curves.values() for value in xs):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(curves) > 1:
        axes.legend()
    return plot


def training_curve(
    report: dict, terms: dict[str, str], y: str, log_y: bool = False, levels: dict | None = None
) -> Plot:
    """The history of a training report (see `training.fit`); terms: its key -> the curve's name."""
    history = report["history"]
    steps = [entry["step"] for entry in history]
    curves = {name: (steps, [entry[key] for entry in history]) for key, name in terms.items()}
    return lines(curves, "training step", y, log_y=log_y, markers=False, levels=levels)


def code_use(counts: dict[str, Tensor]) -> Plot:
    """How often each code is chosen, sorted; name -> counts (K,). Unused codes end the line."""
    curves = {}
    for name, count in counts.items():
        share = 100 * (count[count > 0] / count.sum()).sort(descending=True).values
        curves[name] = (range(1, len(share) + 1), share.tolist())
    x, y = "codes, the most used first", "share of all tokens [%]"
    return lines(curves, x, y, log_y=True, markers=False)


def schedules(n: int) -> Plot:
    """Share of n tokens that is masked against progress, for each schedule."""
    progress = [i / 200 for i in range(201)]
    curves = {}
    for name in SCHEDULES:
        shares = [100 * mask_ratio(r, name, n) for r in progress]
        curves[name if shares[0] == 100 else f"{name}, from {shares[0]:.0f} %"] = progress, shares
    x = "progress r (0 = blank canvas, 1 = finished)"
    return lines(curves, x, "masked tokens [%]", markers=False)


@styled
def panels(
    charts: dict[str, dict], xs: Sequence[float], x: str, log_x: bool = False,
    y_range: tuple[float, float] | None = None,
) -> Plot:  # fmt: skip
    """Charts side by side with one legend: name of the y axis -> curve -> a value for each x.

    The first chart has all curves; others may leave some out. `y_range`, where all have the same
    unit, is the range of every y axis.
    """
    first = next(iter(charts.values()))
    alt = f"{'; '.join(charts)} against {x}: {', '.join(first)}"
    plot, (row,) = new_plot(2.9, alt, columns=len(charts))
    for axes, (y, curves) in zip(row, charts.items(), strict=True):
        for name, values in curves.items():
            axes.plot(xs, values, **look(list(first).index(name)))
        axes.set(xlabel=x, title=y, ylim=y_range)
        if log_x:
            log_ticks(axes, xs)
    plot.legend(row[0].lines, first, loc="outside upper center", ncols=len(first))
    return plot


def limit(record: dict) -> Plot:
    """A record of `scripts.benchmark`: images/s and share of the machine's limit, by batch."""
    batches, ways = record["batches"], record["ways"]
    speed = {way: [each[way]["images_per_second"] for each in batches] for way in ways}
    share = {way: [100 * each[way]["share"] for each in batches] for way in ways}
    charts = {"images/s": speed, "share of the measured limit [%]": share}
    return panels(charts, [each["batch"] for each in batches], "images in a batch", log_x=True)


@styled
def roofline(peak: float, bandwidth: float, measured: Curves) -> Plot:
    """Speeds [GFLOP/s] against arithmetic intensity [FLOP/byte] under the roof of a machine.

    The roof is the smaller of `peak` [GFLOP/s] and intensity x `bandwidth` [GB/s].
    """
    x, y = "arithmetic intensity [FLOP/byte]", "speed [GFLOP/s]"
    plot, axes = new_chart(x, y, f"{y} against {x}: roof, {', '.join(measured)}")
    ridge, seen = peak / bandwidth, [x for xs, _ in measured.values() for x in xs]
    low, high = min(*seen, ridge / 4), max(*seen, ridge * 4)
    roof = [low * bandwidth, peak, peak]
    axes.plot([low, ridge, high], roof, color="0.4", label="roof: memory, then arithmetic")
    for i, (name, points) in enumerate(measured.items()):
        axes.plot(*points, label=name, **ink(i), linestyle="none")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend()
    return plot


@styled
def hyperparameters(charts: Mapping[str, Curves], y: str) -> Plot:
    """Charts side by side that share the y axis: hyperparameter (the x axis) -> curves.

    Curves whose names begin with the same word have one colour.
    """
    names = list(dict.fromkeys(name for curves in charts.values() for name in curves))
    kinds = sorted({name.split(",")[0] for name in names})
    alt = f"{y} against {'; '.join(charts)}: {', '.join(names)}"
    plot, (row,) = new_plot(2.9, alt, columns=len(charts))
    shown = {}
    for axes, (x, curves) in zip(row, charts.items(), strict=True):
        if axes is not row[0]:
            axes.sharey(row[0])
        for name, points in curves.items():
            colour = COLOURS[kinds.index(name.split(",")[0])]
            style = look(names.index(name)) | {"color": colour}
            (shown[name],) = axes.plot(*points, **style)
        log_ticks(axes, (value for xs, _ in curves.values() for value in xs), size=7)
        axes.set_xlabel(x)
    for axes in row:
        log_y_axis(axes)
        axes.label_outer()
    row[0].set_ylabel(y)
    plot.legend(shown.values(), shown, loc="outside upper center", ncols=len(names))
    return plot


def broken_chart(x: str, y: str, alt: str, values: Iterable[float], height: float):
    """A plot and its axes for these x values: two of one scale if half of the range is empty."""
    values = sorted(values)
    gaps = [(b - a, k) for k, (a, b) in enumerate(itertools.pairwise(values), start=1)]
    gap, cut = max(gaps, default=(0, 0))
    broken = gap > (values[-1] - values[0]) / 2
    parts = [values[:cut], values[cut:]] if broken else [values]
    margin = 0.06 * sum(part[-1] - part[0] for part in parts) or 0.1
    widths = [part[-1] - part[0] + 2 * margin for part in parts]
    grid: dict[str, Any] = {"columns": len(parts), "sharey": True, "width_ratios": widths}
    plot, (row,) = new_plot(height, alt, **grid)
    for axes, part in zip(row, parts, strict=True):
        axes.set_xlim(part[0] - margin, part[-1] + margin)
    for axes in row[1:]:
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False, which="both")
        for side, at in zip(row, (1, 0), strict=True):
            side.text(at, 0, "//", transform=side.transAxes, ha="center", va="center")
    row[0].set_ylabel(y)
    plot.supxlabel(x, size=9)
    return plot, row


def write_ends(axes, curves: Sequence[Sequence[tuple[float, float, str]]]) -> None:
    """The texts of the ends of the axes' first lines, points (x, y, text), where there is room."""
    axes.figure.draw_without_rendering()  # now the places are known
    paths = [line.get_transform().transform(line.get_xydata()) for line in axes.lines]
    weights = np.linspace(0, 1, 50)[:, None, None]
    lines = [((1 - weights) * path[:-1] + weights * path[1:]).reshape(-1, 2) for path in paths]
    taken = paths + lines
    angles = np.arange(16) * np.pi / 8
    around = np.stack((12 * np.cos(angles), 10 * np.sin(angles)), 1)  # in points
    for i, (points, path) in enumerate(zip(curves, paths, strict=False)):
        for end in {0, len(points) - 1}:
            places = path[end] + around * axes.figure.dpi / 72  # (16, 2)
            apart = np.linalg.norm(places[:, None] - np.concatenate(taken), axis=-1)
            best = apart.min(1).argmax()
            taken.append(places[best : best + 1])
            place: dict[str, Any] = {"xytext": around[best], "textcoords": "offset points"}
            place |= {"ha": "center", "va": "center", "annotation_clip": True, "size": 8}
            axes.annotate(points[end][2], points[end][:2], color=COLOURS[i], **place)


@styled
def trade_off(curves: Mapping[str, Sequence[tuple[float, float, str]]]) -> Plot:
    """Fréchet distance against inception score, one line a method (the paper's figure 5).

    A curve joins points (inception score, Fréchet distance, temperature as a text); its two ends
    have their temperatures beside them. A thin line across is the lowest distance of "none".
    Distances above five times the lowest one of all are outside the plot.
    """
    x, y = "inception score (higher is better)", "Fréchet distance (lower is better)"
    least = min(distance for points in curves.values() for _, distance, _ in points)
    shown = {name: [p for p in points if p[1] <= 5 * least] for name, points in curves.items()}
    shown = {name: points for name, points in shown.items() if points}
    alt = f"Fréchet distance against inception score: {'; '.join(shown)}"
    scores = [point[0] for points in shown.values() for point in points]
    plot, row = broken_chart(x, y, alt, scores, 4.2)
    for axes in row:
        for i, (name, points) in enumerate(shown.items()):
            xs, ys = [point[0] for point in points], [point[1] for point in points]
            axes.plot(xs, ys, label=name, **look(i) | {"markersize": 6})
    log_y_axis(row[0])
    if plain := shown.get("none"):
        best = min(distance for _, distance, _ in plain)
        for axes in row:
            axes.axhline(best, color="0.4", linewidth=1)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "bottom"}
        row[0].annotate("best without guidance", (0.01, best), color="0.3", size=8, **place)
    row[-1].set_title("numbers: the temperatures at a curve's ends", loc="right")
    plot.legend(row[0].lines[: len(shown)], shown, loc="outside upper center", ncols=len(shown))
    for axes in row:
        write_ends(axes, list(shown.values()))
    return plot


@styled
def seed_lines(
    curves: dict, x: str, y: str, levels: dict | None = None, *, ticks, notes: Sequence[str] = ()
) -> Plot:
    """Curves that were measured with several seeds: the mean as a line, each seed as a dot.

    Each curve is (x values, for each of them the values of all seeds). `levels` are heights to
    compare with, as thin lines across; `ticks` the x values to write on the logarithmic axis,
    and `notes` what to write below each of them.
    """
    plot, axes = new_chart(x, y, f"{y} against {x}, each seed a dot: {', '.join(curves)}")
    for i, (name, (xs, seeds)) in enumerate(curves.items()):
        axes.plot(xs, [sum(values) / len(values) for values in seeds], label=name, **look(i))
        for at, values in zip(xs, seeds, strict=True):
            # two curves' dots would hide each other
            beside = at * 1.05 ** (2 * i + 1 - len(curves))
            axes.scatter([beside] * len(values), values, s=14, alpha=0.5, **ink(i))
    log_ticks(axes, ticks)
    write_levels(axes, levels or {})
    if notes:
        names = [f"{tick:g}\n{note}" for tick, note in zip(ticks, notes, strict=True)]
        axes.set_xticks(ticks, names)
    axes.legend()
    return plot


@styled
def extrapolation(curves: dict, y: str) -> Plot:
    """A score against 1 / N, N the number of images, and a line that goes on to N = infinity.

    Each curve is (counts N, for each the values of all groups, (limit, slope)).
    """
    alt = f"{y} against 1 / N with lines to N = infinity: {', '.join(curves)}"
    plot, axes = new_chart("number of images N, on a scale of 1 / N", y, alt)
    for i, (name, (counts, groups, (limit, slope))) in enumerate(curves.items()):
        for n, values in zip(counts, groups, strict=True):
            beside = 1 / n + (i - (len(curves) - 1) / 2) * 0.012 / min(counts)  # as in `seed_lines`
            axes.scatter([beside] * len(values), values, s=16, alpha=0.6, **ink(i))
        ends = [0, 1 / min(counts)]
        heights = [limit + slope * end for end in ends]
        axes.plot(ends, heights, label=name, markevery=[0], markersize=8, **look(i))
    axes.axhline(0, color="0.4", linewidth=1)
    axes.set_xticks([0, *(1 / n for n in counts)], ["∞", *map(str, counts)])
    axes.legend()
    return plot


@styled
def bars(
    groups: dict[str, Sequence[float]], names: Sequence[str], x: str, y: str,
    log_y: bool = False, levels: Mapping[str, float] | None = None,
) -> Plot:  # fmt: skip
    """Bars side by side for each of `names`: group -> its heights; `levels` are lines across.

    On a logarithmic axis the bars begin at 1, and each has its height written at its end.
    """
    plot, axes = new_chart(x, y, f"{y} of {x}: {', '.join(groups)}", 3.2 if log_y else 2.6)
    width, highest = 0.8 / len(groups), max(map(max, groups.values()))
    for i, (group, heights) in enumerate(groups.items()):
        places = [k + (i - (len(groups) - 1) / 2) * width for k in range(len(names))]
        fill = {"color": COLOURS[i], "hatch": HATCHES[i % 4], "ec": "white"}
        if not log_y:
            drawn = axes.bar(places, heights, width, label=group, **fill)
            if len(names) <= 4:  # there is room for the numbers
                axes.bar_label(drawn, fmt="{:.2f}" if highest < 10 else "{:.1f}", size=8)
            continue
        drawn = axes.bar(places, [h - 1 for h in heights], width, 1, label=group, **fill)
        axes.bar_label(drawn, [f"{h:#.2g}" if h < 9.95 else f"{h:.0f}" for h in heights], size=7)
    if log_y:
        log_y_axis(axes)
        axes.yaxis.set_minor_formatter("")  # the bars have their numbers
        axes.margins(y=0.1)
    write_levels(axes, levels or {})
    axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 10 else 0)
    axes.grid(axis="x", visible=False)
    if len(groups) > 1:
        plot.legend(loc="outside upper center", ncols=len(groups))
    return plot


@styled
def stacked_bars(parts: dict[str, Sequence[float]], names: Sequence[str], x: str) -> Plot:
    """Horizontal bars, one for each of `names`: part -> its length in every bar."""
    height = 0.42 * len(names) + 1.0
    plot, axes = new_chart(x, "", f"{x} of {', '.join(names)}, by part", height)
    left = torch.zeros(len(names))
    for i, (part, lengths) in enumerate(parts.items()):
        fill = {"color": COLOURS[i], "hatch": HATCHES[i % 4], "ec": "white"}
        axes.barh(names, lengths, 0.7, left, label=part, **fill)
        left = left + torch.tensor(lengths)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(parts))
    return plot


@styled
def intervals(values: dict[str, tuple[float, float]], x: str, levels: Sequence[str] = ()) -> Plot:
    """A dot with whiskers for each name: mean and spread, in the order given.

    Thin lines go through the means of those named in `levels`, at most two, named above them.
    """
    found = [f"{name} {mean:.2f} ± {spread:.2f}" for name, (mean, spread) in values.items()]
    plot, axes = new_chart(x, "", f"{x}: {'; '.join(found)}", 0.3 * len(values) + 0.8)
    means, spreads = zip(*values.values(), strict=True)
    style = {"fmt": "o", "color": COLOURS[0], "capsize": 3, "ms": 5}
    axes.errorbar(means, range(len(values)), xerr=spreads, **style)
    left_to_right = sorted(levels, key=lambda name: values[name])
    for name, side in zip(left_to_right, ("right", "left"), strict=False):
        axes.axvline(values[name][0], color="0.4", linewidth=1, zorder=1)
        place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "va": "bottom", "size": 8}
        axes.annotate(name, (values[name][0], 1.01), color="0.3", ha=side, **place)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    return plot


@styled
def histogram(values: Tensor, x: str, y: str) -> Plot:
    """How often a number falls where."""
    plot, axes = new_chart(x, y, f"Histogram of {x}", 2.2)
    axes.hist(values.tolist(), bins=32, color=COLOURS[0], ec="white", lw=0.3)
    return plot


@styled
def gaussians(pairs: dict[str, tuple[Tensor, Tensor]]) -> Plot:
    """Pairs of point clouds, (N, 2) and (M, 2), each with its Gaussian's ellipse of two sigma."""
    alt = f"Pairs of clouds of points with ellipses: {one_line(pairs)}"
    grid = {"columns": len(pairs), "sharex": True, "sharey": True}
    plot, (row,) = new_plot(WIDTH / len(pairs) + 1.0, alt, **grid)
    angle = torch.linspace(0, 2 * math.pi, 100)
    circle = 2 * torch.stack((angle.cos(), angle.sin()))  # (2, 100)
    reach = 0.0
    for axes, (title, pair) in zip(row, pairs.items(), strict=True):
        for i, points in enumerate(pair):
            points = points.detach().cpu().float()
            axes.scatter(*points[:300].T, s=5, alpha=0.45, lw=0, color=COLOURS[i])
            ellipse = torch.linalg.cholesky(points.T.cov()) @ circle + points.mean(0)[:, None]
            axes.plot(*ellipse, color=COLOURS[i], ls=DASHES[i])
            reach = max(reach, 1.05 * float(ellipse.abs().max()))  # a stray dot may be outside
        axes.set_title(title)
        axes.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach), xlabel="feature 1")
        axes.xaxis.set_major_locator(MultipleLocator(2))
        axes.yaxis.set_major_locator(MultipleLocator(2))
    row[0].set_ylabel("feature 2")
    names = [f"cloud {which}, ellipse: 2 standard deviations" for which in "AB"]
    plot.legend(row[0].lines, names, loc="outside lower center", ncols=2)
    return plot
