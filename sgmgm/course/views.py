"""View: what the interactive views have in common. The views themselves are in `widgets`.

Images as HTML with a text for those who cannot see them, moving images, labelled controls, and a
frame, `View`, in which moves never pile up; where no kernel is alive it shows a static figure.
"""

import asyncio
import base64
import functools
import io
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from html import escape
from pathlib import Path

import ipywidgets
import matplotlib
import torch
from ipywidgets import HTML, Layout
from PIL import Image, ImageDraw
from torch import Tensor

from ..guidance import GUIDANCES
from ..pipeline import Pipeline
from ..settings import Sampling
from ..utils.errors import CheckpointError, InputError, SgmgmError
from ..utils.files import write_bytes
from ..utils.samples import to_uint8
from . import plots

QUIET = 0.15  # seconds without another move before a view renders
ANSWER = 2.0  # seconds to wait for the page's answer that it holds no more moves
STYLE = f"<style>\n{Path(__file__).with_name('views.css').read_text()}</style>"


def html_image(image: Tensor, alt: str, caption: str = "", size: str = "large") -> str:
    """An image (3, H, W) as an HTML figure, "patch", "small", "large" or "page" wide."""
    Image.fromarray(to_uint8(image[None])[0]).save(file := io.BytesIO(), format="png")
    source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{size}"><img src="{source}" alt="{escape(alt)}">{below}</figure>'


def in_row(figures: Iterable[str]) -> str:
    """HTML figures next to each other."""
    return f'<div class="row">{"".join(figures)}</div>'


def colour_map(values: Tensor, low: float, high: float, cell: int, name: str) -> Tensor:
    """Numbers (B, N) as images (B, 3, H, W), `cell` pixels each, coloured from low to high.

    `name` is one of matplotlib's colour maps; nan becomes light grey.
    """
    share = ((values - low) / max(high - low, 1e-9)).nan_to_num(0).numpy()
    rgb = torch.from_numpy(matplotlib.colormaps[name](share)[..., :3]).float()  # (B, N, 3)
    rgb[values.isnan()] = 0.85
    return plots.enlarge(plots.as_grid(rgb.transpose(1, 2)), cell)


class Animation:
    """A moving image of frames (T, 3, H, W): an animated PNG, which any page can show.

    `left` and `right` head the halves of each frame; below it stand its number and `foot`.
    """

    def __init__(
        self, frames: Tensor, alt: str, milliseconds: int, left: str, right: str, foot: str
    ):
        self.alt, self.milliseconds, self.frames = alt, milliseconds, []
        for k, frame in enumerate(to_uint8(plots.enlarge(frames, 4)), 1):
            height, width, _ = frame.shape
            page = Image.new("RGB", (width, height + 40), "white")
            page.paste(Image.fromarray(frame), (0, 20))
            quarter, pen = width / 4, ImageDraw.Draw(page)
            pen.text((quarter, 10), left, "black", anchor="mm", font_size=13)
            pen.text((3 * quarter, 10), right, "black", anchor="mm", font_size=13)
            below = f"step {k}: {foot}"
            pen.text((2 * quarter, height + 30), below, "black", anchor="mm", font_size=13)
            self.frames.append(page)

    def encode(self, kind: str = "png") -> bytes:
        """The content of a file of this kind, "png" (exact colours) or "gif" (256 of them)."""
        if kind not in ("png", "gif"):
            raise InputError(f"an animation is written as .png or .gif, not {kind!r}.")
        file, (first, *others) = io.BytesIO(), self.frames
        times = [self.milliseconds] * len(others) + [4 * self.milliseconds]  # rest on the result
        options = {"save_all": True, "append_images": others, "duration": times, "loop": 0}
        first.save(file, format=kind, **options)
        return file.getvalue()

    def save(self, path: str | Path) -> None:
        """Write a .png or .gif file."""
        write_bytes(path, self.encode(Path(path).suffix.lstrip(".").lower()))

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"image/png": self.encode(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt}}


def find_guidances(pipeline: Pipeline) -> list[str]:
    """Names of the guidances that this pipeline has all networks for, the paper's first."""
    found = []
    for name in dict.fromkeys(("self", "cfg", *GUIDANCES)):
        with suppress(CheckpointError):
            pipeline.guidance(Sampling(guidance=name))
            found.append(name)
    return [name for name in found if name != "none"]


def choose_settings(pipeline: Pipeline, settings: dict) -> Sampling:
    """The pipeline's settings with these changes; guided, even if the pipeline's own are not."""
    chosen = pipeline.card.sampling
    if chosen.guidance == "none" or not chosen.scale:
        chosen = chosen.updated(guidance=find_guidances(pipeline)[0], scale=1.0)
    chosen = chosen.updated(**settings)
    if chosen.guidance == "none":
        raise InputError("this view compares with plain sampling: choose another guidance.")
    return chosen


def plain_and_guided(settings: Sampling, **changes) -> dict[str, dict]:
    """Keyword arguments of a pipeline call, without guidance and with it."""
    guided = asdict(settings.updated(**changes))
    return {"plain": guided | {"guidance": "none"}, "guided": guided}


def class_options(pipeline: Pipeline) -> list[tuple[str, int]]:
    """Names and numbers of the classes, for a drop-down list."""
    return [(name, i) for i, name in enumerate(pipeline.card.classes)]


WRAP = Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="4px 16px")


def _control(kind: Callable, description: str, tooltip: str, value, **options):
    words = {"description": description, "tooltip": tooltip, "value": value}
    return kind(**words, **options, style={"description_width": "initial"})


def slider(description: str, tooltip: str, low, high, value, step=1) -> ipywidgets.Widget:
    """A slider for whole numbers, or for others if `step` is none."""
    kind = ipywidgets.IntSlider if isinstance(step, int) else ipywidgets.FloatSlider
    return _control(kind, description, tooltip, value, min=low, max=high, step=step)


def choice(description: str, tooltip: str, options, value) -> ipywidgets.Dropdown:
    """A drop-down list of names, or of (name, value)."""
    return _control(ipywidgets.Dropdown, description, tooltip, value, options=options)


def scale_slider(scale: float) -> ipywidgets.Widget:
    """A slider for the guidance scale, wide enough for the one it starts at."""
    return slider("scale s", "0: none", min(-1, scale), max(10, scale), scale, 0.25)


def number(description: str, tooltip: str, value: int, high: int = 2**31 - 1):
    """A field for a whole number from 0 to `high`; InputError if it is to start elsewhere."""
    if not 0 <= value <= high:
        raise InputError(f"{description} {value} does not fit into a view: it takes 0 to {high}.")
    options = {"min": 0, "max": high, "layout": Layout(width="160px")}
    return _control(ipywidgets.BoundedIntText, description, tooltip, value, **options)


def on_move(call: Callable, *controls: ipywidgets.Widget) -> None:
    """Call `call(change)` when one of the controls gets another value."""
    for each in controls:
        each.observe(call, "value")


# A style sheet loads when it is put into the page, and so after the box that it stands in.
HOVER = Path(__file__).with_name("hover.js").read_text()


class Cells(ipywidgets.Box):
    """An image under a square grid of buttons; pressing one calls `press(position)`.

    With `hover` a pointer that rests on a button presses it.
    """

    def __init__(self, side: int, press: Callable[[int], None], hover: bool = False):
        self.image = HTML()
        # one layout and one style for all: hundreds of buttons are slow to open otherwise
        look = {"layout": Layout(), "style": ipywidgets.ButtonStyle(button_color="transparent")}
        self.buttons = [
            ipywidgets.Button(tooltip=f"row {i // side + 1}, column {i % side + 1}", **look)
            for i in range(side * side)
        ]
        for i, button in enumerate(self.buttons):
            button.on_click(functools.partial(lambda i, _: press(i), i))
        columns = Layout(grid_template_columns=f"repeat({side}, 1fr)")
        parts = [self.image, ipywidgets.GridBox(self.buttons, layout=columns)]
        if hover:
            script = f'<style onload="{escape(HOVER)}">.sgmgm .cells {{ cursor: pointer; }}</style>'
            parts.append(HTML(script, layout=Layout(display="none")))
        super().__init__(parts)
        self.add_class("cells")


class View(ipywidgets.VBox):
    """Controls over images; a subclass has `render`, which computes and shows, and `figure`.

    However fast a slider moves and however slow the kernel is, moves never pile up, and only the
    last position is rendered. The page sends one move at a time and keeps the latest of the others
    until the kernel is free. So the view waits until the controls have been quiet for a moment,
    then gives the page a number to send back. Moves that were kept come first, as the page's
    messages stay in order, and make the number void.
    """

    def __init__(self, *rows: ipywidgets.Widget):
        self.status, self.waits_for = HTML(), None
        self.timer: asyncio.TimerHandle | None = None
        self.asked, self.answer = ipywidgets.IntText(0), ipywidgets.IntText(0)  # never displayed
        ipywidgets.jsdlink((self.asked, "value"), (self.answer, "value"))  # in the page
        on_move(self.take_answer, self.answer)
        super().__init__([HTML(STYLE, layout=Layout(display="none")), *rows, self.status])
        self.add_class("sgmgm")
        self.render()

    def render(self) -> None:
        """Compute and show what the controls ask for."""
        raise NotImplementedError

    def figure(self) -> plots.Plot:
        """What the view shows, as a figure that needs no kernel."""
        raise NotImplementedError

    def say(self, words: str) -> None:
        """Write the line below the view; screen readers read it out."""
        self.status.value = f'<p role="status">{escape(words)}</p>'

    def update(self, change=None) -> None:
        """Render soon; at once where no event loop runs, as in a test."""
        try:
            self.wait(QUIET, self.ask_page)
        except RuntimeError:
            self.render_now()

    def wait(self, seconds: float, call: Callable[[], None]) -> None:
        """Call this later, in place of what was to be called before."""
        loop = asyncio.get_running_loop()
        self.stop_waiting()
        self.timer = loop.call_later(seconds, call)

    def stop_waiting(self) -> None:
        """Whatever was to be called is not, and the page's answer does not count."""
        self.waits_for = None
        if self.timer:
            self.timer.cancel()
            self.timer = None

    def ask_page(self) -> None:
        """Ask the page for its answer, and do without it where no page is open."""
        self.wait(ANSWER, self.render_now)
        self.waits_for = self.asked.value = self.asked.value + 1

    def take_answer(self, change) -> None:
        """Render if nothing has moved since the page was asked."""
        if self.waits_for == change.new:
            self.render_now()

    def render_now(self) -> None:
        """Render, and if that fails say so in the view: nobody else can, of a callback."""
        self.stop_waiting()
        self.say("generating ...")
        try:
            self.render()
            self.say("")
        except SgmgmError as error:
            self.say(str(error))
        except BaseException as error:
            self.say(f"{type(error).__name__} {error}: move a control to try again.")
            raise

    def _repr_mimebundle_(self, **options):
        if self.timer:
            self.render_now()
        data, metadata = self.figure()._repr_mimebundle_()
        return super()._repr_mimebundle_(**options) | data, metadata
