"""Launchers of csrc/cpu/embed_tokens.cpp."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from vimpac_kernels import _philox
from vimpac_kernels._compiled.pointers import cpu_dtype, pointer
from vimpac_kernels._library import extension


def launch_cpu_fwd(
    tokens: Tensor,  # (B, T, H, W) int32 or int64, contiguous as all
    embedding: Tensor,  # (V, D) fp32 or of the dtype of y
    time: Tensor | None,  # (T, D) fp32
    height: Tensor | None,  # (H, D) fp32
    width: Tensor,  # (W, D) fp32
    cls: Tensor | None,  # (D,) fp32
    weight: Tensor | None,  # (D,) fp32
    bias: Tensor | None,  # (D,) fp32
    seed: Tensor,  # 0-d int64
    threshold: int,
    eps: float,
    y: Tensor,  # (B, S, D)
    mean: Tensor,  # (B * S,) fp32, or empty as rstd: not wanted
    rstd: Tensor,  # (B * S,) fp32
) -> None:
    """Fills y and, if wanted, mean and rstd; IndexError for an id outside [0, V)."""
    tensors = (embedding, time, height, width, cls, weight, mean, rstd, seed)
    call = _cpu_call(tokens, *tensors, threshold=threshold, result=y)
    invalid = extension("cpu").embed_tokens_fwd(pointer(bias), pointer(y), eps, call)
    if invalid >= 0:
        token = int(tokens.flatten()[invalid])
        raise IndexError(f"token {token} is outside [0, {len(embedding)})")


def launch_cpu_bwd(
    dy: Tensor,  # (B, S, D)
    tokens: Tensor,
    embedding: Tensor,
    time: Tensor | None,
    height: Tensor | None,
    width: Tensor,
    cls: Tensor | None,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    seed: Tensor,
    threshold: int,
    dembedding: Tensor,  # (V, D) fp32, or empty: not wanted
    dvectors: Tensor,  # (T + H + W + 3, D) fp32, or empty: not wanted
) -> None:
    """Fills the gradients."""
    dembedding.zero_()
    dvectors.zero_()
    tensors = (embedding, time, height, width, cls, weight, mean, rstd, seed)
    call = _cpu_call(tokens, *tensors, threshold=threshold, result=dy)
    extension("cpu").embed_tokens_bwd(*map(pointer, (dy, dembedding, dvectors)), call)


def _cpu_call(tokens: Tensor, *tensors: Tensor | None, threshold: int, result: Tensor) -> Any:
    """What forward and backward on the CPU have in common; `tensors` from embedding to seed."""
    embedding = cast(Tensor, tensors[0])
    return extension("cpu").EmbedTokens(
        [pointer(t) for t in (tokens, *tensors)],
        [cpu_dtype(t) for t in (embedding, result)],
        tokens.dtype == torch.int64,
        (*tokens.shape, *embedding.shape),
        threshold,
        _philox.dropout_scale(threshold),
        torch.get_num_threads(),
    )
