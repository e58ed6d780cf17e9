"""Launchers of csrc/cpu/axial_attention.cpp and csrc/cuda/axial_attention.cu."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vimpac_kernels._library import extension

_AXIS_IDS = {"T": 0, "H": 1, "W": 2}


def _call(
    qkv: Tensor,  # (B, S, 3, N, Dh)
    padding: Tensor | None,  # (B, T, H, W) bool
    seed: Tensor | None,  # 0-d int64
    grid: list[int],
    axes: str,
    scale: float,
    threshold: int,
) -> dict[str, Any]:
    """The arguments that every kernel takes."""
    batch, rows, _, heads, head_dim = qkv.shape
    return {
        "qkv": qkv.data_ptr(),
        "padding": 0 if padding is None else padding.data_ptr(),
        "seed": 0 if seed is None else seed.data_ptr(),
        "dtype": str(qkv.dtype).removeprefix("torch."),
        "batch": batch,
        "grid": tuple(grid),
        "heads": heads,
        "head_dim": head_dim,
        "has_cls": rows == grid[0] * grid[1] * grid[2] + 1,
        "strides": qkv.stride()[:4],
        "axes": [_AXIS_IDS[name] for name in axes.split("|")],
        "scale": scale,
        "threshold": threshold,
    }


def launch_cpu_fwd(qkv: Tensor, *rest: Any) -> Tensor:
    """(B, S, 3, N, Dh) -> (B, S, N, Dh); arguments as in `_call`."""
    B, S, _, N, Dh = qkv.shape
    out = qkv.new_empty((B, S, N, Dh))
    extension("cpu").axial_attention_fwd(
        out=out.data_ptr(), num_threads=torch.get_num_threads(), **_call(qkv, *rest)
    )
    return out


def launch_cpu_bwd(dout: Tensor, qkv: Tensor, *rest: Any) -> Tensor:
    """(B, S, N, Dh), (B, S, 3, N, Dh) -> dqkv (B, S, 3, N, Dh); arguments as in `_call`."""
    dqkv = qkv.new_empty(qkv.shape)
    extension("cpu").axial_attention_bwd(
        dout=dout.data_ptr(),
        dqkv=dqkv.data_ptr(),
        num_threads=torch.get_num_threads(),
        **_call(qkv, *rest),
    )
    return dqkv
