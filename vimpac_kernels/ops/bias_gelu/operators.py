"""bias_gelu below its checks: autograd, which keeps x and bias, and operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.runtime import autograd, library, native


class BiasGelu(torch.autograd.Function):
    """y with the gradients of x and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., D)
        bias: Tensor,  # (D,)
        impl: str,
    ) -> Tensor:
        """Computes y and keeps its inputs."""
        ctx.save_for_backward(x, bias)
        ctx.impl = impl
        return bias_gelu_fwd(x, bias, impl)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Computes GELU'(x + bias) again."""
        autograd.refuse_second_order("bias_gelu")
        x, bias = ctx.saved_tensors
        dx, dbias = bias_gelu_bwd(dy, x, bias, ctx.needs_input_grad[1], ctx.impl)
        return dx, dbias.to(bias.dtype) if ctx.needs_input_grad[1] else None, None


def _fake_fwd(x: Tensor, bias: Tensor, impl: str) -> Tensor:
    return x.new_empty(x.shape)


@library.operator(_fake_fwd)
def bias_gelu_fwd(x: Tensor, bias: Tensor, impl: str) -> Tensor:
    """y (..., D)."""
    y = x.new_empty(x.shape)
    if x.numel():
        x, bias = x.contiguous(), bias.float().contiguous()
        native.launch(impl, "bias_gelu_fwd", x=x, bias=bias, y=y)
    return y


def _fake_bwd(
    dy: Tensor, x: Tensor, bias: Tensor, needs_bias: bool, impl: str
) -> tuple[Tensor, Tensor]:
    D = x.shape[-1] if needs_bias else 0
    return x.new_empty(x.shape), x.new_empty(D, dtype=torch.float32)


@library.operator(_fake_bwd)
def bias_gelu_bwd(
    dy: Tensor, x: Tensor, bias: Tensor, needs_bias: bool, impl: str
) -> tuple[Tensor, Tensor]:
    """dx (..., D) and dbias (D,), which is empty if not wanted."""
    dx, dbias = _fake_bwd(dy, x, bias, needs_bias, impl)
    if x.numel():
        dy, x, bias = dy.contiguous(), x.contiguous(), bias.float().contiguous()
        native.launch(impl, "bias_gelu_bwd", dy=dy, x=x, bias=bias, dx=dx, dbias=dbias)
    else:
        dbias.zero_()
    return dx, dbias
