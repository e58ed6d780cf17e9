"""axial_attention below its checks: autograd, operators and the table of backends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels import _library
from vimpac_kernels._compiled import axial_attention as _compiled


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
        key_padding_mask: Tensor | None,  # (B, T, H, W) bool
        seed: Tensor | None,  # 0-d int64
        plan: Plan,
        impl: str,
    ) -> Tensor:
        """Computes the output and keeps its inputs."""
        ctx.save_for_backward(qkv, bias, key_padding_mask, seed)
        ctx.plan, ctx.impl = plan, impl
        return axial_attention_fwd(qkv, bias, key_padding_mask, seed, *plan.arguments(), impl)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the probabilities again."""
        _library.refuse_second_order("axial_attention")
        tensors, arguments = ctx.saved_tensors, ctx.plan.arguments()
        dqkv, dbias = axial_attention_bwd(dout.contiguous(), *tensors, *arguments, ctx.impl)
        bias = tensors[1]
        return dqkv, None if bias is None else dbias.to(bias.dtype), None, None, None, None


# A backend is a row: forward (qkv, key_padding_mask, seed, grid, axes, scale, threshold) -> out,
# backward (dout, qkv, ...) -> dqkv. They get a non-empty batch, a unit last stride of qkv, a
# contiguous key_padding_mask and dout, a seed iff threshold > 0; both outputs are contiguous.
# That of the CPU takes a contiguous fp32 bias at the end, or None, and a dbias to fill.
def _launcher(impl: str, direction: str) -> Callable[..., Tensor]:
    if impl == "triton":
        return _library.triton_launcher("axial_attention", direction)
    return getattr(_compiled, f"launch_{impl}_{direction}")


def _fwd(
    qkv: Tensor,
    bias: Tensor | None,
    key_padding_mask: Tensor | None,
    seed: Tensor | None,
    *arguments: Any,
) -> Tensor:
    *plan, impl = arguments
    if qkv.shape[0] == 0:
        return _fwd_fake(qkv)
    qkv, padding = _readable(qkv, key_padding_mask)
    own = (_vector(bias),) if impl == "cpu" else ()
    return _launcher(impl, "fwd")(qkv, padding, seed, *plan, *own)


def _bwd(
    dout: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    key_padding_mask: Tensor | None,
    seed: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    *plan, impl = arguments
    if qkv.shape[0] == 0:
        dqkv, dbias = _bwd_fake(dout, qkv, bias)
        return dqkv, dbias.zero_()
    dbias = _empty_dbias(qkv, bias)
    qkv, padding = _readable(qkv, key_padding_mask)
    own = (_vector(bias), dbias) if impl == "cpu" else ()
    return _launcher(impl, "bwd")(dout, qkv, padding, seed, *plan, *own), dbias


def _readable(qkv: Tensor, key_padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    return qkv, None if key_padding_mask is None else key_padding_mask.contiguous()


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def _fwd_fake(qkv: Tensor, *_: Any) -> Tensor:
    B, S, _three, N, Dh = qkv.shape
    return qkv.new_empty((B, S, N, Dh))


def _bwd_fake(dout: Tensor, qkv: Tensor, bias: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), _empty_dbias(qkv, bias)


def _empty_dbias(qkv: Tensor, bias: Tensor | None) -> Tensor:
    return qkv.new_empty((0,) if bias is None else bias.shape, dtype=torch.float32)


_ARGUMENTS = (
    "Tensor qkv, Tensor? bias, Tensor? key_padding_mask, Tensor? seed, SymInt[] grid, str axes, "
    "float scale, int threshold, str impl)"
)
axial_attention_fwd = _library.define(
    "axial_attention_fwd", f"({_ARGUMENTS} -> Tensor", _fwd, _fwd_fake
)
axial_attention_bwd = _library.define(
    "axial_attention_bwd", f"(Tensor dout, {_ARGUMENTS} -> (Tensor, Tensor)", _bwd, _bwd_fake
)
