"""A process whose trainings are killed, for test_faults: `python -m tests.killed_worker`.

torch is imported once; each line on standard input, [kind, folder, seconds, point, count] as JSON,
is one training in a forked child, killed (SIGKILL) after so many seconds, or by itself when it
comes to a point of writing for the count-th time, or not at all. The answer is [killed, seconds].
"""

import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from sgmgm import datasets, training
from sgmgm.utils import files

from .test_training import CONFIG, make


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(point: str, count: int) -> None:
    """Kill this process the count-th time that a file comes to this point of being written."""
    holder, name = {
        "half": (Path, "write_bytes"),  # half of the file is on the disk
        "written": (files.os, "fsync"),  # all of it, but perhaps not for good
        "flushed": (files.os, "replace"),  # the old file still has the name
        "replaced": (files.os, "replace"),  # the new one has it
    }[point]
    usual, left = getattr(holder, name), iter(range(count - 1))

    @functools.wraps(usual)
    def once(*args):
        if next(left, None) is not None:
            return usual(*args)
        if point in ("half", "replaced"):
            usual(*args)
        if point == "half":
            os.truncate(args[0], len(args[1]) // 2)
        die()

    setattr(holder, name, once)


def train(images, kind: str, folder: str, point: str | None, count: int) -> None:
    training.SAVE_SECONDS = -1  # a checkpoint after every step
    if point:
        die_at(point, count)
    training.fit(make(kind, images), CONFIG, folder, device="cpu")


def main():
    torch.set_num_threads(1)  # no pool of threads that a fork would lose
    images = datasets.load("sprites", count=48)
    for line in sys.stdin:
        kind, folder, seconds, point, count = json.loads(line)
        begun = time.perf_counter()
        child = os.fork()
        if not child:
            try:
                train(images, kind, folder, point, count)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        ended = 0
        while not ended and (seconds is None or time.perf_counter() - begun < seconds):
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.001)
        if not ended:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, -signal.SIGKILL), code
        print(json.dumps([code != 0, time.perf_counter() - begun]), flush=True)


if __name__ == "__main__":
    main()
