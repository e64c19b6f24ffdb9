"""Widgets: see decoding move. Four views for notebooks.

`Scrubber` steps through a trajectory, `Explorer` tries settings, `Refill` repaints what you hide,
`CodebookBrowser` looks codes up. A view keeps its state in plain attributes, so it can be used and
tested without a browser.
"""

import functools
from contextlib import suppress
from dataclasses import asdict
from html import escape
from typing import Any, NamedTuple

import ipywidgets
import torch
import torch.nn.functional as F
from ipywidgets import HTML, HBox, VBox
from torch import Tensor

from ..guidance import GUIDANCES
from ..pipeline import Pipeline
from ..sampling import ANNEALS, Trajectory
from ..settings import Sampling
from ..tokenizer import VQTokenizer
from ..utils.errors import CheckpointError, InputError
from . import plots
from .views import (
    WRAP,
    Animation,
    Cells,
    View,
    choice,
    colour_map,
    in_row,
    number,
    on_move,
    picture,
    slider,
)


def find_guidances(pipeline: Pipeline) -> list[str]:
    """Names of the guidances that this pipeline has all networks for, the paper's first."""
    found = []
    others = [name for name in GUIDANCES if name not in ("none", "self", "cfg")]
    for name in ("self", "cfg", *others):
        with suppress(CheckpointError):
            pipeline.guidance(Sampling(guidance=name))
            found.append(name)
    return found


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


# --- a trajectory ------------------------------------------------------------------------------


class Judged(NamedTuple):
    """A trajectory of T steps, and what plain, smoothed and guided predictions say of it."""

    drawn: Tensor  # (T, N) int64
    masked: Tensor  # (T, N) bool, what each step had to draw
    pictures: Tensor  # (T, 3, H, W) the images if all tokens drawn so far stood
    seen: Tensor  # (T, 3, H, W) the canvases, grey where masked
    confidence: Tensor  # (T, N) the score each drawn token was ranked by; nan if known
    push: Tensor  # (T, N) guided minus plain log-probability of the drawn token; nan if known
    log_p: Tensor  # (3, T, N, K) plain, smoothed, guided


class Scrubber(View):
    """Step through two trajectories of one seed, plain and guided, and look at single tokens.

    Args:
        label: a class number or name.
        settings: changes to the pipeline's `Sampling`.
    """

    def __init__(self, pipeline: Pipeline, label: int | str = 0, seed: int = 0, **settings):
        self.pipeline, self.settings = pipeline, choose_settings(pipeline, settings)
        steps, grid = self.settings.steps, pipeline.tokenizer.config.grid
        start, ways = (steps + 1) // 2, ("plain", "guided")
        self.step = slider("step", "arrow keys step through the trajectory", 1, steps, start)
        self.play = ipywidgets.Play(min=1, max=steps, value=start, interval=600)
        self.play.tooltip = "play, stop, repeat"
        ipywidgets.jslink((self.play, "value"), (self.step, "value"))
        classes, first = class_options(pipeline), int(pipeline.labels(label))
        self.label = choice("class", "what to draw", classes, first)
        self.seed = number("seed", "of both trajectories", seed)
        hint = "which token to look at; or rest on it in the picture"
        self.token = slider("token", hint, 0, grid**2 - 1, grid * (grid + 1) // 2)
        self.way = choice("of", "in which trajectory", ways, "guided")
        on_move(self.redraw, self.label, self.seed)
        on_move(self.show, self.step, self.token, self.way)
        self.cells = {
            way: Cells(grid, functools.partial(self.look, way), hover=True) for way in ways
        }
        self.maps = {way: HTML() for way in ways}
        self.legend, self.best = HTML(), HTML()
        rows = [HBox([self.cells[way], self.maps[way]]) for way in ways]
        narrow = ipywidgets.Layout(width="400px")  # fits beside the pictures on a laptop
        looked_at = VBox([self.token, self.way, self.best], layout=narrow)
        super().__init__(
            HBox([self.play, self.step, self.label, self.seed], layout=WRAP),
            HBox([VBox([*rows, self.legend]), looked_at], layout=WRAP),
        )

    def draw(self) -> None:
        """Draw both trajectories and judge every step of them."""
        self.ways = {
            name: self.judge(
                self.pipeline([self.label.value], seeds=[self.seed.value], **settings).trajectory
            )
            for name, settings in plain_and_guided(self.settings).items()
        }
        # One scale of colours for all steps; the last 2 % at either end would make it useless.
        scores, pushes = (
            torch.cat([way[field] for way in self.ways.values()])
            for field in (Judged._fields.index("confidence"), Judged._fields.index("push"))
        )
        ends = torch.tensor([0.02, 0.98])
        self.span: Any = tuple(scores[scores.isfinite()].quantile(ends).tolist())
        self.reach = float(pushes[pushes.isfinite()].abs().quantile(ends[1]))
        self.show()

    @torch.no_grad()
    def judge(self, way: Trajectory) -> Judged:
        """What the three predictions say of each step's draws."""
        pipeline, guidance = self.pipeline, self.pipeline.guidance(self.settings)
        canvases, drawn = way.canvases[:, 0], way.sampled[:, 0]  # (T, N)
        labels = torch.full((len(drawn),), self.label.value, device=drawn.device)
        logits: Any = (*guidance.both(canvases, labels), guidance(canvases, labels))
        log_p = torch.stack([each.float().log_softmax(-1) for each in logits])  # (3, T, N, K)
        plain, _, guided = log_p.gather(-1, drawn.expand(3, -1, -1)[..., None])[..., 0]
        masked = canvases >= pipeline.transformer.config.codebook_size
        pictures = pipeline.tokenizer.decode(drawn)
        judged = Judged(
            drawn,
            masked,
            pictures,
            plots.overlay_masked(pictures, masked),
            way.confidence[:, 0].where(masked, torch.nan),
            (guided - plain).where(masked, torch.nan),
            log_p,
        )
        return Judged(*(part.cpu() for part in judged))

    def panels(self, way: Judged) -> dict[str, Tensor]:
        """The four pictures of each step: title -> images (T, 3, H, W)."""
        cell = way.pictures.shape[-1] // self.pipeline.tokenizer.config.grid
        low, high = self.span
        return {
            "draws": way.pictures,
            "sees": way.seen,
            "confidence": colour_map(way.confidence, low, high, cell, "viridis"),
            "push": colour_map(way.push, -self.reach, self.reach, cell, "PuOr_r"),
        }

    def look(self, way: str, token: int) -> None:
        """Look at one token of the "plain" or the "guided" trajectory."""
        self.way.value, self.token.value = way, token

    def show(self, change=None) -> None:
        """Show the chosen step and token: quick, so it need not wait for the controls to rest."""
        k, when = self.step.value - 1, f"step {self.step.value} of {self.step.max}"
        for name, way in self.ways.items():
            frame = torch.arange(self.token.max + 1) == self.token.value
            frame = frame[None] & (name == self.way.value)
            figures = []
            for title, images in self.panels(way).items():
                framed = plots.frame_cells(images[k : k + 1], frame)[0]
                caption = f"{name} {title}" if title == "draws" else title
                figures.append(picture(framed, f"{name}, {when}: {title}", caption))
            self.cells[name].picture.value, self.maps[name].value = figures[0], in_row(figures[1:])
        low, high = self.span
        self.legend.value = (
            f"<p>confidence (log p + noise): dark {low:.1f}, bright {high:.1f}<br>push "
            f"(guided - plain log p): purple -{self.reach:.1f}, orange +{self.reach:.1f}"
            "<br>grey: known before</p>"
        )
        self.best.value = self.best_codes(self.ways[self.way.value], k, self.token.value)

    def best_codes(self, way: Judged, k: int, i: int) -> str:
        """The five codes most likely at position i in step k + 1, and what each paints there."""
        tokenizer = self.pipeline.tokenizer
        p, codes = way.log_p[:, k, i].exp().topk(5)  # (3, 5)
        canvas = way.sampled[k].repeat(codes.numel(), 1)
        canvas[:, i] = codes.flatten()
        images = tokenizer.decode(canvas.to(self.pipeline.device))
        grid = tokenizer.config.grid
        cell, row, column = images.shape[-1] // grid, i // grid, i % grid
        patches = images.unfold(2, cell, cell).unfold(3, cell, cell)[:, :, row, column]
        known = "" if way.masked[k, i] else ", known before"
        lines = []
        for at, name in enumerate(("plain", "smoothed", "guided")):
            figures = [
                picture(
                    patches[5 * at + j], f"{name}: code {code}", f"{code}\n{p[at, j]:.0%}", "patch"
                )
                for j, code in enumerate(codes[at].tolist())
            ]
            lines.append(f"<tr><td>{name}</td><td>{in_row(figures)}</td></tr>")
        return (
            f"<p>row {row + 1}, column {column + 1}: code {way.sampled[k, i]}{known}. "
            f"The most likely codes:</p><table>{''.join(lines)}</table>"
        )

    def figure(self) -> plots.Plot:
        """Up to six steps of both trajectories."""
        steps = torch.linspace(0, self.step.max - 1, min(6, self.step.max)).round().long()
        rows = {
            f"{name}: {title}": images[steps]
            for name, way in self.ways.items()
            for title, images in self.panels(way).items()
        }
        return plots.image_rows(rows, [f"step {k + 1}" for k in steps.tolist()])

    def animation(self, milliseconds: int = 500) -> Animation:
        """Both as a moving picture: plain left, guided right; draws above, canvases below."""
        sides = [torch.cat((way.pictures, way.seen), 2) for way in self.ways.values()]
        gap = torch.ones(*sides[0].shape[:3], 4)
        alt = (
            f"{self.pipeline.card.classes[self.label.value]} in {self.step.max} steps: plain on "
            "the left, guided on the right; what is drawn above, what the model sees below"
        )
        return Animation(torch.cat((sides[0], gap, sides[1]), 3), alt, milliseconds)


# --- settings ----------------------------------------------------------------------------------

# A kernel cannot add a cell of its own accord, so the page does: JupyterLab's key for a new cell
# below, then typing. Elsewhere the code is on the clipboard, and stands under the button.
NEXT_CELL = """
const cell = this.closest('.jp-Cell'), before = cell?.nextElementSibling, code = this.dataset.code;
navigator.clipboard?.writeText(code).catch(() => {});
const key = {key: 'b', code: 'KeyB', keyCode: 66, bubbles: true};
this.dispatchEvent(new KeyboardEvent('keydown', key));
setTimeout(() => {
  const next = cell?.nextElementSibling, editor = next?.querySelector('.cm-content');
  if (!editor || next === before) return;
  editor.focus();
  document.execCommand('insertText', false, code);
}, 400);
"""


class Explorer(View):
    """Sliders over two rows of pictures with the same seeds, plain and guided.

    Args:
        count: pictures in a row.
        settings: where the sliders start, changes to the pipeline's `Sampling`.
    """

    def __init__(self, pipeline: Pipeline, count: int = 8, seed: int = 0, **settings):
        start = choose_settings(pipeline, settings)
        self.pipeline, self.start, self.count = pipeline, start, count
        kinds, tau = find_guidances(pipeline), start.temperature
        self.controls = {
            "guidance": choice("guidance", "pushes away from what", kinds, start.guidance),
            "scale": slider("scale s", "0: none", -1, max(10, start.scale), start.scale, 0.25),
            "temperature": slider("temperature", "noise in the order", 0, max(45, tau), tau, 0.5),
            "anneal": choice("its schedule", "how the noise falls", ANNEALS, start.anneal),
            "steps": slider("steps", "rounds of decoding", 1, max(24, start.steps), start.steps),
        }
        classes = [("one of each", -1), *class_options(pipeline)]
        self.label = choice("class", "what to draw", classes, -1)
        self.seed = number("seed", "of the first picture", seed)
        on_move(self.redraw, *self.controls.values(), self.label, self.seed)
        self.grid, self.code_box = HTML(), HTML()
        # plain pictures do not depend on the guidance, which is moved most
        kept = functools.lru_cache(maxsize=16)(self.sample)
        self.sample = kept  # type: ignore[method-assign]
        controls = HBox([*self.controls.values(), self.label, self.seed], layout=WRAP)
        super().__init__(controls, self.grid, self.code_box)

    def labels(self) -> list[int]:
        """One class number for each picture."""
        one, classes = self.label.value, len(self.pipeline.card.classes)
        return [i % classes if one < 0 else one for i in range(self.count)]

    def chosen(self) -> dict:
        """The settings that the controls stand at."""
        values = {name: each.value for name, each in self.controls.items()}
        # a browser's slider may give 1.0000000000000002 for 1
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}

    def sample(self, label: int, seed: int, **settings) -> Tensor:
        """Images (count, 3, H, W). Label and seed are for the cache to tell calls apart."""
        seeds = range(seed, seed + self.count)
        return self.pipeline(self.labels(), seeds=seeds, **asdict(self.start) | settings).images

    def draw(self) -> None:
        """Draw the two rows."""
        chosen, key = self.chosen(), (self.label.value, self.seed.value)
        unguided = {name: chosen[name] for name in ("temperature", "anneal", "steps")}
        self.rows = {
            "plain": self.sample(*key, **unguided, guidance="none"),
            f"{chosen['guidance']}, s = {chosen['scale']:g}": self.sample(*key, **chosen),
        }
        self.names = [self.pipeline.card.classes[label] for label in self.labels()]
        self.grid.value = "".join(
            f"<p>{row}</p>"
            + in_row(
                picture(image, f"{row}: {name}, seed {key[1] + i}", name, "small")
                for i, (image, name) in enumerate(zip(images, self.names, strict=True))
            )
            for row, images in self.rows.items()
        )
        code = escape(self.code())
        self.code_box.value = (
            f'<button class="jupyter-button" data-code="{code}" onclick="{escape(NEXT_CELL)}">'
            f"Settings into the next cell</button><pre>{code}</pre>"
        )

    def code(self) -> str:
        """The guided row as code, for a notebook that has a `pipeline`."""
        settings, usual = asdict(self.start) | self.chosen(), asdict(self.pipeline.card.sampling)
        told = {k: v for k, v in settings.items() if k in self.controls or v != usual[k]}
        seeds = f"seeds=range({self.seed.value}, {self.seed.value + self.count})"
        lines = (str(self.labels()), seeds, *(f"{name}={value!r}" for name, value in told.items()))
        return "samples = pipeline(\n" + "".join(f"    {line},\n" for line in lines) + ")"

    def figure(self) -> plots.Plot:
        """The two rows."""
        return plots.image_rows(self.rows, self.names)


# --- repainting --------------------------------------------------------------------------------


def ready_masks(side: int) -> dict[str, Tensor]:
    """Masks to start from: name -> bool (N,), True is hidden."""
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    edge = side // 4
    inner = [(at >= edge) & (at < side - edge) for at in (row, column)]
    return {
        "lower half": row >= side // 2,
        "right half": column >= side // 2,
        "centre (in-paint)": inner[0] & inner[1],
        "border (out-paint)": ~(inner[0] & inner[1]),
        "nothing": row < 0,
        "everything": row >= 0,
    }


class Refill(View):
    """Hide parts of an image and let the model paint them anew, plain and guided.

    Args:
        images: (B, 3, H, W) in [0, 1] to choose from; None for one generated image of each class.
        labels: their classes, (B,).
        seed: of the first refill.
        settings: changes to the pipeline's `Sampling`.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        images: Tensor | None = None,
        labels=None,
        seed: int = 0,
        **settings,
    ):
        self.pipeline, self.settings = pipeline, choose_settings(pipeline, settings)
        tokenizer, scale = pipeline.tokenizer, self.settings.scale
        if images is None:
            labels = range(len(pipeline.card.classes)) if labels is None else labels
            self.tokens = pipeline(labels).trajectory.tokens
        elif labels is None or len(labels) != len(images):
            raise InputError("give one label for each image.")
        else:
            self.tokens = tokenizer.encode(images.to(pipeline.device))
        self.labels = pipeline.labels(labels).tolist()
        self.masks = ready_masks(tokenizer.config.grid)
        names = pipeline.card.classes
        which = [(f"image {i + 1}: {names[n]}", i) for i, n in enumerate(self.labels)]
        self.image = choice("image", "what to hide parts of", which, 0)
        hint = "a mask to start from; click on the image to change it"
        self.hide = choice("hide", hint, list(self.masks), "lower half")
        self.label = choice("class", "what to paint", class_options(pipeline), self.labels[0])
        self.scale = slider("scale s", "0: none", -1, max(10, scale), scale, 0.25)
        self.seed = number("seed", "of both refills", seed)
        on_move(self.take_image, self.image)
        on_move(self.take_mask, self.hide)
        on_move(self.redraw, self.label, self.scale, self.seed)
        self.hidden = self.masks[self.hide.value].clone()
        self.cells, self.results = Cells(tokenizer.config.grid, self.toggle), HTML()
        controls = [self.image, self.hide, self.label, self.scale, self.seed]
        super().__init__(HBox(controls, layout=WRAP), HBox([self.cells, self.results]))

    def take_image(self, change=None) -> None:
        """Another image, and with it its class."""
        self.label.value = self.labels[self.image.value]
        self.redraw()

    def take_mask(self, change=None) -> None:
        """One of the ready masks."""
        self.hidden = self.masks[self.hide.value].clone()
        self.redraw()

    def toggle(self, position: int) -> None:
        """Hide a cell, or show it again."""
        self.hidden[position] ^= True
        self.show_mask()  # at once: the refill can wait, the brush cannot
        self.redraw()

    def show_mask(self) -> None:
        """Show the image with the hidden cells in grey."""
        whole = self.pipeline.tokenizer.decode(self.tokens[[self.image.value]])
        self.shown = {"original": whole, "hidden": plots.overlay_masked(whole, self.hidden[None])}
        alt = f"{int(self.hidden.sum())} of {len(self.hidden)} cells hidden"
        self.cells.picture.value = picture(self.shown["hidden"][0], alt, "click to hide")

    def draw(self) -> None:
        """Fill the hidden cells, plain and guided, from the same seed."""
        self.show_mask()
        tokens, blank = self.tokens[[self.image.value]], self.pipeline.transformer.blank
        canvas = torch.where(self.hidden.to(tokens.device), blank, tokens)
        label, seeds = [self.label.value], [self.seed.value]
        for name, settings in plain_and_guided(self.settings, scale=self.scale.value).items():
            drawn = self.pipeline(label, seeds=seeds, canvas=canvas, **settings)
            self.shown[name] = drawn.images
        what = f"the hidden cells painted as {self.pipeline.card.classes[label[0]]}"
        alts = {
            "original": "the whole image",
            "plain": f"{what}, plain",
            "guided": f"{what}, guided, s = {self.scale.value:g}",
        }
        self.results.value = in_row(
            picture(self.shown[name][0], alt, name) for name, alt in alts.items()
        )

    def figure(self) -> plots.Plot:
        """Original, mask and the two refills."""
        names = self.pipeline.card.classes
        shown, asked = names[self.labels[self.image.value]], names[self.label.value]
        row = shown if shown == asked else f"{shown},\nrefilled\nas {asked}"
        return plots.image_rows({row: torch.cat(list(self.shown.values()))}, list(self.shown))


# --- the codebook ------------------------------------------------------------------------------


class CodebookBrowser(View):
    """Look codes up: what each stands for, which are near it, and where images use it.

    A code's patch is the average of all patches that became this code; grey if there are none.

    Args:
        images: (B, 3, H, W) in [0, 1], to look for uses in.
    """

    side = 8  # codes along one side of a page

    def __init__(self, tokenizer: VQTokenizer, images: Tensor):
        self.tokenizer, self.images = tokenizer, images.cpu()
        self.book = tokenizer.quantize.embedding.weight.detach()  # (K, D)
        self.tokens = tokenizer.encode(images.to(self.book.device)).cpu()
        self.uses = torch.bincount(self.tokens.flatten(), minlength=len(self.book))
        self.pages = self.uses.argsort(descending=True, stable=True).split(self.side**2)
        cell = tokenizer.config.resolution // tokenizer.config.grid
        cut = F.unfold(self.images, cell, stride=cell).transpose(1, 2).flatten(0, 1)  # (B N, 3 h w)
        total = torch.zeros(len(self.book), cut.shape[1]).index_add(0, self.tokens.flatten(), cut)
        self.patches = (total / self.uses[:, None]).nan_to_num(0.85).view(-1, 3, cell, cell)
        self.page = slider("page", "codes by use, the most used first", 1, len(self.pages), 1)
        hint, first = "its number; or click on its patch", int(self.pages[0][0])
        self.code = number("code", hint, first, len(self.book) - 1)
        on_move(self.redraw, self.page, self.code)
        self.cells, self.about = Cells(self.side, self.press), HTML()
        controls = HBox([self.page, self.code], layout=WRAP)
        super().__init__(controls, HBox([self.cells, self.about], layout=WRAP))

    def press(self, place: int) -> None:
        """Look at the code in this place of the page."""
        codes = self.pages[self.page.value - 1]
        if place < len(codes):
            self.code.value = int(codes[place])

    def draw(self) -> None:
        """Show the page, and all about the chosen code."""
        codes, code = self.pages[self.page.value - 1], self.code.value
        patches, here = self.patches[codes], torch.zeros(1, self.side**2, dtype=torch.bool)
        here[0, : len(codes)] = codes == code
        sheet = torch.full((self.side**2, *patches.shape[1:]), 0.85)  # the last page has gaps
        sheet[: len(codes)] = patches
        sheet = torch.cat([torch.cat(list(row), 2) for row in sheet.split(self.side)], 1)
        alt = f"{len(codes)} codes, page {self.page.value} of {self.page.max}; code {code} framed"
        framed = plots.frame_cells(sheet[None], here)[0]
        self.cells.picture.value = picture(framed, alt, size="page")

        distance = torch.cdist(self.book[[code]], self.book)[0].cpu()  # (K,)
        self.near = distance.argsort(stable=True)[:7]  # the code itself comes first
        near = in_row(
            picture(patch, f"code {n}", f"{n}\n{distance[n]:.2g}", "patch")
            for n, patch in zip(self.near.tolist(), self.patches[self.near], strict=True)
        )
        used = self.tokens == code  # (B, N)
        self.where = used.any(1).nonzero()[:6, 0]
        self.framed = plots.frame_cells(self.images[self.where], used[self.where])
        places = in_row(
            picture(image, f"image {i}, code {code} framed", size="small")
            for i, image in zip(self.where.tolist(), self.framed, strict=True)
        )
        self.about.value = (
            f"<p><b>code {code}</b> is {self.uses[code] / self.uses.sum():.2%} of the tokens of "
            f"{len(self.images)} images.</p><p>It and its nearest codes, with their distances:"
            f"</p>{near}<p>{'Used here:' if len(self.where) else 'Used nowhere here.'}</p>{places}"
        )

    def figure(self) -> plots.Plot:
        """The chosen code and its nearest ones, and where it is used."""
        rows = {"nearest codes\n(titles)": self.patches[self.near]}
        if len(self.where):
            rows[f"images with\ncode {self.code.value}"] = self.framed
        return plots.image_rows(rows, [f"code {n}" for n in self.near.tolist()])
