"""Scrubber: step through two trajectories of one seed, plain and guided."""

import functools
from typing import Any, NamedTuple

import ipywidgets
import torch
from ipywidgets import HTML, HBox, VBox
from torch import Tensor

from ..pipeline import Pipeline
from ..sampling import Trajectory
from . import plots, views
from .views import Animation, View


class Predictions(NamedTuple):
    """A trajectory of T steps, and the plain, smoothed and guided predictions of each."""

    sampled: Tensor  # (T, N) int64
    masked: Tensor  # (T, N) bool, what each step had to sample
    images: Tensor  # (T, 3, H, W) if all tokens sampled so far were kept
    seen: Tensor  # (T, 3, H, W) the canvases, grey where masked
    confidence: Tensor  # (T, N) the score each sampled token was ranked by; nan if known
    push: Tensor  # (T, N) guided minus plain log-probability of the sampled token; nan if known
    log_p: Tensor  # (3, T, N, K) plain, smoothed, guided


class Scrubber(View):
    """Step through two trajectories of one seed, plain and guided, and look at single tokens.

    `label` is a class number or name; `settings` are changes to the pipeline's `Sampling`.
    """

    def __init__(self, pipeline: Pipeline, label: int | str = 0, seed: int = 0, **settings):
        self.pipeline, self.settings = pipeline, views.choose_settings(pipeline, settings)
        steps, grid = self.settings.steps, pipeline.tokenizer.config.grid
        start, names = (steps + 1) // 2, ("plain", "guided")
        self.step = views.slider("step", "arrow keys step through the trajectory", 1, steps, start)
        self.play = ipywidgets.Play(min=1, max=steps, value=start, interval=600)
        self.play.tooltip = "play, stop, repeat"
        ipywidgets.jslink((self.play, "value"), (self.step, "value"))
        classes, first = views.class_options(pipeline), int(pipeline.labels(label))
        self.label = views.choice("class", "what to generate", classes, first)
        self.seed = views.number("seed", "of both trajectories", seed)
        hint = "which token to look at; or rest on it in the image"
        self.token = views.slider("token", hint, 0, grid**2 - 1, grid * (grid + 1) // 2)
        self.which = views.choice("of", "in which trajectory", names, "guided")
        views.on_move(self.update, self.label, self.seed)
        views.on_move(self.show, self.step, self.token, self.which)
        self.cells = {
            name: views.Cells(grid, functools.partial(self.look, name), hover=True)
            for name in names
        }
        self.maps = {name: HTML() for name in names}
        self.legend, self.best = HTML(), HTML()
        rows = [HBox([self.cells[name], self.maps[name]]) for name in names]
        narrow = ipywidgets.Layout(width="400px")  # fits beside the images on a laptop
        looked_at = VBox([self.token, self.which, self.best], layout=narrow)
        super().__init__(
            HBox([self.play, self.step, self.label, self.seed], layout=views.WRAP),
            HBox([VBox([*rows, self.legend]), looked_at], layout=views.WRAP),
        )

    def render(self) -> None:
        """Generate both trajectories, and predict at every step of them."""
        self.trajectories, label, seeds = {}, [self.label.value], [self.seed.value]
        for name, settings in views.plain_and_guided(self.settings).items():
            trajectory = self.pipeline(label, seeds=seeds, **settings).trajectory
            self.trajectories[name] = self.predict(trajectory)
        # One scale of colours for all steps; the last 2 % at either end would make it useless.
        both = self.trajectories.values()
        scores = torch.cat([each.confidence for each in both])
        pushes = torch.cat([each.push for each in both])
        ends = torch.tensor([0.02, 0.98])
        self.span: Any = tuple(scores[scores.isfinite()].quantile(ends).tolist())
        self.reach = float(pushes[pushes.isfinite()].abs().quantile(ends[1]))
        self.show()

    @torch.no_grad()
    def predict(self, trajectory: Trajectory) -> Predictions:
        """The three predictions at each step of a trajectory."""
        pipeline, guidance = self.pipeline, self.pipeline.guidance(self.settings)
        canvases, sampled = trajectory.canvases[:, 0], trajectory.sampled[:, 0]  # (T, N)
        labels = torch.full((len(sampled),), self.label.value, device=sampled.device)
        logits: Any = (*guidance.both(canvases, labels), guidance(canvases, labels))
        log_p = torch.stack([each.float().log_softmax(-1) for each in logits])  # (3, T, N, K)
        plain, _, guided = log_p.gather(-1, sampled.expand(3, -1, -1)[..., None])[..., 0]
        masked = canvases >= pipeline.transformer.config.codebook_size
        images = pipeline.tokenizer.decode(sampled)
        seen = plots.overlay_masked(images, masked)
        confidence = trajectory.confidence[:, 0].where(masked, torch.nan)
        push = (guided - plain).where(masked, torch.nan)
        found = (sampled, masked, images, seen, confidence, push, log_p)
        return Predictions(*(part.cpu() for part in found))

    def panels(self, steps: Predictions) -> dict[str, Tensor]:
        """The four images of each step: title -> images (T, 3, H, W)."""
        cell = steps.images.shape[-1] // self.pipeline.tokenizer.config.grid
        low, high = self.span
        return {
            "sampled": steps.images,
            "canvas": steps.seen,
            "confidence": views.colour_map(steps.confidence, low, high, cell, "viridis"),
            "push": views.colour_map(steps.push, -self.reach, self.reach, cell, "PuOr_r"),
        }

    def look(self, name: str, token: int) -> None:
        """Look at one token of the "plain" or the "guided" trajectory."""
        self.which.value, self.token.value = name, token

    def show(self, change=None) -> None:
        """Show the chosen step and token: quick, so it need not wait for the controls to rest."""
        k, when = self.step.value - 1, f"step {self.step.value} of {self.step.max}"
        for name, steps in self.trajectories.items():
            frame = torch.arange(self.token.max + 1) == self.token.value
            frame = frame[None] & (name == self.which.value)
            figures = []
            for title, images in self.panels(steps).items():
                framed = plots.frame_cells(images[k : k + 1], frame)[0]
                caption = f"{name}, {title}" if title == "sampled" else title
                figures.append(views.html_image(framed, f"{name}, {when}: {title}", caption))
            self.cells[name].image.value = figures[0]
            self.maps[name].value = views.in_row(figures[1:])
        low, high = self.span
        self.legend.value = (
            f"<p>confidence (log p + noise): dark {low:.1f}, bright {high:.1f}<br>push "
            f"(guided - plain log p): purple -{self.reach:.1f}, orange +{self.reach:.1f}"
            "<br>grey: known before</p>"
        )
        self.best.value = self.best_codes(self.trajectories[self.which.value], k, self.token.value)

    def best_codes(self, steps: Predictions, k: int, i: int) -> str:
        """The five codes most likely at position i in step k + 1, and each one's patch."""
        tokenizer = self.pipeline.tokenizer
        p, codes = steps.log_p[:, k, i].exp().topk(5)  # (3, 5)
        canvas = steps.sampled[k].repeat(codes.numel(), 1)
        canvas[:, i] = codes.flatten()
        images = tokenizer.decode(canvas.to(self.pipeline.device))
        grid = tokenizer.config.grid
        cell, row, column = images.shape[-1] // grid, i // grid, i % grid
        patches = images.unfold(2, cell, cell).unfold(3, cell, cell)[:, :, row, column]
        known = "" if steps.masked[k, i] else ", known before"
        table = ""
        for at, name in enumerate(("plain", "smoothed", "guided")):
            found = zip(codes[at].tolist(), p[at].tolist(), patches[5 * at :], strict=False)
            figures = [
                views.html_image(patch, f"{name}: code {code}", f"{code}\n{share:.0%}", "patch")
                for code, share, patch in found
            ]
            table += f"<tr><td>{name}</td><td>{views.in_row(figures)}</td></tr>"
        return (
            f"<p>row {row + 1}, column {column + 1}: code {steps.sampled[k, i]}{known}. "
            f"The most likely codes:</p><table>{table}</table>"
        )

    def figure(self) -> plots.Plot:
        """Up to six steps of both trajectories; the maps' rows say what their colours span."""
        chosen = torch.linspace(0, self.step.max - 1, min(6, self.step.max)).round().long()
        low, high = self.span
        spans = {"confidence": f"\n{low:.1f} to {high:.1f}"}
        spans["push"] = f"\n-{self.reach:.1f} to +{self.reach:.1f} nats"
        rows = {
            f"{name}: {title}{spans.get(title, '')}": images[chosen]
            for name, steps in self.trajectories.items()
            for title, images in self.panels(steps).items()
        }
        return plots.image_rows(rows, [f"step {k + 1}" for k in chosen.tolist()])

    def animation(self, milliseconds: int = 500) -> Animation:
        """Both as a moving image: plain left, guided right; samples above, canvases below."""
        sides = [torch.cat((each.images, each.seen), 2) for each in self.trajectories.values()]
        gap = torch.ones(*sides[0].shape[:3], 4)
        alt = (
            f"{self.pipeline.card.classes[self.label.value]} in {self.step.max} steps: plain on "
            "the left, guided on the right; samples above, canvases below"
        )
        frames, foot = torch.cat((sides[0], gap, sides[1]), 3), "samples above, canvases below"
        return Animation(frames, alt, milliseconds, "plain", "guided", foot)
