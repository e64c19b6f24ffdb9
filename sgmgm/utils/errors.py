"""What can go wrong at a user's hands: one clear sentence each.

Every error that bad input, a missing file or a damaged file can cause derives from
`SgmgmError`. The command line prints its sentence and ends with exit code 2.
"""

import math


class SgmgmError(Exception):
    """A problem that the user can mend; the message says what was wrong and what to do."""


class InputError(SgmgmError, ValueError):
    """An argument has the wrong name, type, shape or range."""


class DataError(SgmgmError):
    """A data set or a samples file is absent, empty or damaged."""


class CheckpointError(SgmgmError):
    """A model folder is absent, incomplete, damaged or does not fit."""


def check_choice(what: str, value: str, choices) -> str:
    """`value` if it is one of `choices`, else an InputError that lists them."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"unknown {what} {value!r}: choose one of {', '.join(map(str, choices))}.")
    return value


def check_count(what: str, value: int, least: int = 1, most: int | None = None) -> int:
    """`value` if it is a whole number of at least `least`, else an InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{what} must be a whole number of at least {least}, not {value!r}.")
    if most is not None and value > most:
        raise InputError(f"{what} must be at most {most:,}, not {value!r}.")
    return value


def is_finite(value) -> bool:
    """Whether a value is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a giant int
        return False
