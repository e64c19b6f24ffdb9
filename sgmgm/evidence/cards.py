"""Model cards: what a pipeline is and how it was made, read from its own files."""

import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..pipeline import SHIPPED, Pipeline, read_card
from ..presets import get
from ..scoring import balanced_labels, generate
from ..settings import TRAINABLE
from ..training import plain, read_report
from ..utils.samples import save_grid, to_float
from ..workflow import default_folder

ABOUT = SHIPPED / "about.toml"  # by data set: source, licence, and where its models fail


def model_card(folder: str | Path, scores: str = "") -> str:
    """A pipeline folder described in Markdown; `scores` is put in as it is."""
    folder = Path(folder)
    card = read_card(folder)
    known = tomllib.loads(ABOUT.read_text(encoding="utf-8")) if ABOUT.is_file() else {}
    yours = {"source": card.dataset, "licence": "that of your data", "failures": ""}
    about = known.get(card.dataset, yours)
    names = sorted(p.parent.name for p in folder.glob("*/training.json"))
    names.sort(key=[*TRAINABLE, *names].index)  # in the order of training, then of names
    reports = {name: read_report(folder / name) for name in names}
    rows = ["| part | trained on | time, device | result |", "|---|---|---|---|"]
    for name, report in reports.items():
        each = [one["training"] for one in rounds(report)]
        images = " + ".join(f"{r['steps']:,} x {r['batch_size']}" for r in each)
        seconds = sum(one["seconds"] for one in rounds(report))
        time = f"{seconds / 60:.1f} min, {report['device']}"
        rows.append(f"| {name} | {images} images | {time} | {result(report)} |")
    default = ", ".join(f"{key} {value}" for key, value in card.sampling.record().items())
    grid = ("![samples](samples.png)\n\nRows 1 and 2: plain sampling. Rows 3 and 4: self-guidance. "
            "Each uses its best known setting with at most 16 network passes.")  # fmt: skip
    if card.sampling.guidance not in ("none", "self"):
        grid += f" Rows 5 and 6: the model's own setting, `{card.sampling.guidance}`."
    parts = [
        f"# {card.dataset}",
        "Data: {source}. Licence of the data: {licence}.".format(**about),
        grid if (folder / "samples.png").is_file() else "",
        f"Default sampling settings: {default}.",
        "\n".join(rows),
        scores,
        f"**Where it fails.** {about['failures']}" if about["failures"] else "",
        "These commands made it, then `sgmgm pack`:",
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
        line, remark = command(name, report | one)
        line += f" --seed {one['seed']}" if one["seed"] else ""
        made.append(line + (f" --start {folder}/{part}-{number}" if number else "") + remark)
    return made


def command(part: str, report: dict) -> tuple[str, str]:
    """The command that makes a part in one round, with seed 0; and what it cannot say, or ""."""
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
    made, usual = report["training"], getattr(plan, f"{kind.split('-')[0]}_training")
    if made["steps"] != usual.steps:
        options += f" --steps {made['steps']}"
    if (schedule := made.get("schedule", "cosine")) != "cosine":
        options += f" --schedule {schedule}"
    would = plain(asdict(usual.lasting(made["steps"], schedule)))
    other = [f"{key} {made[key]}" for key in would if made.get(key, would[key]) != would[key]]
    where = f"--dataset {report['dataset']} --preset {report['preset']}"
    return f"sgmgm train {kind} {where}{options}", f"  # {', '.join(other)}" if other else ""


def sample_grid(pipeline: Pipeline, path: str | Path, variants: Sequence[dict], rows=2) -> None:
    """An image grid of every class, `rows` rows for each of the settings."""
    classes = list(range(len(pipeline.card.classes)))
    labels = balanced_labels(rows * len(classes), classes)
    images = [generate(pipeline, labels, **settings)[0] for settings in variants]
    save_grid(path, to_float(np.concatenate(images)), columns=len(classes), zoom=2)
