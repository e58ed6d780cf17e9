"""Launchers of csrc/cpu/bias_gelu.cpp and csrc/cuda/bias_gelu.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac_kernels._library import extension

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # in the order of the CPU kernel's


def launch_cpu_fwd(
    x: Tensor,  # (..., D) contiguous
    bias: Tensor,  # (D,) fp32
    y: Tensor,  # (..., D)
) -> None:
    """Fills y."""
    extension("cpu").bias_gelu_fwd(*(t.data_ptr() for t in (x, bias, y)), *_shared(x))


def launch_cpu_bwd(
    dy: Tensor,  # (..., D) contiguous
    x: Tensor,  # (..., D) contiguous
    bias: Tensor,  # (D,) fp32
    dx: Tensor,  # (..., D)
    dbias: Tensor,  # (D,) fp32, or empty: not wanted
) -> None:
    """Fills dx and dbias."""
    sums = dbias.data_ptr() if dbias.numel() else 0
    pointers = (t.data_ptr() for t in (dy, x, bias, dx))
    extension("cpu").bias_gelu_bwd(*pointers, sums, *_shared(x))


def _shared(x: Tensor) -> tuple[int, int, int, int]:
    D = x.shape[-1]
    return _DTYPES.index(x.dtype), x.numel() // D, D, torch.get_num_threads()
