"""What CONTRIBUTING.md promises: one more of each kind is a few lines in one place."""

import inspect
from dataclasses import dataclass

import nbformat
import pytest
import torch
from torch import nn

from sgmgm import datasets, guidance, sampling, smoothing, workflow
from sgmgm.course import runner
from sgmgm.datasets import ImageSet
from sgmgm.guidance import Guidance
from sgmgm.pipeline import Pipeline
from sgmgm.transformer import Prediction
from sgmgm.utils import hub

from .course import test_runner


class Cooled(Guidance):
    """smooth = the plain prediction at twice the temperature."""

    passes = 1

    def both(self, canvas, labels):
        plain = self.model(canvas, labels).logits
        return plain, plain / 2


def add_guidance(patch):
    patch.setitem(guidance.GUIDANCES, "cooled", (Cooled, None))


def top_to_bottom(log_p, tau, gumbel):
    return -torch.arange(log_p.shape[1]).to(log_p).expand_as(log_p)


def add_order(patch):
    patch.setitem(sampling.ORDERS, "rows", top_to_bottom)


@dataclass
class BiasConfig:
    num_classes: int = 10
    codebook_size: int = 1024


class ClassBias(hub.Pretrained):
    """The plain prediction plus one learned vector of logits for each class (and for none)."""

    config_class = BiasConfig

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.bias = nn.Parameter(torch.zeros(config.num_classes + 1, config.codebook_size))

    @classmethod
    def fresh(cls, model, settings):
        return cls(BiasConfig(model.config.num_classes, model.config.codebook_size))

    @classmethod
    def load(cls, folder, model):
        return cls.from_pretrained(folder)

    def inputs(self, model, canvas, labels, hidden=None):
        return model(canvas, labels).logits.detach(), labels

    def forward(self, plain, labels, only=None):
        logits = plain + self.bias[labels][:, None]
        return Prediction(logits if only is None else logits[only], None)


def add_smoother(patch):
    patch.setitem(smoothing.SMOOTHERS, "bias", ClassBias)


def stripes(split, count):
    """Two classes: lying and standing stripes."""
    seed = datasets.SPLITS.index(split)
    wave = torch.rand(count or 200, 1, 32, 1, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(len(wave)) % 2
    lying = (wave * 255).to(torch.uint8).expand(-1, 3, 32, 32)
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, lying, lying.transpose(2, 3))
    return ImageSet("stripes", split, images, labels, ("lying", "standing"))


def add_dataset(patch):
    patch.setitem(datasets.DATASETS, "stripes", stripes)


def add_lesson(folder):
    budget = {"budget": {"smoke": 60, "laptop": 60}}
    first = "from sgmgm import course\ndevice = course.preflight(device)"
    test_runner.write_lesson(folder, "09_more.ipynb", first, "profile, dataset, seed", sgmgm=budget)


PIECES = {
    "guidance": (Cooled, add_guidance),
    "order": (top_to_bottom, add_order),
    "smoother": (BiasConfig, ClassBias, add_smoother),
    "data set": (stripes, add_dataset),
    "lesson": (add_lesson,),
}


@pytest.mark.parametrize("name", PIECES)
def test_it_takes_fewer_than_30_lines(name):
    text = "\n".join(inspect.getsource(piece) for piece in PIECES[name])
    assert len([line for line in text.splitlines() if line.strip()]) < 30


def test_a_guidance(trained, monkeypatch):
    add_guidance(monkeypatch)
    pipeline = Pipeline.from_pretrained(trained, "cpu")
    draw = {"steps": 3, "seeds": [1]}
    cooled = pipeline([0], guidance="cooled", scale=1.0, **draw)
    # plain + 1 (plain - plain / 2) is plain at 2 / 3 of the temperature, as is scale 0.5 there
    same = pipeline([0], guidance="sharpened", scale=0.5, **draw)
    assert torch.equal(cooled.trajectory.tokens, same.trajectory.tokens) and cooled.nfe == 3


def test_an_order(trained, monkeypatch):
    add_order(monkeypatch)
    kept = Pipeline.from_pretrained(trained, "cpu")([0], order="rows", steps=4).trajectory.kept
    for step in kept[:, 0]:
        count = int(step.sum())
        assert step[:count].all() and not step[count:].any()


def test_a_smoother(own, monkeypatch):
    add_smoother(monkeypatch)
    what = ("smoother", "sprites", "smoke", own)
    report = workflow.train(*what, device="cpu", name="mine", kind="bias", loss_on="masked")
    assert report["step"] == report["training"]["steps"]
    pipeline = Pipeline.from_pretrained(own, "cpu")
    mine = pipeline.guidance_part("mine")
    assert isinstance(mine, ClassBias) and mine.bias.any()
    drawn = {
        scale: pipeline([0], guidance="self", smoother="mine", scale=scale, steps=3, seeds=[0])
        for scale in (0.0, 100.0)
    }
    assert not torch.equal(*(each.trajectory.tokens for each in drawn.values()))
    quick = Pipeline.from_pretrained(own, "cpu", bf16=True)
    assert quick([0], guidance="self", smoother="mine", steps=2).images.isfinite().all()


def test_a_data_set(tmp_path, monkeypatch):
    add_dataset(monkeypatch)
    workflow.train("classifier", "stripes", "smoke", tmp_path / "run", device="cpu")
    card = workflow.read_card(tmp_path / "run")
    assert (card.dataset, card.classes) == ("stripes", ["lying", "standing"])
    assert workflow.train("classifier", "stripes", "smoke", tmp_path / "run")["test_accuracy"] > 0.9


def test_a_lesson(tmp_path):
    add_lesson(tmp_path)
    parameters = {"profile": "smoke", "dataset": "sprites", "seed": 0, "device": "cpu"}
    (done,) = runner.run(["09"], tmp_path / "out", tmp_path, **parameters)
    assert done["status"] == "ok" and done["budget"] == 60
    path = tmp_path / "out" / "09_more.ipynb"
    executed = nbformat.read(path, 4)
    del executed.metadata["papermill"]  # the runner's note of where it ran
    nbformat.write(executed, path)
    test_runner.test_lesson_has_its_form(path)
