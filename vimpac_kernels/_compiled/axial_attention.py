"""Launchers of csrc/cpu/axial_attention.cpp and csrc/cuda/axial_attention.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac_kernels import _philox
from vimpac_kernels._compiled.pointers import cpu_dtype, pointer
from vimpac_kernels._library import cuda_stream, extension

_AXIS_IDS = {"T": 0, "H": 1, "W": 2}


def launch_cpu_fwd(
    qkv: Tensor,  # (B, S, 3, N, Dh)
    key_padding_mask: Tensor | None,  # (B, T, H, W) bool
    seed: Tensor | None,  # 0-d int64
    grid: list[int],
    axes: str,
    scale: float,
    threshold: int,
    bias: Tensor | None,  # (3, N, Dh) fp32
) -> Tensor:  # (B, S, N, Dh)
    """Runs the forward."""
    B, S, _, N, Dh = qkv.shape
    out = qkv.new_empty((B, S, N, Dh))
    tensors = (None, qkv, key_padding_mask, seed, out, bias, None)
    _run_cpu("fwd", tensors, qkv, grid, axes, scale, threshold)
    return out


def launch_cpu_bwd(
    dout: Tensor,  # (B, S, N, Dh)
    qkv: Tensor,  # (B, S, 3, N, Dh)
    key_padding_mask: Tensor | None,  # (B, T, H, W) bool
    seed: Tensor | None,  # 0-d int64
    grid: list[int],
    axes: str,
    scale: float,
    threshold: int,
    bias: Tensor | None,  # (3, N, Dh) fp32
    dbias: Tensor,  # (3, N, Dh) fp32, or empty without a bias
) -> Tensor:  # (B, S, 3, N, Dh)
    """Runs the backward, and fills dbias."""
    dqkv = qkv.new_empty(qkv.shape)
    tensors = (dout, qkv, key_padding_mask, seed, dqkv, bias, dbias)
    _run_cpu("bwd", tensors, qkv, grid, axes, scale, threshold)
    return dqkv


def _run_cpu(
    direction: str,
    tensors: tuple[Tensor | None, ...],  # dout, qkv, key_padding_mask, seed, result, bias, dbias
    qkv: Tensor,
    grid: list[int],
    axes: str,
    scale: float,
    threshold: int,
) -> None:
    getattr(extension("cpu"), f"axial_attention_{direction}")(
        *map(pointer, tensors),
        cpu_dtype(qkv),
        qkv.shape,
        qkv.stride(),
        grid,
        [_AXIS_IDS[name] for name in axes.split("|")],
        scale,
        threshold,
        _philox.dropout_scale(threshold),
        torch.get_num_threads(),
    )


def launch_cuda_fwd(
    qkv: Tensor,  # (B, S, 3, N, Dh)
    key_padding_mask: Tensor | None,  # (B, T, H, W) bool
    seed: Tensor | None,  # 0-d int64
    grid: list[int],
    axes: str,
    scale: float,
    threshold: int,
) -> Tensor:  # (B, S, N, Dh)
    """Runs the forward on the current stream."""
    B, S, _, N, Dh = qkv.shape
    out = qkv.new_empty((B, S, N, Dh))
    _run_cuda("fwd", None, qkv, key_padding_mask, seed, out, grid, axes, scale, threshold)
    return out


def launch_cuda_bwd(
    dout: Tensor,  # (B, S, N, Dh)
    qkv: Tensor,  # (B, S, 3, N, Dh)
    key_padding_mask: Tensor | None,  # (B, T, H, W) bool
    seed: Tensor | None,  # 0-d int64
    grid: list[int],
    axes: str,
    scale: float,
    threshold: int,
) -> Tensor:  # (B, S, 3, N, Dh)
    """Runs the backward on the current stream."""
    dqkv = qkv.new_empty(qkv.shape)
    _run_cuda("bwd", dout, qkv, key_padding_mask, seed, dqkv, grid, axes, scale, threshold)
    return dqkv


def _run_cuda(
    direction: str,
    dout: Tensor | None,
    qkv: Tensor,
    key_padding_mask: Tensor | None,
    seed: Tensor | None,
    result: Tensor,
    grid: list[int],
    axes: str,
    scale: float,
    threshold: int,
) -> None:
    module = extension("cuda")
    qkv, dout = _aligned(qkv), None if dout is None else _aligned(dout)
    tensors = (dout, qkv, key_padding_mask, seed, result)
    call = module.AxialArguments(
        *(0 if tensor is None else tensor.data_ptr() for tensor in tensors),
        str(qkv.dtype).removeprefix("torch."),
        qkv.shape,
        qkv.stride(),
        grid,
        [_AXIS_IDS[name] for name in axes.split("|")],
        scale,
        threshold,
    )
    floats = call.workspace(1 if dout is None else 3)
    workspace = torch.empty(floats, dtype=torch.float32, device=qkv.device)
    kernel = getattr(module, f"axial_attention_{direction}")
    kernel(call, workspace.data_ptr(), cuda_stream(qkv))


def _aligned(x: Tensor) -> Tensor:
    """`x`, copied if its rows are not aligned to the 16 bytes of a kernel's loads."""
    strides = [*(s for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n > 1)]
    fits = all(s * x.element_size() % 16 == 0 for s in strides) and x.data_ptr() % 16 == 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)
