"""What the checks of the exercises are made of."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


class NotYet(Exception):
    """What is wrong, in one sentence. Jupyter shows the sentence alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not yet: {self}"]


def want(right: bool | Tensor, otherwise: str) -> None:
    """A check is a condition, and below it the sentence for those who do not meet it."""
    if not right:
        raise NotYet(otherwise)


def returned(value, what: str) -> None:
    want(value is not None, f"{what} returns None: write its body, and return the result.")


def tensor(value, like: Tensor, what: str) -> Tensor:
    """`value`, if it is a tensor of the shape and kind (integers, floats, bools) of `like`."""
    returned(value, what)
    want(isinstance(value, Tensor), f"{what} returns a {type(value).__name__}, not a tensor.")
    want(
        value.shape == like.shape,
        f"{what} returns the shape {tuple(value.shape)} where {tuple(like.shape)} is wanted.",
    )
    kinds = [(t.is_floating_point(), t.dtype == torch.bool) for t in (value, like)]
    want(kinds[0] == kinds[1], f"{what} returns {value.dtype} where {like.dtype} is wanted.")
    return value


def number(value, what: str, kind: str = "a number", read: Callable = float):
    returned(value, what)
    try:
        return read(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise NotYet(f"{what} returns a {type(value).__name__}, not {kind}.") from None


def numbers(value, what: str) -> list[float]:
    numbers = number(value, what, "a list of numbers", lambda value: [float(n) for n in value])
    want(all(map(math.isfinite, numbers)), f"{what} returns a number that is not finite.")
    return numbers


def asked(function: Callable, *given):
    """The function's answer; it must leave the tensors that it is given as they are."""
    own = [g.clone() if isinstance(g, Tensor) else g for g in given]
    answer = function(*own)
    for mine, before in zip(own, given, strict=True):
        if isinstance(before, Tensor):
            want(torch.equal(mine, before), "it changes a tensor that is given: make a new one.")
    return answer


def elsewhere(function: Callable, *given):
    """The answer for another size; None where the function knows only the first one."""
    try:
        return function(*given)
    except (RuntimeError, IndexError, ValueError):
        return None


def same(a, b, tolerance: float = 1e-4) -> bool:
    a, b = (torch.as_tensor(t).double() for t in (a, b))
    return torch.allclose(a, b, atol=tolerance, rtol=tolerance)


def unlike(found, mistakes: dict, yours: str = "", tolerance: float = 1e-4) -> None:
    """Refuse the result of a known mistake; `yours` and the mistake's words make the sentence."""
    for words, value in mistakes.items():
        want(not same(found, value, tolerance), f"{yours}{words}.")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
