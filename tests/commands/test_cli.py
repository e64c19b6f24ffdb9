import io
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sgmgm import datasets, metrics, scoring, settings, tasks, training, workflow
from sgmgm.classifier import Features
from sgmgm.commands import actions, cli
from sgmgm.commands.cli import main, parser
from sgmgm.metrics import Reference
from sgmgm.pipeline import Pipeline, read_card, write_card
from sgmgm.utils.hub import check_manifest, write_manifest
from sgmgm.utils.samples import save_samples, to_uint8

from ..test_folders import write_pictures

COMMANDS = ["train", "sample", "evaluate", "sweep", "run", "info", "pack", "course",
            "results", "refresh", "gallery", "doctor"]  # fmt: skip


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of one command, in this process."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def options_of(name):
    return next(a for a in parser()._actions if a.dest == "command").choices[name]._actions


def test_these_are_all_commands():
    choices = next(a for a in parser()._actions if a.dest == "command").choices
    assert sorted(choices) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_enough(name, capsys):
    """Every option is explained, and its default named where it has one."""
    code, text, _ = run(capsys, name, "--help")
    assert code == 0 and text.startswith(f"usage: sgmgm {name}")
    flat = " ".join(text.split())
    assert "None" not in flat
    for action in options_of(name):
        if action.dest == "help":
            continue
        shown = action.option_strings[-1] if action.option_strings else action.metavar or "{"
        assert shown in flat
        assert action.help, f"{shown} is not explained"
        if action.option_strings:
            if action.default is not None and action.default is not False:
                assert f"(default: {action.default})" in flat
            elif action.default is None and not action.required and action.nargs != 0:
                given = "if not given" in action.help or shown == "--weights"  # needed by some
                assert given, f"{shown}: what if not given?"


def test_version_and_help_of_the_whole(capsys):
    code, text, _ = run(capsys, "--version")
    assert code == 0 and text.startswith("sgmgm 0.")
    code, text, _ = run(capsys, "--help")
    assert code == 0 and all(name in text for name in COMMANDS)


def test_train_says_what_is_done_already(trained, capsys):
    code, out, _ = run(capsys, "train", "all", "--preset", "smoke", "--out", trained)
    lines = out.splitlines()
    assert code == 0 and len(lines) == len(settings.PARTS)
    assert "test accuracy" in lines[0] and "PSNR" in lines[1] and "NLL" in lines[2]


def test_sample_a_grid(trained, tmp_path, capsys):
    out = tmp_path / "new folder" / "Bild ü.png"
    code, text, _ = run(
        capsys, "sample", "--model", trained, "--num", 5, "--steps", 2, "--seed", 7, "--out", out
    )
    assert code == 0 and "5 of 5 images" in text and "2 network passes an image" in text
    first = to_uint8(Pipeline.from_pretrained(trained, "cpu")([0], seeds=[7], steps=2).images)[0]
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.size == (3 * (32 * 3 + 2) + 2, 2 * (32 * 3 + 2) + 2)
        tile = np.asarray(picture)[3:98:3, 3:98:3]  # the middle of each enlarged pixel
        assert np.abs(tile.astype(int) - first).max() <= 1
    assert [f.name for f in out.parent.iterdir()] == ["Bild ü.png"]


def test_sample_a_file_and_evaluate_it(trained, tmp_path, capsys):
    out = tmp_path / "samples.npz"
    arguments = ("sample", "--model", trained, "--num", 12, "--classes", "fish,0,5", "--steps", 2)
    code, _, _ = run(capsys, *arguments, "--seed", 40, "--out", out)
    assert code == 0
    with np.load(out) as data:
        images, labels = data["arr_0"], data["arr_1"]
    assert images.shape == (12, 32, 32, 3) and images.dtype == np.uint8
    assert labels.tolist() == [2, 0, 5] * 4
    # image i has seed 40 + i, whatever the batch
    again = tmp_path / "again.npz"
    run(capsys, *arguments[:-2], "--steps", 2, "--seed", 40, "--batch-size", 5, "--out", again)
    with np.load(again) as data:
        assert np.abs(data["arr_0"].astype(int) - images).max() <= 1
    code, text, _ = run(
        capsys, "evaluate", "--samples", out, "--reference", "sprites", "--model", trained, "--json"
    )
    scores = json.loads(text)
    assert code == 0 and scores["count"] == 12 and scores["frechet"] > 0
    assert scores["reference"] == "sprites" and scores["extractor"].startswith("classifier")
    assert 0 <= scores["accuracy"] <= 1
    code, text, _ = run(capsys, "evaluate", "--samples", out, "--model", trained)
    assert code == 0 and f"{scores['frechet']:.3f}" in text and "Frechet distance" in text
    # without an own reference it is the model's; a shipped model has a name
    code, text, _ = run(capsys, "evaluate", "--samples", out, "--model", "fashion-mnist", "--json")
    assert code == 0 and json.loads(text)["reference"] == "fashion-mnist"
    # whose classifier knows nothing of these labels
    options = ("--reference", "sprites", "--model", "fashion-mnist", "--json")
    assert json.loads(run(capsys, "evaluate", "--samples", out, *options)[1])["accuracy"] is None


def test_evaluate_against_another_samples_file(trained, tmp_path, capsys):
    files = [tmp_path / f"{name}.npz" for name in ("mine", "theirs", "small")]
    for seed, (file, size) in enumerate(zip(files, (32, 32, 16), strict=True)):
        pixels = np.random.default_rng(seed).integers(0, 256, (20, size, size, 3), dtype=np.uint8)
        save_samples(file, pixels, np.zeros(20, int))
    mine, theirs, small = files

    def scores(*options):
        code, text, said = run(capsys, "evaluate", *options, "--json")
        return json.loads(text) if code == 0 else said.strip()

    own = scores("--samples", mine, "--reference", mine, "--model", trained)
    other = scores("--samples", mine, "--reference", theirs, "--model", trained)
    assert own["frechet"] < 1e-6 < other["frechet"] and other["reference"] == str(theirs)
    assert other["accuracy"] is not None  # the model knows the labels' classes
    assert "name a model by --model" in scores("--samples", mine, "--reference", theirs)
    for options in (("--samples", small), ("--samples", mine, "--reference", small)):
        assert "16 x 16 pixels where 32 x 32" in scores(*options, "--model", trained)


def test_inception_compares_pictures_of_one_size(tmp_path, capsys, monkeypatch):
    """A folder is read at the samples' own size, and the other sets have only one."""

    class Pixels:
        name, labels_known, device = "inception", False, "cpu"

        def __call__(self, images):
            seen.append(images.shape[-1])
            return Features(images.flatten(1)[:, :6], images.flatten(1)[:, :3])

    monkeypatch.setattr(scoring, "InceptionExtractor", lambda weights, device: Pixels())
    folder = write_pictures(tmp_path / "set")
    samples, seen = tmp_path / "samples.npz", []
    pixels = np.random.default_rng(0).integers(0, 256, (9, 48, 48, 3), dtype=np.uint8)
    save_samples(samples, pixels, np.zeros(9, int))
    options = ("evaluate", "--samples", samples, "--extractor", "inception", "--reference")
    code, text, _ = run(capsys, *options, f"folder:{folder}")
    assert code == 0 and "Frechet distance" in text and set(seen) == {48}
    code, _, said = run(capsys, *options, "sprites")
    assert code == 2 and "sprites has 32 x 32 pixels, not 48 x 48" in said


def test_other_pictures_are_another_reference(own, tmp_path):
    """A folder's pictures may change; a packed model keeps the statistics that it was given."""
    name = f"folder:{write_pictures(tmp_path / 'set')}"
    write_card(own, replace(read_card(own), dataset=name))
    classifier = scoring.find_classifier(name, own)
    first = scoring.reference_for(name, classifier, own).stats.mean
    assert scoring.reference_for(name, classifier, own).stats.mean.equal(first)
    for picture in (tmp_path / "set").rglob("*.png"):
        Image.new("RGB", (32, 32), "red").save(picture)
    assert not scoring.reference_for(name, classifier, own).stats.mean.equal(first)
    second = scoring.reference_for(name, classifier, own).stats.mean
    shutil.rmtree(tmp_path / "set")
    assert scoring.reference_for(name, classifier, own).stats.mean.equal(second)  # the kept ones
    write_manifest(own)
    assert not scoring.reference_for(name, classifier, own).stats.mean.equal(first)


def test_scoring_leaves_a_packed_folder_as_it_is(own):
    classifier = scoring.find_classifier("sprites", own)
    scoring.reference_for("sprites", classifier, own)
    write_manifest(own)
    classifier.name = "another classifier"
    assert scoring.reference_for("sprites", classifier, own).extractor == "another classifier"
    check_manifest(own)


def test_the_options_of_sample_reach_the_sampler(trained, tmp_path, capsys, monkeypatch):
    seen = {}

    def generate(pipeline, labels, seed, batch_size, **settings):
        seen.update(settings, seed=seed, batch_size=batch_size)
        return np.zeros((len(labels), 32, 32, 3), np.uint8), 1

    monkeypatch.setattr(scoring, "generate", generate)
    given = {"steps": 9, "temperature": 2.5, "anneal": "compounding", "order": "halton",
             "schedule": "linear", "guidance": "self", "scale": 0.5, "scale_schedule": "interval",
             "smoother": "smoother-lora", "batch_size": 3, "seed": 8}  # fmt: skip
    options = [w for k, v in given.items() for w in (f"--{k.replace('_', '-')}", v)]
    given["remask_known"] = True
    options.append("--remask-known")
    code, _, _ = run(
        capsys, "sample", "--model", trained, "--num", 2, "--out", tmp_path / "x.png", *options
    )
    assert code == 0 and seen == given
    monkeypatch.setattr(
        actions, "generate_to", lambda path, *rest, **settings: generate(*rest, **settings)[1]
    )
    seen.clear()
    code, _, _ = run(
        capsys, "sample", "--model", trained, "--num", 2, "--out", tmp_path / "x.npz", *options
    )
    assert code == 0 and seen == given
    assert seen.keys() >= settings.Sampling.__dataclass_fields__.keys()


def test_run_is_everything_in_one_command(own, capsys):
    arguments = ("--preset", "smoke", "--num", 40, "--steps", 2, "--out", own)
    code, text, _ = run(capsys, "run", *arguments)
    assert code == 0
    for words in ("classifier: ", "tokenizer: ", "transformer: ", "samples.npz: 40 images in",
                  "Frechet distance", "coherence"):  # fmt: skip
        assert words in text
    assert (own / "samples.npz").is_file() and (own / "samples.png").is_file()
    assert Reference.load(own / "reference.safetensors").count == 2000  # the training set
    classifier = scoring.find_classifier("sprites", own)
    test = metrics.GaussianStats()
    for batch in datasets.load("sprites", "test").batches("test"):
        test.update(classifier(batch).features.detach())
    stats = Reference.load(own / "reference.safetensors").stats
    floor = metrics.frechet_distance(test, stats)
    assert f"real test images have the Frechet distance {floor:.2f}\n" in text
    assert not list(own.rglob("*.partial*"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_is_one_sentence(error, capsys, monkeypatch):
    def info(args):
        """Fail."""
        raise error

    monkeypatch.setattr(actions, "info", info)
    code, _, said = run(capsys, "info", "--model", "sprites")
    assert code == 2 and said.count("\n") == 1 and "not enough memory" in said


def test_own_warnings_are_one_line_and_others_keep_their_place(capsys, monkeypatch):
    usual = warnings.formatwarning

    def info(args):
        """Warn."""
        for file in (cli.__file__, "elsewhere.py"):
            print(warnings.formatwarning("no wings here.", UserWarning, file, 7))

    monkeypatch.setattr(actions, "info", info)
    code, said, _ = run(capsys, "info", "--model", "sprites")
    own, other = said.split("\n", 1)
    assert code == 0 and own == "sgmgm: no wings here."
    assert "elsewhere.py:7: UserWarning: no wings here." in other
    assert warnings.formatwarning is usual


def test_info(trained, capsys):
    code, text, _ = run(capsys, "info", "--model", trained)
    assert code == 0
    for words in ("sprites", " M parameters", "house", "steps=6"):
        assert words in text


def test_interrupting_is_no_crash(trained, tmp_path, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "generate", interrupt)
    out = tmp_path / "x.png"
    code, text, error = run(capsys, "sample", "--model", trained, "--out", out)
    assert code == 130 and text == "" and error.count("\n") == 1 and "interrupted" in error
    assert not out.exists()


def test_interrupted_training_goes_on_with_the_same_command(trained, tmp_path, capsys, monkeypatch):
    whole, folder = tmp_path / "whole", tmp_path / "run"
    for part in ("classifier", "tokenizer"):
        shutil.copytree(trained / part, whole / part)
    words = ("train", "transformer", "--preset", "smoke", "--steps", 8, "--out")
    assert run(capsys, *words, whole)[0] == 0
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("transformer"))
    usual = tasks.TransformerTask.after_step

    def after_step(self, step, *rest):
        if step == 5:
            raise KeyboardInterrupt
        usual(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(training, "SAVE_SECONDS", -1)
        patch.setattr(tasks.TransformerTask, "after_step", after_step)
        code, _, error = run(capsys, *words, folder)
    assert code == 130 and "the same command goes on from here" in error
    code, text, _ = run(capsys, *words, folder)
    assert code == 0 and "NLL" in text
    weights = "transformer/model.safetensors"
    assert (folder / weights).read_bytes() == (whole / weights).read_bytes()


def outside(*arguments, cwd):
    command = [sys.executable, "-m", "sgmgm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_bad_input_from_outside(tmp_path):
    done = outside("sample", "--model", "nobody", "--out", "x.png", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("sgmgm: no model 'nobody'") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_belongs_to_one_data_set(own, capsys):
    before = (own / "pipeline.json").read_text()
    code, _, said = run(
        capsys, "train", "weak", "--preset", "smoke", "--dataset", "fashion-mnist", "--out", own
    )
    assert code == 2 and "holds models of sprites, preset smoke: add" in said
    assert (own / "pipeline.json").read_text() == before


def test_a_seed_of_a_sweep_counts_once(own, tmp_path, capsys):
    words = ("--num", 10, "--seeds", "0,0", "--steps", 3, "--out", tmp_path / "x.jsonl")
    code, text, _ = run(capsys, "sweep", "--model", own, *words)
    assert code == 0 and "| 10 x 1 |" in text


def test_a_models_own_settings_stay_when_a_part_is_trained_anew(own):
    card = read_card(own)
    chosen = card.sampling.updated(steps=3, temperature=2.0)
    write_card(own, replace(card, sampling=chosen))
    shutil.rmtree(own / "weak")
    workflow.train("weak", "sprites", "smoke", own, device="cpu")
    assert Pipeline.from_pretrained(own, "cpu").card.sampling == chosen


def test_tokens_are_those_of_the_pictures(own):
    data = datasets.load("sprites", count=50)
    tokenizer = Pipeline.from_pretrained(own, "cpu").tokenizer
    first = workflow.cached_tokens(tokenizer, data, own)
    other = replace(data, images=data.images.flip(0))
    assert torch.equal(workflow.cached_tokens(tokenizer, other, own), first.flip(1))


def test_a_killed_pack_leaves_nothing_that_passes_for_a_model(own, tmp_path, monkeypatch):
    def killed(folder):
        raise KeyboardInterrupt

    out = tmp_path / "packed"
    monkeypatch.setattr(workflow.hub, "write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        workflow.pack(own, out)
    assert not out.exists() and not list(tmp_path.glob(".pack*"))
    monkeypatch.undo()
    workflow.pack(own, out)
    check_manifest(out)
    assert (out / "manifest.json").is_file()


def test_new_pictures_are_not_taken_for_the_old_ones(tmp_path, capsys):
    pets, out = write_pictures(tmp_path / "pets"), tmp_path / "run"
    words = ["train", "classifier", "--preset", "smoke", "--steps", 2, "--out", out]
    words += ["--dataset", f"folder:{pets}"]
    assert run(capsys, *words)[0] == run(capsys, *words)[0] == 0
    picture = next(pets.rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(picture).convert("RGB"))).save(picture)
    code, _, said = run(capsys, *words)
    assert code == 2 and "was trained with another data" in said


def test_classes_on_the_command_line_mean_what_they_mean_in_python(own, capsys):
    """A name with a comma stands in double quotes; "none" is no class; names come first."""
    out = own / "x.npz"

    def labels(words, *options):
        arguments = ("--num", 4, "--steps", 1, "--out", out, "--classes", words, *options)
        code, _, said = run(capsys, "sample", "--model", own, *arguments)
        return np.load(out)["arr_1"].tolist() if code == 0 else said

    assert labels("none") == [10] * 4
    assert labels("fish, none") == [2, 10] * 2
    code, text, _ = run(capsys, "evaluate", "--samples", out, "--model", own, "--json")
    assert code == 0 and json.loads(text)["accuracy"] is None  # no class, no right answer
    card = read_card(own)
    write_card(own, replace(card, classes=["salt, pepper", "it's", "7", *card.classes[3:]]))
    assert labels('"salt, pepper", it\'s') == [0, 1] * 2
    assert labels("7") == [2] * 4
    assert "unknown class '0'" in labels("0") and "unknown class 'pepper'" in labels("pepper")
    pipeline = Pipeline.from_pretrained(own, "cpu")
    assert pipeline.labels(["salt, pepper", "it's", "7"]).tolist() == [0, 1, 2]


def test_a_suffix_in_capitals_is_the_same_suffix(trained, tmp_path, capsys):
    samples = tmp_path / "SAMPLES.NPZ"
    options = ("--model", trained, "--num", 5, "--steps", 1)
    code, *_ = run(capsys, "sample", *options, "--out", samples)
    grid = tmp_path / "GRID.PNG"
    assert code == run(capsys, "sample", *options, "--out", grid)[0] == 0
    assert sorted(tmp_path.iterdir()) == [grid, samples] and grid.read_bytes()[1:4] == b"PNG"
    score = ("evaluate", "--samples", samples, "--reference", samples, "--model", trained, "--json")
    code, text, _ = run(capsys, *score)
    assert code == 0 and json.loads(text)["frechet"] < 1e-6


def test_a_folder_is_described_before_it_is_trained_on(tmp_path, capsys):
    """Classes, counts and what is left out; and whether it was mirrored."""
    pets = write_pictures(tmp_path / "pets")
    (pets / "cat" / "notes.txt").write_text("no picture")
    words = [
        "train",
        "classifier",
        "--preset",
        "smoke",
        "--steps",
        2,
        "--dataset",
        f"folder:{pets}",
    ]
    code, text, said = run(capsys, *words, "--out", tmp_path / "run")
    assert code == 0 and "images/s, not mirrored, test accuracy" in text
    assert said.startswith(f"folder:{pets}: 2 classes, training + test pictures: cat 8 + 2, dog 8")
    assert "left out: 1 files (1 .txt)" in said
    code, text, _ = run(capsys, *words, "--out", tmp_path / "mirrored", "--mirror")
    assert code == 0 and "mirrored at random" in text and "not mirrored" not in text


def test_evaluate_a_folder_of_pictures(trained, tmp_path, capsys):
    """The same scores as of a file with the same images and labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    labels = np.sort(np.arange(20) % 10)
    save_samples(tmp_path / "samples.npz", pixels, labels)
    names = read_card(trained).classes
    order = sorted(range(20), key=lambda i: (names[labels[i]], i))
    for i in order:
        place = tmp_path / "set" / names[labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(place / f"{i:02}.png")
    found = {}
    for samples in ("samples.npz", "set"):
        words = ("evaluate", "--samples", tmp_path / samples, "--model", trained, "--json")
        code, text, said = run(capsys, *words)
        assert code == 0, said
        found[samples] = json.loads(text)
    for score in ("count", "accuracy", "recall"):
        assert found["set"][score] == found["samples.npz"][score]
    assert found["set"]["frechet"] == pytest.approx(found["samples.npz"]["frechet"], rel=1e-6)
    (tmp_path / "set" / "house").rename(tmp_path / "set" / "no class")
    assert json.loads(run(capsys, *words)[1])["accuracy"] is None


def test_a_console_that_lacks_a_letter_is_no_crash(own, monkeypatch):
    """Class names in any writing: what a cp1252 console cannot show is escaped."""
    card = read_card(own)
    write_card(own, replace(card, classes=["\u732b", "caf\u00e9", *card.classes[2:]]))
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["info", "--model", str(own)]) == 0
    console.flush()
    assert b"classes \\u732b, caf\xe9, " in console.buffer.getvalue()


def test_a_reader_that_has_read_enough_is_no_crash():
    """As in `sgmgm info --model sprites | head -1`."""
    command = [sys.executable, "-m", "sgmgm", "info", "--model", "sprites"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 0
