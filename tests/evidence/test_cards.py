"""Model cards: true to the files they are made from."""

import json
import shlex

from sgmgm.commands.cli import main, parser
from sgmgm.evidence import cards
from sgmgm.pipeline import Pipeline


def test_a_card_tells_how_each_part_was_made(own):
    options = ["--dataset", "sprites", "--preset", "smoke", "--out", str(own), "--device", "cpu"]
    odd = ["--name", "odd", "--loss-on", "masked", "--rate", "0", "--keep-class", "--steps", "3"]
    assert main(["train", "smoother", *options, *odd]) == 0
    text = cards.model_card(own, "the scores")
    assert "the scores" in text and "MIT, like the code" in text and "samples.png" not in text
    made = text.split("```")[1].splitlines()[1:]
    assert made[0] == "sgmgm train classifier --dataset sprites --preset smoke"
    assert len(made) == 7 and made.index(next(m for m in made if "tokenizer" in m)) == 1
    for line in made:  # every command is one, and means what the report says
        args = parser().parse_args(shlex.split(line)[1:])
        report = json.loads((own / (args.name or args.part) / "training.json").read_text())
        if args.steps:
            assert report["training"]["steps"] == args.steps
    assert made[-1].endswith("--rate 0.0 --loss-on masked --keep-class --name odd --steps 3")
    accuracy = json.loads((own / "classifier" / "training.json").read_text())["test_accuracy"]
    assert f"test accuracy {accuracy:.3f}" in text


def test_samples_of_a_card(own, tmp_path):
    pipeline = Pipeline.from_pretrained(own, "cpu")
    variants = {"guidance": "none"}, {"guidance": "self", "steps": 2}
    cards.sample_grid(pipeline, own / "samples.png", variants, rows=1)
    assert (own / "samples.png").stat().st_size > 1000
    assert "![samples](samples.png)" in cards.model_card(own)


def test_rounds_and_names_of_their_own(own):
    options = ["--dataset", "sprites", "--preset", "smoke", "--out", str(own), "--device", "cpu"]
    start = ["--start", str(own / "deep-1"), "--rate", "0.9"]
    for more in (["--name", "deep-1", "--rate", "0.6"], ["--name", "deep", *start]):
        assert main(["train", "smoother", *options, "--steps", "2", *more]) == 0
    assert main(["train", "transformer", *options, "--steps", "2", "--name", "generator"]) == 0
    made = [line for line in cards.model_card(own).splitlines() if line.startswith("sgmgm train")]
    where = "--dataset sprites --preset smoke"
    assert f"sgmgm train smoother {where} --rate 0.6 --name deep-1 --steps 2" in made
    again = f"sgmgm train smoother {where} --rate 0.9 --name deep --steps 2"
    assert f"{again} --start runs/sprites-smoke/deep-1" in made
    report = json.loads((own / "deep" / "training.json").read_text())
    del report["start"]["smoothing"]  # as reports once were
    (own / "deep" / "training.json").write_text(json.dumps(report))
    assert main(["train", "smoother", *options, "--steps", "2", "--name", "deep", *start]) == 0
    assert f"sgmgm train transformer {where} --name generator --steps 2" in made
