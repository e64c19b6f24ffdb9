"""The second extractor: another architecture than the classifier, used for scores only."""

import inspect
import json

import pytest
import torch
from torch import nn

from scripts import two_extractors
from sgmgm import datasets, presets, scoring, settings, tasks, workflow
from sgmgm.classifier import Classifier, ClassifierConfig
from sgmgm.commands.cli import main
from sgmgm.evidence.cards import model_card
from sgmgm.evidence.sweep import summarise, sweep, table
from sgmgm.extractor import ChannelNorm, MixingBlock, SecondConfig, SecondExtractor
from sgmgm.pipeline import Pipeline
from sgmgm.scoring import extract, find_extractor
from sgmgm.utils.errors import CheckpointError, InputError
from sgmgm.utils.files import read_json
from sgmgm.utils.hub import read_manifest
from sgmgm.utils.samples import save_samples, to_uint8

CONFIG = SecondConfig(num_classes=4, widths=(8, 12), blocks=(1, 2), kernel=3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def extractor():
    torch.manual_seed(0)
    return SecondExtractor(CONFIG).eval()


def test_features_and_logits_of_every_image(extractor):
    images = torch.rand(5, 3, 32, 32, generator=seeded())
    with torch.no_grad():
        out = extractor(images)
    assert out.features.shape == (5, 12) and out.logits.shape == (5, 4)
    assert out.features.dtype == out.logits.dtype == torch.float32
    torch.testing.assert_close(out.logits, extractor.head(out.features))
    features, logits = extract(extractor, images.split(2))
    torch.testing.assert_close(features, out.features)
    torch.testing.assert_close(logits, out.logits)


def test_an_image_is_seen_alone_in_training_too(extractor):
    """No batch norm: what else is in the batch changes nothing, so it needs no eval mode."""
    images = torch.rand(4, 3, 16, 16, generator=seeded())
    together = extractor.train()(images).features
    alone = torch.cat([extractor.eval()(image[None]).features for image in images])
    torch.testing.assert_close(together, alone)


def test_the_norm_is_that_of_each_position():
    x = torch.randn(2, 6, 3, 3, generator=seeded()) * 5 + 2
    y = ChannelNorm(6)(x)
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(y, centred / (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt())


def test_a_block_starts_from_its_input_and_mixes_within_its_kernel():
    block = MixingBlock(4, 2, 3)
    x = torch.randn(1, 4, 9, 9, generator=seeded())
    moved = x.clone()
    moved[0, :, 4, 4] += 1
    with torch.no_grad():
        changed = (block(moved) - block(x)).abs().amax(1)[0] > 1e-6
        block.mlp_out.weight.zero_(), block.mlp_out.bias.zero_()
        assert block(x).equal(x)
    reached = torch.zeros(9, 9, dtype=torch.bool)
    reached[3:6, 3:6] = True
    assert changed.equal(reached)


def test_it_shares_no_layer_kind_with_the_classifier_but_plain_ones():
    def kinds(model):
        return {type(m) for m in model.modules()} - {nn.Sequential, nn.ModuleList}

    second = SecondExtractor(CONFIG)
    shared = kinds(second) & kinds(Classifier(ClassifierConfig(widths=(4, 8))))
    assert shared == {nn.Conv2d, nn.Linear}
    grouped = [m.groups for m in second.modules() if isinstance(m, nn.Conv2d)]
    assert grouped == [1, 8, 1, 12, 12]  # patches, then depthwise, halving, depthwise twice


def test_trained_saved_and_found_again(tmp_path):
    folder = tmp_path / "sprites"
    report = workflow.train("second", "sprites", "smoke", folder, device="cpu", steps=30)
    assert 0 < report["test_accuracy"] < 1
    losses = [entry["loss"] for entry in report["history"]]
    assert sum(losses[-5:]) < sum(losses[:5])
    again = SecondExtractor.from_pretrained(folder / "second")
    assert again.config == presets.get("sprites", "smoke", 10).second
    written = json.loads((folder / "second" / "training.json").read_text())
    assert written["test_accuracy"] == report["test_accuracy"]
    assert workflow.train("second", "sprites", "smoke", folder, device="cpu", steps=30) == written


def test_no_pipeline_trains_or_needs_it():
    assert "second" not in settings.PARTS and "second" in settings.TRAINABLE
    for task in (tasks.TokenizerTask, tasks.TransformerTask, tasks.SmootherTask):
        assert "Second" not in inspect.getsource(task)


@pytest.mark.parametrize(
    "act, fragment",
    [
        (lambda e: e(torch.rand(2, 1, 32, 32)), "images (B, 3, H, W), not (2, 1, 32, 32)"),
        (lambda e: e(torch.rand(3, 32, 32)), "not (3, 32, 32)"),
        (lambda e: SecondConfig(widths=(8,), blocks=(1, 1)), "one entry for each stage"),
        (lambda e: SecondConfig(kernel=4), "kernel must be odd, not 4"),
        (lambda e: SecondConfig(blocks=(0, 1)), "blocks cannot be (0, 1)"),
    ],
)
def test_bad_input_gives_one_sentence(act, fragment, extractor):
    with pytest.raises(InputError) as caught:
        act(extractor)
    text = str(caught.value)
    assert fragment in text and text.endswith(".") and "\n" not in text


def test_a_classifiers_folder_is_no_extractors(tmp_path):
    Classifier(ClassifierConfig(widths=(4, 8))).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="impossible sizes: widths and blocks"):
        SecondExtractor.from_pretrained(tmp_path)


# -------------------------------------------------------------------------- scores of both


@pytest.fixture
def scored(own):
    """A trained pipeline that has a second extractor too."""
    workflow.train("second", "sprites", "smoke", own, device="cpu", steps=10)
    return own


def test_each_extractor_keeps_its_own_reference(scored):
    names = []
    for part in ("classifier", "second", "classifier"):
        extractor = find_extractor(part, "sprites", scored)
        reference = scoring.reference_for("sprites", extractor, scored)
        assert reference.extractor == extractor.name
        names.append(extractor.name)
    assert names[0] == names[2] and names[1].startswith("second ")
    kept = {path.name for path in scored.glob("reference*")}
    assert kept == {"reference.safetensors", "reference-second.safetensors"}


def test_no_second_extractor_names_the_command_that_makes_one(trained):
    with pytest.raises(CheckpointError, match="run `sgmgm train second --dataset sprites` first"):
        find_extractor("second", "sprites", trained)


def test_evaluate_compares_with_the_second_extractor(scored, tmp_path, capsys):
    samples = tmp_path / "real.npz"
    real = datasets.load("sprites", "test", 40)
    save_samples(samples, to_uint8(real.batch(slice(None))[0]), real.labels.numpy())
    command = ["evaluate", "--samples", str(samples), "--model", str(scored), "--json"]
    found = {}
    for part in ("classifier", "second"):
        assert main([*command, "--device", "cpu", "--extractor", part]) == 0
        found[part] = json.loads(capsys.readouterr().out)
        assert found[part]["extractor"] == find_extractor(part, "sprites", scored).name
        assert found[part]["accuracy"] is not None
    assert found["second"]["frechet"] != found["classifier"]["frechet"]


def test_real_and_rebuilt_images_are_scored_with_both(scored, tmp_path):
    out = tmp_path / "extractors.json"
    assert two_extractors.main(("--model", str(scored), "--count", "20", "--out", str(out))) == 0
    real, rebuilt = read_json(out)
    assert (real["images"], rebuilt["images"]) == ("real", "rebuilt")
    for record in (real, rebuilt):
        assert record["count"] == 20 and len(record["extractors"]) == 2
        assert record["second"]["frechet"] != record["classifier"]["frechet"]
    assert rebuilt["second"]["frechet"] > real["second"]["frechet"]
    pixels, labels = two_extractors.images_of("real", Pipeline.from_pretrained(scored), 20)
    second = find_extractor("second", "sprites", scored)
    reference = scoring.reference_for("sprites", second, scored)
    again = scoring.score(pixels, labels, reference, second)
    assert again.frechet == pytest.approx(real["second"]["frechet"])


def test_a_sweep_scores_with_both(scored, tmp_path):
    pipeline = Pipeline.from_pretrained(scored, "cpu")
    (record,) = sweep(pipeline, [pipeline.card.sampling], 20, [0], tmp_path / "r.jsonl")
    assert record["scores"]["extractor"].startswith("classifier ")
    assert record["second"]["extractor"].startswith("second ")
    (row,) = summarise([record])
    assert row["frechet"] == (record["scores"]["frechet"], 0.0)
    assert row["second frechet"] == (record["second"]["frechet"], 0.0)
    assert row["ms"] == pytest.approx(50 * record["sampling_core_seconds"])
    assert "| ms |" in table([row]) and "| second frechet |" in table([row])


def test_a_card_names_the_command_of_the_second_extractor(scored):
    card = model_card(scored)
    assert "| second | 10 x 64 images" in card
    assert "sgmgm train second --dataset sprites --preset smoke --steps 10" in card


SHIPPED = sorted((scoring.SHIPPED / "second").glob("*/config.json"))


@pytest.mark.parametrize("config", SHIPPED, ids=lambda path: path.parent.name)
def test_shipped_ones_are_found_and_sealed(config, trained):
    dataset = config.parent.name
    second = find_extractor("second", dataset, trained)
    assert second.name.startswith("second ") and second.labels_known
    reference = scoring.reference_for(dataset, second)
    assert (reference.dataset, reference.extractor) == (dataset, second.name)
    sealed = read_manifest(config.parents[1])
    names = ("config.json", "model.safetensors", "reference.safetensors", "training.json")
    assert {f"{dataset}/{name}" for name in names} <= sealed.keys()


def test_a_packed_second_extractor_says_the_same(scored, tmp_path):
    workflow.pack(scored, tmp_path / "packed", "cpu")
    images = torch.rand(4, 3, 32, 32, generator=seeded())
    whole = find_extractor("second", "sprites", scored)
    packed = find_extractor("second", "sprites", tmp_path / "packed")
    torch.testing.assert_close(packed(images).logits, whole(images).logits, atol=2e-2, rtol=0)
