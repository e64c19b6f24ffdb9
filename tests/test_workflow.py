"""A folder of one's own pictures from its name to a trained part: identity and mirroring."""

import json

import pytest
import torch
from PIL import Image, ImageDraw

from sgmgm import datasets, scoring, workflow
from sgmgm.classifier import Classifier
from sgmgm.pipeline import read_card
from sgmgm.training import read_report
from sgmgm.utils.errors import CheckpointError, DataError, InputError
from sgmgm.utils.files import write_json
from sgmgm.utils.hub import read_tensors

from .test_folders import write_pictures


def write_arrows(root, count: int = 40):
    """Two classes that only their direction tells apart: a mirrored left arrow points right."""
    random = torch.Generator().manual_seed(0)
    for name in ("left", "right"):
        (root / name).mkdir(parents=True)
        for i in range(count):
            x, y = (int(n) for n in torch.randint(-3, 4, (2,), generator=random))
            picture = Image.new("RGB", (32, 32), "white")
            paint = ImageDraw.Draw(picture)
            paint.rectangle((8 + x, 14 + y, 24 + x, 18 + y), fill="black")
            paint.polygon([(3 + x, 16 + y), (14 + x, 6 + y), (14 + x, 26 + y)], fill="black")
            picture = picture if name == "left" else picture.transpose(Image.Transpose(0))
            picture.save(root / name / f"{i:02}.png")
    return f"folder:{root}"


def test_directed_classes_are_not_mirrored_unless_asked_for(tmp_path):
    """Mirrored, half of the arrows carry the other one's label and nothing can be learned."""
    name = write_arrows(tmp_path / "arrows")
    straight = workflow.train("classifier", name, "smoke", tmp_path / "straight", steps=50)
    mirrored = workflow.train("classifier", name, "smoke", tmp_path / "m", steps=50, mirror=True)
    assert straight["mirror"] is False and mirrored["mirror"] is True
    assert straight["test_accuracy"] == 1.0 and mirrored["test_accuracy"] < 0.8
    classifier = Classifier.from_pretrained(tmp_path / "straight" / "classifier")
    flipped = datasets.load(name, "test")
    flipped.images.copy_(flipped.images.flip(-1))
    assert scoring.accuracy(classifier, flipped) == 0.0


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A folder of pictures and a classifier trained on it for two steps: (name, its place)."""
    monkeypatch.chdir(tmp_path)
    name = f"folder:{write_pictures(tmp_path / 'pets')}"
    workflow.train("classifier", name, "smoke", tmp_path / "run", steps=2)
    return name, tmp_path / "run"


def test_mirroring_is_part_of_what_was_trained(pets):
    """Asked for or not, and the parts of one folder agree if nothing else is said."""
    name, folder = pets
    with pytest.raises(CheckpointError, match="was trained with another mirror"):
        workflow.train("classifier", name, "smoke", folder, steps=2, mirror=True)
    other = folder.with_name("mirrored")
    workflow.train("classifier", name, "smoke", other, steps=2, mirror=True)
    assert workflow.train("tokenizer", name, "smoke", other, steps=2)["mirror"] is True
    workflow.train("transformer", name, "smoke", other, steps=2)
    assert len(read_tensors(other / "tokens.safetensors")[0]["tokens"]) == 2
    workflow.train("transformer", name, "smoke", other, name="plain", steps=2, mirror=False)
    assert len(read_tensors(other / "tokens.safetensors")[0]["tokens"]) == 1


def test_reports_of_earlier_versions_were_mirrored_but_for_one_set(pets):
    name, folder = pets
    path = folder / "classifier" / "training.json"
    report = json.loads(path.read_text())
    del report["mirror"]
    write_json(path, report)
    assert read_report(folder / "classifier")["mirror"] is True
    assert workflow.train("classifier", name, "smoke", folder, steps=2)["mirror"] is True
    write_json(path, report | {"dataset": "fashion-mnist"})
    assert read_report(folder / "classifier")["mirror"] is False


def test_a_folder_has_one_name_in_everything_that_is_kept(pets, tmp_path, monkeypatch):
    """Whatever it is called and from wherever, also in files that kept the name as it was given."""
    name, folder = pets
    assert read_card(folder).dataset == read_report(folder / "classifier")["dataset"] == name
    for given in ("folder:pets", "folder:pets/", "folder:./pets"):
        assert workflow.train("classifier", given, "smoke", folder, steps=2)["step"] == 2
    classifier = scoring.find_classifier("folder:pets/", folder)
    assert classifier.labels_known
    first = scoring.reference_for("folder:./pets", classifier, folder)
    for path in (folder / "pipeline.json", folder / "classifier" / "training.json"):
        write_json(path, json.loads(path.read_text()) | {"dataset": "folder:pets"})
    assert scoring.find_classifier(name, folder).labels_known
    assert workflow.train("classifier", name, "smoke", folder, steps=2)["step"] == 2
    monkeypatch.setattr(scoring, "extract", lambda *_: pytest.fail("its statistics are kept"))
    assert scoring.reference_for(name, classifier, folder).stats.mean.equal(first.stats.mean)
    assert workflow.default_folder("folder:pets/", "smoke").name == "pets-smoke"
    monkeypatch.chdir(tmp_path / "pets")
    assert workflow.default_folder("folder:.", "smoke").name == "pets-smoke"


def test_one_class_has_no_classifier_and_says_so(tmp_path):
    name = f"folder:{write_pictures(tmp_path / 'cats', classes=('cat',))}"
    with pytest.raises(InputError, match="has one class only"):
        workflow.train("classifier", name, "smoke", tmp_path / "run", steps=2)
    report = workflow.train("tokenizer", name, "smoke", tmp_path / "run", steps=2)
    extractor = scoring.find_classifier(name, tmp_path / "run")
    assert extractor.name.endswith("of cifar10") and not extractor.labels_known
    assert report["judged_on"] == f"2 test images, {extractor.name}"
    images = datasets.load(name, "all").images.permute(0, 2, 3, 1).numpy()
    reference = scoring.reference_for(name, extractor, tmp_path / "run")
    labels = torch.zeros(len(images), dtype=torch.int64).numpy()
    assert scoring.score(images, labels, reference, extractor).accuracy is None


def test_a_damaged_test_picture_is_found_before_training(tmp_path, monkeypatch):
    root = write_pictures(tmp_path / "pets")
    (root / "dog" / "04.png").write_bytes(b"")  # every fifth is for testing
    monkeypatch.setattr(workflow, "fit", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(DataError, match="04.png cannot be read"):
        workflow.train("classifier", f"folder:{root}", "smoke", tmp_path / "run")


def test_a_reference_may_be_all_of_a_folder(pets):
    name, folder = pets
    classifier = scoring.find_classifier(name, folder)
    part = scoring.reference_for(name, classifier, folder)
    whole = scoring.reference_for(name, classifier, folder, split="all")
    assert (part.count, whole.count) == (16, 20)
    assert whole.dataset == f"{name} (all 20 images)"
    assert scoring.reference_for(name, classifier, folder).count == 16  # what is kept
