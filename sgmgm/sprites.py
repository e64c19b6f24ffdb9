"""Sprites: ten classes of 32 x 32 pictograms, rendered from random numbers alone.

In every image one *accent* colour occurs twice: on a part in the top half and on one in the bottom
half. A model that samples distant tokens independently breaks this agreement; `coherence` counts
how often it holds.

Every shape is a signed distance function (negative inside), so a whole batch is rendered with
a few tensor operations and each edge is anti-aliased by `clamp(0.5 - distance, 0, 1)`.
"""

from functools import reduce

import torch

from .utils.errors import InputError

SIZE = 32
CLASSES = ("house", "tree", "fish", "flower", "rocket", "boat", "balloon", "person", "umbrella",
           "butterfly")  # fmt: skip

HUES = 6  # accent hues, 60 degrees apart: crimson, amber, green, turquoise, blue, violet
FIRST_HUE = -10.0  # degrees; a turn away from pure red, which gives the kinder six colours
LEAST_CHROMA = 0.35  # accents have max - min of RGB > 0.5, all else with < 0.25
LEAST_PIXELS = 8  # the smallest accent part is about 25 pixels
PURITY = 0.75  # the share of a half's accent pixels that must have one hue

CHUNK = 1280  # images rendered at once: 128 a class keep the tensors inside the cache


def render(indices, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Render the sprites with these indices; sprite i of a seed is always the same, bit by bit.

    indices: whole numbers >= 0, as an int64 tensor (B,), a range or a list.
    Returns images float32 (B, 3, 32, 32) in [0, 1] and labels int64 (B,), label = index % 10.
    """
    indices = torch.as_tensor(indices, dtype=torch.int64).cpu()
    labels = indices % len(CLASSES)
    images = torch.empty(len(indices), 3, SIZE, SIZE)
    for start in range(0, len(indices), CHUNK):
        for label, painter in enumerate(_PAINTERS):
            where = start + (labels[start : start + CHUNK] == label).nonzero().flatten()
            if len(where):
                sheet = _Sheet(indices[where], seed)
                painter(sheet)
                images[where] = sheet.canvas
    return images, labels


def accents(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The accent hues of the top and of the bottom half of images, float (B, 3, 32, 32) in [0, 1].

    Both are int64 (B,) in 0..5, or -1 where fewer than 8 pixels are saturated or fewer than 75 % of
    those agree on a hue. InputError for another shape or dtype.
    """
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise InputError(f"sprites are read from a floating point tensor in [0, 1], not {kind}.")
    if images.dim() != 4 or images.shape[1:] != (3, SIZE, SIZE):
        raise InputError(f"sprites have shape (B, 3, 32, 32), not {tuple(images.shape)}.")
    votes = torch.cat([_votes(part) for part in images.split(4096)])  # (B, 2, 6)
    most, hue = votes.max(-1)
    readable = (most >= LEAST_PIXELS) & (most >= PURITY * votes.sum(-1))
    top, bottom = torch.where(readable, hue, -1).unbind(1)
    return top, bottom


def coherence(images: torch.Tensor) -> float:
    """The share of images, in 0..1, whose two accents can be read and agree.

    Above 0.99 for sprites, about 1/6 when the halves come from different sprites.
    """
    top, bottom = accents(images)
    if not len(images):
        raise InputError("coherence needs at least one image.")
    return ((top == bottom) & (top >= 0)).double().mean().item()


def _votes(images: torch.Tensor) -> torch.Tensor:
    """How many saturated pixels of each half have each hue: (B, 2, 6)."""
    red, green, blue = images.unbind(1)
    high, low = images.amax(1), images.amin(1)
    chroma = high - low
    safe = chroma.clamp(min=1e-6)
    turn = torch.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    turn = torch.where(high == red, (green - blue) / safe, turn)  # in units of 60 degrees
    hue = (turn - FIRST_HUE / 60).round() % HUES
    hue[chroma < LEAST_CHROMA] = -1
    halves = hue.unflatten(1, (2, SIZE // 2)).flatten(2)  # (B, 2, 512)
    return torch.stack([(halves == k).sum(-1) for k in range(HUES)], -1)


# A hash of (seed, index, k), no generator's state: any image is rendered without those before it.

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # written as a signed number: int64 wraps as uint64 does


def _shift_right(bits: torch.Tensor, by: int) -> torch.Tensor:
    return (bits >> by) & ((1 << (64 - by)) - 1)  # int64's own shift would drag the sign along


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64."""
    bits = (bits ^ _shift_right(bits, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    bits = (bits ^ _shift_right(bits, 27)) * (0x94D049BB133111EB - 2**64)
    return bits ^ _shift_right(bits, 31)


class _Dice:
    """The k-th call gives every image the k-th number of its own stream, shape (B, 1, 1)."""

    def __init__(self, indices: torch.Tensor, seed: int):
        self.state = _mix(indices * _GOLDEN + _mix(torch.tensor(seed) + _GOLDEN))

    def __call__(self, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        self.state = self.state + _GOLDEN
        fraction = _shift_right(_mix(self.state), 40).float() * 2.0**-24
        return (low + (high - low) * fraction).view(-1, 1, 1)


# Rendering. Only + - * / sqrt, min and max touch the pixels: these round the same way alone and
# in a batch, which sin, exp or a fused multiply-add do not promise.

_ACCENT_VALUES = (0.9, 0.95, 0.74, 0.82, 0.9, 0.82)  # by hue: a full green is glaring, a blue not


def _colour(hue, chroma, value) -> torch.Tensor:
    """Hue in degrees, chroma = max - min of RGB, value = max of RGB -> (B, 3, 1, 1)."""
    turns = [(offset + hue / 60) % 6 for offset in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in turns], 1)


class _Sheet:
    """A batch of canvases of one class with its pose, colours and shapes.

    Shapes have the sprite's own coordinates: x to the right, y down, the origin in the middle,
    about 14 units to each edge. Accents keep |y| > 3: no pose moves them into the other half.
    """

    def __init__(self, indices: torch.Tensor, seed: int):
        self.dice = dice = _Dice(indices, seed)
        self._mix_colours()
        pixel = torch.arange(SIZE) - (SIZE - 1) / 2
        # Background: plain, a vertical gradient, a horizon or a disc behind the sprite.
        kind, row = dice(0, 4), torch.arange(SIZE).view(-1, 1)
        distance = (pixel * pixel + pixel[:, None] * pixel[:, None]).sqrt()
        gradient = (row / (SIZE - 1)).expand(1, SIZE, SIZE)
        horizon = (row - dice(21, 27)).clamp(0, 1)
        disc = (dice(12.5, 15.5) - distance).clamp(0, 1)
        share = torch.where(kind < 1, torch.zeros(()), gradient)
        share = torch.where(kind < 2, share, torch.where(kind < 3, horizon, disc))
        self.canvas = self.sky + share[:, None] * (self.ground - self.sky)
        # Pose: a size, a mirror image, a shift, and a turn of up to 5 degrees by its tangent.
        self.scale = dice(0.88, 1.05)
        mirror = torch.where(dice() < 0.5, -1.0, 1.0)
        tangent = dice(-0.09, 0.09)
        cos = 1 / (1 + tangent * tangent).sqrt()
        sin = tangent * cos
        across = pixel - dice(-1.5, 1.5)  # (B, 1, 32)
        down = pixel[:, None] - dice(-0.8, 0.8)  # (B, 32, 1)
        self.x = (across * cos + down * sin) * (mirror / (self.scale * dice(0.92, 1.08)))
        self.y = (down * cos - across * sin) / self.scale

    def _mix_colours(self) -> None:
        dice = self.dice
        night = dice() < 0.3
        lift = torch.where(night, 0.26, 0.0)  # light things by night, darker ones by day
        hue = dice(0, HUES).long()
        value = torch.tensor(_ACCENT_VALUES)[hue] + dice(-0.04, 0.04)
        self.accent = _colour(hue * 60 + FIRST_HUE + dice(-7, 7), value * dice(0.8, 0.9), value)
        tone = dice(170, 390)  # cool to rosy: low-chroma yellows and greens look muddy
        self.body = _colour(tone, dice(0.08, 0.2), dice(0.58, 0.7) + lift)
        self.trim = _colour(tone + dice(-40, 40), dice(0.08, 0.2), dice(0.38, 0.48) + lift)
        self.leaf = _colour(dice(100, 145), dice(0.16, 0.22), dice(0.46, 0.6) + lift / 2)
        self.wood = _colour(dice(20, 36), dice(0.12, 0.2), dice(0.4, 0.5) + lift / 2)
        self.light = _colour(dice(20, 60), dice(0.0, 0.06), dice(0.95, 1.0))
        self.dark = _colour(dice(200, 260), dice(0.02, 0.08), dice(0.16, 0.26))
        sky = torch.where(night, dice(200, 290), dice(0, 360))
        above = torch.where(night, dice(0.2, 0.3), dice(0.88, 0.98))
        below = torch.where(night, dice(0.3, 0.4), dice(0.76, 0.86))
        self.sky = _colour(sky, dice(0.03, 0.12), above)
        self.ground = _colour(sky + dice(-60, 60), dice(0.05, 0.14), below)

    def paint(self, distance: torch.Tensor, colour: torch.Tensor) -> None:
        cover = (0.5 - distance * self.scale).clamp_(0, 1)[:, None]
        self.canvas += cover * (colour - self.canvas)

    def disc(self, x, y, radius):
        dx, dy = self.x - x, self.y - y
        return (dx * dx + dy * dy).sqrt_() - radius

    def oval(self, x, y, width, height):
        """An ellipse by its half axes; to first order, which is right at the edge."""
        dx, dy = (self.x - x) / width, (self.y - y) / height
        slope = ((dx / width) ** 2 + (dy / height) ** 2).sqrt_()
        return (dx * dx + dy * dy - 1) / (2 * slope)

    def box(self, left, top, right, bottom, corner=0.0):
        dx = (self.x - (left + right) / 2).abs() - ((right - left) / 2 - corner)
        dy = (self.y - (top + bottom) / 2).abs() - ((bottom - top) / 2 - corner)
        if not corner:
            return torch.maximum(dx, dy)
        outside = (dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2).sqrt_()
        return outside + torch.maximum(dx, dy).clamp(max=0) - corner

    def line(self, x0, y0, x1, y1, radius):
        dx, dy = self.x - x0, self.y - y0
        ex, ey = x1 - x0, y1 - y0
        along = ((dx * ex + dy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
        dx, dy = dx - ex * along, dy - ey * along
        return (dx * dx + dy * dy).sqrt_() - radius

    def polygon(self, *corners):
        """A convex polygon, corners clockwise as seen."""
        sides = []
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            ex, ey = x1 - x0, y1 - y0
            length = (ex * ex + ey * ey) ** 0.5
            sides.append((self.x - x0) * (ey / length) - (self.y - y0) * (ex / length))
        return inside(*sides)


def inside(*distances):
    """What is in all of the shapes."""
    return reduce(torch.maximum, distances)


def union(*distances):
    """All that is in any of the shapes."""
    return reduce(torch.minimum, distances)


def _house(s: _Sheet) -> None:
    """Roof and door."""
    s.paint(s.box(4.5, -13, 7.5, -6), s.trim)
    s.paint(s.box(-9, -5, 9, 13), s.body)
    s.paint(s.polygon((0, -14), (12, -4), (-12, -4)), s.accent)
    door = s.dice(-4, 0)
    s.paint(s.box(door - 2.8, 4, door + 2.8, 13, corner=1.0), s.accent)
    s.paint(s.box(3, 1, 7, 6), s.light)
    s.paint(union(s.box(4.7, 1, 5.3, 6), s.box(3, 3.2, 7, 3.8)), s.trim)


def _tree(s: _Sheet) -> None:
    """Fruit in the crown and under it."""
    s.paint(s.polygon((-1.4, -4), (1.4, -4), (2.4, 11), (-2.4, 11)), s.wood)
    spread = s.dice(4.5, 6)
    crown = union(s.disc(0, -8, 6), s.disc(-spread, -4, 5), s.disc(spread, -4, 5))
    s.paint(crown, s.leaf)
    sway = s.dice(-1, 1)
    ripe = [(sway, -10.2), (-5.2, -5.5), (5, -5.8 + sway / 2)]
    fallen = [(-7, 10.5), (sway + 0.5, 11.5), (7, 10.5)]
    for fruit in (ripe, fallen):
        s.paint(union(*(s.disc(x, y, 2.2) for x, y in fruit)), s.accent)


def _fish(s: _Sheet) -> None:
    """Back fin and belly fin."""
    wag = s.dice(-1.5, 1.5)
    upper, lower = (-14, wag - 6), (-14, wag + 6)
    notch = (-12, wag)
    s.paint(union(s.polygon(upper, (-7, 0), notch), s.polygon(notch, (-7, 0), lower)), s.trim)
    s.paint(s.polygon((-6, -4), (-4, -12), (2, -10.5), (7, -4)), s.accent)
    s.paint(s.polygon((-4, 4), (5, 4), (1, 11), (-4, 12)), s.accent)
    body = s.oval(1.5, 0, 11.5, 5.6)
    s.paint(body, s.body)
    s.paint(inside(body, s.disc(9, 0, 5.5)), s.trim)
    s.paint(s.disc(8.3, -1.2, 1.9), s.light)
    s.paint(s.disc(8.6, -1.2, 0.9), s.dark)


def _flower(s: _Sheet) -> None:
    """Blossom and pot."""
    s.paint(s.line(0, -5, 0, 8, 0.9), s.leaf)
    left, right = s.oval(-4, s.dice(0, 3), 3.6, 1.6), s.oval(4, s.dice(0, 3), 3.6, 1.6)
    s.paint(union(left, right), s.leaf)
    centre = -8.2
    petals = [(0, -3.9), (3.7, -1.2), (2.3, 3.2), (-2.3, 3.2), (-3.7, -1.2)]  # on a circle of 3.9
    s.paint(union(*(s.disc(x, centre + y, 2.9) for x, y in petals)), s.accent)
    s.paint(s.disc(0, centre, 2.3), s.light)
    width = s.dice(4, 5.5)
    s.paint(s.polygon((-width, 7), (width, 7), (width - 1.5, 14), (1.5 - width, 14)), s.accent)
    s.paint(s.box(-width - 1, 5.5, width + 1, 7.8), s.accent)


def _rocket(s: _Sheet) -> None:
    """Nose and fins."""
    s.paint(s.oval(0, 10, 2.4, s.dice(3, 4.6)), s.light)
    s.paint(s.polygon((-4, 3), (-4, 10), (-9.5, 12.5), (-9, 8)), s.accent)
    s.paint(s.polygon((4, 3), (9, 8), (9.5, 12.5), (4, 10)), s.accent)
    hull = inside(s.oval(0, -1, 5.8, 14), s.box(-9, -15, 9, 10))
    s.paint(hull, s.body)
    s.paint(inside(hull, s.y + s.dice(5, 6.5)), s.accent)
    s.paint(s.disc(0, -0.5, 3), s.trim)
    s.paint(s.disc(0, -0.5, 2), s.light)


def _boat(s: _Sheet) -> None:
    """Tops of the sails and hull."""
    s.paint(s.box(-0.7, -14, 0.7, 7), s.wood)
    top = s.y + s.dice(4, 5.5)
    right, left = ((1.4, -14), (11, 3.5), (1.4, 3.5)), ((-1.4, -13), (-1.4, 3.5), (-9.5, 3.5))
    for corners in (right, left):
        sail = s.polygon(*corners)
        s.paint(sail, s.body)
        s.paint(inside(sail, top), s.accent)
    s.paint(s.polygon((-13, 5), (13, 5), (8.5, 11.5), (-9, 11.5)), s.accent)
    s.paint(s.box(-24, 10.3, 24, 24), s.trim)


def _balloon(s: _Sheet) -> None:
    """Crown of the envelope and basket."""
    s.paint(union(s.line(-6, 2, -2.6, 9, 0.45), s.line(6, 2, 2.6, 9, 0.45)), s.dark)
    envelope = union(s.disc(0, -4.5, 9.5), s.polygon((-8.6, -0.5), (8.6, -0.5), (3, 6), (-3, 6)))
    s.paint(envelope, s.body)
    s.paint(inside(envelope, s.oval(0, -4, s.dice(2.4, 4), 11)), s.trim)
    s.paint(inside(envelope, s.y + s.dice(4, 6)), s.accent)
    s.paint(s.box(-3.8, 8.4, 3.8, 14, corner=0.8), s.accent)


def _person(s: _Sheet) -> None:
    """Hat and shoes."""
    skin = _colour(s.dice(20, 32), s.dice(0.14, 0.23), s.dice(0.5, 0.95))
    hand = s.dice(-3, 4)
    s.paint(s.line(-3.5, 0.5, -8.5, 5, 1.3), s.body)
    s.paint(s.line(3.5, 0.5, 8.5, hand, 1.3), s.body)
    s.paint(union(s.disc(-8.5, 5, 1.5), s.disc(8.5, hand, 1.5)), skin)
    s.paint(union(s.box(-3.8, 4, -0.5, 12), s.box(0.5, 4, 3.8, 12)), s.trim)
    s.paint(s.box(-4.2, -1.5, 4.2, 6.5, corner=1.6), s.body)
    s.paint(s.disc(0, -5, 4), skin)
    s.paint(union(s.disc(-1.5, -4.6, 0.7), s.disc(1.5, -4.6, 0.7)), s.dark)
    crown = s.dice(3, 4)
    s.paint(s.box(-crown, -14, crown, -7, corner=1.5), s.accent)
    s.paint(s.box(-6.8, -8.8, 6.8, -6.6, corner=0.9), s.accent)
    s.paint(union(s.box(-6.6, 10, -0.4, 13.8, 1.4), s.box(0.4, 10, 6.6, 13.8, 1.4)), s.accent)


def _umbrella(s: _Sheet) -> None:
    """Canopy and handle."""
    s.paint(s.box(-0.7, -14.2, 0.7, 6), s.dark)
    dome = inside(s.disc(0, -1.5, 12), s.y + 3)
    scallops = union(s.oval(-8, -2.6, 3.7, 2), s.oval(0, -2.6, 4.2, 2), s.oval(8, -2.6, 3.7, 2))
    canopy = inside(dome, -scallops)
    s.paint(canopy, s.accent)
    s.paint(inside(canopy, s.oval(0, -1.5, s.dice(3.6, 5), 12)), s.body)
    s.paint(s.box(-1.3, 4, 1.3, 10.5), s.accent)
    s.paint(inside(s.disc(3.2, 10.2, 4.5), -s.disc(3.2, 10.2, 1.9), 10.2 - s.y), s.accent)


def _butterfly(s: _Sheet) -> None:
    """Upper wings and lower wings."""
    reach = s.dice(0, 0.8)
    for side in (-1, 1):
        s.paint(s.line(0, -8, side * 3.5, -13, 0.5), s.dark)
        wings = union(s.oval(side * 7, -5, 6.6, 7), s.oval(side * 5.6, 6, 5.4, 6.2))
        s.paint(wings, s.body)
        s.paint(s.oval(side * 7.2, -7.4, 4.6, 3.9), s.accent)
        s.paint(s.oval(side * (5.4 + reach), 7.6, 3.6, 3.8), s.accent)
    s.paint(s.line(0, -8, 0, 8, 1.4), s.dark)


_PAINTERS = [globals()[f"_{name}"] for name in CLASSES]
