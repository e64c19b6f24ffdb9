import json
import math
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sgmgm import datasets, presets, scoring, settings, training, workflow
from sgmgm.classifier import Classifier, ClassifierConfig
from sgmgm.commands import actions
from sgmgm.commands.cli import main
from sgmgm.evidence import cards
from sgmgm.pipeline import Pipeline, read_card, write_card
from sgmgm.smoothing import LoraSmoother, Smoothed, ToastSmoother
from sgmgm.tasks import (
    LOSS_ON,
    WRONG_TOKENS,
    ClassifierTask,
    SmootherTask,
    TokenizerTask,
    TransformerTask,
    tokenize,
)
from sgmgm.tokenizer import TokenizerConfig, VQTokenizer
from sgmgm.training import TrainingConfig, batch_indices, fit, move_average
from sgmgm.transformer import MaskedTransformer, TransformerConfig
from sgmgm.utils.errors import CheckpointError, DataError, InputError, SgmgmError
from sgmgm.utils.files import sole_writer
from sgmgm.utils.hub import read_tensors, write_manifest

from . import trained as system

CONFIG = TrainingConfig(steps=8, batch_size=8, learning_rate=3e-3, warmup=2, ema=0.5)
TOKENIZER = TokenizerConfig(
    resolution=32,
    hidden_channels=8,
    channel_mult=(1, 1, 1),
    num_res_blocks=1,
    z_channels=4,
    quantized_embed_dim=4,
    num_embeddings=16,
    norm_groups=4,
)
TRANSFORMER = TransformerConfig(16, 24, 2, 2, 32, 20, 10, dropout=0.1)


@pytest.fixture(scope="module")
def images():
    return datasets.load("sprites", count=48)


def some_tokens(count=48):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(20, (2, count, 16), generator=draw).short(), torch.arange(count) % 10


def classifier_task(images):
    return ClassifierTask(Classifier(ClassifierConfig(widths=(4, 8))), images)


def tokenizer_task(images):
    classifier = Classifier(ClassifierConfig(widths=(4, 8)))
    return TokenizerTask(VQTokenizer(TOKENIZER), images, classifier)


def transformer_task(images):
    return TransformerTask(MaskedTransformer(TRANSFORMER), *some_tokens())


def smoother_task(images, kind=ToastSmoother.for_transformer, **options):
    model = MaskedTransformer(TRANSFORMER)
    codebook = torch.randn(20, 4)
    return SmootherTask(kind(model), model, *some_tokens(), codebook, **options)


TASKS = {
    "classifier": classifier_task,
    "tokenizer": tokenizer_task,
    "transformer": transformer_task,
    "toast": smoother_task,
    "lora": lambda images: smoother_task(images, LoraSmoother),
}


def make(kind, images):
    torch.manual_seed(0)
    return TASKS[kind](images)


class PowerCut(Exception):
    pass


def cut_after(task, step):
    """Let the power fail in the step after `step` steps are done."""
    usual = task.after_step

    def after_step(number, *rest):
        if number == step:
            raise PowerCut
        usual(number, *rest)

    task.after_step = after_step
    return task


def saved(folder, name="model.safetensors"):
    with safe_open(folder / name, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


# ------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("kind, muon", [*((kind, 0.0) for kind in TASKS), ("transformer", 0.02)])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(
    kind, muon, images, tmp_path, monkeypatch
):
    config = replace(CONFIG, muon=muon)
    whole = fit(make(kind, images), config, tmp_path / "whole", device="cpu")
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    for step in (3, 6):  # two power cuts; the second run resumes the first
        with pytest.raises(PowerCut):
            fit(cut_after(make(kind, images), step), config, tmp_path / "cut", device="cpu")
        left = {f.name for f in (tmp_path / "cut").iterdir()}
        assert left == {"training.safetensors"}
    steps = []
    task = make(kind, images)
    usual = task.after_step
    task.after_step = lambda step, *rest: steps.append(step) or usual(step, *rest)
    resumed = fit(task, config, tmp_path / "cut", device="cpu")
    assert steps == [6, 7]
    name = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    expected, found = saved(tmp_path / "whole", name), saved(tmp_path / "cut", name)
    assert expected.keys() == found.keys()
    for key in expected:
        assert expected[key].equal(found[key]), key
    assert resumed["history"] == whole["history"]
    files = {f.name for f in (tmp_path / "cut").iterdir()}
    assert files == {f.name for f in (tmp_path / "whole").iterdir()}
    assert "training.safetensors" not in files
    assert {name.rsplit(".")[-1] for name in files} <= {"safetensors", "json", "md"}


def test_two_runs_are_equal_and_another_seed_is_not(images, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(make("transformer", images), CONFIG, tmp_path / name, seed, "cpu")
    a, b, c = (saved(tmp_path / name) for name in "abc")
    assert all(a[key].equal(b[key]) for key in a)
    assert not all(a[key].equal(c[key]) for key in a)


@pytest.fixture
def unfinished(images, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    with pytest.raises(PowerCut):
        fit(cut_after(make("transformer", images), 3), CONFIG, tmp_path / "run", device="cpu")
    return tmp_path / "run"


def refused(images, folder, config=CONFIG, seed=0, kind="transformer"):
    before = (folder / "training.safetensors").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        fit(make(kind, images), config, folder, seed, "cpu")
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and "training.safetensors" in text
    assert [f.name for f in folder.iterdir()] == ["training.safetensors"]
    assert (folder / "training.safetensors").read_bytes() == before
    return text


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "text"])
def test_a_damaged_checkpoint_is_refused(damage, unfinished, images):
    path = unfinished / "training.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "flip": data[:20] + bytes([data[20] ^ 255]) + data[21:],
            "empty": b"",
            "text": b"not a checkpoint at all",
        }[damage]
    )
    assert "is damaged" in refused(images, unfinished)


def test_a_checkpoint_of_another_config_or_seed_is_refused(unfinished, images):
    longer = TrainingConfig(**(vars(CONFIG) | {"steps": 9}))
    assert "another training" in refused(images, unfinished, longer)
    assert "another seed" in refused(images, unfinished, seed=1)


def test_a_finished_part_is_not_trained_again(own, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(workflow, "fit", never)
    for part in settings.PARTS:
        report = workflow.train(part, "sprites", "smoke", own, device="cpu")
        assert report == training.read_report(own / part)


def test_a_finished_part_of_another_seed_is_kept(own):
    before = (own / "transformer" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="another seed; choose another --out"):
        workflow.train("transformer", "sprites", "smoke", own, seed=1, device="cpu")
    assert (own / "transformer" / "model.safetensors").read_bytes() == before


def test_a_part_made_for_other_weights_is_not_taken_for_done(own, tmp_path):
    packed = tmp_path / "packed"
    workflow.pack(own, packed, "cpu")  # whose float16 is no other tokenizer
    assert workflow.train("transformer", "sprites", "smoke", packed, device="cpu")["step"] > 0
    shutil.rmtree(own / "tokenizer")
    workflow.train("tokenizer", "sprites", "smoke", own, seed=1, device="cpu")
    for part in ("transformer", "weak", "smoother"):
        with pytest.raises(CheckpointError, match="another tokenizer; choose another --out"):
            workflow.train(part, "sprites", "smoke", own, device="cpu")
    report = json.loads((own / "weak" / "training.json").read_text())
    del report["tokenizer"]  # the first models that shipped do not say
    (own / "weak" / "training.json").write_text(json.dumps(report))
    found = workflow.train("weak", "sprites", "smoke", own, device="cpu")
    assert found.items() >= training.read_report(own / "weak").items()


def test_autocast_ends_with_the_training(images, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "has_bf16", lambda device: True)
    task = transformer_task(images)
    fit(task, CONFIG, tmp_path, device="cpu")
    canvas, labels = torch.zeros(2, 16, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        kept = MaskedTransformer.from_pretrained(tmp_path)(canvas, labels).logits
        torch.testing.assert_close(task.model(canvas, labels).logits, kept, rtol=0, atol=1e-6)


def test_frozen_weights_are_one_sentence(images, tmp_path):
    task = transformer_task(images)
    LoraSmoother(task.model)
    with pytest.raises(InputError, match="all weights of this .* are frozen"):
        fit(task, CONFIG, tmp_path, device="cpu")


def test_parts_ask_for_what_comes_before_them(own):
    shutil.rmtree(own / "tokenizer")
    shutil.rmtree(own / "weak")
    with pytest.raises(CheckpointError, match="first run `sgmgm train tokenizer"):
        workflow.train("weak", "sprites", "smoke", own, device="cpu")
    assert not (own / "weak").exists()


def test_another_training_length(own):
    options = ["weak", "--dataset", "sprites", "--preset", "smoke", "--out", str(own)]
    shutil.rmtree(own / "weak")
    assert main(["train", *options, "--steps", "3", "--device", "cpu"]) == 0
    assert json.loads((own / "weak" / "training.json").read_text())["training"]["steps"] == 3
    assert main(["train", "all", *options[1:], "--steps", "3"]) == 2


def test_a_further_round_begins_with_the_weights_of_the_last(own, tmp_path, capsys):
    """Two rounds, and what the card and `pack` make of them."""
    options = ["--dataset", "sprites", "--preset", "smoke", "--out", str(own), "--device", "cpu"]
    first, second = own / "weak-1", own / "weak"
    shutil.move(second, first)
    words = ["train", "weak", *options, "--seed", "1", "--steps", "1", "--start", str(first)]
    assert main(words) == main(words) == 0  # the second time it is there
    report = json.loads((second / "training.json").read_text())
    before = json.loads((first / "training.json").read_text())["history"]
    assert report["history"][0]["nll"] < before[0]["nll"] - 0.1  # no fresh network's
    assert report["start"]["training"]["steps"] == presets.SMOKE.weak_training.steps
    lines = [line for line in cards.model_card(own).splitlines() if "train weak " in line]
    assert lines[0].endswith("--preset smoke --name weak-1")
    assert lines[1].endswith("--steps 1 --seed 1 --start runs/sprites-smoke/weak-1")
    assert "| weak | 12 x 64 + 1 x 64 images |" in cards.model_card(own)
    workflow.pack(own, tmp_path / "packed", "cpu")
    assert (tmp_path / "packed" / "weak").exists() and not (tmp_path / "packed/weak-1").exists()
    assert main(["train", "weak", *options]) == 2  # other training than what is there
    shutil.rmtree(second)
    assert main([*words[:-1], str(own / "nothing")]) == 2
    assert "holds no trained weights" in capsys.readouterr().err
    assert main([*words[:-1], str(own / "tokenizer")]) == 2  # weights of something else
    assert "does not fit" in capsys.readouterr().err and not second.exists()


# -------------------------------------------------------------------------------- by the clock


@pytest.fixture
def clock(monkeypatch):
    """A clock that each step moves on by `clock.tick` seconds; the very first takes 1 s more."""

    class Clock:
        now, tick, slow = 100.0, 0.05, 1

        def of(self, task):
            usual = task.after_step

            def after_step(*rest):
                usual(*rest)
                self.now += self.tick + (self.slow > 0)
                self.slow -= 1

            task.after_step = after_step
            return task

    found = Clock()
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


@pytest.mark.parametrize("kind", ["tokenizer", "transformer", "lora"])
def test_training_by_the_clock_ends_on_time_and_its_steps_repeat_it(
    kind, clock, images, tmp_path, capsys
):
    """The first step is slow, and the machine slows down when it is warm."""
    task = clock.of(make(kind, images))
    usual = task.after_step

    def after_step(step, *rest):
        usual(step, *rest)
        clock.tick *= 1.6 if step == 30 else 1

    task.after_step = after_step
    report = fit(task, CONFIG, tmp_path / "a", device="cpu", minutes=0.1)
    assert report["seconds"] == pytest.approx(6, rel=0.05)
    steps = report["training"]["steps"]
    assert steps == report["step"] == report["history"][-1]["step"]
    assert report["minutes"] == 0.1 and report["history"][0]["step"] == 1
    said = capsys.readouterr().err
    assert "0.1 minutes; loading and scoring come on top. The number of steps is chosen" in said
    assert f"{steps} steps in about 0.1 minutes. `--steps {steps} --schedule wsd`" in said
    config = CONFIG.lasting(steps, "wsd")
    again = fit(clock.of(make(kind, images)), config, tmp_path / "b", device="cpu")
    assert again["history"][-1] == report["history"][-1]
    name = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    one, other = saved(tmp_path / "a", name), saved(tmp_path / "b", name)
    assert all(one[key].equal(other[key]) for key in one)


@pytest.mark.parametrize("speeds", [(1, 1, 1), (1, 1, 0.8), (1, 0.7, 0.6), (0.5, 1, 1)])
def test_the_number_of_steps_fits_the_time(speeds):
    """Of each third of a run of ten minutes the speed is given, in hundreds of steps a minute."""
    clock = training.Clock(600)
    seconds, done, steps = 0.0, 0, training.UNDECIDED
    while done < steps:
        seconds += 0.6 / speeds[min(2, int(seconds / 200))]
        done += 1
        if steps == training.UNDECIDED:
            number, final = clock.steps(done, seconds)
            steps = number if final else steps
            assert done < number
    assert seconds == pytest.approx(600, rel=0.1)
    assert CONFIG.lasting(steps, "wsd").rate(int(0.69 * steps)) == CONFIG.learning_rate


def test_a_clock_that_one_step_overruns():
    assert training.Clock(1).steps(1, 5.0) == (2, True)
    assert training.Clock(60).steps(1, 50.0) == (2, True)


def test_a_killed_training_by_the_clock_comes_to_the_same_end(clock, images, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    folder = tmp_path / "run"

    def part(cut=None):
        task = clock.of(make("transformer", images))
        usual = task.after_step

        def after_step(step, *rest):
            if step == cut:
                raise PowerCut
            usual(step, *rest)

        task.after_step = after_step
        return fit(task, CONFIG, folder, device="cpu", minutes=0.1)

    for cut in (0, 3, 70):  # before a step is kept, before the choice and after it
        with pytest.raises(PowerCut):
            part(cut)
    clock.tick *= 3  # the machine has become slower: the choice stands
    report = part()
    assert report["step"] == pytest.approx(100, abs=3)
    config = CONFIG.lasting(report["step"], "wsd")
    whole = fit(clock.of(make("transformer", images)), config, tmp_path / "whole", device="cpu")
    assert whole["history"][-1] == report["history"][-1]
    with pytest.raises(PowerCut):
        shutil.rmtree(folder)
        clock.tick = 0.05
        part(90)
    with pytest.raises(CheckpointError, match="another training, minutes; delete"):
        fit(make("transformer", images), CONFIG, folder, device="cpu", minutes=0.02)
    steps = json.loads(read_tensors(folder / "training.safetensors")[1]["report"])["training"]
    fit(clock.of(make("transformer", images)), TrainingConfig(**steps), folder, device="cpu")


@pytest.mark.parametrize("minutes", [0, -1, math.nan, math.inf, "3", 10**7])
def test_minutes_that_cannot_be(minutes, images, tmp_path):
    with pytest.raises(InputError, match="minutes must"):
        fit(make("transformer", images), CONFIG, tmp_path / "run", device="cpu", minutes=minutes)
    assert not (tmp_path / "run").exists()


def test_fewer_steps_warm_up_for_less():
    config = TrainingConfig(1000, warmup=100)
    assert config.lasting(50) == TrainingConfig(50, warmup=5)
    assert config.lasting(3) == TrainingConfig(3, warmup=0)
    assert config.lasting(5000) == TrainingConfig(5000, warmup=100)
    assert config.lasting(None) == config
    assert config.lasting(50, "wsd") == TrainingConfig(50, warmup=25, schedule="wsd")
    assert config.lasting(5000, "wsd").warmup == 25  # the same: it is over before the choice


def test_the_command_trains_by_the_clock(own, capsys):
    shutil.rmtree(own / "weak")
    words = ["train", "weak", "--preset", "smoke", "--out", str(own), "--device", "cpu"]
    assert main([*words, "--minutes", "0.01"]) == 0
    report = training.read_report(own / "weak")
    assert report["minutes"] == 0.01 and report["seconds"] < 30
    steps = str(report["training"]["steps"])
    assert main([*words, "--minutes", "0.01"]) == 0  # done
    assert main([*words, "--steps", steps, "--schedule", "wsd"]) == 0  # the same
    assert training.read_report(own / "weak") == report
    assert f"--steps {steps} --schedule wsd" in cards.model_card(own)
    assert main([*words, "--minutes", "0.02"]) == 2
    assert main([*words, "--minutes", "0.01", "--steps", "3"]) == 2
    assert "not both" in capsys.readouterr().err
    assert main([*words, "--minutes", "0.01", "--schedule", "cosine"]) == 2
    assert "a schedule of its own" in capsys.readouterr().err


def test_run_shares_its_minutes_out(trained, tmp_path, monkeypatch):
    given = {}

    def train(part, *what, minutes, **more):
        given[part] = minutes
        if part == "transformer":
            raise InputError("enough.")

    monkeypatch.setattr(actions, "describe", lambda report: "x, y")
    monkeypatch.setattr(actions.workflow, "train", lambda *a, **k: train(*a, **k) or {"seconds": 1})
    words = ["run", "--preset", "smoke", "--minutes", "9", "--out", str(tmp_path / "run")]
    assert main([*words, "--dataset", "sprites"]) == 2
    assert given == pytest.approx({"tokenizer": 3, "transformer": 6})  # the classifier ships


# --------------------------------------------------------------------- what a failure leaves


def test_weights_that_are_no_longer_finite_replace_no_checkpoint(images, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    task = make("transformer", images)

    def after_step(step, *rest):
        if step == 4:  # the loss of this step was finite
            next(task.model.parameters()).data[0, 0] = math.nan

    task.after_step = after_step
    with pytest.raises(InputError, match=r"no longer finite at step 5; lower .*\.$"):
        fit(task, CONFIG, tmp_path, device="cpu")
    tensors, notes = read_tensors(tmp_path / "training.safetensors")
    assert json.loads(notes["report"])["step"] == 4
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_what_was_trained_is_kept_before_it_is_evaluated(images, tmp_path):
    whole = fit(make("transformer", images), CONFIG, tmp_path / "whole", device="cpu")

    def fail(model):
        raise InputError("nothing to evaluate it on.")

    with pytest.raises(InputError, match="nothing to evaluate"):
        fit(make("transformer", images), CONFIG, tmp_path / "run", device="cpu", evaluate=fail)
    weights = saved(tmp_path / "whole")
    assert all(v.equal(weights[k]) for k, v in saved(tmp_path / "run").items())
    task = make("transformer", images)
    task.losses = None  # no further step
    found = {"score": 3}
    report = fit(task, CONFIG, tmp_path / "run", device="cpu", evaluate=lambda model: found)
    assert report["score"] == 3 and report["history"] == whole["history"]
    assert all(v.equal(weights[k]) for k, v in saved(tmp_path / "run").items())
    assert not (tmp_path / "run" / "training.safetensors").exists()


@pytest.mark.parametrize("part", ["classifier", "tokenizer"])
@pytest.mark.parametrize("fault", ["x.png cannot be read", "sprites has 1 test image, and sco"])
def test_the_test_split_is_looked_at_before_the_training(fault, part, own, monkeypatch):
    """A damaged picture, or too few of them, is no surprise at the end."""
    usual = workflow.load_data

    def load_data(name, split="train", count=None):
        if split == "test" and fault.startswith("x.png"):
            raise DataError(f"{fault}.")
        return usual(name, split, 1 if split == "test" else count)

    monkeypatch.setattr(workflow, "load_data", load_data)
    monkeypatch.setattr(workflow, "fit", None)
    shutil.rmtree(own / part)
    with pytest.raises(DataError, match=fault):
        workflow.train(part, "sprites", "smoke", own, device="cpu")


def test_a_part_of_another_preset_is_refused_before_the_work(own, capsys):
    shutil.rmtree(own / "weak")
    before = (own / "pipeline.json").read_bytes()
    assert main(["train", "weak", "--out", str(own)]) == 2  # without --preset: laptop
    assert "add --dataset sprites --preset smoke, or choose" in capsys.readouterr().err
    assert main(["train", "smoother", "--preset", "gpu", "--out", str(own), "--name", "b"]) == 2
    assert (own / "pipeline.json").read_bytes() == before
    assert not (own / "weak").exists() and not (own / "b").exists()


def test_other_classes_than_the_folders_are_refused(own):
    card = read_card(own)
    write_card(own, replace(card, classes=[*card.classes[1:], "dragon"]))
    shutil.rmtree(own / "weak")
    with pytest.raises(CheckpointError, match="was made for the classes .*dragon.*, and sprites"):
        workflow.train("weak", "sprites", "smoke", own, device="cpu")


def test_a_sealed_folder_loads_after_one_more_part(own, tmp_path):
    packed = tmp_path / "packed"
    workflow.pack(own, packed, "cpu")
    card = json.loads((packed / "pipeline.json").read_text())
    del card["sampling"]["remask_known"]  # as earlier versions wrote it
    (packed / "pipeline.json").write_text(json.dumps(card))
    write_manifest(packed)
    workflow.train("weak", "sprites", "smoke", packed, device="cpu", name="mine", steps=1)
    Pipeline.from_pretrained(packed, "cpu")
    shutil.rmtree(packed / "weak")
    with pytest.raises(CheckpointError, match="is sealed with its weak"):
        workflow.train("weak", "sprites", "smoke", packed, device="cpu")


@pytest.mark.parametrize("part, option", [("smoother-lora", "keep_class"), ("smoother", "rank")])
def test_an_option_without_effect_is_refused(part, option, own):
    with pytest.raises(InputError, match=f"smoother has no {option}: leave that option out"):
        workflow.train(part, "sprites", "smoke", own, device="cpu", name="b", **{option: 8})
    assert not (own / "b").exists()


def test_two_commands_do_not_train_one_part(own, capsys):
    shutil.rmtree(own / "weak")
    words = ["train", "weak", "--preset", "smoke", "--out", str(own), "--steps", "1"]
    with sole_writer(own / "weak"):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"process {os.getpid()} is writing to {(own / 'weak').resolve()}" in said
        assert main([*words[:-2], "--name", "another", "--steps", "1"]) == 0
    assert main(words) == 0


def test_whole_numbers_of_numpy_are_taken():
    config = TrainingConfig(np.int64(5), batch_size=np.int32(8), warmup=torch.tensor(2))
    assert json.loads(json.dumps(vars(config)))["warmup"] == 2
    with pytest.raises(InputError, match="not True"):
        TrainingConfig(True)


# ------------------------------------------------------------------------------ what it leaves


def test_what_training_leaves_is_plain_data(retrained):
    suffixes = {f.suffix for f in retrained.rglob("*") if f.is_file()}
    assert suffixes <= {".json", ".safetensors", ".md"}
    assert not list(retrained.rglob(".*"))
    for part in settings.PARTS:
        report = json.loads((retrained / part / "training.json").read_text())
        config = getattr(presets.SMOKE, f"{part.removesuffix('-lora')}_training")
        assert report["training"]["steps"] == config.steps == report["step"]
        assert report["seconds"] > 0 and report["images_per_second"] > 0
        assert report["history"][-1]["step"] == config.steps
        assert all(math.isfinite(entry["loss"]) for entry in report["history"])


def test_everything_learns(retrained):
    def history(part, name):
        entries = json.loads((retrained / part / "training.json").read_text())["history"]
        values = [entry[name] for entry in entries]
        tail = values[-5:]
        return values[0], sum(tail) / len(tail)

    first, last = history("classifier", "loss")
    assert first > 2.2 and last < 2.1  # chance is log 10 = 2.30
    first, last = history("tokenizer", "l1")
    assert last < 0.75 * first
    first, last = history("transformer", "nll")
    assert first == pytest.approx(math.log(64), abs=0.2) and last < first - 0.7
    first, last = history("weak", "nll")
    assert last < first - 0.1


def test_the_committed_system_is_what_is_trained_here(retrained):
    """All but the rounding, which differs between processors: see tests/trained.py."""
    folders = system.FOLDER, retrained
    files = [{f.relative_to(each) for f in each.rglob("*.*")} for each in folders]
    assert files[0] == files[1] - {Path("tokens.safetensors")}
    for path in (path for path in files[0] if path.suffix == ".safetensors"):
        shapes = [
            {name: (x.shape, x.dtype) for name, x in read_tensors(each / path)[0].items()}
            for each in folders
        ]
        assert shapes[0] == shapes[1], path
    for path in (path for path in files[0] if path.suffix == ".json"):
        committed, fresh = (json.loads((each / path).read_text()) for each in folders)
        if path.name != "training.json":
            assert committed == fresh, path
            continue
        committed, fresh = (training.read_report((each / path).parent) for each in folders)
        assert committed.keys() == fresh.keys()
        for key in ("training", "seed", "dataset", "preset", "start", "step"):
            assert committed[key] == fresh[key], f"{path}: {key}"
        losses = [[entry["loss"] for entry in each["history"]] for each in (committed, fresh)]
        assert losses[1][0] == pytest.approx(losses[0][0], rel=0.05), path
        assert sum(losses[1][-5:]) == pytest.approx(sum(losses[0][-5:]), rel=0.1), path


@pytest.mark.parametrize("kind, steps, least", [("toast", 120, 0.001), ("lora", 40, 0.1)])
def test_smoothers_learn(trained, tmp_path, kind, steps, least):
    """Judged on one fixed batch, where the noise of the masks cannot hide it.

    This generator knows little more than how frequent each code is, and so does a fresh TOAST.
    """
    images = datasets.load("sprites", "train", 256)
    tokenizer = VQTokenizer.from_pretrained(trained / "tokenizer")
    model = MaskedTransformer.from_pretrained(trained / "transformer")
    torch.manual_seed(0)
    smoother = ToastSmoother.for_transformer(model) if kind == "toast" else LoraSmoother(model)
    codebook, tokens = tokenizer.quantize.embedding.weight.detach(), tokenize(tokenizer, images)
    task = SmootherTask(smoother, model, tokens, images.labels, codebook)
    task.to(torch.device("cpu"))

    @torch.no_grad()
    def loss():
        generator = torch.Generator().manual_seed(0)
        smoother.train(kind == "toast")  # which tells its reconstruction loss in training only
        return task.losses(smoother, torch.arange(256), slice(None), generator)["auxiliary"]

    before = loss()
    config = TrainingConfig(steps, 32, 1e-2, warmup=4, weight_decay=0.0, ema=0.5)
    fit(task, config, tmp_path, device="cpu")
    assert loss() < before - least


def test_the_reports_of_classifier_and_tokenizer(retrained):
    report = json.loads((retrained / "classifier" / "training.json").read_text())
    classifier = scoring.find_classifier("sprites", retrained)
    assert report["test_accuracy"] == scoring.accuracy(classifier, datasets.load("sprites", "test"))
    report = json.loads((retrained / "tokenizer" / "training.json").read_text())
    assert 10 < report["psnr"] < 40 and report["rfid"] > 0
    assert 0.2 < report["codes_used"] <= 1 and 1 < report["perplexity"] <= 64
    assert "500 test images" in report["judged_on"] and "classifier" in report["judged_on"]


def test_a_loss_that_is_not_a_number_ends_in_one_sentence(images, tmp_path):
    task = make("transformer", images)
    task.losses = lambda *a: {"loss": sum(p.sum() for p in task.model.parameters()) * math.nan}
    with pytest.raises(SgmgmError, match=r"the loss became nan at step 1; .*\.$"):
        fit(task, CONFIG, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder(images, tmp_path):
    (tmp_path / "file").write_text("here")
    with pytest.raises(InputError, match=r"cannot write .*\.$"):
        fit(make("transformer", images), CONFIG, tmp_path / "file" / "run", device="cpu")


# ----------------------------------------------------------------------------------- the pieces


def test_a_power_cut_costs_a_minute_at_most():
    assert training.SAVE_SECONDS <= 60  # docs/reliability.md


def test_every_epoch_is_a_permutation():
    size, batch = 50, 8
    seen = torch.cat([batch_indices(size, batch, step, 3) for step in range(100)])
    assert seen.dtype == torch.int64 and len(seen) == 800
    epochs = seen.view(16, 50)
    assert all(sorted(epoch.tolist()) == list(range(size)) for epoch in epochs)
    assert not epochs[0].equal(epochs[1])
    assert batch_indices(size, batch, 7, 3).equal(batch_indices(size, batch, 7, 3))
    assert not batch_indices(size, batch, 7, 3).equal(batch_indices(size, batch, 7, 4))


def test_a_batch_may_be_larger_than_the_set():
    rows = batch_indices(3, 8, 0, 0)
    assert len(rows) == 8 and sorted(rows[:3].tolist()) == [0, 1, 2] == sorted(rows[3:6].tolist())


def test_the_average():
    average = {"w": torch.tensor([1.0, 2.0]), "count": torch.tensor(3)}
    move_average(average, {"w": torch.tensor([3.0, 2.0]), "count": torch.tensor(9)}, 0.75)
    assert average["w"].tolist() == [1.5, 2.0] and average["count"].item() == 9


def test_the_kept_weights_are_the_averages(images, tmp_path):
    """By hand: decay min(ema, (1 + k) / (10 + k)) after each step, from the first weights on."""
    task = make("transformer", images)
    expected = {k: v.clone() for k, v in task.model.state_dict().items()}
    weights = []
    usual = task.after_step

    def after_step(step, *rest):
        usual(step, *rest)
        weights.append({k: v.clone() for k, v in task.model.state_dict().items()})

    task.after_step = after_step
    fit(task, CONFIG, tmp_path / "run", device="cpu")
    for step, now in enumerate(weights):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {k: decay * v + (1 - decay) * now[k] for k, v in expected.items()}
    found = saved(tmp_path / "run")
    for key in found:
        torch.testing.assert_close(found[key], expected[key], atol=1e-6, rtol=1e-5)
        assert found[key].equal(task.model.state_dict()[key])
    assert not task.model.training


def test_learning_rates():
    config = TrainingConfig(steps=1000, learning_rate=2.0, warmup=10)
    assert config.rate(0) == pytest.approx(0.2)
    assert config.rate(9) == pytest.approx(2.0, rel=1e-3)
    assert config.rate(500) == pytest.approx(2.0 * 0.505)
    assert config.rate(999) == pytest.approx(0.02, rel=1e-2)
    rates = [config.rate(step) for step in range(10, 1000)]
    assert rates == sorted(rates, reverse=True)
    assert TrainingConfig(steps=5, warmup=0, learning_rate=1.0).rate(0) == pytest.approx(1.0)


def test_biases_and_norms_do_not_decay():
    model = MaskedTransformer(TRANSFORMER)
    decayed, free = training.parameter_groups(model, 0.3)
    assert decayed["weight_decay"] == 0.3 and free["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))


def test_muon_moves_a_transformers_matrices_and_adamw_the_rest():
    model = MaskedTransformer(TRANSFORMER)
    *others, inner = training.parameter_groups(model, 0.3, muon=0.02)
    assert inner["muon"] and not any(group["muon"] for group in others)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in inner["params"]}
    assert found == {
        n for n in names.values() if "layers" in n and "norm" not in n and "weight" in n
    }


@pytest.mark.parametrize("muon", [-0.1, math.nan, math.inf, "fast"])
def test_an_impossible_muon_is_refused(muon):
    with pytest.raises(InputError, match="muon must be a learning rate, or 0 for none, not"):
        TrainingConfig(steps=1, muon=muon)


def test_muon_for_what_is_no_transformer_is_refused_before_the_training(images, tmp_path):
    with pytest.raises(InputError, match="Muon is for transformers; a VQTokenizer has muon=0"):
        fit(make("tokenizer", images), replace(CONFIG, muon=0.02), tmp_path / "run", device="cpu")
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize("shape", [(24, 24), (32, 24), (24, 32)])
def test_muon_is_torchs_but_for_rounding(shape):
    """`torch.optim.Muon` rounds to bfloat16: three digits."""
    torch.manual_seed(0)
    start = torch.randn(shape)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    group = {"params": [ours], "weight_decay": 0.1, "muon": True}
    optimizers = training.Muon([group], lr=0.1), torch.optim.Muon([theirs], 0.1, 0.1)
    for _ in range(3):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved
    values = torch.linalg.svdvals(training.orthogonal(torch.randn(shape)))
    assert values.min() > 0.3 and values.max() < 1.3


def test_gradients_are_clipped(images, tmp_path):
    norms = []
    task = make("transformer", images)
    usual = task.losses
    task.losses = lambda *a: {k: 1000 * v for k, v in usual(*a).items()}

    def after_step(*rest):
        gradients = [p.grad for p in task.model.parameters() if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())

    task.after_step = after_step
    fit(task, CONFIG, tmp_path / "run", device="cpu")
    assert max(norms) <= 1.001 and min(norms) > 0.99


def test_tokens_of_a_set_and_its_mirror_images(trained, images):
    tokenizer = VQTokenizer.from_pretrained(trained / "tokenizer")
    tokens = tokenize(tokenizer, images)
    assert tokens.shape == (2, 48, 64) and tokens.dtype == torch.int16
    pixels, _ = images.batch(slice(0, 20))
    assert tokens[0, :20].long().equal(tokenizer.encode(pixels))
    assert tokens[1, :20].long().equal(tokenizer.encode(pixels.flip(-1)))
    asymmetric = datasets.ImageSet(
        "one-way", "train", images.images, images.labels, images.classes, flip=False
    )
    assert tokenize(tokenizer, asymmetric).equal(tokens[:1])


def test_tokens_of_a_large_codebook_keep_their_numbers(images):
    """int16 ends at 32,767."""
    tokenizer = VQTokenizer(replace(TOKENIZER, num_embeddings=40_000)).eval()
    tokenizer.quantize.embedding.weight.data.fill_(1000.0)
    tokenizer.quantize.embedding.weight.data[39_999] = 0.0  # the nearest to everything
    assert (tokenize(tokenizer, images.subset(2)) == 39_999).all()


# ------------------------------------------------------------------------- the auxiliary task


@pytest.mark.parametrize("loss_on", LOSS_ON)
@pytest.mark.parametrize("wrong", WRONG_TOKENS)
def test_the_smoother_judges_what_it_should(wrong, loss_on, images):
    task = make("toast", images)
    task = smoother_task(images, wrong=wrong, loss_on=loss_on, rate=0.5)
    task.to("cpu")
    rows = torch.arange(48)
    generator = torch.Generator().manual_seed(0)
    tokens, labels = task.examples(rows, torch.Generator().manual_seed(0))
    seen = {}
    fake = torch.zeros(48, 16, 20, requires_grad=True)

    def model(transformer, hidden, y, only):
        return Smoothed(fake[only], None, torch.zeros(()))

    def embed_tokens(canvas, y):
        seen["canvas"] = canvas
        return MaskedTransformer.embed_tokens(task.transformer, canvas, y)

    task.transformer.embed_tokens = embed_tokens
    task.losses(model, rows, slice(None), generator)["loss"].backward()
    judged = fake.grad.abs().sum(-1) > 0
    canvas = seen["canvas"]
    masked, changed = canvas == TRANSFORMER.mask_id, (canvas != tokens) & (canvas < 20)
    assert changed.any() and masked.any()
    if loss_on == "masked":
        assert judged.equal(masked)
    else:
        assert not (judged & masked).any() and (judged | ~changed).all()
        # a wrong token may by chance be the right one
        assert judged.sum() <= 1.35 * changed.sum()
    share = changed.sum() / (~masked).sum()
    assert 0.35 < share < 0.6
    # the truth is the target, not the wrong token
    assert (-fake.grad[judged]).argmax(-1).equal(tokens[judged])


def test_the_frozen_transformer_does_not_move(images, tmp_path):
    for kind in ("toast", "lora"):
        task = make(kind, images)
        before = {k: v.clone() for k, v in task.transformer.state_dict().items()}
        fit(task, CONFIG, tmp_path / kind, device="cpu")
        assert all(v.equal(before[k]) for k, v in task.transformer.state_dict().items())


@pytest.mark.parametrize(
    "call, fragment",
    [
        (lambda: TrainingConfig(0), "at least 1, not 0"),
        (
            lambda: TrainingConfig(5, batch_size=0),
            "batch_size must be a whole number of at least 1",
        ),
        (lambda: smoother_task(None, wrong="odd"), "unknown wrong tokens 'odd'"),
        (lambda: smoother_task(None, loss_on="all"), "unknown loss 'all'"),
        (lambda: smoother_task(None, rate=0.0), "needs a rate in (0, 1], not 0.0"),
        (lambda: smoother_task(None, rate=1.5), "not 1.5"),
    ],
)
def test_bad_arguments_give_one_sentence(call, fragment):
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert fragment in text and text.endswith(".") and "\n" not in text


@pytest.mark.check
def test_the_gpu_preset_runs_from_end_to_end(tmp_path, monkeypatch):
    """Its own networks, two steps of two images each."""
    plan = presets.TABLE["any", "gpu"]
    short = {f.name: replace(getattr(plan, f.name), steps=2, batch_size=2)
             for f in fields(plan) if f.name.endswith("_training")}  # fmt: skip
    monkeypatch.setitem(presets.TABLE, ("any", "gpu"), replace(plan, **short, images=8))
    few = datasets.load("sprites", "test", 8)
    load = datasets.load
    monkeypatch.setattr(
        datasets,
        "load",
        lambda name, split="train", *a, **k: few if split == "test" else load(name, split, *a, **k),
    )
    for part in settings.PARTS:
        report = workflow.train(part, "sprites", "gpu", tmp_path, device="cpu")
        assert all(math.isfinite(h["loss"]) for h in report["history"])
    pipeline = Pipeline.from_pretrained(tmp_path, "cpu")
    samples = pipeline([3], steps=2, guidance="self")
    assert samples.images.shape == (1, 3, 32, 32) and samples.images.isfinite().all()
    count = sum(p.numel() for p in pipeline.transformer.parameters())
    assert 10e6 < count < 16e6


def test_tokens_are_made_once_and_anew_when_the_tokenizer_changed(own, images, monkeypatch):
    tokenizer = VQTokenizer.from_pretrained(own / "tokenizer")
    (own / "tokens.safetensors").unlink(missing_ok=True)
    made = workflow.cached_tokens(tokenizer, images, own)
    assert made.equal(tokenize(tokenizer, images))
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "tokenize", lambda *a: pytest.fail("tokenized again"))
        assert workflow.cached_tokens(tokenizer, images, own).equal(made)
    (own / "tokens.safetensors").write_bytes(b"cut off")
    assert workflow.cached_tokens(tokenizer, images, own).equal(made)
    tokenizer.quantize.embedding.weight.data.neg_()
    tokenizer.save_pretrained(own / "tokenizer")
    assert not workflow.cached_tokens(tokenizer, images, own).equal(made)
