"""Launchers of csrc/cpu/axial_attention*.cpp and csrc/cuda/axial_attention.cu."""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac_kernels import _philox
from vimpac_kernels._compiled.pointers import cpu_dtype, pointer
from vimpac_kernels._library import cuda_stream, extension
from vimpac_kernels._lines import AXES


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
    dbias: Tensor | None,  # (3, N, Dh) fp32
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
        [AXES[name][0] for name in axes.split("|")],
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
    tensors = (None, qkv, key_padding_mask, seed, out, None)
    _run_cuda("fwd", tensors, grid, axes, scale, threshold)
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
    dbias: Tensor | None,  # (3, N, Dh) fp32
) -> Tensor:  # (B, S, 3, N, Dh)
    """Runs the backward on the current stream, and fills dbias."""
    dqkv = qkv.new_empty(qkv.shape)
    tensors = (_aligned(dout), qkv, key_padding_mask, seed, dqkv, dbias)
    _run_cuda("bwd", tensors, grid, axes, scale, threshold)
    return dqkv


def _run_cuda(
    direction: str,
    tensors: tuple[Tensor | None, ...],  # dout, qkv, key_padding_mask, seed, result, dbias
    grid: list[int],
    axes: str,
    scale: float,
    threshold: int,
) -> None:
    module = extension("cuda")
    dout, qkv, *others = tensors
    assert qkv is not None
    qkv = _aligned(qkv)
    call = module.AxialArguments(
        *map(pointer, (dout, qkv, *others)),
        str(qkv.dtype).removeprefix("torch."),
        qkv.shape,
        qkv.stride(),
        grid,
        [AXES[name][0] for name in axes.split("|")],
        scale,
        threshold,
    )
    workspace = torch.empty(call.workspace(), dtype=torch.float32, device=qkv.device)
    kernel = getattr(module, f"axial_attention_{direction}")
    kernel(call, workspace.data_ptr(), cuda_stream(qkv))


def _aligned(x: Tensor) -> Tensor:
    """`x`, copied if its rows are not aligned to the 16 bytes of a kernel's loads."""
    strides = [*(s for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n > 1)]
    fits = all(s * x.element_size() % 16 == 0 for s in strides) and x.data_ptr() % 16 == 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)
