"""Launchers of csrc/cpu/bias_gelu.cpp and csrc/cuda/bias_gelu.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac_kernels._compiled.pointers import aligned, cpu_dtype, pointer
from vimpac_kernels._library import cuda_stream, extension


def launch_cuda_fwd(
    x: Tensor,  # (..., D) contiguous
    bias: Tensor,  # (D,) fp32
    y: Tensor,  # (..., D)
) -> None:
    """Fills y."""
    inputs = [aligned(t) for t in (x, bias)]
    extension("cuda").bias_gelu_fwd(
        *map(pointer, (*inputs, y)), *_type_and_sizes(x), cuda_stream(x)
    )


def launch_cuda_bwd(
    dy: Tensor,  # (..., D) contiguous
    x: Tensor,  # (..., D) contiguous
    bias: Tensor,  # (D,) fp32
    dx: Tensor,  # (..., D)
    dbias: Tensor,  # (D,) fp32, or empty: not wanted
) -> None:
    """Fills dx and dbias."""
    module = extension("cuda")
    dtype, M, D = _type_and_sizes(x)
    partial = dbias.new_empty(module.bias_gelu_blocks(M, D) if dbias.numel() else 0, D)
    inputs = [aligned(t) for t in (dy, x, bias)]
    module.bias_gelu_bwd(*map(pointer, (*inputs, dx, partial, dbias)), dtype, M, D, cuda_stream(x))


def launch_cpu_fwd(
    x: Tensor,
    bias: Tensor,
    y: Tensor,
) -> None:
    """As `launch_cuda_fwd`."""
    extension("cpu").bias_gelu_fwd(*map(pointer, (x, bias, y)), *_shared(x))


def launch_cpu_bwd(
    dy: Tensor,
    x: Tensor,
    bias: Tensor,
    dx: Tensor,
    dbias: Tensor,
) -> None:
    """As `launch_cuda_bwd`."""
    extension("cpu").bias_gelu_bwd(*map(pointer, (dy, x, bias, dx, dbias)), *_shared(x))


def _type_and_sizes(x: Tensor) -> tuple[str, int, int]:
    D = x.shape[-1]
    return str(x.dtype).removeprefix("torch."), x.numel() // D, D


def _shared(x: Tensor) -> tuple[int, int, int, int]:
    D = x.shape[-1]
    return cpu_dtype(x), x.numel() // D, D, torch.get_num_threads()
