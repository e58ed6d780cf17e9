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
        bias_in_qkv: bool,
        key_padding_mask: Tensor | None,  # (B, T, H, W) bool
        seed: Tensor | None,  # 0-d int64
        plan: Plan,
        impl: str,
    ) -> Tensor:
        """Computes the output and keeps its inputs."""
        added = None if bias_in_qkv else bias
        ctx.save_for_backward(qkv, added, key_padding_mask, seed)
        ctx.plan, ctx.impl, ctx.bias_dtype = plan, impl, None if bias is None else bias.dtype
        return axial_attention_fwd(qkv, added, key_padding_mask, seed, *plan.arguments(), impl)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the probabilities again."""
        _library.refuse_second_order("axial_attention")
        arguments = *ctx.saved_tensors, *ctx.plan.arguments(), ctx.impl
        wants_dbias = ctx.needs_input_grad[1]
        dqkv, dbias = axial_attention_bwd(dout.contiguous(), *arguments, wants_dbias)
        return dqkv, dbias.to(ctx.bias_dtype) if wants_dbias else None, *[None] * 5


# A backend is a row: forward (qkv, key_padding_mask, seed, grid, axes, scale, threshold) -> out,
# backward (dout, qkv, ..., dbias) -> dqkv. They get a non-empty batch, a unit last stride of qkv, a
# contiguous key_padding_mask and dout, a seed iff threshold > 0, and a dbias, fp32 (3, N, Dh), to
# fill, or None; outputs are contiguous. After the threshold the CPU's takes a contiguous fp32 bias
# to add, or None.
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
    *plan, impl, wants_dbias = arguments
    dbias = _empty_dbias(qkv, wants_dbias)
    if qkv.shape[0] == 0:
        return qkv.new_empty(qkv.shape), dbias.zero_()
    qkv, padding = _readable(qkv, key_padding_mask)
    own = (_vector(bias),) if impl == "cpu" else ()
    to_fill = dbias if wants_dbias else None
    return _launcher(impl, "bwd")(dout, qkv, padding, seed, *plan, *own, to_fill), dbias


def _readable(qkv: Tensor, key_padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    return qkv, None if key_padding_mask is None else key_padding_mask.contiguous()


def _vector(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float().contiguous()


def _fwd_fake(qkv: Tensor, *_: Any) -> Tensor:
    B, S, _three, N, Dh = qkv.shape
    return qkv.new_empty((B, S, N, Dh))


def _bwd_fake(dout: Tensor, qkv: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), _empty_dbias(qkv, arguments[-1])


def _empty_dbias(qkv: Tensor, wanted: bool) -> Tensor:
    return qkv.new_empty(qkv.shape[2:] if wanted else (0,), dtype=torch.float32)


_ARGUMENTS = (
    "Tensor qkv, Tensor? bias, Tensor? key_padding_mask, Tensor? seed, SymInt[] grid, str axes, "
    "float scale, int threshold, str impl"
)
axial_attention_fwd = _library.define(
    "axial_attention_fwd", f"({_ARGUMENTS}) -> Tensor", _fwd, _fwd_fake
)
axial_attention_bwd = _library.define(
    "axial_attention_bwd",
    f"(Tensor dout, {_ARGUMENTS}, bool wants_dbias) -> (Tensor, Tensor)",
    _bwd,
    _bwd_fake,
)
