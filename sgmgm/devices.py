"""Devices: which there are, and what they can do."""

import platform
import warnings
from functools import lru_cache

import torch
from torch.ops import mkldnn

from .errors import InputError


def default_device() -> str:
    """The best device here: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(name: str | torch.device) -> torch.device:
    """The device of this name; InputError unless torch can compute on it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception:  # torch raises errors of many kinds here
        raise InputError(f"no device {str(name)!r} here: try {default_device()!r}.") from None
    return device


def describe_device(device: torch.device) -> str:
    """A device in words, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


@lru_cache  # so that it is said once
def has_bf16(device: str) -> bool:
    """Whether this kind of device, "cpu", "cuda" or "mps", multiplies in bfloat16 by itself.

    Where it does not, torch does so in software, slower than in float32; float32 is used then.
    """
    if device == "cpu":
        able = torch.backends.mkldnn.is_available() and mkldnn._is_mkldnn_bf16_supported()
        if platform.machine() in ("x86_64", "AMD64"):
            # AVX-512 without bfloat16 is "supported" too, but emulated: slower than float32
            able = able and (
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            )
    else:
        able = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if not able:
        warnings.warn(f"no bfloat16 on this {device}: float32 is used instead.", stacklevel=2)
    return able
