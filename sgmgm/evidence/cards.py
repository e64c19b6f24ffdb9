"""Model cards: what a pipeline is and how it was made, read from its own files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..pipeline import Pipeline, read_card
from ..presets import get
from ..scoring import balanced_labels, generate
from ..settings import TRAINABLE
from ..training import read_report
from ..utils.samples import save_grid, to_float
from ..workflow import default_folder

# data set -> its source, its licence, and where its models fail
ABOUT = {
    "sprites": (
        "images that `sgmgm.sprites` renders",
        "MIT, like the code",
        "Small parts come out soft: 64 tokens are few for sharp edges. Of 500 unguided "
        "images one in five had an accent that cannot be read, too soft or of mixed colours; "
        "where both can be read, 96 % agree (coherence counts both failures).",
    ),
    "cifar10": (
        "CIFAR-10 (Krizhevsky 2009), 50,000 training images",
        "its authors state none and ask to be cited",
        "Trained on a CPU: shapes are soft, many animals look alike, and legs and faces rarely "
        "come out right. Vehicles and backgrounds are best. With strong classifier-free "
        "guidance, its default, the images of a class look alike (see the recall). The tokenizer "
        "is small and loses detail: 1,000 further steps for squared error alone gave 23.6 dB, and "
        "with four times the codes, or a decoder of twice the depth, it was 23.6 as well.",
    ),
    "fashion-mnist": (
        "Fashion-MNIST (Xiao et al. 2017), 60,000 training images, padded to 32 x 32",
        "MIT",
        "Prints and fine patterns are blurred; shirts, pullovers and coats are mixed up, as the "
        "classifier does on real ones.",
    ),
}


def model_card(folder: str | Path, scores: str = "") -> str:
    """A pipeline folder described in Markdown; `scores` is put in as it is."""
    folder = Path(folder)
    card = read_card(folder)
    source, licence, failures = ABOUT.get(card.dataset, (card.dataset, "that of your data", ""))
    needed = {part: place for place, part in enumerate(TRAINABLE)}
    names = sorted(p.parent.name for p in folder.glob("*/training.json"))
    names.sort(key=lambda name: needed.get(name, len(needed)))
    reports = {name: read_report(folder / name) for name in names}
    rows = ["| part | trained on | time, device | result |", "|---|---|---|---|"]
    for name, report in reports.items():
        each = [one["training"] for one in rounds(report)]
        images = " + ".join(f"{r['steps']:,} x {r['batch_size']}" for r in each)
        seconds = sum(one["seconds"] for one in rounds(report))
        time = f"{seconds / 60:.1f} min, {report['device']}"
        rows.append(f"| {name} | {images} images | {time} | {result(report)} |")
    default = ", ".join(f"{key} {value}" for key, value in card.sampling.record().items())
    grid = ("![samples](samples.png)\n\nUpper half: plain, lower half: self-guided, each at its "
            "best setting with at most 16 passes that is known.")  # fmt: skip
    parts = [
        f"# {card.dataset}",
        f"Data: {source}. Licence of the data: {licence}.",
        grid if (folder / "samples.png").is_file() else "",
        f"This model's default: {default}.",
        "\n".join(rows),
        scores,
        f"Known failures: {failures}" if failures else "",
        "Made by these commands, then `sgmgm pack`:",
        "\n".join(("```sh", *(c for item in reports.items() for c in commands(*item)), "```")),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def result(report: dict) -> str:
    """A training report's scores in a few words."""
    last = report["history"][-1]
    if "test_accuracy" in report:
        return f"test accuracy {report['test_accuracy']:.3f}"
    if "psnr" in report:
        used = f"{report['codes_used']:.0%} of codes used"
        return f"test PSNR {report['psnr']:.2f} dB, rFID {report['rfid']:.2f}, {used}"
    name = "nll" if "nll" in last else "auxiliary"
    return f"{'NLL' if name == 'nll' else 'auxiliary loss'} {last[name]:.3f} in its last batch"


def rounds(report: dict) -> list[dict]:
    """The rounds of training of a part (see `workflow.train`), the first one first."""
    before = report.get("start")
    return [*rounds(before), report] if before else [report]


def commands(part: str, report: dict) -> list[str]:
    """The commands that made a part, one for each round."""
    made, folder = [], default_folder(report["dataset"], report["preset"]).as_posix()
    for number, one in enumerate(rounds(report)):
        name = part if one is report else f"{part}-{number + 1}"
        line = command(name, report | one)
        line += f" --seed {one['seed']}" if one["seed"] else ""
        made.append(line + (f" --start {folder}/{part}-{number}" if number else ""))
    return made


def command(part: str, report: dict) -> str:
    """The command that makes a part in one round, with seed 0."""
    plan = get(report["dataset"], report["preset"], 2)
    scores = {"test_accuracy": "classifier", "psnr": "tokenizer"}  # a part may have any name
    kind = next((scores[score] for score in scores if score in report), "transformer")
    kind = next((each for each in ("weak", "second") if part.startswith(each)), kind)
    options = ""
    if "smoothing" in report:
        usual = vars(plan.smoothing)
        changed = {k: v for k, v in report["smoothing"].items() if v != usual[k]}
        kind = "smoother-lora" if changed.pop("kind", "toast") == "lora" else "smoother"
        for key, value in changed.items():
            options += f" --{key.replace('_', '-')}" + (f" {value}" if value is not True else "")
    if report.get("mirror") and report["dataset"].startswith("folder:"):
        options += " --mirror"
    if part != kind:
        options += f" --name {part}"
    steps = report["training"]["steps"]
    if steps != getattr(plan, f"{kind.split('-')[0]}_training").steps:
        options += f" --steps {steps}"
    where = f"--dataset {report['dataset']} --preset {report['preset']}"
    return f"sgmgm train {kind} {where}{options}"


def sample_grid(pipeline: Pipeline, path: str | Path, variants: Sequence[dict], rows=2) -> None:
    """An image grid of every class, `rows` rows for each of the settings."""
    classes = list(range(len(pipeline.card.classes)))
    labels = balanced_labels(rows * len(classes), classes)
    images = [generate(pipeline, labels, **settings)[0] for settings in variants]
    save_grid(path, to_float(np.concatenate(images)), columns=len(classes), zoom=2)
