"""The diagrams of the lessons: one function draws one of them as an SVG.

`python -m scripts.diagrams` writes docs/diagrams/*.svg; with `--check` it only says which files
are not what it would write. Standard library alone. To change a diagram, change its function
here, run the command, and look at the result.

One visual language: a token is a square, [MASK] a hatched square, a network a rounded box, a
frozen network has a lock, a tensor carries its shape. Plain is blue, smoothed is orange, guided
is green, the first three of `sgmgm.course.plots.COLOURS`; what belongs to no path is black. Every
diagram has a light panel of its own, because a page with a dark theme does not tell its images.
Worked numbers are computed here, not typed.
"""

import json
import math
import random
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "diagrams"
WIDTH = 860  # pixels; the narrowest page shows about 760 of them
SMALLEST = 13  # pixels of a letter

PLAIN, SMOOTHED, GUIDED = "#0072B2", "#D55E00", "#009E73"
INK, GREY, FAINT, PANEL = "#1F2328", "#57606A", "#C9D1D9", "#FFFFFF"
NETWORK, KNOWN, NEW, WRONG = "#EAEFF4", "#F1F1EE", "#F0E442", "#F2CFE2"
CLASS, MISSED = "#DCEBFA", "#A6357A"  # the class token; a cross

# sizes of the `laptop` preset, see sgmgm/presets.py
GRID, CODES, CLASSES, WIDTHS, CODE_WIDTH = 8, 1024, 10, (16, 32, 64), 8
HIDDEN, RANK = 192, 8

Point = tuple[float, float]


# --- the visual language -----------------------------------------------------------------------


def number(x: float) -> str:
    """A coordinate without needless digits."""
    text = f"{x:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text


def signed(x: float, digits: int = 2) -> str:
    """A number with a true minus sign, and no minus before zero."""
    text = f"{x:.{digits}f}"
    text = text.removeprefix("-") if not float(text) else text
    return text.replace("-", "−")


def softmax(scores: Sequence[float]) -> list[float]:
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


def text_width(text: str, size: float, bold: bool = False) -> float:
    """About how wide a text is in a wide sans-serif font (DejaVu Sans)."""
    plain = re.sub(r"[_^]\{([^}]*)\}|[_^](\w)", r"\1\2", text)
    narrow, wide = (
        sum(c in "ijl.,:;'|()[]! -ftr/I" for c in plain),
        sum(c in "mwMW@%→←−+=≈" for c in plain),
    )
    capital = sum(c.isupper() for c in plain)
    units = 0.6 * len(plain) - 0.25 * narrow + 0.25 * wide + 0.09 * capital
    return units * size * (1.1 if bold else 1)


class Drawing:
    """An SVG in the making, `WIDTH` wide and `height` high; y grows downwards."""

    def __init__(self, height: float, title: str, description: str):
        self.height, self.title = height, title
        self.description = " ".join(description.split())
        self.parts: list[str] = []
        self.text(WIDTH / 2, 36, title, size=18, bold=True)

    def add(self, tag: str, content: str = "", **attributes) -> None:
        pairs = ((name.replace("_", "-"), value) for name, value in attributes.items())
        said = "".join(
            f' {name}="{number(value) if isinstance(value, float | int) else value}"'
            for name, value in pairs
            if value is not None
        )
        self.parts.append(f"<{tag}{said}>{content}</{tag}>" if content else f"<{tag}{said}/>")

    def text(
        self, x: float, y: float, text: str, size: float = 15, anchor: str = "middle",
        colour: str = INK, bold: bool = False,
    ) -> None:  # fmt: skip
        """A line of text, y its baseline; `_k` and `^{1/2}` are set low and high."""
        if size < SMALLEST:
            raise ValueError(f"{text!r} is too small to read")
        width = text_width(text, size, bold)
        left = x - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        if left < 8 or left + width > WIDTH - 8:
            raise ValueError(f"{text!r} reaches out of the panel: {left:.0f}..{left + width:.0f}")
        pieces, shift = [], 0.0
        for piece in re.split(r"([_^](?:\{[^}]*\}|\w))", text):
            if not piece:
                continue
            level = {"_": 4.0, "^": -5.0}.get(piece[0], 0.0) if len(piece) > 1 else 0.0
            inner = piece[1:].strip("{}") if level else piece
            move = f' dy="{number(level - shift)}"' if level != shift else ""
            small = f' font-size="{number(max(SMALLEST, 0.8 * size))}"' if level else ""
            plain = not move and not small
            pieces.append(
                escape(inner) if plain else f"<tspan{move}{small}>{escape(inner)}</tspan>"
            )
            shift = level
        self.add(
            "text", "".join(pieces), x=x, y=y, font_size=size, fill=colour,
            text_anchor=None if anchor == "start" else anchor, font_weight="bold" if bold else None,
        )  # fmt: skip

    def lines(
        self, x: float, y: float, *lines: str, size: float = 15, step: float = 0, **look
    ) -> None:
        """Several lines of text, the first with its baseline at y."""
        for i, line in enumerate(lines):
            self.text(x, y + i * (step or 1.3 * size), line, size=size, **look)

    def note(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        """A remark: smaller and in grey."""
        self.text(x, y, text, size=14, anchor=anchor, colour=GREY)

    def heading(self, y: float, text: str) -> None:
        """What a part of the diagram shows, at its left edge."""
        self.text(24, y, text, size=14, anchor="start", colour=GREY, bold=True)

    def footer(self, *lines: str) -> None:
        """What to take away, at the bottom of the panel."""
        for i, line in enumerate(reversed(lines)):
            self.text(WIDTH / 2, self.height - 20 - 20 * i, line, size=14)

    def shape(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        """The shape of a tensor, e.g. (B, N, K)."""
        self.note(x, y, text, anchor)

    def line(
        self, *points: Point, colour: str = INK, width: float = 1.6, dash: bool = False
    ) -> None:
        path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        dashes = "6 4" if dash else None
        self.add("polyline", points=path, fill="none", stroke=colour, stroke_width=width,
                 stroke_dasharray=dashes, stroke_linejoin="round")  # fmt: skip

    def arrow(
        self, *points: Point, colour: str = INK, width: float = 1.8, dash: bool = False
    ) -> None:
        """A line through the points that ends in an arrowhead at the last one."""
        (x0, y0), (x1, y1) = points[-2:]
        length = math.hypot(x1 - x0, y1 - y0)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        back = (x1 - 8 * dx, y1 - 8 * dy)
        self.line(*points[:-1], back, colour=colour, width=width, dash=dash)
        sides = [(x1 - 10 * dx + 5 * s * dy, y1 - 10 * dy - 5 * s * dx) for s in (1, -1)]
        self.polygon((x1, y1), *sides, fill=colour)

    def polygon(self, *points: Point, fill: str, stroke: str | None = None) -> None:
        path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.add("polygon", points=path, fill=fill, stroke=stroke)

    def rect(
        self, x: float, y: float, w: float, h: float, fill: str = "none", stroke: str | None = INK,
        width: float = 1.4, round_: float = 0, dash: bool = False,
    ) -> None:  # fmt: skip
        self.add(
            "rect",
            x=x,
            y=y,
            width=w,
            height=h,
            rx=round_ or None,
            fill=fill,
            stroke=stroke,
            stroke_width=width if stroke else None,
            stroke_dasharray="6 4" if dash else None,
        )

    def circle(
        self,
        x: float,
        y: float,
        r: float,
        fill: str = "none",
        stroke: str | None = INK,
        width: float = 1.4,
        dash: bool = False,
        opacity: float | None = None,
    ) -> None:
        self.add(
            "circle",
            cx=x,
            cy=y,
            r=r,
            fill=fill,
            stroke=stroke,
            fill_opacity=opacity,
            stroke_width=width if stroke else None,
            stroke_dasharray="5 4" if dash else None,
        )

    def box(
        self, x: float, y: float, w: float, h: float, *labels: str, frozen: bool = False,
        colour: str = INK, size: float = 15, fill: str = NETWORK,
    ) -> None:  # fmt: skip
        """A network: a rounded box with its name; a lock if its weights are frozen."""
        self.rect(x, y, w, h, fill=fill, stroke=colour, width=2, round_=11)
        step = 1.25 * size
        top = y + h / 2 - step * (len(labels) - 1) / 2 + 0.36 * size
        for i, label in enumerate(labels):
            if text_width(label, size, bold=not i) > w - 8:
                raise ValueError(f"{label!r} is wider than its box")
            self.text(x + w / 2, top + i * step, label, size=size, bold=not i)
        if frozen:
            self.lock(x + w - 10, y + 1)

    def lock(self, x: float, y: float) -> None:
        """A closed lock, its body around (x, y)."""
        self.add("path", d=f"M{number(x - 4)} {number(y - 5)}v-3a4 4 0 0 1 8 0v3",
                 fill="none", stroke=INK, stroke_width=2)  # fmt: skip
        self.rect(x - 7, y - 5, 14, 11, fill=INK, stroke=PANEL, width=1, round_=2)

    def token(
        self, x: float, y: float, label: str = "", side: float = 36, fill: str = KNOWN,
        colour: str = INK, width: float = 1.4, size: float = 15,
    ) -> None:  # fmt: skip
        """A token: a square with its id or letter."""
        self.rect(x, y, side, side, fill=fill, stroke=colour, width=width)
        if label:
            self.text(x + side / 2, y + side / 2 + 0.36 * size, label, size=size)

    def mask(self, x: float, y: float, side: float = 36) -> None:
        """[MASK]: a hatched square."""
        self.masks([(x, y)], side)

    def masks(self, places: Iterable[Point], side: float, gap: float = 0) -> None:
        """Many hatched squares as one path: a learner sees the same square in every size."""
        gap = gap or max(4.0, side / 5)
        squares, hatch = [], []
        for x, y in places:
            squares.append(
                f"M{number(x)} {number(y)}h{number(side)}v{number(side)}h-{number(side)}z"
            )
            offset = gap
            while offset < 2 * side - 1:
                a, b = min(offset, side), max(0.0, offset - side)
                hatch.append(f"M{number(x + b)} {number(y + a)}L{number(x + a)} {number(y + b)}")
                offset += gap
        self.add("path", d="".join(squares), fill="#FFFFFF", stroke=INK, stroke_width=1.2)
        self.add("path", d="".join(hatch), stroke=GREY, stroke_width=1)

    def row(
        self, x: float, y: float, labels: Sequence[str | None], side: float = 36, gap: float = 6,
        fills: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Tokens side by side; None is [MASK]."""
        for i, label in enumerate(labels):
            left = x + i * (side + gap)
            if label is None:
                self.mask(left, y, side)
            else:
                self.token(left, y, label, side, fill=fills[i] if fills else KNOWN)

    def grid(self, x: float, y: float, cell: float, known: set[int], side: int = 4,
             new: set[int] = frozenset()) -> None:  # type: ignore[assignment]  # fmt: skip
        """A square canvas of side x side positions; what is neither known nor new is [MASK]."""
        place = {i: (x + i % side * cell, y + i // side * cell) for i in range(side * side)}
        for group, fill in ((known - new, KNOWN), (new, NEW)):
            squares = "".join(
                f"M{number(place[i][0])} {number(place[i][1])}"
                f"h{number(cell)}v{number(cell)}h-{number(cell)}z"
                for i in sorted(group)
            )
            if squares:
                self.add("path", d=squares, fill=fill, stroke=INK, stroke_width=1)
        masked = [place[i] for i in place if i not in known | new]
        if masked:
            self.masks(masked, cell, gap=max(5.0, cell / 3))

    def plus(self, x: float, y: float, sign: str = "+", r: float = 12) -> None:
        """An operation on two tensors."""
        self.circle(x, y, r, fill=PANEL, width=1.8)
        if sign == "+":
            self.line((x - 6, y), (x + 6, y), width=2)
            self.line((x, y - 6), (x, y + 6), width=2)
        else:
            self.line((x - 4.5, y - 4.5), (x + 4.5, y + 4.5), width=2)
            self.line((x - 4.5, y + 4.5), (x + 4.5, y - 4.5), width=2)

    def cross(self, x: float, y: float, r: float = 10) -> None:
        """What is wrong or missed."""
        self.line((x - r, y - r), (x + r, y + r), colour=MISSED, width=3)
        self.line((x - r, y + r), (x + r, y - r), colour=MISSED, width=3)

    def picture(self, x: float, y: float, side: float, scene: int = 0) -> None:
        """An image: a house before a sky, in pixels; scene 1 is another image of the kind."""
        p = side / 16
        sky, grass, wall, roof, door, sun = HOUSES[scene]
        for left, top, w, h, fill in (
            (0, 0, 16, 16, sky), (0, 12, 16, 4, grass), (4, 7, 8, 7, wall), (3, 6, 10, 1, roof),
            (4, 5, 8, 1, roof), (5, 4, 6, 1, roof), (6, 3, 4, 1, roof), (7, 10, 2, 4, door),
            (1 if scene == 1 else 12, 1, 3, 3, sun),
        ):  # fmt: skip
            self.rect(x + left * p, y + top * p, w * p, h * p, fill=fill, stroke=None)
        self.rect(x, y, side, side, width=1.2)

    def svg(self) -> str:
        height = number(self.height)
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" role="img" '
            'aria-labelledby="title desc">',
            f'<title id="title">{escape(plain_text(self.title))}</title>',
            f'<desc id="desc">{escape(plain_text(self.description))}</desc>',
            f'<rect x="1" y="1" width="{WIDTH - 2}" height="{number(self.height - 2)}" rx="14" '
            f'fill="{PANEL}" stroke="{FAINT}" stroke-width="1.5"/>',
            *self.parts,
            "</svg>",
            "",
        ])  # fmt: skip


# sky, grass, wall, roof, door, sun
HOUSES = (
    ("#A9D3F2", "#7FB77E", "#F3E3C3", "#B4513F", "#6B4A35", "#F6D04D"),
    ("#CFE6F7", "#A3BF6B", "#E2E4EA", "#4F5D75", "#8A5A3C", "#F2B84B"),
    ("#B9D9EE", "#95BC93", "#E9DDC6", "#B06A5A", "#85695A", "#EBD27A"),  # the first, rebuilt
)


def plain_text(text: str) -> str:
    """A text without the marks for low and high."""
    return re.sub(r"[_^]\{([^}]*)\}|[_^](\w)", r"\1\2", text)


# --- lesson 00 ---------------------------------------------------------------------------------


def system() -> Drawing:
    d = Drawing(
        520, "The whole system: images become tokens, tokens become new images",
        """Above, learning: an image passes the tokenizer's encoder and becomes a grid of tokens;
        some are masked, and the transformer learns to predict them. Below, generating: the frozen
        transformer gives a plain prediction for the canvas, the smoother a smoothed one from the
        transformer's hidden states; guidance combines them; the sampler keeps the most confident
        tokens and goes back to the canvas, T times. The tokenizer's decoder makes an image of the
        tokens, and the Fréchet distance compares many such images with real ones.""",
    )  # fmt: skip
    d.heading(72, "LEARN")
    d.note(84, 72, "first the tokenizer, then the transformer, then the smoother", anchor="start")
    d.picture(36, 90, 72)
    d.text(72, 184, "real image", size=14)
    d.arrow((112, 126), (150, 126))
    d.box(152, 100, 118, 52, "encoder", "lesson 01", frozen=True)
    d.arrow((272, 126), (312, 126))
    d.grid(316, 90, 18, set(range(16)))
    d.text(352, 184, "tokens", size=14)
    d.arrow((392, 126), (470, 126))
    d.text(431, 116, "mask", size=14)
    canvas = {1, 4, 11, 14}
    d.grid(474, 90, 18, canvas)
    d.text(510, 184, "canvas", size=14)
    d.arrow((550, 126), (598, 126))
    d.box(600, 100, 140, 52, "transformer", "lesson 02")
    d.lines(800, 118, "predict the", "masked", "tokens", size=14)
    d.arrow((742, 126), (758, 126))
    d.line((24, 206), (836, 206), colour=FAINT)

    d.heading(232, "GENERATE")
    d.token(30, 268, "c", 22, fill=CLASS)
    d.grid(58, 268, 18, {5})
    d.text(80, 362, "class c, canvas", size=14)
    d.text(82, 382, "(first all masked)", size=14)
    d.arrow((134, 304), (166, 304))
    d.box(168, 278, 138, 52, "transformer", "lesson 02", frozen=True)
    d.arrow((308, 290), (428, 290), colour=PLAIN, width=2.6)
    d.text(368, 282, "plain", colour=PLAIN, bold=True)
    d.arrow((237, 332), (237, 398))
    d.lines(247, 360, "hidden", "states", size=14, anchor="start")
    d.box(168, 400, 138, 52, "smoother", "lessons 04, 05", frozen=True)
    d.arrow((308, 426), (490, 426), (490, 334), colour=SMOOTHED, width=2.6)
    d.text(385, 418, "smoothed", colour=SMOOTHED, bold=True)
    d.rect(430, 274, 120, 58, fill=PANEL, stroke=GUIDED, width=2.4)
    d.text(490, 299, "guidance", bold=True)
    d.text(490, 319, "lesson 04")
    d.arrow((552, 303), (628, 303), colour=GUIDED, width=2.6)
    d.text(589, 294, "guided", colour=GUIDED, bold=True)
    d.rect(630, 266, 206, 72, fill=PANEL)
    d.text(733, 287, "sampler", bold=True)
    d.text(733, 307, "keep confident tokens")
    d.text(733, 327, "lesson 03")
    d.arrow((733, 264), (733, 244), (94, 244), (94, 265))
    d.rect(384, 233, 130, 22, fill=PANEL, stroke=None)
    d.text(449, 249, "repeat T times", size=15)
    d.arrow((733, 340), (733, 374))
    d.text(722, 361, "after step T", size=14, anchor="end")
    d.box(668, 376, 130, 50, "decoder", "lesson 01", frozen=True)
    d.arrow((733, 428), (733, 448))
    d.picture(705, 450, 56, scene=1)
    d.text(696, 484, "new image", size=14, anchor="end")
    d.arrow((612, 479), (560, 479))
    d.rect(354, 456, 204, 48, fill=PANEL)
    d.text(456, 476, "Fréchet distance", bold=True)
    d.text(456, 495, "lesson 07", size=14)
    d.text(342, 484, "many new images against real ones", size=14, anchor="end")
    return d


# --- lesson 01 ---------------------------------------------------------------------------------


def vq() -> Drawing:
    d = Drawing(
        560, "Vector quantization: take the nearest code; gradients go straight through",
        """Forward: the encoder gives a vector z, the nearest code e of the codebook takes its
        place, and the decoder gets e. Backward: the gradient of the reconstruction loss passes the
        decoder and is copied from e to z, as if nothing had happened between them. A worked
        example in the plane: squared distances of z to four codes; the codebook loss moves the
        code to z, the commitment loss moves z to the code.""",
    )  # fmt: skip
    z, codes = (1.3, 0.9), [(0.0, 0.0), (2.0, 0.0), (1.0, 1.5), (2.5, 2.0)]
    squares = [(a - z[0]) ** 2 + (b - z[1]) ** 2 for a, b in codes]
    best = min(range(4), key=squares.__getitem__)

    d.heading(76, "FORWARD")
    d.picture(30, 96, 64)
    d.arrow((98, 128), (128, 128))
    d.box(130, 102, 106, 52, "encoder")
    d.arrow((238, 128), (336, 128))
    d.text(287, 118, "vector z")
    d.shape(287, 148, "(D)")
    d.rect(338, 98, 164, 60)
    d.text(420, 122, "nearest code", bold=True)
    d.text(420, 144, "k = argmin |z − e_j|²", size=14)
    d.arrow((504, 128), (602, 128))
    d.text(553, 118, "code e_k")
    d.shape(553, 148, "(D)")
    d.box(604, 102, 106, 52, "decoder")
    d.arrow((712, 128), (746, 128))
    d.picture(750, 96, 64)
    d.text(782, 180, "reconstruction", size=14)

    d.heading(218, "BACKWARD")
    d.arrow((782, 190), (782, 240), (712, 240), dash=True)
    d.text(776, 262, "gradient", size=14)
    d.box(604, 214, 106, 52, "decoder")
    d.arrow((602, 240), (238, 240), dash=True)
    d.rect(338, 210, 164, 60, fill=PANEL, stroke=FAINT, width=2)
    d.text(420, 236, "copied as it is", bold=True)
    d.text(420, 257, "“straight-through”", size=14)
    d.box(130, 214, 106, 52, "encoder")
    d.note(
        420,
        294,
        "argmin has no gradient: z + (e − z).detach() gives e forward, and z's gradient backward",
    )
    d.line((24, 312), (836, 312), colour=FAINT)

    # the plane
    left, bottom, unit = 76, 520, 74

    def at(p: Point) -> Point:
        return left + unit * p[0], bottom - unit * p[1]

    d.heading(338, "EXAMPLE: two dimensions, four codes")
    d.arrow((left - 16, bottom), (left + 3.1 * unit, bottom), colour=GREY)
    d.arrow((left, bottom + 16), (left, bottom - 2.25 * unit), colour=GREY)
    (zx, zy), (ex, ey) = at(z), at(codes[best])
    for j, code in enumerate(codes):
        x, y = at(code)
        d.token(x - 8, y - 8, "", 16, fill=NEW if j == best else KNOWN)
        d.text(x + 14, y - 8, f"e_{j}", anchor="start")
    d.line((zx, zy), (ex + 4, ey + 9), dash=True)
    d.circle(zx, zy, 7, fill=INK)
    d.text(zx + 14, zy + 8, "z", anchor="start", bold=True)
    d.note(348, 366, "code", anchor="start")
    d.note(444, 366, "|z − e_j|²", anchor="start")
    for j, square in enumerate(squares):
        y = 394 + 28 * j
        if j == best:
            d.rect(338, y - 19, 200, 26, fill=NEW, stroke=None)
        d.text(348, y, f"e_{j} = ({codes[j][0]:g}, {codes[j][1]:g})", anchor="start", size=14)
        d.text(526, y, f"{square:.2f}", anchor="end", size=14)
    d.text(340, 514, f"z = ({z[0]:g}, {z[1]:g}) becomes token {best}", anchor="start")
    d.text(590, 366, "Two losses keep z and e together", size=14, anchor="start")
    for y, name, who in (
        (396, "codebook loss", "moves e to z"),
        (462, "commitment loss", "moves z to e"),
    ):
        d.text(590, y, name, anchor="start", bold=True)
        d.token(592, y + 16, "e", 28, fill=NEW)
        d.circle(682, y + 30, 6, fill=INK)
        d.text(698, y + 35, "z", anchor="start", bold=True)
        ends = ((624, y + 30), (672, y + 30))
        d.arrow(*(ends if "e to" in who else ends[::-1]))
        d.text(722, y + 35, who, anchor="start", size=14)
    return d


def autoencoder() -> Drawing:
    d = Drawing(
        470, "The tokenizer: 32 x 32 pixels become 8 x 8 tokens and 32 x 32 pixels again",
        """Blocks whose height is the side of the feature map and whose label is channels x height x
        width. Encoder: 3 x 32 x 32, 16 x 32 x 32, 32 x 16 x 16, 64 x 8 x 8, then 8 x 8 x 8; the
        nearest codes; the decoder goes the same way back. Below: the losses. In a VQGAN a
        discriminator judges the reconstruction; here a frozen classifier compares features.""",
    )  # fmt: skip
    middle, sides = 160, (32, 16, 8)
    d.text(220, 74, "encoder", bold=True)
    d.text(640, 74, "decoder", bold=True)
    xs, wide = (136, 218, 296), (26, 34, 42)  # of the encoder's blocks; the decoder mirrors them
    for mirror in (False, True):

        def at(x: float, mirror: bool = mirror) -> float:
            return WIDTH - x if mirror else x

        d.picture(at(56) - 32, middle - 32, 64, scene=2 if mirror else 0)
        d.shape(at(56), middle + 54, "(3, 32, 32)")
        for channels, side, x, w in zip(WIDTHS, sides, xs, wide, strict=True):
            high = 4.0 * side
            d.rect(at(x) - w / 2, middle - high / 2, w, high, fill=NETWORK, width=2, round_=6)
            d.shape(at(x), middle + high / 2 + 20, f"({channels}, {side}, {side})")
        for a, b, word in ((92, 121, ""), (151, 199, "2"), (237, 273, "2")):
            d.arrow(*(((at(b), middle), (at(a), middle)) if mirror else ((a, middle), (b, middle))))
            if word:
                d.text(at((a + b) / 2), middle - 10, ("× " if mirror else "÷ ") + word, size=14)
    d.arrow((319, middle), (383, middle))
    d.grid(386, middle - 44, 11, set(range(64)), side=8)
    d.arrow((477, middle), (541, middle))
    for x in (350, 508):
        d.shape(x, middle - 12, f"({CODE_WIDTH}, 8, 8)")
    d.text(430, 94, "nearest codes", size=14)
    d.text(430, 228, f"{GRID} x {GRID} tokens", bold=True)
    d.note(430, 248, f"vectors of D = {CODE_WIDTH}")
    d.note(430, 268, "shapes are (channels, height, width)")
    d.line((24, 284), (836, 284), colour=FAINT)

    d.heading(312, "THE LOSS")
    d.picture(40, 336, 48)
    d.picture(40, 396, 48, scene=2)
    d.text(98, 364, "image", anchor="start")
    d.text(98, 424, "reconstruction", anchor="start")
    d.arrow((214, 392), (262, 392))
    d.text(276, 362, "pixels: |difference| + difference²", anchor="start")
    d.text(276, 397, "features: their distance in a classifier", anchor="start")
    d.text(276, 432, "codes: codebook + commitment loss", anchor="start")
    d.box(566, 376, 100, 32, "classifier", frozen=True)
    d.rect(690, 318, 152, 128, stroke=GREY, dash=True, round_=11)
    said = "VQGAN adds", "a discriminator:", "“real or fake?”", "This tokenizer", "does without."
    d.lines(766, 342, *said, size=14, step=23, colour=GREY)
    return d


def patches() -> Drawing:
    d = Drawing(
        390, "From pixels to patches to codes",
        """An image of 32 x 32 pixels is cut into 8 x 8 patches. One patch of 4 x 4 pixels is 48
        numbers. Among four code patches the nearest one is found by its squared distance, and its
        number becomes the token at the place of the patch in a grid of 8 x 8 tokens.""",
    )  # fmt: skip
    side = 192
    d.picture(36, 78, side)
    for i in range(1, 8):
        d.line((36 + 24 * i, 78), (36 + 24 * i, 78 + side), colour="#FFFFFF", width=1)
        d.line((36, 78 + 24 * i), (36 + side, 78 + 24 * i), colour="#FFFFFF", width=1)
    column, row = 5, 2
    d.rect(36 + 24 * column, 78 + 24 * row, 24, 24, width=3)
    d.note(132, 294, "3 x 32 x 32 numbers")
    d.text(132, 316, "8 x 8 patches")

    sky, _, _, roof, *_ = HOUSES[0]
    # the patch's 4 x 4 pixels: each pixel of the scene is 2 x 2 of the image's 32 x 32
    shape = ["rrss", "rrss", "rrrr", "rrrr"]  # the right end of the roof
    variants = {
        0: ["ssss"] * 4,
        1: ["rrrr"] * 4,
        2: ["rrss", "rsss", "rrrr", "rrrr"],
        3: ["rrss"] * 4,
    }

    def pixels(rows: Sequence[str], x: float, y: float, cell: float) -> None:
        for j, line in enumerate(rows):
            for i, kind in enumerate(line):
                d.rect(x + cell * i, y + cell * j, cell, cell, fill=sky if kind == "s" else roof,
                       stroke="#FFFFFF", width=0.6)  # fmt: skip
        d.rect(x, y, 4 * cell, 4 * cell, width=1.6)

    def rgb(colour: str) -> list[int]:
        return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]

    apart = sum(((a - b) / 255) ** 2 for a, b in zip(rgb(sky), rgb(roof), strict=True))
    distances = {
        k: apart
        * sum(
            a != b
            for one, two in zip(shape, rows, strict=True)
            for a, b in zip(one, two, strict=True)
        )
        for k, rows in variants.items()
    }
    best = min(distances, key=distances.__getitem__)
    d.line((36 + 24 * column + 24, 78 + 24 * row), (288, 122), colour=GREY, width=1)
    d.line((36 + 24 * column + 24, 78 + 24 * row + 24), (288, 210), colour=GREY, width=1)
    pixels(shape, 288, 122, 22)
    d.text(332, 232, "one patch", bold=True)
    d.text(332, 253, "4 x 4 pixels x 3", size=14)
    d.text(332, 273, "= 48 numbers", size=14)
    d.arrow((382, 166), (424, 166))

    d.text(505, 84, "codebook", bold=True)
    ids = {0: 17, 1: 208, 2: 417, 3: 866}
    for i, (k, rows) in enumerate(variants.items()):
        y = 96 + 52 * i
        if k == best:
            d.rect(430, y - 4, 172, 52, fill=NEW, stroke=None)
        pixels(rows, 438, y, 11)
        d.text(494, y + 18, f"code {ids[k]}", size=14, anchor="start")
        d.text(494, y + 37, f"distance² {distances[k]:.2f}", size=14, anchor="start")
    d.note(509, 328, "K = 1024 codes")
    d.note(509, 348, "(four of them shown)")
    d.arrow((600, 166), (634, 166))

    d.grid(640, 78, 24, set(range(64)), side=8)
    d.token(640 + 24 * column - 8, 78 + 24 * row - 6, str(ids[best]), 40, fill=NEW, width=2)
    d.text(736, 294, "8 x 8 tokens", bold=True)
    d.note(736, 316, "64 integers, each 0..1023")
    d.footer(
        "A VQ tokenizer does the same with vectors: "
        "its encoder may look at more than the patch.",
    )  # fmt: skip
    return d


# --- lesson 02 ---------------------------------------------------------------------------------


def canvas_to_logits() -> Drawing:
    d = Drawing(
        600, "From the canvas to a probability for every code",
        """From top to bottom: a canvas of four positions with the class token before it; as ids; as
        vectors, the sum of a token and a position embedding; the transformer's layers; the last
        hidden states; the head, without the class position; logits over the K codes; softmax at a
        masked position, drawn as bars.""",
    )  # fmt: skip
    columns = [210 + 100 * i for i in range(5)]
    mask = CODES + CLASSES
    ids = [CODES + 3, 417, mask, 12, mask]

    def stage(y: float, name: str, shape: str) -> None:
        d.text(24, y, name, anchor="start")
        if shape:
            d.shape(836, y, shape, anchor="end")

    stage(84, "class + canvas", "(B), (B, N)")
    for i, x in enumerate(columns):
        if ids[i] == mask:
            d.mask(x - 20, 60, 40)
        else:
            d.token(x - 20, 60, "c" if not i else str(ids[i]), 40, fill=KNOWN if i else CLASS)
        d.arrow((x, 102), (x, 126))
    stage(146, "ids", "(B, N + 1)")
    d.text(columns[0], 146, f"{ids[0]} = K + c")
    for i, x in enumerate(columns[1:], 1):
        d.text(x, 146, f"{ids[i]}")
    d.text(columns[4] + 24, 146, "= K + C", anchor="start", size=14)
    d.note(24, 166, f"K = {CODES}, C = {CLASSES}, c = 3", anchor="start")
    for x in columns:
        d.arrow((x, 154), (x, 176))
    d.rect(160, 178, 500, 34, fill=PANEL)
    d.text(410, 200, "token embedding + position embedding, LayerNorm")
    stage(200, "vectors", "(B, N + 1, D)")
    for x in columns:
        d.arrow((x, 214), (x, 238))
    d.box(160, 240, 500, 56, "transformer layers", "every position looks at all N + 1 positions")
    stage(272, "L layers", "")
    for i, x in enumerate(columns):
        d.arrow((x, 298), (x, 322 if i else 318), colour=INK if i else GREY, dash=not i)
    d.note(columns[0], 334, "not used")
    d.box(260, 324, 400, 40, "head: Linear, GELU, LayerNorm, Linear")
    stage(320, "hidden states", "(B, N + 1, D)")
    stage(350, "head", "(B, N, D)")
    for x in columns[1:]:
        d.arrow((x, 366), (x, 388))
    stage(408, "logits", "(B, N, K)")
    for i, x in enumerate(columns[1:], 1):
        d.text(x, 408, "K numbers", size=14, colour=INK if ids[i] == mask else GREY)
    d.arrow((columns[2], 416), (columns[2], 446))
    d.text(columns[2] + 12, 438, "softmax", anchor="start")
    stage(490, "probabilities", "sum over K = 1")
    logits = [0.2, 1.9, -0.6, 0.9, 3.1, -0.2, 0.5, 1.2]
    p = softmax(logits)
    base, left = 556, columns[2] - 100
    for i, share in enumerate(p):
        d.rect(left + 25 * i, base - 130 * share, 19, 130 * share, fill=PLAIN, stroke=None)
    d.line((left - 8, base), (left + 206, base))
    d.text(columns[2], 578, "code 0, 1, 2, ... K − 1", size=14)
    best = max(p)
    d.text(
        left + 25 * p.index(best) + 30,
        base - 130 * best + 14,
        f"{best:.2f}: most likely code",
        anchor="start",
        size=14,
    )
    return d


def block() -> Drawing:
    d = Drawing(
        330, "One transformer layer (post-norm): mix positions, then transform each one",
        """From left to right: x goes through attention and is added to its result, then LayerNorm;
        the sum goes through the feed-forward network, two linear layers with a GELU between them,
        is added to its result, then LayerNorm. The shape stays (B, N + 1, D).""",
    )  # fmt: skip
    y = 180
    d.text(52, y - 14, "x", bold=True)
    d.line((32, y), (98, y))
    d.shape(58, y + 24, "(B, N + 1, D)")
    d.arrow((98, y), (128, y))
    d.box(130, y - 44, 150, 88, "attention", "positions look", "at each other")
    d.arrow((282, y), (310, y))
    d.plus(324, y)
    d.arrow((98, y), (98, 90), (324, 90), (324, y - 13))
    for x in (98, 486):
        d.circle(x, y, 3.5, fill=INK, stroke=None)
    d.note(211, 82, "as it is (residual)")
    d.arrow((338, y), (362, y))
    d.rect(364, y - 26, 96, 52, fill=PANEL)
    d.text(412, y + 5, "LayerNorm")
    d.line((462, y), (486, y))
    d.arrow((486, y), (514, y))
    d.box(
        516, y - 64, 130, 128, "feed-forward", "Linear D → 4 D", "GELU", "Linear 4 D → D", size=14
    )
    d.arrow((648, y), (672, y))
    d.plus(686, y)
    d.arrow((486, y), (486, 90), (686, 90), (686, y - 13))
    d.note(586, 82, "as it is (residual)")
    d.arrow((700, y), (716, y))
    d.rect(718, y - 26, 96, 52, fill=PANEL)
    d.text(766, y + 5, "LayerNorm")
    d.arrow((816, y), (846, y))
    d.shape(772, y + 62, "(B, N + 1, D)")
    d.note(205, y + 74, "4 matrices D x D")
    d.note(581, y + 86, "each position by itself")
    d.footer("The shape never changes, so layers can be stacked: 4 here, 24 in the paper.")
    return d


def attention() -> Drawing:
    d = Drawing(
        492, "Attention on three tokens: whom does [MASK] look at?",
        """Three positions: code A, [MASK] and code B. The query of [MASK] meets the keys of all
        three: scores, divided by the root of d; softmax makes weights of them; the output is the
        weighted sum of the values. All numbers are worked out for d = 2.""",
    )  # fmt: skip
    q, d_ = (2.0, 1.0), 2
    keys, values = [(2.0, 0.0), (0.0, 1.0), (1.0, 1.0)], [(1.0, 0.0), (0.0, 0.0), (0.0, 2.0)]
    dots = [a * q[0] + b * q[1] for a, b in keys]
    scores = [dot / math.sqrt(d_) for dot in dots]
    weights = softmax(scores)
    out = [sum(w * v[i] for w, v in zip(weights, values, strict=True)) for i in range(2)]
    assert round(sum(round(w, 2) for w in weights), 2) == 1

    def pair(v: Sequence[float], digits: int = 0) -> str:
        return "(" + ", ".join(signed(x, digits) for x in v) + ")"

    xs = (330, 530, 730)
    d.mask(60, 70, 40)
    d.text(112, 86, "asks:", anchor="start")
    d.text(112, 106, f"query q = {pair(q)}", anchor="start")
    for i, x in enumerate(xs):
        if i == 1:
            d.mask(x - 20, 70, 40)
        else:
            d.token(x - 20, 70, "AB"[i // 2], 40)
        d.arrow((x, 112), (x, 136))
    rows = [
        (156, "key k", [pair(k) for k in keys]),
        (206, "score  q · k", [signed(x, 0) for x in dots]),
        (256, "divided by √d = √2", [signed(x) for x in scores]),
        (306, "softmax: weight", [f"{w:.2f}" for w in weights]),
        (356, "value v", [pair(v) for v in values]),
    ]
    for y, name, cells in rows:
        d.text(40, y, name, anchor="start", bold="weight" in name)
        for x, cell in zip(xs, cells, strict=True):
            d.text(x, y, cell, bold="weight" in name)
    for x, weight in zip(xs, weights, strict=True):
        d.arrow((x, 164), (x, 188))
        d.arrow((x, 214), (x, 238))
        d.arrow((x, 264), (x, 288))
        d.rect(x + 30, 294, 70 * weight, 14, fill=PLAIN, stroke=None)
        d.line((x, 364), (x, 384), (530, 402), width=0.8 + 6 * weight, colour=PLAIN)
    d.arrow((530, 402), (530, 426), colour=PLAIN, width=2.4)
    terms = " + ".join(f"{w:.3f}·{pair(v)}" for w, v in zip(weights, values, strict=True))
    d.text(40, 412, "output", anchor="start", bold=True)
    d.text(40, 434, "weighted sum of values", anchor="start", size=14)
    d.text(530, 444, f"{terms} = {pair(out, 2)}", bold=False)
    d.footer("A layer does this for every position, and in several heads side by side.")
    return d


def families() -> Drawing:
    d = Drawing(
        480, "Three ways to generate an image",
        """Four snapshots of each of three families. Autoregressive: one token after the other, from
        left to right, one network pass each. Diffusion: all pixels at once, from noise to image,
        little by little. Masked: from a canvas of [MASK]s, several tokens anywhere in each pass,
        more and more of them.""",
    )  # fmt: skip
    chance = random.Random(3)
    order = list(range(16))
    chance.shuffle(order)
    masked_known = [round(16 * (1 - math.cos(math.pi * k / 6))) for k in range(4)]
    target = [[0.75 if j < 2 else 0.45 for i in range(4)] for j in range(4)]
    noise = [[chance.uniform(0, 1) for _ in range(4)] for _ in range(4)]
    cell, gap = 14, 11
    names = "autoregressive", "diffusion", "masked (this course)"
    facts = (
        ("one token after another", "sees: the tokens before it", "passes: N (here 16)"),
        (
            "everything, little by little",
            "sees: a noisy version of all",
            "passes: tens to hundreds",
        ),
        ("several tokens anywhere", "sees: any set of tokens", "passes: T, about 8 to 20"),
    )
    for column, name in enumerate(names):
        x = 24 + 276 * column
        if column == 2:
            d.rect(x - 8, 58, 272, 404, fill="#F4F8FB", stroke=None, round_=10)
        d.text(x + 128, 84, name, size=16, bold=True)
        for k in range(4):
            left, top = x + (56 + gap + 70) * (k % 2) + 22, 108 + 108 * (k // 2)
            if column == 0:
                d.grid(left, top, cell + 4, set(range((0, 3, 9, 16)[k])))
            elif column == 1:
                for j in range(4):
                    for i in range(4):
                        share = k / 3
                        grey = share * target[j][i] + (1 - share) * noise[j][i]
                        tone = f"{round(70 + 170 * grey):02X}" * 3
                        d.rect(left + 18 * i, top + 18 * j, 18, 18, fill=f"#{tone}", stroke=None)
                d.rect(left, top, 72, 72, width=1)
            else:
                d.grid(left, top, cell + 4, set(order[: masked_known[k]]))
            if k % 2 == 0:
                d.arrow((left + 80, top + 36), (left + 128, top + 36), colour=GREY)
        d.arrow((x + 200, 186), (x + 60, 210), colour=GREY)
        d.lines(x + 128, 336, *facts[column], size=15, step=30)
    d.note(162, 438, "needs an order, which")
    d.note(162, 456, "an image does not have")
    d.note(428, 438, "works on numbers that")
    d.note(428, 456, "can change a little")
    d.note(704, 438, "tokens of one pass do not")
    d.note(704, 456, "know of each other")
    return d


# --- lesson 03 ---------------------------------------------------------------------------------


def decoding_step() -> Drawing:
    n, steps, step, tau = 4, 4, 2, 2.0
    keep_masked = math.floor(n * math.cos(math.pi * step / steps / 2) + 1e-9)
    tau_k = tau * (1 - step / steps)
    d = Drawing(
        572, f"One decoding step with four tokens (step {step} of {steps})",
        f"""From top to bottom: a canvas with one known token and three [MASK]s; probabilities of
        the codes A, B, C; a token sampled at each masked position; its log-probability; plus Gumbel
        noise times the temperature; the score, infinite for the known token; the best are kept
        and {keep_masked} are masked again.""",
    )  # fmt: skip
    p = [None, (0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.3, 0.3, 0.4)]
    drawn = [None, 0, 1, 2]
    noise = [None, 0.9, -0.4, -0.1]
    log_p = [None if s is None else math.log(q[s]) for q, s in zip(p, drawn, strict=True)]  # type: ignore[index]
    score = [math.inf if g is None else x + tau_k * g for x, g in zip(log_p, noise, strict=True)]
    order = sorted(range(n), key=lambda i: -score[i])
    kept = set(order[: n - keep_masked])
    xs = [330, 460, 590, 720]

    def label(y: float, title: str, *more: str) -> None:
        d.text(30, y, title, anchor="start", bold=True)
        d.lines(30, y + 20, *more, size=14, anchor="start", colour=GREY)

    label(90, "canvas", "one known, three masked")
    label(162, "1. predict", "probabilities of A, B, C", "(plain or guided)")
    label(262, "2. sample", "a token for every masked position")
    label(338, "3. score", f"log p + τ_k · Gumbel noise,  τ_k = {tau_k:g}")
    label(424, "rank", "the known token never loses its place")
    label(496, "4. keep the best", f"⌊4 · cos(π/2 · {step}/{steps})⌋ = {keep_masked} stay masked")
    for i, x in enumerate(xs):
        d.text(x, 64, f"position {i + 1}", size=13, colour=GREY)
        if i == 0:
            d.token(x - 20, 72, "B", 40)
        else:
            d.mask(x - 20, 72, 40)
            for k, share in enumerate(p[i]):  # type: ignore[arg-type]
                y = 134 + 24 * k
                d.text(x - 34, y + 13, "ABC"[k], size=14)
                d.rect(x - 22, y, 60 * share, 16, fill=PLAIN, stroke=None)
                d.text(x - 16 + 60 * share, y + 13, f"{share:g}", size=14, anchor="start")
            d.arrow((x, 208), (x, 236))
            d.token(x - 20, 240, "ABC"[drawn[i]], 40, fill=PANEL)  # type: ignore[index]
            d.text(x, 312, f"log {p[i][drawn[i]]:g} = {signed(log_p[i])}", size=14)  # type: ignore[index,arg-type]
            sign = "+" if noise[i] >= 0 else "−"  # type: ignore[operator]
            d.text(x, 338, f"{sign} {tau_k:g} · {abs(noise[i]):g}", size=14)  # type: ignore[arg-type]
            d.line((x - 44, 348), (x + 44, 348), width=1)
        d.text(x, 370, f"{signed(score[i])}" if i else "∞", bold=True, size=16 if i else 22)
        d.text(x, 424, f"{order.index(i) + 1}.", bold=i in kept)
        if i in kept:
            d.token(
                x - 20, 468, "B" if i == 0 else "ABC"[drawn[i]], 40, fill=KNOWN if i == 0 else NEW
            )  # type: ignore[index]
        else:
            d.mask(x - 20, 468, 40)
        d.arrow((x, 434), (x, 464))
    surest = max((i for i in range(1, n)), key=lambda i: log_p[i])  # type: ignore[arg-type,return-value]
    assert surest == 2 and 1 in kept  # the sentence below
    d.footer(
        "The noise let position 2 overtake position 3. "
        "At temperature 0 the most confident token always wins.",
    )  # fmt: skip
    return d


def cosine_schedule() -> Drawing:
    steps, n = 8, 64
    masked = [
        n,
        *(math.floor(n * math.cos(math.pi * k / steps / 2) + 1e-9) for k in range(1, steps)),
        0,
    ]
    new = [a - b for a, b in zip(masked, masked[1:], strict=False)]
    d = Drawing(
        400, f"The cosine schedule: {steps} steps fill {n} tokens, few at first, many at the end",
        f"Nine canvases of 8 x 8 positions, before the first and after each of {steps} steps. "
        "Masked: "
        + ", ".join(map(str, masked)) + ". Newly known in each step: " + ", ".join(map(str, new))
        + ". Below, the curve cos(pi/2 k/T), which stays high for long and then falls.",
    )  # fmt: skip
    order = list(range(n))
    random.Random(1).shuffle(order)
    cell = 9
    xs = [34 + 90.0 * k for k in range(steps + 1)]
    for k, x in enumerate(xs):
        known = set(order[: n - masked[k]])
        before = set(order[: n - masked[k - 1]]) if k else set()
        d.grid(x, 92, cell, before, side=8, new=known - before)
        d.text(x + 36, 82, "start" if k == 0 else f"k = {k}", size=14)
        if k:
            d.text(x + 36, 184, f"+{new[k - 1]}", size=15, bold=True)
    d.text(34, 184, "newly known", size=14, anchor="start")
    base, high = 344, 120
    curve = [
        (xs[0] + 36 + 90 * steps * t / 60, base - high * math.cos(math.pi / 2 * t / 60))
        for t in range(61)
    ]
    d.line(*curve, colour=PLAIN, width=2.4)
    d.line((xs[0] + 36, base), (xs[-1] + 36, base), colour=GREY)
    for k, x in enumerate(xs):
        y = base - high * math.cos(math.pi / 2 * k / steps)
        d.circle(x + 36, y, 5, fill=PLAIN, stroke=None)
        d.text(x + 36, y + 24 if k < 7 else y - 12, str(masked[k]), size=15)
    d.text(96, base - 30, "masked after step k = ⌊64 · cos(π/2 · k/T)⌋", anchor="start")
    d.footer(
        "The first tokens decide about all others, so they are few; "
        "the last ones have little left to disagree about."
    )
    return d


def gumbel_race() -> Drawing:
    p, names = (0.7, 0.2, 0.1), "ABC"
    exponential = (1.2, 0.2, 0.5)
    times = [e / q for e, q in zip(exponential, p, strict=True)]
    gumbel = [-math.log(e) for e in exponential]
    sums = [math.log(q) + g for q, g in zip(p, gumbel, strict=True)]
    first = min(range(3), key=times.__getitem__)
    assert first == max(range(3), key=sums.__getitem__)
    chance, won = random.Random(0), [0, 0, 0]
    for _ in range(10_000):
        race = [-math.log(1 - chance.random()) / q for q in p]
        won[race.index(min(race))] += 1
    d = Drawing(
        460, "Two ways to sample a code from p, and they always agree",
        f"""Codes A, B, C have the probabilities 0.7, 0.2, 0.1. Left, the exponential race: each
        code needs the time E / p, the first one wins. Right, Gumbel-max: log p plus Gumbel
        noise g = -log E, the largest wins. With the same E both choose B. In 10,000 races the
        codes win {won[0]}, {won[1]} and {won[2]} times.""",
    )  # fmt: skip
    d.text(222, 76, "exponential race", size=16, bold=True)
    d.text(222, 98, "noise E, time = E / p, first one wins")
    d.text(640, 76, "Gumbel-max", size=16, bold=True)
    d.text(640, 98, "log p + g,  g = −log E, largest wins")
    scale, zero = 36.0, 826.0
    for i in range(3):
        y, chosen = 122 + 62 * i, i == first
        for x in (30, 444):
            d.token(x, y, names[i], 36, fill=NEW if chosen else KNOWN)
        d.text(78, y + 15, f"p = {p[i]:g}", size=14, anchor="start")
        d.text(78, y + 34, f"E = {exponential[i]:g}", size=14, anchor="start")
        d.line((152, y + 10), (152 + scale * times[i], y + 10), colour=PLAIN, width=9)
        said = f"{exponential[i]:g} / {p[i]:g} = {times[i]:.2f}"
        d.text(160, y + 36, said, size=14, anchor="start", bold=chosen)
        plus = f"+ {signed(gumbel[i])}" if gumbel[i] >= 0 else f"− {signed(-gumbel[i])}"
        said = f"{signed(math.log(p[i]))} {plus} = {signed(sums[i])}"
        d.text(494, y + 24, said, anchor="start", bold=chosen)
        d.line((zero - 110, y + 18), (zero, y + 18), colour=FAINT)
        d.circle(zero + 60 * sums[i], y + 18, 7, fill=PLAIN, stroke=None)
    d.line((152, 116), (152, 300), colour=GREY)
    d.arrow((152, 312), (340, 312), colour=GREY)
    d.note(352, 317, "time", anchor="start")
    d.arrow((zero - 110, 312), (zero, 312), colour=GREY)
    d.note(zero - 118, 317, "larger", anchor="end")
    d.line((24, 338), (836, 338), colour=FAINT)
    d.text(30, 364, "10,000 races, new E for each: how often does each code win?", anchor="start")
    left = 30.0
    for name, count in zip(names, won, strict=True):
        wide = 800 * count / 10_000
        d.rect(left, 378, wide, 34, fill=CLASS)
        d.text(left + wide / 2, 400, f"{name}: {count:,}" if wide > 70 else name)
        left += wide
    d.footer(
        f"A {won[0] / 1e4:.3f}, B {won[1] / 1e4:.3f}, C {won[2] / 1e4:.3f}: "
        f"near p = {p[0]:g}, {p[1]:g}, {p[2]:g}"
    )
    return d


# --- lesson 04 ---------------------------------------------------------------------------------


def guidance_line() -> Drawing:
    s = 1
    plain, smooth = (2.0, 1.0, 0.0), (1.0, 1.4, 0.4)
    guided = tuple(b + (1 + s) * (a - b) for a, b in zip(plain, smooth, strict=True))
    d = Drawing(
        450, "Guidance: from smoothed to plain, and on in the same direction",
        """A straight line in the plane of two logits. The smoothed prediction lies at s = -1, the
        plain one at s = 0, the guided one at s = 1: the step from smoothed to plain, made once
        more. Beside it the three logits of each prediction, and the probabilities as bars: the
        code that smoothing has lowered is raised by guidance.""",
    )  # fmt: skip
    d.text(430, 66, "guided = smoothed + (1 + s) · (plain − smoothed)", size=17)
    left, bottom, unit = 64, 392, 92

    def at(logits: Sequence[float]) -> Point:
        return left + unit * (logits[0] + 0.4), bottom - 170 * (logits[1] - 0.2)

    d.arrow((left, bottom), (left + 4 * unit, bottom), colour=GREY)
    d.arrow((left, bottom), (left, 108), colour=GREY)
    d.note(left + 2 * unit, bottom + 28, "logit of code A")
    d.note(left + 8, 116, "logit of code B", anchor="start")
    a, b, c = at(smooth), at(plain), at(guided)
    d.line(
        *(at([x + t * (y - x) for x, y in zip(smooth, plain, strict=True)]) for t in (-0.3, 2.3)),
        colour=FAINT,
        width=2,
    )
    for start, end, colour in ((a, b, PLAIN), (b, c, GUIDED)):
        ends = [tuple(p + t * (q - p) for p, q in zip(start, end, strict=True)) for t in (0.1, 0.9)]
        d.arrow(*ends, colour=colour, width=2.6)  # type: ignore[arg-type]
    for (x0, y0), (x1, y1), said in ((a, b, "plain − smoothed"), (b, c, "s times that")):
        d.note((x0 + x1) / 2 + 16, (y0 + y1) / 2 - 12, said, anchor="start")
    for (x, y), name, colour, scale in (
        (a, "smoothed", SMOOTHED, -1), (b, "plain", PLAIN, 0), (c, "guided", GUIDED, s),
    ):  # fmt: skip
        d.circle(x, y, 9, fill=colour, stroke=None)
        d.text(x - 16, y + 5, name, colour=colour, bold=True, anchor="end")
        d.text(x - 16, y + 26, f"s = {signed(scale, 0)}", anchor="end")
    d.note(470, 116, "logits of A, B, C", anchor="start")
    d.note(662, 116, "probabilities", anchor="start")
    for i, (logits, name, colour) in enumerate(
        ((smooth, "smoothed", SMOOTHED), (plain, "plain", PLAIN), (guided, "guided", GUIDED))
    ):
        y = 134 + 94 * i
        d.text(470, y + 28, name, anchor="start", colour=colour, bold=True)
        d.text(470, y + 52, ",  ".join(signed(x, 1) for x in logits), anchor="start")
        for k, p in enumerate(softmax(logits)):
            d.text(646, y + 15 + 25 * k, "ABC"[k], size=14)
            d.rect(662, y + 25 * k, 120 * p, 19, fill=colour, stroke=None)
            d.text(670 + 120 * p, y + 15 + 25 * k, f"{p:.2f}", size=14, anchor="start")
    d.text(
        470,
        428,
        "A is lower in smoothed than in plain: guidance raises it.",
        size=13,
        anchor="start",
    )
    return d


def cfg() -> Drawing:
    d = Drawing(
        420, "Classifier-free guidance: the same network, with and without the class",
        """Two sequences: the canvas with its class token, and the same canvas with [MASK] in the
        place of the class. One frozen transformer takes both in one batch. The prediction with
        the class is the plain one; the prediction without it plays the smoothed one's part.
        Guidance goes from the second to the first and on.""",
    )  # fmt: skip
    for y, label, fill in ((104, "c", CLASS), (212, None, None)):
        if label:
            d.token(36, y, label, 38, fill=str(fill))
        else:
            d.mask(36, y, 38)
        d.row(80, y, ["12", None, "7", None], 38)
        d.arrow((262, y + 19), (312, y + 19))
    d.text(36, 92, "with the class", anchor="start", bold=True)
    d.text(36, 200, "without the class", anchor="start", bold=True)
    d.note(36, 274, "the same canvas, [MASK] for c", anchor="start")
    d.box(314, 84, 150, 186, "transformer", "one batch", "of 2 B rows", frozen=True)
    d.shape(389, 292, "(2 B, N + 1) → (2 B, N, K)")
    d.arrow((466, 123), (618, 123), (618, 156), colour=PLAIN, width=2.6)
    d.text(536, 114, "plain", colour=PLAIN, bold=True)
    d.shape(536, 144, "(B, N, K)")
    d.arrow((466, 231), (618, 231), (618, 208), colour=SMOOTHED, width=2.6)
    d.text(536, 222, "no class", colour=SMOOTHED, bold=True)
    d.shape(536, 252, "(B, N, K)")
    d.rect(558, 158, 120, 48, fill=PANEL, stroke=GUIDED, width=2.4)
    d.text(618, 187, "guidance", bold=True)
    d.arrow((680, 182), (772, 182), colour=GUIDED, width=2.6)
    d.text(724, 172, "guided", colour=GUIDED, bold=True)
    d.shape(806, 187, "(B, N, K)")
    d.line((24, 310), (836, 310), colour=FAINT)
    d.text(430, 340, "guided = no class + (1 + s) · (plain − no class)", size=16)
    d.text(
        430,
        372,
        "in probabilities: p(x | c) · p(c | x)^s, up to a constant: "
        "what shows the class gets likelier",
        size=14,
    )
    d.footer("Training prepares it: in one example of ten the class token is [MASK].")
    return d


# --- lessons 04 and 05 ---------------------------------------------------------------------------


def corruption() -> Drawing:
    truth, masked, wrong = "ABCDEFGHABCD", {1, 5, 6, 8}, {4: "H", 7: "B"}  # lesson 05's example
    visible = len(truth) - len(masked)
    d = Drawing(
        470, "The corruption task: find the truth among wrong tokens",
        f"""Twelve tokens in rows. First the truth; then {len(masked)} of them masked; then
        {len(wrong)} of the {visible} visible ones replaced by wrong ones, which is what the
        smoother sees. The question in the released code and in this course: what stood at the
        replaced positions? In the paper's equation 7: what stood at the masked positions?""",
    )  # fmt: skip
    left, side, pitch = 268, 36, 46

    def row(
        y: float, cells: Sequence[str | None], fills: dict[int, str], names: Sequence[str]
    ) -> None:
        d.text(28, y + 15, names[0], anchor="start", bold=True)
        d.lines(28, y + 35, *names[1:], size=14, anchor="start", colour=GREY)
        for i, cell in enumerate(cells):
            x = left + pitch * i
            if cell is None:
                d.mask(x, y, side)
            elif cell:
                d.token(
                    x, y, cell, side, fill=fills.get(i, KNOWN), width=2.4 if i in fills else 1.4
                )
            else:
                d.circle(x + side / 2, y + side / 2, 2.5, fill=FAINT, stroke=None)

    seen = [None if i in masked else wrong.get(i, t) for i, t in enumerate(truth)]
    row(66, list(truth), {}, ("truth x_0", "tokens of a real image"))
    row(
        140,
        [None if i in masked else t for i, t in enumerate(truth)],
        {},
        ("masked x_t", f"{len(masked)} of {len(truth)} tokens"),
    )
    row(
        214,
        seen,
        dict.fromkeys(wrong, WRONG),
        ("corrupted z_t", f"{len(wrong)} of {visible} visible: wrong", "(nobody says which)"),
    )
    d.arrow((541, 258), (541, 284))
    d.box(466, 286, 150, 36, "smoother")
    d.arrow((541, 324), (541, 346))
    d.text(640, 309, "must say what stood there:", size=14, anchor="start")
    row(350, [t if i in wrong else "" for i, t in enumerate(truth)], dict.fromkeys(wrong, WRONG),
        ("at the wrong tokens", "released code, this course"))  # fmt: skip
    row(410, [t if i in masked else "" for i, t in enumerate(truth)], {},
        ("or at the masked ones", "paper, equation 7"))  # fmt: skip
    for changed, y in ((masked, 104), (wrong, 178)):
        for i in changed:
            x = left + pitch * i + side / 2
            d.arrow((x, y), (x, y + 34), colour=GREY, width=1.2)
    return d


# --- lesson 05 ---------------------------------------------------------------------------------


def toast() -> Drawing:
    d = Drawing(
        700, "TOAST: look, keep what fits the class, look again at a blank canvas",
        """Left, pass 1: class and canvas go up through the frozen layers 1 to 3; the head makes the
        plain prediction of the last hidden states. Middle: each hidden state is multiplied by its
        cosine with the class anchor and by a matrix P; then matrices A_3, A_2, A_1 lead down, and
        from each a matrix B_l makes the signal of layer l. Right, pass 2: a canvas of [MASK]s
        only goes up through the same frozen layers; the signals are added to the values of their
        attention; the head makes the smoothed prediction.""",
    )  # fmt: skip
    left, middle, right = 134, 430, 726
    d.text(left, 70, "pass 1", size=16, bold=True)
    d.text(middle, 70, "top-down (trained)", size=16, bold=True)
    d.text(right, 70, "pass 2", size=16, bold=True)
    for x, cells, colour, name in (
        (left, ["c", "12", None, "7"], PLAIN, "plain"), (right, [None] * 4, SMOOTHED, "smoothed"),
    ):  # fmt: skip
        d.row(x - 72, 586, cells, 32, 5, [CLASS, KNOWN, KNOWN, KNOWN])
        d.arrow((x, 582), (x, 554))
        for layer, y in ((1, 512), (2, 432), (3, 352)):
            d.box(x - 70, y, 140, 40, f"layer {layer}", frozen=True)
        d.arrow((x, 510), (x, 474))
        d.arrow((x, 430), (x, 394))
        d.arrow((x, 350), (x, 186))
        d.box(x - 70, 144, 140, 40, "head", frozen=True)
        d.arrow((x, 142), (x, 114), colour=colour, width=2.6)
        d.text(x - 8, 104, name, colour=colour, bold=True, anchor="end")
        d.shape(x, 104, "(B, N, K)", anchor="start")
    d.text(left, 640, "class and canvas", size=14)
    d.text(right, 640, "blank canvas, no class", size=14)

    d.lines(left - 10, 246, "hidden", "states x", size=14, anchor="end")
    d.arrow((left, 262), (300, 262))
    d.circle(left, 262, 3.5, fill=INK, stroke=None)
    d.shape(218, 252, "(B, N + 1, D)")
    d.token(330, 92, "c", 32, fill=CLASS)
    d.arrow((364, 108), (396, 108))
    d.box(398, 88, 152, 40, "anchor ξ_c")
    d.arrow((474, 130), (474, 198))
    d.shape(486, 168, "(B, 1, D)", anchor="start")
    d.rect(302, 200, 256, 122, fill=NETWORK, width=2, round_=11)
    d.text(430, 228, "selection", bold=True)
    d.text(430, 254, "x · clamp(cos(x, ξ_c), 0, 1)")
    d.note(430, 274, "which tokens count")
    d.text(430, 308, "then x P: which channels count", size=15)
    d.arrow((352, 324), (352, 350))
    for layer, y in ((3, 352), (2, 432), (1, 512)):
        d.box(322, y, 60, 40, f"A_{layer}")
        d.arrow((384, y + 20), (438, y + 20))
        d.box(440, y, 60, 40, f"B_{layer}")
        d.arrow((502, y + 20), (654, y + 20), width=2.4)
        d.text(576, y + 12, f"signal td_{layer}")
        if layer > 1:
            d.arrow((352, y + 42), (352, y + 78))
    d.note(578, 394, "joins the values")
    d.text(430, 600, "in layer l of pass 2:")
    d.text(430, 624, "values = W_v(h) + W_v(td_l)", bold=True)
    d.footer(
        "A lock: frozen, the same weights in both passes. "
        "Without a lock: the adapter, which is trained."
    )
    return d


def lora() -> Drawing:
    scale = 2  # alpha / r of this course's adapters
    d = Drawing(
        406, "LoRA: a narrow detour around a frozen matrix",
        f"""A vector x of D numbers goes two ways. Above, through the frozen matrix W, D x D. Below,
        through A, which leaves r numbers, and B, which makes D numbers of them again, times alpha
        over r. Both results are added. With the adapter on the prediction is smoothed, with the
        adapter off it is plain. For D = {HIDDEN} and r = {RANK} the detour has {2 * RANK *
        HIDDEN:,} weights, W has {HIDDEN**2:,}.""",
    )  # fmt: skip
    d.text(430, 68, "y = W x + (α / r) · B A x", size=17)
    x0, y0 = 70, 190
    d.rect(x0 - 9, y0 - 54, 18, 108, fill=KNOWN)
    d.text(x0, y0 - 66, "x", bold=True)
    d.note(x0, y0 + 76, "D numbers")
    d.line((x0 + 11, y0), (140, y0))
    d.arrow((140, y0), (140, 130), (296, 130))
    d.circle(140, y0, 3.5, fill=INK, stroke=None)
    d.box(298, 94, 190, 72, "W", "D x D", frozen=True)
    d.arrow((490, 130), (676, 130), (676, y0 - 14))
    d.arrow((140, y0), (140, 256), (198, 256))
    for points in (
        ((200, 206), (300, 246), (300, 266), (200, 306)),
        ((388, 246), (488, 206), (488, 306), (388, 266)),
    ):
        d.polygon(*points, fill=NETWORK, stroke=INK)
    d.text(244, 261, "A", bold=True)
    d.text(444, 261, "B", bold=True)
    d.note(244, 326, "r x D")
    d.note(444, 326, "D x r")
    d.arrow((302, 256), (332, 256))
    d.rect(335, 248, 18, 16, fill=KNOWN)
    d.arrow((356, 256), (386, 256))
    d.text(344, 290, f"r = {RANK}", size=14)
    d.note(344, 308, "numbers")
    d.arrow((490, 256), (528, 256))
    d.plus(542, 256, "x")
    d.text(542, 292, f"α / r = {scale}", size=14)
    # the switch
    d.line((556, 256), (600, 256))
    d.circle(602, 256, 4, fill=INK, stroke=None)
    d.line((602, 256), (634, 238), width=2.4)
    d.circle(640, 256, 4, fill=INK, stroke=None)
    d.arrow((642, 256), (676, 256), (676, y0 + 14))
    d.plus(676, y0)
    d.arrow((690, y0), (742, y0))
    d.rect(746, y0 - 54, 18, 108, fill=KNOWN)
    d.text(755, y0 - 66, "y", bold=True)
    d.text(622, 292, "switch", size=14)
    d.text(700, 292, "on: smoothed", anchor="start", colour=SMOOTHED, bold=True)
    d.text(700, 316, "off: plain", anchor="start", colour=PLAIN, bold=True)
    share = 2 * RANK * HIDDEN / HIDDEN**2
    d.footer(
        f"D = {HIDDEN}: W has {HIDDEN**2:,} weights, frozen; "
        f"A and B have {2 * RANK * HIDDEN:,} together, {share:.0%} of that.",
        "Here W is a projection of an attention layer. "
        "B starts at zero: a fresh adapter changes nothing.",
    )
    return d


# --- lesson 06 ---------------------------------------------------------------------------------


def timeline() -> Drawing:
    record = json.loads(
        (ROOT / "data" / "results" / "benchmark-cpu.json").read_text(encoding="utf-8")
    )
    batch, steps = record["batches"][-1]["batch"], record["steps"]
    first, second, sampling, decoder = (
        1000 * seconds * batch for seconds in record["split_seconds_per_image"].values()
    )  # milliseconds for a batch
    first, second, sampling = (part / steps for part in (first, second, sampling))
    way = record["ways"][-1].removeprefix("fast ")
    d = Drawing(
        424, "Where the time of one step goes: pass 2 has to wait for pass 1",
        f"""Bars on one time axis, for a step of {batch} images. Plain: pass 1 {first:.0f} ms and
        sampling {sampling:.0f} ms. Classifier-free: one pass of twice the rows, about twice pass
        1, and sampling. Self-guidance with TOAST: pass 1 {first:.0f} ms, then pass 2 {second:.0f}
        ms, which waits for the hidden states of pass 1, then sampling.""",
    )  # fmt: skip
    left, scale = 176, 620 / (first + second + sampling)
    rows = (
        ("plain", [(first, "pass 1", PLAIN), (sampling, "", GREY)]),
        ("classifier-free", [(2 * first, "one pass of 2 B rows", PLAIN), (sampling, "", GREY)]),
        (
            "self, TOAST",
            [(first, "pass 1", PLAIN), (second, "pass 2", SMOOTHED), (sampling, "", GREY)],
        ),
    )
    for i, (name, parts) in enumerate(rows):
        y, x = 78 + 74 * i, float(left)
        d.text(left - 14, y + 27, name, anchor="end", bold=True)
        for milliseconds, label, colour in parts:
            wide, guess = scale * milliseconds, name == "classifier-free"
            d.rect(
                x,
                y,
                wide,
                42,
                fill=colour if not guess else PANEL,
                stroke=colour if guess else PANEL,
                width=2 if guess else 1.4,
                dash=guess,
            )
            if label:
                time = f"about 2 · {first:.0f}" if guess else f"{milliseconds:.0f}"
                d.text(
                    x + wide / 2,
                    y + 27,
                    f"{label}: {time} ms",
                    colour=INK if guess else PANEL,
                    bold=not guess,
                )
            x += wide
        if i == 0:
            d.arrow((x + 60, y + 21), (x + 4, y + 21), colour=GREY)
            d.text(x + 68, y + 26, f"sampling: {sampling:.0f} ms", anchor="start", size=14)
    wait = left + scale * first
    d.line((wait, 272), (wait, 292), colour=GREY)
    d.text(wait, 308, "pass 2 waits here for the hidden states of pass 1", size=14)
    axis = 330
    d.arrow((left, axis), (836, axis), colour=GREY)
    for t in range(0, int(first + second + sampling) + 1, 20):
        d.line((left + scale * t, axis - 4), (left + scale * t, axis + 4), colour=GREY)
        d.note(left + scale * t, axis + 20, f"{t} ms" if not t else f"{t}")
    d.footer(
        f"Measured: {record['size']} size, {batch} images at once, {way}, {record['device']}; "
        "dashed: computed from pass 1.",
        f"The tokenizer's decoder runs once, after the last of {steps} steps: {decoder:.0f} ms.",
    )
    return d


def graph() -> Drawing:
    kernels, launch, run = 6, 10, 4  # microseconds, made up
    work, eager, one = kernels * run, kernels * launch + run, launch + kernels * run
    d = Drawing(
        432, "Eager launches against a CUDA graph",
        f"""Two timelines, each with a lane for Python and one for the GPU. Eager: Python launches
        {kernels} kernels one by one; each launch takes longer than its kernel, and the GPU waits
        between them. CUDA graph: the same kernels were recorded before; one launch, then they run
        back to back. {eager} against {one} microseconds in this made-up example.""",
    )  # fmt: skip
    left, scale = 150, 10.6
    for top, name, total in ((70, "eager", eager), (206, "CUDA graph", one)):
        d.text(28, top + 18, name, anchor="start", bold=True, size=16)
        for lane, y in (("Python", top + 32), ("GPU", top + 78)):
            d.text(left - 12, y + 23, lane, anchor="end", size=14)
            d.rect(left, y, scale * eager, 34, fill="#F6F8FA", stroke=None)
        for k in range(kernels):
            if name == "eager":
                d.rect(
                    left + scale * launch * k,
                    top + 32,
                    scale * launch,
                    34,
                    fill=FAINT,
                    stroke=PANEL,
                )
                d.text(left + scale * launch * (k + 0.5), top + 54, "launch", size=14)
                start = launch * (k + 1)
                if k:
                    x0, x1 = left + scale * (start - launch + run), left + scale * start
                    d.text((x0 + x1) / 2, top + 100, "idle", size=13, colour=GREY)
            else:
                start = launch + run * k
            d.rect(left + scale * start, top + 78, scale * run, 34, fill=INK, stroke=PANEL, width=2)
        if name != "eager":
            d.rect(left, top + 32, scale * launch, 34, fill=FAINT, stroke=PANEL)
            d.text(left + scale * launch / 2, top + 54, "launch", size=14)
            d.text(
                left + scale * total + 14,
                top + 100,
                f"done after {total} µs; then the next step",
                size=14,
                anchor="start",
            )
    d.line((left + scale * one, 322), (left + scale * one, 350), colour=GREY)
    d.line((left + scale * eager, 184), (left + scale * eager, 350), colour=GREY)
    d.arrow((left, 346), (left + scale * eager + 14, 346), colour=GREY)
    d.note(left, 366, "0")
    d.note(left + scale * one, 366, f"{one} µs")
    d.note(left + scale * eager - 8, 366, f"{eager} µs")
    d.footer(
        f"Made-up times: a launch {launch} µs, a kernel {run} µs. "
        f"The GPU works {work} of {eager} µs eagerly, {work} of {one} µs with a graph.",
        "Where kernels take longer than launches, the GPU is never idle, and a graph gains little.",
    )
    return d


# --- lesson 07 ---------------------------------------------------------------------------------


def frechet() -> Drawing:
    real, fake = ((1.6, 1.4), (0.9, 0.5)), ((4.0, 2.2), (0.5, 0.8))  # (mean, deviations)
    moved = [(b - a) ** 2 for a, b in zip(real[0], fake[0], strict=True)]
    spread = [(b - a) ** 2 for a, b in zip(real[1], fake[1], strict=True)]
    total = sum(moved) + sum(spread)
    d = Drawing(
        440, "The Fréchet distance compares two clouds by mean and covariance",
        f"""Two clouds of points, features of real and of generated images. Each is described by an
        ellipse: its mean and its spread in each direction. The distance adds the squared distance
        of the means, {sum(moved):.2f}, and what the spreads differ in, {sum(spread):.2f}:
        together {total:.2f}.""",
    )  # fmt: skip
    left, bottom, unit = 48, 376, 76
    chance = random.Random(7)

    def at(x: float, y: float) -> Point:
        return left + unit * x, bottom - unit * y

    d.arrow((left, bottom), (left + 5.7 * unit, bottom), colour=GREY)
    d.arrow((left, bottom), (left, 62), colour=GREY)
    d.note(left + 2.8 * unit, bottom + 24, "feature 1")
    d.note(left + 8, 76, "feature 2", anchor="start")
    for (mean, deviation), colour in ((real, INK), (fake, PLAIN)):
        for _ in range(60):
            r, turn = math.sqrt(-2 * math.log(1 - chance.random())), 2 * math.pi * chance.random()
            if r > 2:  # no stragglers beyond the axes
                continue
            x = mean[0] + deviation[0] * r * math.cos(turn)
            y = mean[1] + deviation[1] * r * math.sin(turn)
            px, py = at(x, y)
            d.circle(px, py, 3.2, fill=PANEL if colour == INK else colour, stroke=colour, width=1)
        cx, cy = at(*mean)
        d.add("ellipse", cx=cx, cy=cy, rx=unit * deviation[0] * 1.5, ry=unit * deviation[1] * 1.5,
              fill="none", stroke=colour, stroke_width=2.4)  # fmt: skip
    d.arrow(at(*real[0]), at(*fake[0]), width=3)
    for mean, colour in ((real[0], INK), (fake[0], PLAIN)):
        d.circle(*at(*mean), 6, fill=colour, stroke=PANEL)
    d.text(at(*real[0])[0], 362, "real (A)", bold=True)
    d.text(at(*fake[0])[0], 362, "generated (B)", bold=True, colour=PLAIN)

    def pair(v: Sequence[float]) -> str:
        return f"({v[0]:g}, {v[1]:g})"

    d.text(510, 84, "|μ_A − μ_B|² + tr(A + B − 2 (A B)^{1/2})", size=15, anchor="start", bold=True)
    d.text(510, 122, "means", anchor="start", bold=True)
    d.text(510, 146, f"μ_A = {pair(real[0])},  μ_B = {pair(fake[0])}", anchor="start", size=14)
    d.text(510, 172, f"{moved[0]:.2f} + {moved[1]:.2f} = {sum(moved):.2f}", anchor="start")
    d.text(510, 212, "spreads", anchor="start", bold=True)
    d.text(510, 236, f"σ_A = {pair(real[1])},  σ_B = {pair(fake[1])}", anchor="start", size=14)
    d.note(510, 260, "here without correlation, so the", anchor="start")
    d.note(510, 280, "trace is the sum of (σ_A − σ_B)²:", anchor="start")
    d.text(510, 306, f"{spread[0]:.2f} + {spread[1]:.2f} = {sum(spread):.2f}", anchor="start")
    d.text(510, 348, f"Fréchet distance = {total:.2f}", anchor="start", bold=True, size=16)
    d.footer(
        "It sees nothing else of the clouds: "
        "a ring with the same mean and covariance has distance 0."
    )
    return d


def precision_recall() -> Drawing:
    k = 1
    real = [
        (0.5, 1.0),
        (1.0, 1.5),
        (1.25, 0.9),
        (1.7, 1.1),
        (1.5, 2.15),
        (2.5, 2.6),
        (2.9, 2.2),
        (3.2, 2.9),
    ]
    fake = [(1.05, 1.15), (1.45, 1.25), (1.65, 1.6), (1.25, 1.65), (3.5, 0.75), (3.1, 0.5)]

    def radii(points: Sequence[Point]) -> list[float]:
        return [
            sorted(math.dist(a, b) for b in points)[k] for a in points
        ]  # [0] is the point itself

    def inside(points: Sequence[Point], centres: Sequence[Point]) -> list[bool]:
        balls = list(zip(centres, radii(centres), strict=True))
        return [any(math.dist(p, c) <= r for c, r in balls) for p in points]

    precise, recalled = inside(fake, real), inside(real, fake)
    d = Drawing(
        506, "Precision: do samples look real?  Recall: is everything real covered?",
        f"""The same points twice: {len(real)} real ones, hollow squares, and {len(fake)} generated
        ones, dots. Left, a ball around each real point, to its nearest real neighbour:
        {sum(precise)} of {len(fake)} generated points lie in one, precision {sum(precise) /
        len(fake):.2f}. Right, a ball around each generated point: {sum(recalled)} of {len(real)}
        real points lie in one, recall {sum(recalled) / len(real):.2f}.""",
    )  # fmt: skip
    unit, bottom = 84, 408
    for left, centres, hits, name, what in (
        (48, real, precise, "precision", "generated points in a real ball"),
        (468, fake, recalled, "recall", "real points in a generated ball"),
    ):
        colour = INK if centres is real else PLAIN
        for (x, y), r in zip(centres, radii(centres), strict=True):
            d.circle(
                left + unit * x,
                bottom - unit * y,
                unit * r,
                fill=colour,
                stroke=colour,
                width=1,
                opacity=0.08,
            )
        for points, is_real in ((real, True), (fake, False)):
            judged = points is not centres
            for i, (x, y) in enumerate(points):
                px, py = left + unit * x, bottom - unit * y
                if is_real:
                    d.rect(px - 6, py - 6, 12, 12, fill=PANEL, stroke=INK, width=2)
                else:
                    d.circle(px, py, 6.5, fill=PLAIN, stroke=None)
                if judged and not hits[i]:
                    d.cross(px, py)
        d.text(
            left + 166,
            76,
            f"{name} = {sum(hits)} / {len(hits)} = {sum(hits) / len(hits):.2f}",
            size=16,
            bold=True,
        )
        d.text(left + 166, 438, what, size=15)
    d.line((430, 62), (430, 446), colour=FAINT)
    d.rect(196, 454, 12, 12, fill=PANEL, width=2)
    d.text(216, 465, "real", anchor="start", size=14)
    d.circle(286, 460, 6.5, fill=PLAIN, stroke=None)
    d.text(300, 465, "generated", anchor="start", size=14)
    d.cross(408, 460)
    d.text(426, 465, "in no ball", anchor="start", size=14)
    d.text(536, 465, "ball: to the nearest neighbour", anchor="start", size=14)
    d.footer("The library takes the third nearest (k = 3), in the space of features.")
    return d


DIAGRAMS: dict[str, Callable[[], Drawing]] = {
    "system": system,
    "vq": vq,
    "autoencoder": autoencoder,
    "patches": patches,
    "canvas-to-logits": canvas_to_logits,
    "block": block,
    "attention": attention,
    "families": families,
    "decoding-step": decoding_step,
    "cosine-schedule": cosine_schedule,
    "gumbel-race": gumbel_race,
    "guidance-line": guidance_line,
    "cfg": cfg,
    "corruption": corruption,
    "toast": toast,
    "lora": lora,
    "timeline": timeline,
    "graph": graph,
    "frechet": frechet,
    "precision-recall": precision_recall,
}


def main(arguments: Sequence[str]) -> int:
    check, stale = "--check" in arguments, []
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in DIAGRAMS.items():
        path, svg = FOLDER / f"{name}.svg", draw().svg()
        if not path.is_file() or path.read_text(encoding="utf-8") != svg:
            stale.append(name)
            if not check:
                path.write_text(svg, encoding="utf-8")
    if stale:
        print("to be written:" if check else "written:", ", ".join(stale))
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
