"""Launchers of csrc/cpu/embed_tokens.cpp and csrc/cuda/embed_tokens*.cu."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from vimpac_kernels import _philox
from vimpac_kernels._compiled.pointers import aligned, cpu_dtype, pointer
from vimpac_kernels._library import cuda_stream, extension
from vimpac_kernels._sorted_ids import sort_ids


def launch_cuda_fwd(
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
    """Fills y and, if wanted, mean and rstd; NaN for an id outside [0, V)."""
    tables = [aligned(t) for t in (embedding, time, height, width, cls, weight, bias)]
    tensors = (tokens, *tables, mean, rstd, seed, y, *(None,) * 4)
    extension("cuda").embed_tokens_fwd(_cuda_call(tensors, threshold, eps), cuda_stream(y))


def launch_cuda_bwd(
    dy: Tensor,  # (B, S, D)
    tokens: Tensor,  # (B, T, H, W) int32 or int64, contiguous as all
    embedding: Tensor,  # (V, D) fp32 or of the dtype of dy
    time: Tensor | None,  # (T, D) fp32
    height: Tensor | None,  # (H, D) fp32
    width: Tensor,  # (W, D) fp32
    cls: Tensor | None,  # (D,) fp32
    weight: Tensor | None,  # (D,) fp32
    mean: Tensor,  # (B * S,) fp32
    rstd: Tensor,  # (B * S,) fp32
    seed: Tensor,  # 0-d int64
    threshold: int,
    dembedding: Tensor,  # (V, D) fp32, or empty: not wanted
    dvectors: Tensor,  # (T + H + W + 3, D) fp32, or empty: not wanted
) -> None:
    """Fills the gradients; of those in dvectors, the ones whose tensors are there."""
    module = extension("cuda")
    sorted_ids = sort_ids(tokens, len(embedding)) if dembedding.numel() else (None, None)
    tables = [aligned(t) for t in (embedding, time, height, width, cls, weight)]
    statistics = (None, mean, rstd)  # no bias before them
    gradients = (aligned(dy), *sorted_ids, dembedding, dvectors)
    call = _cuda_call((tokens, *tables, *statistics, seed, *gradients), threshold, 0.0)
    workspace = dy.new_empty(call.workspace(), dtype=torch.float32)
    module.embed_tokens_bwd(call, pointer(workspace), cuda_stream(dy))


def launch_cpu_fwd(
    tokens: Tensor,
    embedding: Tensor,
    time: Tensor | None,
    height: Tensor | None,
    width: Tensor,
    cls: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor,
    threshold: int,
    eps: float,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
) -> None:
    """As `launch_cuda_fwd`, but IndexError for an id outside [0, V)."""
    tensors = (embedding, time, height, width, cls, weight, mean, rstd, seed)
    call = _cpu_call(tokens, *tensors, threshold=threshold, result=y)
    _check_ids(
        extension("cpu").embed_tokens_fwd(pointer(bias), pointer(y), eps, call), tokens, embedding
    )


def launch_cpu_bwd(
    dy: Tensor,
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
    dembedding: Tensor,
    dvectors: Tensor,
) -> None:
    """As `launch_cuda_bwd`, but IndexError for an id outside [0, V)."""
    dembedding.zero_()
    dvectors.zero_()
    tensors = (embedding, time, height, width, cls, weight, mean, rstd, seed)
    call = _cpu_call(tokens, *tensors, threshold=threshold, result=dy)
    gradients = map(pointer, (dy, dembedding, dvectors))
    _check_ids(extension("cpu").embed_tokens_bwd(*gradients, call), tokens, embedding)


def _check_ids(invalid: int, tokens: Tensor, embedding: Tensor) -> None:
    if invalid >= 0:
        token = int(tokens.flatten()[invalid])
        raise IndexError(f"token {token} is outside [0, {len(embedding)})")


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


def _cuda_call(tensors: tuple[Tensor | None, ...], threshold: int, eps: float) -> Any:
    """A call of the CUDA kernels; `tensors` as in EmbedTokens of csrc/cuda/ops.hpp."""
    tokens, embedding, result = (cast(Tensor, tensors[i]) for i in (0, 1, 11))
    return extension("cuda").EmbedTokens(
        [pointer(t) for t in tensors],
        *(str(t.dtype).removeprefix("torch.") for t in (embedding, result)),
        tokens.dtype == torch.int64,
        (*tokens.shape, *embedding.shape),
        threshold,
        eps,
    )
