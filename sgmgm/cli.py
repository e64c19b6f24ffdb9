"""The command line: one function for each command.

Results go to standard output, progress to standard error. Bad input ends with exit code 2 and
one sentence.
"""

import argparse
import contextlib
import json
import os
import re
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch

from . import __version__, presets, workflow
from . import benchmark as benchmarks
from . import sweep as sweeps
from .convert import PUBLISHED, published_pipeline
from .datasets import NAMES, RESOLUTION
from .devices import check_device, default_device, is_out_of_memory
from .errors import InputError, SgmgmError, check_count
from .files import check_writable, write_bytes, write_json
from .guidance import GUIDANCES, SCALE_SCHEDULES
from .hub import is_packed, write_manifest
from .jobs import draw_to
from .masking import SCHEDULES
from .pipeline import SHIPPED, Pipeline, find_pipeline, read_card, write_card
from .processes import is_loss_of_another, meet
from .samples import load_samples, save_samples, to_float
from .sampling import ANNEALS, ORDERS, TEMPERED
from .tasks import LOSS_ON, WRONG_TOKENS


def train(args) -> None:
    """Train one part, or all of them in their order."""
    folder = args.out or default_folder(args)
    smoothing = {k: v for k in SMOOTHING if (v := getattr(args, k)) is not None}
    if smoothing and not args.part.startswith("smoother"):
        raise InputError("the smoothing options are for one smoother, not for others.")
    for option in ("steps", "name", "start"):
        if getattr(args, option) is not None and args.part == "all":
            raise InputError(f"--{option} is for one part, not for all of them at once.")
    what = (args.dataset, args.preset, folder, args.seed, args.device, args.name, args.steps)
    for part in workflow.PARTS if args.part == "all" else [args.part]:
        report = workflow.train(part, *what, args.start, **smoothing)
        print(f"{folder / (args.name or part)}: {describe(part, report)}")


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


SMOOTHING = ("rate", "wrong", "loss_on", "keep_class", "rank")


def describe(part: str, report: dict) -> str:
    """A part's training report in one line."""
    words = [duration(report["seconds"]), f"{report['images_per_second']:.0f} images/s"]
    if part == "classifier":
        words.append(f"test accuracy {report['test_accuracy']:.3f}")
    if part == "tokenizer":
        words.append(f"test PSNR {report['psnr']:.2f} dB, rFID {report['rfid']:.2f}")
        words.append(f"{report['codes_used']:.1%} of codes used")
    if part in ("transformer", "weak"):
        words.append(f"NLL {report['history'][-1]['nll']:.3f}")
    if part.startswith("smoother"):
        words.append(f"loss {report['history'][-1]['loss']:.3f}")
    return ", ".join(words)


def default_folder(args) -> Path:
    """Where a data set's models of a preset are kept unless --out says otherwise."""
    name = Path(args.dataset.removeprefix("folder:")).name
    return Path("runs") / f"{name}-{args.preset}"


def chosen_settings(args) -> dict:
    """The sampling settings that were given on the command line."""
    names = presets.Sampling.__dataclass_fields__
    return {name: getattr(args, name) for name in names}


WHOLE = re.compile(r"-?[0-9]{1,9}")


def chosen_labels(args, pipeline: Pipeline) -> torch.Tensor:
    """`--num` labels that go round `--classes` (all classes if none are given)."""
    check_count("--num", args.num, most=10_000_000)
    if args.classes is None:
        classes = list(range(len(pipeline.card.classes)))
    else:
        words = [word.strip() for word in args.classes.split(",")]
        names = pipeline.card.classes  # a class may be called "3": names come first
        classes = [int(w) if WHOLE.fullmatch(w) and w not in names else w for w in words]
        classes = pipeline.labels(classes).tolist()
    return workflow.balanced_labels(args.num, classes)


def sample(args) -> None:
    """Draw images into a picture or a samples file."""
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
    settings = chosen_settings(args)
    begun = time.perf_counter()
    if suffix == ".npz":
        count = draw_to(args.out, pipeline, labels, args.seed, args.batch_size, **settings)
    else:
        images, _ = workflow.draw(pipeline, labels, args.seed, args.batch_size, **settings)
        zoom = 3 if images.shape[1] < 128 else 1
        workflow.save_grid(args.out, to_float(images), zoom=zoom)
        count = len(images)
    if count is not None:  # else another process of the same job reports
        seconds, passes = time.perf_counter() - begun, pipeline.passes(**settings)
        used = pipeline.card.sampling.but(**settings)
        scale = f" of scale {used.scale:g}" if used.guidance != "none" else ""
        print(
            f"guidance {used.guidance}{scale}, {used.steps} steps, order {used.order}, temperature "
            f"{used.temperature:g} {used.anneal}"
        )
        print(
            f"{args.out}: {count} of {len(labels)} images in {seconds:.1f} s "
            f"({count / seconds:.1f} images/s, {passes} network passes an image)"
        )


def evaluate(args) -> None:
    """Score a samples file against a data set."""
    folder = find_pipeline(args.model) if args.model else None
    own = read_card(folder).dataset if folder else None
    against = args.reference or own
    if against is None:
        raise InputError(
            "what are these samples to be compared with? Name a data set by --reference, or by "
            "--model the model that drew them."
        )
    # a classifier knows one size; Inception scales all pictures to its own
    size = RESOLUTION if args.extractor == "classifier" else None
    images, labels = load_samples(args.samples, size)
    dataset = own if against.endswith(".npz") else against
    if dataset is None and args.extractor == "classifier":
        raise InputError(
            f"whose classifier is to look at these samples and at {against}? Name a model by "
            "--model, or take --extractor inception."
        )
    if args.weights and args.extractor != "inception":
        raise InputError("--weights is for --extractor inception.")
    extractor = workflow.make_extractor(
        args.extractor, dataset or against, folder, args.weights, args.device or default_device()
    )
    reference = workflow.reference_for(against, extractor, folder, images.shape[1])
    scores = workflow.score(images, labels, reference, extractor)
    print(json.dumps(asdict(scores), indent=2) if args.json else scores.table())


def sweep(args) -> None:
    """Score many sampling settings; lists are separated by commas, all combinations are drawn."""
    pipeline = Pipeline.from_pretrained(args.model, args.device, args.bf16)
    grid = {name: getattr(args, name).split(",") for name in GRID if getattr(args, name)}
    for name, kind in GRID.items():
        if name in grid:
            grid[name] = [number(f"--{name.replace('_', '-')}", v, kind) for v in grid[name]]
    points = sweeps.grid_points(pipeline.card.sampling, grid)
    seeds = list(dict.fromkeys(number("--seeds", seed, int) for seed in args.seeds.split(",")))
    check_count("--num", args.num, least=10)
    if args.plot:
        check_writable(args.plot)
        if not any(point.order in TEMPERED for point in points):
            raise InputError("--plot draws fronts over temperature, and these orders have none.")
    if args.tune:
        first = sweeps.sweep(
            pipeline, points, args.tune, [sweeps.TUNING_SEED], args.out, args.batch_size
        )
        points = sweeps.best_points(first)
    records = sweeps.sweep(pipeline, points, args.num, seeds, args.out, args.batch_size)
    rows = sweeps.summarise(records)
    print(sweeps.table(rows))
    if args.adopt:
        best = presets.Sampling(**rows[0]["settings"])
        # what the best does not use keeps its value: a scale of 0 would switch any guidance off
        best = replace(best, **sweeps.unused(best, pipeline.card.sampling))
        write_card(pipeline.folder, replace(pipeline.card, sampling=best))
        if is_packed(pipeline.folder):
            write_manifest(pipeline.folder)
    if args.plot:
        from .plots import trade_off  # matplotlib takes a second to import

        fronts = sweeps.curves(first if args.tune else records)
        write_bytes(args.plot, trade_off(fronts).png())


def results(args) -> None:
    """Write the README's tables, the plots and the model cards anew from `data/results/`."""
    from .results import write, write_cards  # matplotlib takes a second to import

    for path in (*write(), *write_cards()):
        print(path)


def gallery(args) -> None:
    """Draw every class of every model that ships as one picture: plain, and guided."""
    from . import results  # matplotlib takes a second to import

    if args.out.suffix.lower() != ".png":
        raise InputError(f"{args.out} is no PNG: end it in .png.")
    check_writable(args.out)
    plot = results.gallery(seed=args.seed, device=args.device or default_device())
    write_bytes(args.out, plot.png())
    print(args.out)


GRID = {
    "guidance": str,
    "scale": float,
    "scale_schedule": str,
    "smoother": str,
    "order": str,
    "temperature": float,
    "anneal": str,
    "steps": int,
}


def number(what: str, word: str, kind: type):
    """One word of a list as `kind`."""
    try:
        return kind(word.strip())
    except ValueError:
        raise InputError(
            f"{what}: {word!r} is not {'a whole' if kind is int else 'a'} number."
        ) from None


def run(args) -> None:
    """The whole system in one command: train what is missing, sample, score, print a table."""
    check_count("--num", args.num, most=10_000_000)
    folder = args.out or default_folder(args)
    device = args.device or default_device()
    rows, settings = [], chosen_settings(args)
    plan = presets.get(args.dataset, args.preset, 2).sampling.but(**settings)
    if plan.helper and not (folder / plan.helper).is_dir():
        known = plan.helper in presets.PARTS
        raise InputError(
            f"guidance {plan.guidance!r} needs a {plan.helper}, which `sgmgm run` does not train: "
            f"first run `sgmgm train {'all' if known else f'smoother --name {plan.helper}'} "
            f"--dataset {args.dataset} --preset {args.preset} --out {folder}`."
        )
    for part in workflow.SPINE:
        shipped = part == "classifier" and (SHIPPED / args.dataset / part).is_dir()
        if shipped and not (folder / part).is_dir():
            continue
        report = workflow.train(part, args.dataset, args.preset, folder, args.seed, device)
        rows.append((f"train {part}", report["seconds"], describe(part, report).split(", ", 1)[1]))
    pipeline = Pipeline.from_pretrained(folder, device, args.bf16)
    labels = chosen_labels(args, pipeline)
    begun = time.perf_counter()
    images, nfe = workflow.draw(pipeline, labels, args.seed, args.batch_size, **settings)
    seconds = time.perf_counter() - begun
    save_samples(folder / "samples.npz", images, labels.numpy())
    workflow.save_grid(folder / "samples.png", to_float(images[:100]), columns=10)
    rows.append((f"sample {len(images)}", seconds,
                 f"{len(images) / seconds:.0f} images/s, {nfe:g} passes an image"))  # fmt: skip
    begun = time.perf_counter()
    eye = workflow.find_classifier(args.dataset, folder).to(device)
    reference = workflow.reference_for(args.dataset, eye, folder)
    scores = workflow.score(images, labels.numpy(), reference, eye)
    floor = workflow.noise_floor(args.dataset, eye, reference)
    found = f"Frechet distance {scores.frechet:.2f} (real test images: {floor:.2f})"
    rows.append(("evaluate", time.perf_counter() - begun, found))
    print(f"{args.dataset}, preset {args.preset}, in {folder}")
    for name, seconds, found in rows:
        print(f"  {name:<18}{duration(seconds):>9}   {found}")
    print(scores.table())
    print(f"grid of samples: {folder / 'samples.png'}")


def benchmark(args) -> None:
    """Measure how fast this machine draws and trains, and how close that is to its limit."""
    from .plots import limit  # matplotlib takes a second to import

    batches = [number("--batch-sizes", word, int) for word in args.batch_sizes.split(",")]
    if args.out:
        if args.out.suffix.lower() == ".png":
            raise InputError(f"--out {args.out}: the plot goes there; end it in .json.")
        check_writable(args.out)
    device = args.device or default_device()
    keep = (lambda record: write_json(args.out, record)) if args.out else (lambda record: None)
    record = benchmarks.benchmark(args.preset, device, batches, args.repeats, args.steps, keep)
    if args.out:
        write_bytes(args.out.with_suffix(".png"), limit(record).png())
    print(json.dumps(record, indent=2) if args.json else benchmarks.report(record))


def pack(args) -> None:
    """Make a trained pipeline folder small enough to ship."""
    workflow.pack(args.model, args.out, args.device)
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


def doctor(args) -> None:
    """Check this machine: what stands in the way, what to do, how long the lessons will take."""
    from .course import workspace
    from .doctor import describe, examine

    findings = examine(workspace(), args.device)
    print(describe(findings))
    if any(finding.state == "stop" for finding in findings):
        sys.exit(2)


def bundle(args) -> None:
    """Pack packages, lessons, models and data for a place without a network."""
    from .bundle import bundle

    print("collecting packages: minutes, because torch is large", file=sys.stderr)
    out = bundle(args.out, args.platform, args.python)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{out}: {size / 1e9:.2f} GB; there, run: python install.py")


def info(args) -> None:
    """What is installed, on what machine, and what models and presets there are."""
    import torchvision

    pipeline = Pipeline.from_pretrained(args.model, "cpu") if args.model else None
    print(f"sgmgm {__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}, "
          f"torchvision {torchvision.__version__}")  # fmt: skip
    print(f"device: {default_device()}, {torch.get_num_threads()} CPU threads")
    print(f"data sets: {', '.join(NAMES)}")
    for name in presets.PRESETS:
        plan = presets.get("any", name, 10)
        sizes = f"{plan.transformer.num_hidden_layers} x {plan.transformer.hidden_size}"
        print(f"preset {name}: transformer {sizes}, {plan.tokenizer.num_tokens} tokens of "
              f"{plan.tokenizer.num_embeddings} codes")  # fmt: skip
    for card in sorted(SHIPPED.glob("*/pipeline.json")):
        print(f"shipped model: {card.parent.name}")
    if pipeline:
        count = sum(p.numel() for p in pipeline.transformer.parameters())
        print(f"{args.model}: {pipeline.card.dataset}, {count / 1e6:.2f} M parameters, classes "
              f"{', '.join(pipeline.card.classes)}; {pipeline.card.sampling}")  # fmt: skip


FASTER = "faster: in bfloat16 where the device has it, and less work for the same image"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered in one sentence, and help has no "(default: None)"."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help.\n")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def course(args) -> None:
    """Run the lessons; or prepare one (catch-up), make slides of them, write the exercises."""
    from . import workshop
    from .course import run as run_course
    from .course import write_exercises

    if args.action == "exercises":
        written = write_exercises(args.notebooks)
        print(f"{written[0].parent}: {len(written)} notebooks from their solutions")
        return
    if args.action == "slides":
        written = workshop.write_slides(
            args.lessons, args.out or Path("build", "slides"), args.notebooks
        )
        print("\n".join(map(str, written)))
        return
    parameters = {name: getattr(args, name) for name in ("profile", "dataset", "seed", "device")}
    if args.action == "catch-up":
        if not args.lessons:
            raise InputError("catch up with which lesson? For example: sgmgm course catch-up 05.")
        for lesson in args.lessons:
            path, parts, folder = workshop.catch_up(lesson, args.notebooks, **parameters)
            how = "they ship with the course" if folder.parent == SHIPPED else "trained here"
            print(f"{path.stem}: {', '.join(parts)} in {folder} ({how}). Open {path}.")
        return
    out = args.out or Path("build", "course")
    lessons = run_course(args.lessons, out, args.notebooks, **parameters)
    bad = [each["name"] for each in lessons if each["status"].startswith("failed")]
    slow = [each["name"] for each in lessons if each["status"] == "over budget"]
    print(f"{len(lessons) - len(bad)} of {len(lessons)} lessons ran: open {out}/index.html")
    for what, names in (("failed", bad), ("over budget", slow if args.strict else [])):
        if names:
            print(f"sgmgm: {what}: {', '.join(names)}", file=sys.stderr)
    if bad or (args.strict and slow):
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = Parser(prog="sgmgm", description="Masked generative image models with self-guidance.")
    top.add_argument("--version", action="version", version=f"sgmgm {__version__}")
    commands = top.add_subparsers(dest="command", required=True)

    def command(function, device: bool = True, **options):
        help = function.__doc__.split("\n")[0]
        each = commands.add_parser(
            function.__name__, help=help, description=help, formatter_class=Formatter, **options
        )
        each.set_defaults(function=function)
        if device:
            each.add_argument("--device", help="cpu, cuda or mps; the best there is if not given")
        return each

    def training(each):
        each.add_argument("--dataset", default="sprites", help=f"one of {', '.join(NAMES)}")
        each.add_argument("--preset", default="laptop", choices=presets.PRESETS,
                          help="sizes and training lengths")  # fmt: skip
        each.add_argument("--out", type=Path, help="folder; runs/DATASET-PRESET if not given")
        each.add_argument("--seed", type=int, default=0, help="of everything random")

    def drawing(each, num: int):
        each.add_argument("--num", type=int, default=num, help="how many images")
        each.add_argument("--classes", help="e.g. 0,3,5 or names; all in turn if not given")
        each.add_argument("--batch-size", type=int, default=64, help="images at once")
        each.add_argument("--bf16", action="store_true", help=FASTER)
        note = "the model's own default if not given"
        each.add_argument("--steps", type=int, help=f"decoding steps; {note}")
        each.add_argument("--temperature", type=float, help=f"choice temperature; {note}")
        each.add_argument("--anneal", choices=ANNEALS, help=f"how temperature falls; {note}")
        each.add_argument("--order", choices=ORDERS, help=f"which tokens are kept; {note}")
        each.add_argument("--schedule", choices=SCHEDULES, help=f"mask schedule; {note}")
        each.add_argument("--guidance", choices=GUIDANCES, help=note)
        each.add_argument("--scale", type=float, help=f"guidance scale, 0 is none; {note}")
        each.add_argument("--scale-schedule", choices=SCALE_SCHEDULES, help=note)
        each.add_argument("--smoother", help=f"folder of the smoother; {note}")

    each = command(train)
    each.add_argument("part", choices=(*workflow.PARTS, "all"))
    training(each)
    each.add_argument("--steps", type=int, help="training steps; the preset's if not given")
    each.add_argument("--start", type=Path, metavar="DIR",
                      help="a trained part's folder, whose weights to begin with")  # fmt: skip
    each.add_argument("--name", help="folder of this part; the part's own name if not given")
    note = "smoothers only; the preset's if not given"
    each.add_argument("--rate", type=float, help=f"share of wrong tokens; {note}")
    each.add_argument("--wrong", choices=WRONG_TOKENS, help=f"kind of wrong tokens; {note}")
    each.add_argument("--loss-on", choices=LOSS_ON, help=f"judged positions; {note}")
    each.add_argument("--keep-class", action="store_true", default=None,
                      help="TOAST's pass 2 sees the class token")  # fmt: skip
    each.add_argument("--rank", type=int, help=f"of a LoRA adapter; {note}")

    each = command(sample)
    note = f"a shipped name, a pipeline folder, {' or '.join(PUBLISHED)}"
    each.add_argument("--model", required=True, help=note)
    each.add_argument("--weights", type=Path, metavar="DIR",
                      help="imagenet256 and imagenet512: a folder with a transformer and a "
                      "tokenizer (\"token\" or \"vq\" in its name), each a folder or .zip in the "
                      "authors' layout or MaskGIT's flax file")  # fmt: skip
    each.add_argument("--out", type=Path, default=Path("samples.png"), help=".png or .npz")
    each.add_argument("--seed", type=int, default=0, help="of the first image; then seed + 1, ...")
    drawing(each, 64)

    each = command(evaluate)
    each.add_argument("--samples", type=Path, required=True, help="an .npz: arr_0 uint8 NHWC")
    each.add_argument("--reference", help="a data set's name, folder:PATH, or an .npz of "
                      "pictures like --samples; the model's data set if not given")  # fmt: skip
    each.add_argument("--extractor", default="classifier", choices=("classifier", "inception"),
                      help="the network whose features are compared")  # fmt: skip
    each.add_argument("--model", help="a shipped name or a pipeline folder, whose classifier "
                      "to use; the data set's shipped one if not given")  # fmt: skip
    each.add_argument("--weights", help="file of Inception weights")
    each.add_argument("--json", action="store_true", help="print one JSON object")

    each = command(sweep)
    each.add_argument("--model", required=True, help="a shipped name or a pipeline folder")
    each.add_argument("--out", type=Path, default=Path("build/sweep.jsonl"), help="results file")
    each.add_argument("--num", type=int, default=5000, help="images per point and seed")
    each.add_argument("--seeds", default="0,1,2", help="a list")
    each.add_argument("--tune", type=int, metavar="NUM", help="first find each method's best "
                      "setting with NUM images of another seed, and score only that; "
                      "all settings if not given")  # fmt: skip
    each.add_argument("--adopt", action="store_true",
                      help="make the best of these settings the model's own")  # fmt: skip
    each.add_argument("--plot", type=Path, help="a .png of Frechet distance against inception "
                      "score (of the tuning, if there is one); no plot if not given")  # fmt: skip
    each.add_argument("--batch-size", type=int, default=125, help="images at once")
    each.add_argument("--bf16", action="store_true", help=FASTER)
    for name in GRID:
        each.add_argument(f"--{name.replace('_', '-')}", help="a list; the model's own if absent")

    command(results, device=False)

    each = command(gallery)
    each.add_argument("--out", type=Path, default=Path("gallery.png"), help="a PNG file")
    each.add_argument("--seed", type=int, default=0, help="another seed, other pictures")

    each = command(run)
    training(each)
    drawing(each, 5000)

    each = command(benchmark)
    each.add_argument("--preset", default="laptop", choices=benchmarks.SIZES,
                      help="sizes of the networks, whose weights are random")  # fmt: skip
    each.add_argument("--batch-sizes", default="1,8,64", help="images at once, a list")
    each.add_argument("--steps", type=int, help="decoding steps; the preset's if not given")
    each.add_argument("--repeats", type=int, default=5, help="timings, of which the median counts")
    each.add_argument("--out", type=Path, help="a .json file to write, and a plot beside it; "
                      "none if not given")  # fmt: skip
    each.add_argument("--json", action="store_true", help="print one JSON object")

    each = command(pack)
    each.add_argument("--model", required=True, help="a pipeline folder")
    each.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")

    command(doctor)

    each = command(bundle, device=False)
    each.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    each.add_argument("--platform", help="wheel tags, e.g. manylinux_2_28_x86_64; this machine's "
                      "if not given")  # fmt: skip
    each.add_argument("--python", help="e.g. 3.12; this one's version if not given")

    each = command(info, device=False)
    each.add_argument("--model", help="a shipped name or a pipeline folder, to describe it")

    each = command(course)
    each.add_argument("action", choices=("run", "catch-up", "slides", "exercises"))
    each.add_argument("lessons", nargs="*", metavar="LESSON", help="e.g. 01; all if none is given")
    each.add_argument("--profile", default="smoke", choices=presets.PRESETS,
                      help="how long the lessons' own runs are")  # fmt: skip
    each.add_argument("--dataset", default="sprites", help=f"one of {', '.join(NAMES)}")
    each.add_argument("--seed", type=int, default=0, help="of everything random")
    each.add_argument("--out", type=Path,
                      help="folder; build/course or build/slides if not given")  # fmt: skip
    each.add_argument("--notebooks", type=Path, help="folder; the repository's if not given")
    each.add_argument("--strict", action="store_true", help="fail when a lesson is over budget")
    return top


TOO_BIG = "there is not enough memory: ask for less at once, e.g. a smaller --batch-size."
GONE = "another process of this launch has ended; the same command goes on from what is kept."


@contextlib.contextmanager
def plain_warnings():
    """Own warnings in one line, like errors: no user needs the line of code that gave them."""
    usual = warnings.formatwarning

    def one_line(message, category, filename, *rest) -> str:
        own = Path(filename).parent == Path(__file__).parent
        return f"sgmgm: {message}\n" if own else usual(message, category, filename, *rest)

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(arguments)
    try:
        device = getattr(args, "device", None)
        team = meet(device or default_device())  # which gives each process its own GPU
        if device is not None:
            check_device(device)
        if not 0 <= getattr(args, "seed", 0) < 2**32:
            raise InputError(f"--seed must lie in 0..2^32 - 1, not {args.seed}.")
        with contextlib.ExitStack() as stack:
            stack.enter_context(plain_warnings())
            if team and not team.is_main_process:  # one process reports for all
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            args.function(args)
    except (RuntimeError, MemoryError) as error:
        short = is_out_of_memory(error)
        if not short and not is_loss_of_another(error):
            raise
        print(f"sgmgm: {TOO_BIG if short else GONE}", file=sys.stderr)
        return 2
    except SgmgmError as error:
        print(f"sgmgm: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sgmgm: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0
