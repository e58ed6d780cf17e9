"""axial_attention below its checks: autograd and operators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.ops.axial_attention.lines import AXES
from vimpac_kernels.runtime import autograd, library, native


@dataclass(frozen=True)
class Plan:
    """What is not a tensor, with every default resolved."""

    grid: tuple[int, int, int]
    axes: str
    scale: float
    threshold: int  # a 16-bit dropout decision below it drops

    def arguments(self) -> tuple[list[int], str, float, int]:
        """As the operators take them."""
        return list(self.grid), self.axes, self.scale, self.threshold

    @property
    def longest_line(self) -> int:
        """Tokens of the longest line of any axis."""
        sizes = dict(zip("THW", self.grid, strict=True))
        return max([math.prod([sizes[a] for a in name]) for name in self.axes.split("|")])


class AxialAttention(torch.autograd.Function):
    """out (B, S, N, Dh) with the gradients of qkv and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,  # (B, S, 3, N, Dh)
        bias: Tensor | None,  # (3, N, Dh)
        bias_in_qkv: bool,
        key_padding_mask: Tensor | None,  # (B, T, H, W) bool
        seed: Tensor | None,  # 0-d int64
        plan: Plan,
        impl: str,
    ) -> Tensor:
        """Computes the output and keeps its inputs."""
        added = None if bias_in_qkv else bias
        ctx.save_for_backward(qkv, added, autograd.kept(key_padding_mask), seed)
        ctx.plan, ctx.impl, ctx.bias_dtype = plan, impl, None if bias is None else bias.dtype
        return axial_attention_fwd(qkv, added, key_padding_mask, seed, *plan.arguments(), impl)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the probabilities again."""
        autograd.refuse_second_order("axial_attention")
        arguments = *ctx.saved_tensors, *ctx.plan.arguments(), ctx.impl
        wants_dbias = ctx.needs_input_grad[1]
        dqkv, dbias = axial_attention_bwd(dout.contiguous(), *arguments, wants_dbias)
        return dqkv, dbias.to(ctx.bias_dtype) if wants_dbias else None, *[None] * 5


def _fake_fwd(qkv: Tensor, *_: Any) -> Tensor:
    B, S, _three, N, Dh = qkv.shape
    return qkv.new_empty((B, S, N, Dh))


@library.operator(_fake_fwd)
def axial_attention_fwd(
    qkv: Tensor,
    bias: Tensor | None,
    key_padding_mask: Tensor | None,
    seed: Tensor | None,
    grid: Sequence[int],
    axes: str,
    scale: float,
    threshold: int,
    impl: str,
) -> Tensor:
    """out (B, S, N, Dh)."""
    out = _fake_fwd(qkv)
    if qkv.shape[0] > 0:
        inputs = _inputs(impl, qkv, bias, key_padding_mask, seed, grid, axes, scale, threshold)
        native.launch(impl, "axial_attention_fwd", **inputs, out=out)
    return out


def _fake_bwd(dout: Tensor, qkv: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, wants_dbias = others
    shape = qkv.shape[2:] if wants_dbias else (0,)
    return qkv.new_empty(qkv.shape), qkv.new_empty(shape, dtype=torch.float32)


@library.operator(_fake_bwd)
def axial_attention_bwd(
    dout: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    key_padding_mask: Tensor | None,
    seed: Tensor | None,
    grid: Sequence[int],
    axes: str,
    scale: float,
    threshold: int,
    impl: str,
    wants_dbias: bool,
) -> tuple[Tensor, Tensor]:
    """dqkv (B, S, 3, N, Dh) and dbias (3, N, Dh), which is empty if not wanted."""
    dqkv, dbias = _fake_bwd(dout, qkv, wants_dbias)
    if qkv.shape[0] == 0:
        return dqkv, dbias.zero_()
    inputs = _inputs(impl, qkv, bias, key_padding_mask, seed, grid, axes, scale, threshold)
    native.launch(impl, "axial_attention_bwd", dout=dout, **inputs, dqkv=dqkv, dbias=dbias)
    return dqkv, dbias


def _inputs(
    impl: str,
    qkv: Tensor,
    bias: Tensor | None,
    key_padding_mask: Tensor | None,
    seed: Tensor | None,
    grid: Sequence[int],
    axes: str,
    scale: float,
    threshold: int,
) -> dict[str, Any]:
    """What forward and backward are given: only a CPU's kernels add the bias themselves."""
    added = {"bias": None if bias is None else bias.float().contiguous()} if impl == "cpu" else {}
    return added | {
        "qkv": qkv if qkv.stride(-1) == 1 else qkv.contiguous(),
        "key_padding_mask": None if key_padding_mask is None else key_padding_mask.contiguous(),
        "seed": seed,
        "grid": grid,
        "axes": [AXES[name][0] for name in axes.split("|")],
        "scale": scale,
        "threshold": threshold,
    }
