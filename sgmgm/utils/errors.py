"""What can go wrong at a user's hands: one clear sentence each.

All derive from `SgmgmError`. The command line prints the sentence and ends with exit code 2.
"""

import math
import operator
from collections.abc import Iterable


class SgmgmError(Exception):
    """A problem that the user can mend; the message says what was wrong and what to do."""


class InputError(SgmgmError, ValueError):
    """An argument has the wrong name, type, shape or range."""


class DataError(SgmgmError):
    """A data set or a samples file is absent, empty or damaged."""


class CheckpointError(SgmgmError):
    """A model folder is absent, incomplete, damaged or does not fit."""


def listed(names: Iterable, most: int = 10) -> str:
    """Names for a sentence: "a, b, c", and of many the first ten and how many more there are."""
    names = [str(name) for name in names]
    names = [name if len(name) <= 200 else f"{name[:200]}..." for name in names]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def reason(error: Exception, most: int = 500) -> str:
    """What an error says, in one line without a full stop: a part of a sentence."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def check_choice(what: str, value: str, choices) -> str:
    """`value` if it is one of `choices`, else an InputError that lists them."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"unknown {what} {value!r}: choose one of {listed(choices, 20)}.")
    return value


def check_count(what: str, value: int, least: int = 1, most: int | None = None) -> int:
    """A whole number of Python, numpy or torch as an int, if it is in range; else an InputError."""
    try:
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # torch's, for tensors of several numbers
        number = None
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):
        number = None
    if number is None or number < least:
        raise InputError(f"{what} must be a whole number of at least {least}, not {value!r}.")
    if most is not None and number > most:
        raise InputError(f"{what} must be at most {most:,}, not {number!r}.")
    return number


def is_finite(value) -> bool:
    """Whether a value is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a giant int
        return False
