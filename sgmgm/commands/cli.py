"""The command line.

Results go to standard output, progress to standard error. Bad input ends with exit code 2 and
one sentence.
"""

import contextlib
import io
import os
import sys
import warnings
from pathlib import Path

from ..utils.devices import check_device, default_device, is_out_of_memory
from ..utils.distributed import is_loss_of_another, meet
from ..utils.errors import InputError, SgmgmError
from ..utils.files import ROOT
from .parser import parser

TOO_BIG = "there is not enough memory: ask for less at once, e.g. a smaller --batch-size."
GONE = "another process of this launch has ended; the same command goes on from what is kept."


@contextlib.contextmanager
def plain_warnings():
    """Own warnings in one line, like errors, without the line of code that gave them."""
    usual = warnings.formatwarning

    def one_line(message, category, filename, *rest) -> str:
        own = ROOT / "sgmgm" in Path(filename).parents
        return f"sgmgm: {message}\n" if own else usual(message, category, filename, *rest)

    warnings.formatwarning = one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # class names may be in any language
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(arguments)
    try:
        device = getattr(args, "device", None)
        job = meet(device or default_device())  # which gives each process its own GPU
        if device is not None:
            check_device(device)
        if not 0 <= getattr(args, "seed", 0) < 2**32:
            raise InputError(f"--seed must lie in 0..2^32 - 1, not {args.seed}.")
        with contextlib.ExitStack() as stack:
            stack.enter_context(plain_warnings())
            if job and not job.is_main_process:  # one process reports for all
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            args.function(args)
            sys.stdout.flush()
    except ModuleNotFoundError as error:  # of an extra that is not installed
        advice = "in the course's folder, pip install -e '.[course]'."
        print(f"sgmgm: this needs {error.name}: {advice}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `sgmgm ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
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
