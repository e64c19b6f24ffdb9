"""The options of all commands."""

import argparse
from pathlib import Path

from .. import __version__, presets, scoring, settings
from ..convert import PUBLISHED
from ..datasets import NAMES
from ..guidance import GUIDANCES, SCALE_SCHEDULES
from ..masking import SCHEDULES
from ..sampling import ANNEALS, ORDERS
from ..tasks import LOSS_ON, WRONG_TOKENS
from ..training import FALLS
from . import actions

FASTER = "faster: bfloat16 where the device has it, and less work for the same image"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered in one sentence, and help has no "(default: None)"."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help.\n")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        off = action.default is None or action.default is False  # 0 is a default to show
        return action.help if off else super()._get_help_string(action)


def list_of(kind: type):
    """An option's type: values of this kind, separated by commas."""

    def read(text: str) -> list:
        return [kind(word.strip()) for word in text.split(",")]

    read.__name__ = {str: "list", int: "list of whole numbers", float: "list of numbers"}[kind]
    return read


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = Parser(prog="sgmgm", description="Masked generative image models with self-guidance.")
    top.add_argument("--version", action="version", version=f"sgmgm {__version__}")
    commands = top.add_subparsers(dest="command", required=True)

    def command(function, device: bool = True):
        """A new command; returns what adds an option to it."""
        text = function.__doc__.split("\n")[0]
        options = {"help": text, "description": text, "formatter_class": Formatter}
        each = commands.add_parser(function.__name__, **options)
        each.set_defaults(function=function)
        if device:
            each.add_argument("--device", help="cpu, cuda or mps; the best there is if not given")
        return each.add_argument

    # fmt: off
    def training(add):
        add("--dataset", default="sprites", help=f"one of {', '.join(NAMES)}")
        add("--preset", default="laptop", choices=presets.PRESETS,
            help="sizes and training lengths")
        add("--out", type=Path, help="folder; runs/DATASET-PRESET if not given")
        add("--seed", type=int, default=0, help="of everything random")
        add("--mirror", action=argparse.BooleanOptionalAction, help="mirror training images at "
            "random; if not given, as the model's other parts, else not for folder:PATH and "
            "fashion-mnist")

    def sampling(add, num: int):
        own = "the model's own if not given"
        add("--num", type=int, default=num, help="how many images")
        add("--classes", metavar="LIST", help="e.g. 0,3,5 or cat,dog; a name with a comma in "
            "double quotes; none is no class; all in turn if not given")
        add("--batch-size", type=int, default=64, help="images at once")
        add("--bf16", action="store_true", help=FASTER)
        add("--steps", type=int, help=f"decoding steps; {own}")
        add("--temperature", type=float, help=f"randomness of the order of positions; {own}")
        add("--anneal", choices=ANNEALS, help=f"how the temperature falls; {own}")
        add("--order", choices=ORDERS, help=f"which tokens are kept; {own}")
        add("--schedule", choices=SCHEDULES, help=f"how the number of masks falls; {own}")
        add("--remask-known", action=argparse.BooleanOptionalAction, help="known tokens may be "
            f"masked again: their confidence is 88.7, as in the released code; {own}")
        add("--guidance", choices=GUIDANCES, help=f"kind of guidance (see lesson 04); {own}")
        add("--scale", type=float, help=f"guidance scale, 0 is none; {own}")
        add("--scale-schedule", choices=SCALE_SCHEDULES,
            help=f"how the scale changes over the steps; {own}")
        add("--smoother", help=f"folder of the smoother; {own}")

    add = command(actions.train)
    add("part", choices=(*settings.TRAINABLE, "all"), help="what to train")
    training(add)
    add("--steps", type=int, help="training steps; the preset's if not given")
    add("--minutes", type=float, help="how long to train, in place of --steps; loading and "
        "scoring come on top; the preset's steps if not given")
    add("--schedule", choices=FALLS, help="how the learning rate falls: from the start, or in the "
        "last fifth as with --minutes; cosine if not given")
    add("--start", type=Path, metavar="DIR",
        help="a trained part's folder, whose weights to begin with; new weights if not given")
    add("--name", help="folder of this part; the part's own name if not given")
    note = "smoothers only; the preset's if not given"
    add("--rate", type=float, help=f"share of substituted tokens; {note}")
    add("--wrong", choices=WRONG_TOKENS, help=f"what substitutes them; {note}")
    add("--loss-on", choices=LOSS_ON, help=f"positions of the loss; {note}")
    add("--keep-class", action="store_true", default=None,
        help="TOAST's pass 2 sees the class token")
    add("--rank", type=int, help=f"of a LoRA adapter; {note}")

    add = command(actions.sample)
    add("--model", required=True,
        help=f"a shipped name, a pipeline folder, {' or '.join(PUBLISHED)}")
    add("--weights", type=Path, metavar="DIR", help="imagenet256 and imagenet512: a folder with a "
        "transformer and a tokenizer (\"token\" or \"vq\" in its name), each a folder or .zip in "
        "the authors' layout or MaskGIT's flax file")
    add("--out", type=Path, default=Path("samples.png"), help=".png (an image grid) or .npz")
    add("--seed", type=int, default=0, help="of the first image; then seed + 1, ...")
    sampling(add, 64)

    add = command(actions.evaluate)
    add("--samples", type=Path, required=True, help="an .npz (arr_0 uint8 NHWC), or a "
        "folder of images, in sub-folders named like the classes if they have labels")
    add("--reference", help="a data set's name, folder:PATH (all of it), or an .npz of images "
        "like --samples; the model's data set if not given")
    add("--extractor", default="classifier", choices=scoring.EXTRACTORS,
        help="the network whose features are compared")
    add("--model", help="a shipped name or a pipeline folder, whose classifier to use; the data "
        "set's shipped one if not given")
    add("--weights", help="file of Inception weights; torch.hub's if not given")
    add("--json", action="store_true", help="print one JSON object")

    add = command(actions.sweep)
    add("--model", required=True, help="a shipped name or a pipeline folder")
    add("--out", type=Path, default=Path("build/sweep.jsonl"), help="results file")
    add("--num", type=int, default=5000, help="images per point and seed")
    add("--seeds", type=list_of(int), default="0,1,2",
        help="a list; each gives another set of images")
    add("--tune", type=int, metavar="NUM", help="first find each method's best setting with NUM "
        "images of another seed, and score only that; all settings if not given")
    add("--batch-size", type=int, default=125, help="images at once")
    add("--bf16", action="store_true", help=FASTER)
    for name, kind in actions.GRID.items():
        add(f"--{name.replace('_', '-')}", type=list_of(kind), metavar="LIST",
            help="the model's own if not given")

    command(actions.results, device=False)
    command(actions.refresh)("-n", action="store_true", help="only say what is to be done")

    add = command(actions.gallery)
    add("--out", type=Path, default=Path("gallery.png"), help="a PNG file")
    add("--seed", type=int, default=0, help="another seed, other images")

    add = command(actions.run)
    training(add)
    add("--minutes", type=float, help="how long to train all parts together; the preset's steps "
        "if not given")
    sampling(add, 5000)

    add = command(actions.pack)
    add("--model", required=True, help="a pipeline folder")
    add("--out", type=Path, required=True, help="a folder that does not exist yet")

    command(actions.doctor)

    add = command(actions.info, device=False)
    add("--model", required=True, help="a shipped name or a pipeline folder")

    add = command(actions.course)
    do = ("run", "catch-up", "progress", "commit")
    add("action", choices=do, help="run lessons, prepare what a lesson starts "
        "from, say which exercises are done, or run lessons (smoke and laptop) and keep their "
        "outputs")
    add("lessons", nargs="*", metavar="LESSON", help="e.g. 01; all if none is given")
    add("--profile", default="smoke", choices=presets.PRESETS,
        help="how long the lessons' own runs are")
    add("--dataset", help=f"one of {', '.join(NAMES)}; each lesson's own if not given")
    add("--seed", type=int, default=0, help="of everything random")
    add("--out", type=Path, help="folder; build/course if not given")
    add("--notebooks", type=Path, help="folder; the repository's if not given")
    # fmt: on
    return top
