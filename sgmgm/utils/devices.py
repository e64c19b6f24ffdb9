"""Devices: which there are, and what they can do."""

import platform
import re
import sys
import warnings
from functools import lru_cache

import psutil
import torch
from torch.ops import mkldnn

from .errors import InputError

NO_MEMORY = re.compile(r"out of memory|enough memory|allocate memory|ALLOC_FAILED")


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
    except Exception as error:  # torch raises errors of many kinds here
        if is_out_of_memory(error):
            raise
        raise InputError(f"no device {str(name)!r} here: try {default_device()!r}.") from None
    if device.type == "cuda":
        if device.index is not None:  # graphs, streams and launchers need the current one
            torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False  # what is called float32 has its 24 bits
    return device


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says, in one of torch's many ways, that memory is used up."""
    named = isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
    return named or isinstance(error, torch.OutOfMemoryError | MemoryError)


def describe_device(device: torch.device) -> str:
    """A device in words, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' * (threads != 1)}"


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: on CUDA by tensors, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@lru_cache  # so that it is said once
def has_bf16(device: str) -> bool:
    """Whether this kind of device, "cpu", "cuda" or "mps", multiplies in bfloat16 by itself."""
    if device == "cpu":
        able = torch.backends.mkldnn.is_available() and mkldnn._is_mkldnn_bf16_supported()
        if able and platform.machine() in ("x86_64", "AMD64"):
            # AVX-512 without bfloat16 is "supported" too, but emulated: slower than float32
            able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        able = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if not able:
        warnings.warn(f"no bfloat16 on this {device}: float32 is used instead.", stacklevel=2)
    return able
