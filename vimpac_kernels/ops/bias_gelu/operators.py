"""bias_gelu as operators, and its gradient: kept for the backward are x and bias."""

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
        ctx.save_for_backward(x, bias)
        ctx.impl = impl
        return bias_gelu_fwd(x, bias, impl)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        autograd.refuse_second_order("bias_gelu")
        x, bias = ctx.saved_tensors
        dx, dbias = bias_gelu_bwd(dy, x, bias, ctx.needs_input_grad[1], ctx.impl)
        return dx, dbias.to(bias.dtype) if ctx.needs_input_grad[1] else None, None


def _run_fwd(x: Tensor, bias: Tensor, impl: str) -> Tensor:
    y = _fake_fwd(x, bias, impl)
    if x.numel():
        operands = {"x": x.contiguous(), "bias": bias.float().contiguous()}
        native.launch(impl, "bias_gelu_fwd", **operands, y=y)
    return y


def _fake_fwd(x: Tensor, bias: Tensor, impl: str) -> Tensor:
    return x.new_empty(x.shape)


bias_gelu_fwd = library.define(
    "bias_gelu_fwd", "(Tensor x, Tensor bias, str impl) -> Tensor", _run_fwd, _fake_fwd
)


def _run_bwd(
    dy: Tensor, x: Tensor, bias: Tensor, needs_bias: bool, impl: str
) -> tuple[Tensor, Tensor]:
    dx, dbias = _fake_bwd(dy, x, bias, needs_bias, impl)
    if not x.numel():
        return dx, dbias.zero_()
    operands = {"dy": dy.contiguous(), "x": x.contiguous(), "bias": bias.float().contiguous()}
    native.launch(impl, "bias_gelu_bwd", **operands, dx=dx, dbias=dbias)
    return dx, dbias


def _fake_bwd(
    dy: Tensor, x: Tensor, bias: Tensor, needs_bias: bool, impl: str
) -> tuple[Tensor, Tensor]:
    D = x.shape[-1] if needs_bias else 0
    return x.new_empty(x.shape), x.new_empty(D, dtype=torch.float32)


bias_gelu_bwd = library.define(
    "bias_gelu_bwd",
    "(Tensor dy, Tensor x, Tensor bias, bool needs_bias, str impl) -> (Tensor, Tensor)",
    _run_bwd,
    _fake_bwd,
)
