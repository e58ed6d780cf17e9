"""Launchers of csrc/cpu/linear_cross_entropy.cpp and csrc/cuda/linear_cross_entropy.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac_kernels._compiled.pointers import cpu_dtype
from vimpac_kernels._library import cuda_stream, extension

MAX_CLASSES_CUDA = 32_768  # 512 threads, 64 columns each


def row_pass_cuda(
    z: Tensor,  # (m, stride) contiguous, stride a multiple of 8
    V: int,
    first: int,
    bias: Tensor | None,  # (V,) fp32
    target: Tensor,  # (R,) int32 or int64
    positions: Tensor | None,  # (M,) int32
    count: Tensor | None,  # 0-d int32
    row_scale: Tensor | None,  # (M,) fp32
    gradient: bool,
    losses: Tensor,  # (M,) fp32
    counts: Tensor,  # (2,) int32
    dbias: Tensor,  # (V,) fp32, or empty: not wanted
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    """Finishes a chunk of logits; see `Backend` in vimpac_kernels/_linear_cross_entropy.py."""
    module, (rows, stride) = extension("cuda"), z.shape
    partial = None
    if gradient and dbias.numel():
        blocks = module.linear_cross_entropy_blocks(rows, stride)
        partial = torch.empty((blocks, stride), dtype=torch.float32, device=z.device)
    tensors = (z, bias, target, positions, count, row_scale, losses, counts, partial, dbias)
    module.linear_cross_entropy_fwd(
        *(0 if t is None else t.data_ptr() for t in tensors),
        str(z.dtype).removeprefix("torch."),
        rows,
        first,
        V,
        stride,
        ignore_index,
        label_smoothing,
        z_loss,
        gradient,
        target.dtype == torch.int64,
        cuda_stream(z),
    )


def row_pass_cpu(
    z: Tensor,  # (m, V) contiguous
    V: int,
    first: int,
    bias: Tensor | None,  # (V,) fp32
    target: Tensor,  # (R,) int32 or int64
    positions: Tensor | None,  # (M,) int32
    count: Tensor | None,  # 0-d int32
    row_scale: Tensor | None,  # (M,) fp32
    gradient: bool,
    losses: Tensor,  # (M,) fp32
    counts: Tensor,  # (2,) int32
    dbias: Tensor,  # (V,) fp32, or empty: not wanted
    *,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    """As `row_pass_cuda`; raises IndexError for a target or a position out of range."""
    tensors = (z, bias, target, positions, count, row_scale, losses, counts)
    invalid = extension("cpu").linear_cross_entropy_fwd(
        *(0 if t is None else t.data_ptr() for t in tensors),
        dbias.data_ptr() if dbias.numel() and gradient else 0,
        cpu_dtype(z),
        (*z.shape, V, first, target.numel()),
        target.dtype == torch.int64,
        gradient,
        ignore_index,
        label_smoothing,
        z_loss,
        torch.get_num_threads(),
    )
    if invalid >= 0:
        row = invalid if positions is None else int(positions[invalid])
        if not 0 <= row < target.numel():
            raise IndexError(f"position {row} is outside [0, {target.numel()}) and counts")
        raise IndexError(f"target {int(target[row])} is outside [0, {V})")
