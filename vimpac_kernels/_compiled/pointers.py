"""How tensors reach the C++ kernels."""

from __future__ import annotations

import torch
from torch import Tensor

_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # ElementType of csrc/cpu/ops.hpp


def aligned(tensor: Tensor | None) -> Tensor | None:
    """`tensor`, copied if it does not start at the 16 bytes of a CUDA kernel's loads."""
    return tensor if tensor is None or tensor.data_ptr() % 16 == 0 else tensor.clone()


def pointer(tensor: Tensor | None) -> int:
    """Its address; 0 for one that is not there or empty."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def cpu_dtype(tensor: Tensor) -> int:
    """The number of its dtype among those of the CPU kernels."""
    return _CPU_DTYPES.index(tensor.dtype)
