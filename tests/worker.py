"""What every process of a launch does, for utils/test_distributed: `-m tests.worker OUT`.

Trains each kind for a few steps, extracts features, and runs two commands on OUT/model; each
process writes what it got. `-m tests.worker die ...` is `sgmgm ...`, but that the second process
kills itself.
"""

import contextlib
import io
import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch

from sgmgm import datasets, scoring, training
from sgmgm.classifier import Classifier, ClassifierConfig
from sgmgm.commands.cli import main
from sgmgm.smoothing import LoraSmoother, ToastSmoother
from sgmgm.tasks import SmootherTask, TransformerTask
from sgmgm.training import TrainingConfig, fit
from sgmgm.transformer import MaskedTransformer
from sgmgm.utils.distributed import rank_and_size

from .test_training import TRANSFORMER, classifier_task, some_tokens, tokenizer_task

# no dropout and no bfloat16: their rounding and draws differ between one process and two
CONFIG = TrainingConfig(steps=25, batch_size=16, learning_rate=3e-3, warmup=2, ema=0.5, bf16=False)
PLAIN = replace(TRANSFORMER, dropout=0.0)


def smoother(kind) -> SmootherTask:
    model = MaskedTransformer(PLAIN)
    return SmootherTask(kind(model), model, *some_tokens(), torch.randn(20, 4))


TASKS = {
    "classifier": classifier_task,
    "tokenizer": tokenizer_task,
    "transformer": lambda images: TransformerTask(MaskedTransformer(PLAIN), *some_tokens()),
    "toast": lambda images: smoother(ToastSmoother.for_transformer),
    "lora": lambda images: smoother(LoraSmoother),
}


def results(out: Path) -> dict:
    """Loss curves of the kinds, and statistics of extracted features."""
    images = datasets.load("sprites", count=48)
    found = {}
    for kind, make in TASKS.items():
        torch.manual_seed(0)
        report = fit(make(images), CONFIG, out / kind, device="cpu")
        found[kind] = report["history"]
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(widths=(4, 8))).eval()
    rows, logits = scoring.extract(classifier, images.batch(slice(None))[0].split(20))
    found["features"], found["logits"] = rows.tolist(), logits.tolist()
    return found


def commands(out: Path, model: Path) -> dict:
    """Scores of OUT/x.npz, and eleven images in three batches."""
    sample = ["--num", 11, "--batch-size", 4, "--seed", 40, "--steps", 2]
    each = {
        "evaluate": ["--samples", out / "x.npz", "--json"],
        "sample": [*sample, "--out", out / "samples.npz"],
    }
    usual = ["--model", model, "--device", "cpu"]
    return {name: [name, *map(str, [*words, *usual])] for name, words in each.items()}


def say(words: list[str]) -> str:
    """What a command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(words) == 0
    return said.getvalue()


def steps_by_the_clock(out: Path) -> int:
    """How many steps 0.6 seconds of training are; the second process goes by a faster clock."""
    pace = 10 if rank_and_size()[0] else 1
    training.time = SimpleNamespace(perf_counter=lambda: pace * time.perf_counter())
    torch.manual_seed(0)
    task = TASKS["transformer"](None)
    return fit(task, CONFIG, out / "clock", device="cpu", minutes=0.01)["step"]


def die_in_step(number: int) -> None:
    """The second process kills itself after so many steps."""
    usual = TransformerTask.after_step

    def after_step(self, step, *rest):
        if step == number and rank_and_size()[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        usual(self, step, *rest)

    TransformerTask.after_step = after_step


if __name__ == "__main__":
    if sys.argv[1] == "die":
        die_in_step(5)
        sys.exit(main(sys.argv[2:]))
    out = Path(sys.argv[1])
    found = results(out)
    found["steps"] = steps_by_the_clock(out)
    found["said"] = {name: say(words) for name, words in commands(out, out / "model").items()}
    (out / f"found-{rank_and_size()[0]}.json").write_text(json.dumps(found))
