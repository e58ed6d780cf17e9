"""Launchers of csrc/cuda/dropout_add_layer_norm.cu."""

from __future__ import annotations

import torch
from torch import Tensor

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
    extension("cuda").dropout_add_layer_norm_fwd(
        *map(_pointer, (x, residual, weight, bias, linear_bias, seed, y, total, mean, rstd)),
        *_types_and_sizes(x, residual),
        threshold,
        eps,
        cuda_stream(x),
    )


def launch_cuda_bwd(
    dy: Tensor,  # (..., D) contiguous
    dtotal: Tensor | None,  # (..., D) contiguous
    total: Tensor,  # (..., D)
    mean: Tensor,  # (M,) fp32
    rstd: Tensor,  # (M,) fp32
    weight: Tensor,  # (D,) fp32
    seed: Tensor,  # 0-d int64
    threshold: int,
    dx: Tensor,  # (..., D)
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
    inputs = (dy, dtotal, total, mean, rstd, weight, seed)
    outputs = (dx, dresidual, partial, dweight, dbias, dlinear_bias)
    module.dropout_add_layer_norm_bwd(
        *map(_pointer, (*inputs, *outputs)), *types_and_sizes, threshold, cuda_stream(dy)
    )


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _types_and_sizes(x: Tensor, residual: Tensor) -> tuple[str, str, int, int]:
    names = (str(t.dtype).removeprefix("torch.") for t in (x, residual))
    return *names, x.numel() // x.shape[-1], x.shape[-1]  # type: ignore[return-value]
