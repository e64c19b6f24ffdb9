"""Widgets: four views for notebooks, to see decoding move.

`Scrubber` steps through a trajectory, `Explorer` tries settings, `Refill` fills what you mask,
`CodebookBrowser` looks codes up. A view keeps its state in plain attributes, so it can be used and
tested without a browser.
"""

import functools
from dataclasses import asdict
from html import escape
from pathlib import Path

import torch
import torch.nn.functional as F
from ipywidgets import HTML, HBox
from torch import Tensor

from ..pipeline import Pipeline
from ..sampling import ANNEALS
from ..tokenizer import VQTokenizer
from ..utils.errors import InputError
from . import plots, views
from .scrubber import Scrubber
from .views import View

__all__ = ["CodebookBrowser", "Explorer", "Refill", "Scrubber"]


NEXT_CELL = Path(__file__).with_name("next_cell.js").read_text()


class Explorer(View):
    """Sliders over two rows of `count` images with the same seeds, plain and guided.

    They start at the pipeline's `Sampling` with the changes in `settings`.
    """

    def __init__(self, pipeline: Pipeline, count: int = 8, seed: int = 0, **settings):
        start = views.choose_settings(pipeline, settings)
        self.pipeline, self.start, self.count = pipeline, start, count
        kinds, tau, noise = views.find_guidances(pipeline), start.temperature, "noise in the order"
        self.controls = {
            "guidance": views.choice("guidance", "pushes away from what", kinds, start.guidance),
            "scale": views.scale_slider(start.scale),
            "temperature": views.slider("temperature", noise, 0, max(45, tau), tau, 0.5),
            "anneal": views.choice("its schedule", "how the noise falls", ANNEALS, start.anneal),
            "steps": views.slider("steps", "of decoding", 1, max(24, start.steps), start.steps),
        }
        classes = [("one of each", -1), *views.class_options(pipeline)]
        self.label = views.choice("class", "what to generate", classes, -1)
        self.seed = views.number("seed", "of the first image", seed)
        views.on_move(self.update, *self.controls.values(), self.label, self.seed)
        self.grid, self.code_box = HTML(), HTML()
        # plain images do not depend on the guidance, which is moved most
        kept = functools.lru_cache(maxsize=16)(self.sample)
        self.sample = kept  # type: ignore[method-assign]
        controls = HBox([*self.controls.values(), self.label, self.seed], layout=views.WRAP)
        super().__init__(controls, self.grid, self.code_box)

    def labels(self) -> list[int]:
        """One class number for each image."""
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

    def render(self) -> None:
        """Generate the two rows."""
        chosen, key = self.chosen(), (self.label.value, self.seed.value)
        unguided = {name: chosen[name] for name in ("temperature", "anneal", "steps")}
        self.rows = {
            "plain": self.sample(*key, **unguided, guidance="none"),
            f"{chosen['guidance']}, s = {chosen['scale']:g}": self.sample(*key, **chosen),
        }
        self.names = [self.pipeline.card.classes[label] for label in self.labels()]
        self.grid.value = ""
        for row, images in self.rows.items():
            figures = [
                views.html_image(image, f"{row}: {name}, seed {seed}", name, "small")
                for seed, (image, name) in enumerate(zip(images, self.names, strict=True), key[1])
            ]
            self.grid.value += f"<p>{row}</p>{views.in_row(figures)}"
        code = escape(self.code())
        self.code_box.value = (
            f'<button class="jupyter-button" data-code="{code}" onclick="{escape(NEXT_CELL)}">'
            f"Settings into the next cell</button><pre>{code}</pre>"
        )

    def code(self) -> str:
        """The guided row as code, for a notebook that has a `pipeline`."""
        settings, usual = asdict(self.start) | self.chosen(), asdict(self.pipeline.card.sampling)
        given = {k: v for k, v in settings.items() if k in self.controls or v != usual[k]}
        seeds = f"seeds=range({self.seed.value}, {self.seed.value + self.count})"
        lines = (str(self.labels()), seeds, *(f"{name}={value!r}" for name, value in given.items()))
        return "samples = pipeline(\n" + "".join(f"    {line},\n" for line in lines) + ")"

    def figure(self) -> plots.Plot:
        """The two rows."""
        return plots.image_rows(self.rows, self.names)


def ready_masks(side: int) -> dict[str, Tensor]:
    """Masks to start from: name -> bool (N,), True is masked."""
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
    """Mask parts of an image and let the model fill them, plain and guided.

    `images`, (B, 3, H, W) in [0, 1] with their labels (B,), are to choose from; without them one
    of each class is generated. `settings` are changes to the pipeline's `Sampling`.
    """

    def __init__(
        self, pipeline: Pipeline, images: Tensor | None = None, labels=None, seed: int = 0,
        **settings,
    ):  # fmt: skip
        self.pipeline, self.settings = pipeline, views.choose_settings(pipeline, settings)
        tokenizer = pipeline.tokenizer
        if images is None:
            labels = range(len(pipeline.card.classes)) if labels is None else labels
            self.tokens = pipeline(labels).trajectory.tokens
        elif labels is None or len(labels) != len(images):
            raise InputError("give one label for each image.")
        else:
            self.tokens = tokenizer.encode(images.to(pipeline.device))
        self.labels = pipeline.labels(labels).tolist()
        self.masks = ready_masks(tokenizer.config.grid)
        names, classes = pipeline.card.classes, views.class_options(pipeline)
        which = [(f"image {i + 1}: {names[n]}", i) for i, n in enumerate(self.labels)]
        self.image = views.choice("image", "what to mask parts of", which, 0)
        hint = "a mask to start from; click on the image to change it"
        self.mask = views.choice("mask", hint, list(self.masks), "lower half")
        self.label = views.choice("class", "what to fill in", classes, self.labels[0])
        self.scale = views.scale_slider(self.settings.scale)
        self.seed = views.number("seed", "of both refills", seed)
        views.on_move(self.take_image, self.image)
        views.on_move(self.take_mask, self.mask)
        views.on_move(self.update, self.label, self.scale, self.seed)
        self.masked = self.masks[self.mask.value].clone()
        self.cells, self.results = views.Cells(tokenizer.config.grid, self.toggle), HTML()
        controls = [self.image, self.mask, self.label, self.scale, self.seed]
        super().__init__(HBox(controls, layout=views.WRAP), HBox([self.cells, self.results]))

    def take_image(self, change=None) -> None:
        """Another image, and with it its class."""
        self.label.value = self.labels[self.image.value]
        self.update()

    def take_mask(self, change=None) -> None:
        """One of the ready masks."""
        self.masked = self.masks[self.mask.value].clone()
        self.update()

    def toggle(self, position: int) -> None:
        """Mask a cell, or show it again."""
        self.masked[position] ^= True
        self.show_mask()  # at once: the refill can wait, the brush cannot
        self.update()

    def show_mask(self) -> None:
        """Show the image with the masked cells in grey."""
        whole = self.pipeline.tokenizer.decode(self.tokens[[self.image.value]])
        self.shown = {"original": whole, "masked": plots.overlay_masked(whole, self.masked[None])}
        alt = f"{int(self.masked.sum())} of {len(self.masked)} cells masked"
        self.cells.image.value = views.html_image(self.shown["masked"][0], alt, "click to mask")

    def render(self) -> None:
        """Fill the masked cells, plain and guided, from the same seed."""
        self.show_mask()
        tokens, blank = self.tokens[[self.image.value]], self.pipeline.transformer.blank
        canvas = torch.where(self.masked.to(tokens.device), blank, tokens)
        label, seeds = [self.label.value], [self.seed.value]
        what = f"the masked cells filled as {self.pipeline.card.classes[label[0]]}"
        figures = [views.html_image(self.shown["original"][0], "the whole image", "original")]
        for name, settings in views.plain_and_guided(self.settings, scale=self.scale.value).items():
            samples = self.pipeline(label, seeds=seeds, canvas=canvas, **settings)
            self.shown[name] = samples.images
            alt = f"{what}, {name}" + (f", s = {self.scale.value:g}" if name == "guided" else "")
            figures.append(views.html_image(samples.images[0], alt, name))
        self.results.value = views.in_row(figures)

    def figure(self) -> plots.Plot:
        """Original, mask and the two refills."""
        names = self.pipeline.card.classes
        shown, asked = names[self.labels[self.image.value]], names[self.label.value]
        row = shown if shown == asked else f"{shown},\nrefilled\nas {asked}"
        return plots.image_rows({row: torch.cat(list(self.shown.values()))}, list(self.shown))


class CodebookBrowser(View):
    """Look codes up: what each stands for, which are near it, and where images use it.

    A code's patch is the average of all patches that became this code; grey if there are none.
    Uses are looked for in `images`, (B, 3, H, W) in [0, 1].
    """

    side = 8  # codes along one side of a page

    def __init__(self, tokenizer: VQTokenizer, images: Tensor):
        self.tokenizer, self.images = tokenizer, images.cpu()
        self.book = tokenizer.quantize.embedding.weight.detach()  # (K, D)
        self.tokens = tokenizer.encode(images.to(self.book.device)).cpu()
        self.uses = torch.bincount(self.tokens.flatten(), minlength=len(self.book))
        self.pages = self.uses.argsort(descending=True, stable=True).split(self.side**2)
        cut = plots.cells_of(self.images, tokenizer.config.grid)  # (B N, 3, h, w)
        self.patches = plots.mean_patches(cut, self.tokens.flatten(), len(self.book))
        self.page = views.slider("page", "codes by use, the most used first", 1, len(self.pages), 1)
        hint, first = "its number; or click on its patch", int(self.pages[0][0])
        self.code = views.number("code", hint, first, len(self.book) - 1)
        views.on_move(self.update, self.page, self.code)
        self.cells, self.details = views.Cells(self.side, self.press), HTML()
        controls = HBox([self.page, self.code], layout=views.WRAP)
        super().__init__(controls, HBox([self.cells, self.details], layout=views.WRAP))

    def press(self, place: int) -> None:
        """Look at the code in this place of the page."""
        codes = self.pages[self.page.value - 1]
        if place < len(codes):
            self.code.value = int(codes[place])

    def render(self) -> None:
        """Show the page, and all about the chosen code."""
        codes, code = self.pages[self.page.value - 1], self.code.value
        gaps = self.side**2 - len(codes)  # on the last page
        sheet = F.pad(self.patches[codes], (0,) * 7 + (gaps,), value=0.85)
        sheet, here = plots.tile(sheet, self.side), F.pad(codes == code, (0, gaps))
        alt = f"{len(codes)} codes, page {self.page.value} of {self.page.max}; code {code} framed"
        framed = plots.frame_cells(sheet[None], here[None])[0]
        self.cells.image.value = views.html_image(framed, alt, size="page")

        distance = torch.cdist(self.book[[code]], self.book)[0].cpu()  # (K,)
        self.near = distance.argsort(stable=True)[:7]  # the code itself comes first
        near = views.in_row(
            views.html_image(patch, f"code {n}", f"{n}\n{distance[n]:.2g}", "patch")
            for n, patch in zip(self.near.tolist(), self.patches[self.near], strict=True)
        )
        used = self.tokens == code  # (B, N)
        self.where = used.any(1).nonzero()[:6, 0]
        self.framed = plots.frame_cells(self.images[self.where], used[self.where])
        places = views.in_row(
            views.html_image(image, f"image {i}, code {code} framed", size="small")
            for i, image in zip(self.where.tolist(), self.framed, strict=True)
        )
        self.details.value = (
            f"<p><b>code {code}</b> is {self.uses[code] / self.uses.sum():.2%} of the tokens of "
            f"{len(self.images)} images.</p><p>It and its nearest codes, with their distances:"
            f"</p>{near}<p>{'Used here:' if len(self.where) else 'Used nowhere here.'}</p>{places}"
        )

    def figure(self) -> plots.Plot:
        """The chosen code and its nearest ones with their distances, and where it is used."""
        code = self.code.value
        distance = (self.book[self.near] - self.book[code]).norm(dim=1).tolist()
        near, used = f"code {code} and\nits nearest,\ndistance above", f"uses of\ncode {code}"
        titles = [f"{n}\n{d:.2g}" for n, d in zip(self.near.tolist(), distance, strict=True)]
        titles[0] = f"code {code}"
        rows = {near: self.patches[self.near]}
        heads = {near: titles}
        if len(self.where):
            rows[used] = self.framed
            heads[used] = [f"image {i}" for i in self.where.tolist()]
        return plots.image_rows(rows, heads)
