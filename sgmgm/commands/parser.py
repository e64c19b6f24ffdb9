"""The options of all commands."""

import argparse
from pathlib import Path

from .. import __version__, presets, settings
from ..convert import PUBLISHED
from ..datasets import NAMES
from ..evidence import benchmark as benchmarks
from ..guidance import GUIDANCES, SCALE_SCHEDULES
from ..masking import SCHEDULES
from ..sampling import ANNEALS, ORDERS
from ..tasks import LOSS_ON, WRONG_TOKENS
from . import actions

FASTER = "faster: in bfloat16 where the device has it, and less work for the same image"


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is answered in one sentence, and help has no "(default: None)"."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see {self.prog} --help.\n")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


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
        each.add_argument("--mirror", action=argparse.BooleanOptionalAction,
                          help="mirror training images at random; if not given, as the model's "
                          "other parts, else not for folder:PATH and fashion-mnist")  # fmt: skip

    def sampling(each, num: int):
        each.add_argument("--num", type=int, default=num, help="how many images")
        each.add_argument("--classes", help="e.g. 0,3,5 or names, of which one with a comma stands "
                          "in quotes; all in turn if not given")  # fmt: skip
        each.add_argument("--batch-size", type=int, default=64, help="images at once")
        each.add_argument("--bf16", action="store_true", help=FASTER)
        note = "the model's own default if not given"
        each.add_argument("--steps", type=int, help=f"decoding steps; {note}")
        each.add_argument("--temperature", type=float, help=f"choice temperature; {note}")
        each.add_argument("--anneal", choices=ANNEALS, help=f"how temperature falls; {note}")
        each.add_argument("--order", choices=ORDERS, help=f"which tokens are kept; {note}")
        each.add_argument("--schedule", choices=SCHEDULES, help=f"mask schedule; {note}")
        each.add_argument("--remask-known", action=argparse.BooleanOptionalAction,
                          help=f"known tokens compete with confidence 88.7, as in the released "
                          f"code, not infinity; {note}")  # fmt: skip
        each.add_argument("--guidance", choices=GUIDANCES, help=note)
        each.add_argument("--scale", type=float, help=f"guidance scale, 0 is none; {note}")
        each.add_argument("--scale-schedule", choices=SCALE_SCHEDULES, help=note)
        each.add_argument("--smoother", help=f"folder of the smoother; {note}")

    each = command(actions.train)
    each.add_argument("part", choices=(*settings.PARTS, "all"))
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

    each = command(actions.sample)
    note = f"a shipped name, a pipeline folder, {' or '.join(PUBLISHED)}"
    each.add_argument("--model", required=True, help=note)
    each.add_argument("--weights", type=Path, metavar="DIR",
                      help="imagenet256 and imagenet512: a folder with a transformer and a "
                      "tokenizer (\"token\" or \"vq\" in its name), each a folder or .zip in the "
                      "authors' layout or MaskGIT's flax file")  # fmt: skip
    each.add_argument("--out", type=Path, default=Path("samples.png"), help=".png or .npz")
    each.add_argument("--seed", type=int, default=0, help="of the first image; then seed + 1, ...")
    sampling(each, 64)

    each = command(actions.evaluate)
    each.add_argument("--samples", type=Path, required=True,
                      help="an .npz (arr_0 uint8 NHWC), or a folder of pictures, in sub-folders "
                      "that are called like the classes if they have labels")  # fmt: skip
    each.add_argument("--reference", help="a data set's name, folder:PATH (all of it), or an .npz "
                      "of pictures like --samples; the model's data set if not given")  # fmt: skip
    each.add_argument("--extractor", default="classifier", choices=("classifier", "inception"),
                      help="the network whose features are compared")  # fmt: skip
    each.add_argument("--model", help="a shipped name or a pipeline folder, whose classifier "
                      "to use; the data set's shipped one if not given")  # fmt: skip
    each.add_argument("--weights", help="file of Inception weights")
    each.add_argument("--json", action="store_true", help="print one JSON object")

    each = command(actions.sweep)
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
    for name in actions.GRID:
        each.add_argument(f"--{name.replace('_', '-')}", help="a list; the model's own if absent")

    command(actions.results, device=False)

    each = command(actions.gallery)
    each.add_argument("--out", type=Path, default=Path("gallery.png"), help="a PNG file")
    each.add_argument("--seed", type=int, default=0, help="another seed, other pictures")

    each = command(actions.run)
    training(each)
    sampling(each, 5000)

    each = command(actions.benchmark)
    each.add_argument("--preset", default="laptop", choices=benchmarks.SIZES,
                      help="sizes of the networks, whose weights are random")  # fmt: skip
    each.add_argument("--batch-sizes", default="1,8,64", help="images at once, a list")
    each.add_argument("--steps", type=int, help="decoding steps; the preset's if not given")
    each.add_argument("--repeats", type=int, default=5, help="timings, of which the median counts")
    each.add_argument("--out", type=Path, help="a .json file to write, and a plot beside it; "
                      "none if not given")  # fmt: skip
    each.add_argument("--json", action="store_true", help="print one JSON object")

    each = command(actions.pack)
    each.add_argument("--model", required=True, help="a pipeline folder")
    each.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")

    command(actions.doctor)

    each = command(actions.bundle, device=False)
    each.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    each.add_argument("--platform", help="wheel tags, e.g. manylinux_2_28_x86_64; this machine's "
                      "if not given")  # fmt: skip
    each.add_argument("--python", help="e.g. 3.12; this one's version if not given")

    each = command(actions.info, device=False)
    each.add_argument("--model", help="a shipped name or a pipeline folder, to describe it")

    each = command(actions.course)
    each.add_argument("action", choices=("run", "catch-up", "exercises"))
    each.add_argument("lessons", nargs="*", metavar="LESSON", help="e.g. 01; all if none is given")
    each.add_argument("--profile", default="smoke", choices=presets.PRESETS,
                      help="how long the lessons' own runs are")  # fmt: skip
    each.add_argument("--dataset", default="sprites", help=f"one of {', '.join(NAMES)}")
    each.add_argument("--seed", type=int, default=0, help="of everything random")
    each.add_argument("--out", type=Path,
                      help="folder; build/course if not given")  # fmt: skip
    each.add_argument("--notebooks", type=Path, help="folder; the repository's if not given")
    each.add_argument("--strict", action="store_true", help="fail when a lesson is over budget")
    return top
