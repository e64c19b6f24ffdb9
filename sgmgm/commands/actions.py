"""What each command does: one function for each, whose first line is its help."""

import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from .. import folders, presets, scoring, settings, workflow
from ..convert import PUBLISHED, published_pipeline
from ..datasets import RESOLUTION, describe_sample, whole_set
from ..evidence import sweep as sweeps
from ..evidence.cards import result
from ..pipeline import SHIPPED, Pipeline, find_pipeline, read_card
from ..utils.devices import default_device
from ..utils.errors import InputError, check_count
from ..utils.files import check_writable, write_bytes
from ..utils.samples import load_samples, save_grid, save_samples, to_float
from .jobs import generate_to


def train(args) -> None:
    """Train one part, or all of them in their order."""
    folder = args.out or workflow.default_folder(args.dataset, args.preset)
    smoothing = {k: v for k in SMOOTHING if (v := getattr(args, k)) is not None}
    if smoothing and not args.part.startswith("smoother"):
        raise InputError("the smoothing options are for one smoother, not for others.")
    for option in ("steps", "minutes", "schedule", "name", "start"):
        if getattr(args, option) is not None and args.part == "all":
            raise InputError(f"--{option} is for one part, not for all of them at once.")
    announce(args.dataset)
    given = (args.dataset, args.preset, folder, args.seed, args.device, args.name, args.steps)
    more = (args.start, args.mirror, args.minutes, args.schedule)
    for part in trainable(args.dataset, settings.PARTS) if args.part == "all" else [args.part]:
        report = workflow.train(part, *given, *more, **smoothing)
        print(f"{folder / (args.name or part)}: {describe(report)}")


def announce(dataset: str) -> None:
    """Say what a folder of images or a sample holds, before anything is trained on it."""
    if sample := describe_sample(dataset):
        print(sample, file=sys.stderr, flush=True)
    if dataset.startswith("folder:"):
        print(folders.describe(dataset), file=sys.stderr, flush=True)


def trainable(dataset: str, parts: Sequence[str]) -> list[str]:
    """These parts, but no classifier for a set of one class."""
    return [part for part in parts if part != "classifier" or not scoring.one_class(dataset)]


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


SMOOTHING = ("rate", "wrong", "loss_on", "keep_class", "rank")


def describe(report: dict) -> str:
    """A part's training report in one line."""
    words = [duration(report["seconds"]), f"{report['images_per_second']:.0f} images/s"]
    if report["dataset"].startswith("folder:"):
        words.append("mirrored at random" if report["mirror"] else "not mirrored")
    return ", ".join([*words, result(report)])


def chosen_settings(args) -> dict:
    """The sampling settings that were given on the command line."""
    return {name: getattr(args, name) for name in settings.Sampling.__dataclass_fields__}


def chosen_labels(args, pipeline: Pipeline) -> list:
    """`--num` labels, the `--classes` in turn (all classes if none are given)."""
    check_count("--num", args.num, most=10_000_000)
    classes = list(range(len(pipeline.card.classes)))
    if args.classes is not None:
        words = [args.classes]
        if args.classes not in pipeline.card.classes:  # a name with commas may stand in quotes
            text = args.classes.replace("\n", " ").replace("\r", " ")
            words = next(csv.reader([text], skipinitialspace=True))
        classes = [word.strip() for word in words]
        pipeline.labels(classes)
    return [classes[i % len(classes)] for i in range(args.num)]


def sample(args) -> None:
    """Generate images into an image grid or a samples file."""
    suffix = args.out.suffix.lower()
    if suffix not in (".png", ".npz"):
        raise InputError(f"--out {args.out}: end it in .png (a grid) or .npz (samples).")
    check_writable(args.out)
    if args.model in PUBLISHED:
        pipeline = published_pipeline(args.model, args.weights, args.device, args.bf16)
    elif args.weights is not None:
        raise InputError(f"--weights is for --model {' or '.join(PUBLISHED)}, not {args.model}.")
    else:
        pipeline = Pipeline.from_pretrained(args.model, args.device, args.bf16)
    labels = chosen_labels(args, pipeline)
    given = chosen_settings(args)
    begun = time.perf_counter()
    if suffix == ".npz":
        count = generate_to(args.out, pipeline, labels, args.seed, args.batch_size, **given)
    else:
        images, _ = scoring.generate(pipeline, labels, args.seed, args.batch_size, **given)
        save_grid(args.out, to_float(images), zoom=3 if images.shape[1] < 128 else 1)
        count = len(images)
    if count is not None:  # else another process of the same job reports
        seconds, passes = time.perf_counter() - begun, pipeline.passes(**given)
        used = pipeline.card.sampling.updated(**given)
        scale = f" of scale {used.scale:g}" if used.guidance != "none" else ""
        print(f"guidance {used.guidance}{scale}, {used.steps} steps, order {used.order}, "
              f"temperature {used.temperature:g} {used.anneal}")  # fmt: skip
        print(f"{args.out}: {count} of {len(labels)} images in {seconds:.1f} s "
              f"({count / seconds:.1f} images/s, {passes} network passes an image)")  # fmt: skip


def evaluate(args) -> None:
    """Score samples, a file or a folder of images, against a data set."""
    folder = find_pipeline(args.model) if args.model else None
    own = read_card(folder).dataset if folder else None
    against = args.reference or own
    if against is None:
        advice = "name a data set by --reference, or the model that generated them by --model."
        raise InputError(f"there is nothing to compare these samples with: {advice}")
    # a classifier knows one size; Inception scales all images to its own
    size = RESOLUTION if args.extractor != "inception" else None
    if args.samples.is_dir():
        known = folder or SHIPPED / whole_set(against)
        names = read_card(known).classes if (known / "pipeline.json").is_file() else ()
        images, labels = folders.read_samples(args.samples, size, names)
    else:
        images, labels = load_samples(args.samples, size)
    dataset = own if scoring.is_samples_file(against) else against
    if dataset is None and args.extractor != "inception":
        advice = "name a model by --model, whose classifier to use, or add --extractor inception"
        raise InputError(f"comparing with {against} needs a feature extractor: {advice}.")
    if args.weights and args.extractor != "inception":
        raise InputError("--weights is for --extractor inception.")
    device = args.device or default_device()
    if args.extractor == "inception":
        extractor: scoring.Extractor = scoring.InceptionExtractor(args.weights, device)
    else:
        extractor = scoring.find_extractor(args.extractor, dataset or against, folder).to(device)
    split = "all" if (args.reference or "").startswith("folder:") else "train"
    reference = scoring.reference_for(against, extractor, folder, images.shape[1], split)
    scores = scoring.score(images, labels, reference, extractor)
    print(json.dumps(asdict(scores), indent=2) if args.json else scores.table())


GRID = {"guidance": str, "scale": float, "scale_schedule": str, "smoother": str, "order": str,
        "temperature": float, "anneal": str, "steps": int}  # fmt: skip


def sweep(args) -> None:
    """Score all combinations of sampling settings; lists are separated by commas."""
    pipeline = Pipeline.from_pretrained(args.model, args.device, args.bf16)
    grid = {name: values for name in GRID if (values := getattr(args, name)) is not None}
    points = sweeps.grid_points(pipeline.card.sampling, grid)
    seeds = list(dict.fromkeys(args.seeds))
    check_count("--num", args.num, least=10)
    if args.tune:
        tuning = [sweeps.TUNING_SEED]
        tuned = sweeps.sweep(pipeline, points, args.tune, tuning, args.out, args.batch_size)
        points = sweeps.best_points(tuned)
    records = sweeps.sweep(pipeline, points, args.num, seeds, args.out, args.batch_size)
    print(sweeps.table(sweeps.summarise(records)))


def results(args) -> None:
    """Rewrite the tables of README and docs, the plots and the cards from `data/results/`."""
    from ..evidence.results import write, write_cards  # matplotlib takes a second to import

    for path in (*write(), *write_cards()):
        print(path)


def refresh(args) -> None:
    """Remake what depends on the shipped models: tables, README, gallery, cards, lessons."""
    from ..course import seals

    late = seals.stale_lessons()
    print("tables, plots, gallery, README and model cards: sgmgm results")
    print("\n".join(late.values()) or "no lesson is out of date", flush=True)
    if not args.n:
        results(args)
        for path in seals.commit(list(late), None, args.device) if late else ():
            print(path)


def gallery(args) -> None:
    """Generate every class of every shipped model into one image: plain, and guided."""
    from ..evidence import results  # matplotlib takes a second to import

    if args.out.suffix.lower() != ".png":
        raise InputError(f"{args.out} is no PNG: end it in .png.")
    check_writable(args.out)
    plot = results.gallery(seed=args.seed, device=args.device or default_device())
    write_bytes(args.out, plot.png())
    print(args.out)


SHARES = {"classifier": 1, "tokenizer": 3, "transformer": 6}  # of the minutes of `run`


def run(args) -> None:
    """The whole system in one command: train missing parts, sample, score, print a table."""
    check_count("--num", args.num, least=4, most=10_000_000)  # fewer cannot be scored
    folder = args.out or workflow.default_folder(args.dataset, args.preset)
    device = args.device or default_device()
    chosen = chosen_settings(args)
    plan = presets.get(args.dataset, args.preset, 2).sampling.updated(**chosen)
    if (name := plan.guidance_part) and not (folder / name).is_dir():
        part = "all" if name in settings.PARTS else f"smoother --name {name}"
        where = f"--dataset {args.dataset} --preset {args.preset} --out {folder}"
        needs = f"guidance {plan.guidance!r} needs a {name}"
        first = f"which `sgmgm run` does not train: first run `sgmgm train {part} {where}`"
        raise InputError(f"{needs}, {first}.")
    announce(args.dataset)
    what = (args.dataset, args.preset, folder, args.seed, device)
    parts = trainable(args.dataset, settings.CORE_PARTS)
    if (SHIPPED / whole_set(args.dataset) / parts[0]).is_dir() and not (folder / parts[0]).is_dir():
        parts = parts[1:]  # the shipped classifier serves
    for part in parts:
        minutes = args.minutes and args.minutes * SHARES[part] / sum(SHARES[p] for p in parts)
        report = workflow.train(part, *what, mirror=args.mirror, minutes=minutes)
        print(f"{folder / part}: {describe(report)}", flush=True)
    pipeline = Pipeline.from_pretrained(folder, device, args.bf16)
    labels = chosen_labels(args, pipeline)
    begun = time.perf_counter()
    images, nfe = scoring.generate(pipeline, labels, args.seed, args.batch_size, **chosen)
    seconds = time.perf_counter() - begun
    numbers = pipeline.labels(labels).numpy()
    save_samples(folder / "samples.npz", images, numbers)
    save_grid(folder / "samples.png", to_float(images[:100]), columns=10)
    print(f"{folder / 'samples.npz'}: {len(images)} images in {duration(seconds)} "
          f"({len(images) / seconds:.0f} images/s, {nfe:g} passes an image)")  # fmt: skip
    classifier = scoring.find_classifier(args.dataset, folder).to(device)
    reference = scoring.reference_for(args.dataset, classifier, folder)
    scores = scoring.score(images, numbers, reference, classifier)
    floor = scoring.noise_floor(args.dataset, classifier, reference)
    print(scores.table())
    print(f"real test images have the Frechet distance {floor:.2f}")
    print(f"grid of samples: {folder / 'samples.png'}")


def pack(args) -> None:
    """Make a trained pipeline folder small enough to ship."""
    workflow.pack(args.model, args.out, args.device)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


def doctor(args) -> None:
    """Check this machine: what is missing, what to do, how long the lessons will take."""
    from ..course.start import workspace
    from ..doctor import describe, examine

    findings = examine(workspace(), args.device)
    print(describe(findings))
    if any(finding.state == "stop" for finding in findings):
        sys.exit(2)


def info(args) -> None:
    """Describe a model: its data, parameters, classes and sampling settings."""
    pipeline = Pipeline.from_pretrained(args.model, "cpu")
    count = sum(p.numel() for p in pipeline.transformer.parameters())
    print(f"{args.model}: {pipeline.card.dataset}, {count / 1e6:.2f} M parameters, classes "
          f"{', '.join(pipeline.card.classes)}; {pipeline.card.sampling}")  # fmt: skip


def course(args) -> None:
    """Run the lessons; prepare one (catch-up); write their outputs (commit); say your progress."""
    from ..course import done, seals
    from ..course.runner import catch_up
    from ..course.runner import run as run_course

    if args.action == "progress":
        print(done.describe())
        return
    if args.action == "commit":
        if not args.lessons:
            raise InputError("commit which lessons? For example: sgmgm course commit 04.")
        for path in seals.commit(args.lessons, args.notebooks, args.device):
            print(f"{path}: outputs, smoke text and seal written")
        return
    given = {name: getattr(args, name) for name in ("profile", "dataset", "seed", "device")}
    parameters = {name: value for name, value in given.items() if value is not None}
    if args.action == "catch-up":
        if not args.lessons:
            raise InputError("catch up with which lesson? For example: sgmgm course catch-up 05.")
        for lesson in args.lessons:
            path, parts, folder = catch_up(lesson, args.notebooks, **parameters)
            how = "they ship with the course" if folder.parent == SHIPPED else "trained here"
            print(f"{path.stem}: {', '.join(parts)} in {folder} ({how}). Open {path}.")
        return
    out = args.out or Path("build", "course")
    lessons = run_course(args.lessons, out, args.notebooks, **parameters)
    bad = [each["name"] for each in lessons if each["status"].startswith("failed")]
    print(f"{len(lessons) - len(bad)} of {len(lessons)} lessons ran: open {out}/index.html")
    if bad:
        print(f"sgmgm: failed: {', '.join(bad)}", file=sys.stderr)
        sys.exit(1)
