"""Memory: whether an error means that a GPU refused some, and how much is held of a device."""

from __future__ import annotations

import os
import re

import torch

from ablate.errors import AblateError
from ablate.train.process import held_bytes

# by torch's allocator, a CUDA call, the driver (expandable segments), and the libraries at their own allocations
_GPU = re.compile(
    r"\b(CUDA|CUDNN|CUBLAS|HIP|Triton)\b.*\bout of memory"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE)_STATUS_ALLOC_FAILED|CUFFT_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    re.IGNORECASE | re.DOTALL,
)
# what they say as well where too little is left for a handle, a kernel or a workspace; it may have other causes
_PERHAPS = re.compile(
    r"(CUBLAS|CUDNN|CUSOLVER)_STATUS_(NOT_INITIALIZED|INTERNAL_ERROR)"
    r"|unable to find an engine to execute|unable to find a valid cuDNN algorithm",
    re.IGNORECASE,
)
_HOST = re.compile(r"can't allocate memory", re.IGNORECASE)  # of torch's allocator on a CPU
_ERROR = re.compile(r"^(?:\[rank\d+\]:\s*)?([\w.]*(?:Error|Exception): .*)$", re.MULTILINE)  # as Python prints one


class GpuMemoryError(AblateError):
    """A command ended with an error that says so."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory was refused. Not all of CUDA, and none of torch on a CPU, has an exception of its own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError, GpuMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (_GPU.search(text) or _HOST.search(text)) is not None


def may_be_gpu_memory(error: BaseException) -> bool:
    """Tell whether a GPU has refused memory, or may have: how libraries fail there is not always to be told apart."""
    if isinstance(error, (torch.OutOfMemoryError, GpuMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (_GPU.search(text) or _PERHAPS.search(text)) is not None


def gpu_error_in(printed: str) -> str:
    """Return the last error of Python in what a program printed that says that a GPU refused memory; else nothing."""
    found = [line[1] for line in _ERROR.finditer(printed) if _GPU.search(line[1])]
    return found[-1] if found else ""


def memory_of(device: torch.device) -> tuple[int, int]:
    """Return how many bytes of a device are held, and how many it has: of a GPU by all, of a CPU's by this process."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    return held_bytes(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
