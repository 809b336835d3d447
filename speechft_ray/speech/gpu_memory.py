"""Tells a GPU whose memory ran out from other errors."""

from __future__ import annotations

import re

import torch

_TEXTS = re.compile(
    r"STATUS_ALLOC_FAILED"  # cuBLAS, cuDNN, cuFFT and cuSOLVER without memory for their workspace
    r"|GET was unable to find an engine"  # cuDNN, once no convolution has its workspace
    r"|CUDA error: out of memory"  # outside of torch's allocator
)
"""Of ``RuntimeError``s (torch 2.13, ``ATen/cuda/Exceptions.cpp`` and ``cudnn/Conv_v8.cpp``)."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU ran out."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _TEXTS.search(str(error)) is not None
