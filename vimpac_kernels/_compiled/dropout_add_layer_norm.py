"""Launchers of csrc/cpu/dropout_add_layer_norm.cpp and csrc/cuda/dropout_add_layer_norm.cu."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vimpac_kernels import _philox
from vimpac_kernels._compiled.pointers import aligned, cpu_dtype, pointer
from vimpac_kernels._library import cuda_stream, extension


def launch_cuda_fwd(
    x: Tensor,  # (..., D) contiguous
    residual: Tensor,  # (..., D) contiguous
    weight: Tensor,  # (D,) fp32
    bias: Tensor,  # (D,) fp32
    linear_bias: Tensor | None,  # (D,) fp32
    seed: Tensor,  # 0-d int64
    threshold: int,
    eps: float,
    y: Tensor,  # (..., D)
    total: Tensor,  # (..., D), or empty as mean and rstd: not wanted
    mean: Tensor,  # (M,) fp32
    rstd: Tensor,  # (M,) fp32
) -> None:
    """Fills y and, if wanted, total, mean and rstd."""
    inputs = [aligned(t) for t in (x, residual, weight, bias, linear_bias)]
    extension("cuda").dropout_add_layer_norm_fwd(
        *map(pointer, (*inputs, seed, y, total, mean, rstd)),
        *_types_and_sizes(x, residual),
        threshold,
        eps,
        cuda_stream(x),
    )


def launch_cuda_bwd(
    dy: Tensor,  # (..., D) contiguous
    dy_other: Tensor | None,  # (..., D) contiguous, added to dy
    dtotal: Tensor | None,  # (..., D) contiguous
    total: Tensor,  # (..., D)
    mean: Tensor,  # (M,) fp32
    rstd: Tensor,  # (M,) fp32
    weight: Tensor,  # (D,) fp32
    seed: Tensor,  # 0-d int64
    threshold: int,
    dx: Tensor,  # (..., D), or empty: it is dresidual
    dresidual: Tensor,  # (..., D)
    dweight: Tensor,  # (D,) fp32
    dbias: Tensor,  # (D,) fp32
    dlinear_bias: Tensor,  # (D,) fp32, or empty: not wanted
) -> None:
    """Fills dx, dresidual and the gradients of the parameters."""
    module = extension("cuda")
    types_and_sizes = _types_and_sizes(dx, total)
    M, D = types_and_sizes[2:]
    blocks = module.dropout_add_layer_norm_blocks(M, D)
    partial = torch.empty((blocks, 3, D), dtype=torch.float32, device=dy.device)
    inputs = [aligned(t) for t in (dy, dy_other, dtotal, total, mean, rstd, weight)]
    outputs = (dx, dresidual, partial, dweight, dbias, dlinear_bias)
    module.dropout_add_layer_norm_bwd(
        *map(pointer, (*inputs, seed, *outputs)), *types_and_sizes, threshold, cuda_stream(dy)
    )


def launch_cpu_fwd(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    linear_bias: Tensor | None,
    seed: Tensor,
    threshold: int,
    eps: float,
    y: Tensor,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """As `launch_cuda_fwd`."""
    shared = _shared((weight, seed, total, mean, rstd), x, residual, threshold)
    pointers = map(pointer, (x, residual, bias, linear_bias, y))
    extension("cpu").dropout_add_layer_norm_fwd(*pointers, eps, shared)


def launch_cpu_bwd(
    dy: Tensor,
    dy_other: Tensor | None,
    dtotal: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    seed: Tensor,
    threshold: int,
    dx: Tensor,
    dresidual: Tensor,
    dweight: Tensor,
    dbias: Tensor,
    dlinear_bias: Tensor,
) -> None:
    """As `launch_cuda_bwd`."""
    shared = _shared((weight, seed, total, mean, rstd), dx, total, threshold)
    pointers = map(pointer, (dy, dy_other, dtotal, dx, dresidual, dweight, dbias, dlinear_bias))
    extension("cpu").dropout_add_layer_norm_bwd(*pointers, shared)


def _shared(tensors: tuple[Tensor, ...], x: Tensor, residual: Tensor, threshold: int) -> Any:
    """What forward and backward on the CPU have in common."""
    D = residual.shape[-1]
    return extension("cpu").DropoutAddLayerNorm(
        [pointer(t) for t in tensors],
        [cpu_dtype(t) for t in (x, residual)],
        (residual.numel() // D, D),
        threshold,
        _philox.dropout_scale(threshold),
        torch.get_num_threads(),
    )


def _types_and_sizes(x: Tensor, residual: Tensor) -> tuple[str, str, int, int]:
    names = (str(t.dtype).removeprefix("torch.") for t in (x, residual))
    D = residual.shape[-1]
    return *names, residual.numel() // D, D  # type: ignore[return-value]
