"""y = GELU(x + bias), the bias being that of the Linear that made x: each direction in one pass.

The forward reads x and writes y; the backward reads dy and x, writes dx and adds up dbias on the
way: 5 units of (rows, D) in all. A Linear with a bias before `F.gelu` writes or reads 7: on a CPU
PyTorch fills the product's output with the bias first, and dbias is a pass of its own over dx. The
arithmetic is fp32, dbias is summed in two ordered stages. Serves CPU (C++), CUDA and Triton; bound
by bandwidth.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels import _library, reference
from vimpac_kernels._arguments import check_tensor
from vimpac_kernels.runtime import native

_NAME = "bias_gelu"
_KERNELS = ("cuda", "triton", "cpu")  # best first
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def bias_gelu(x: Tensor, bias: Tensor, *, impl: str = "auto") -> Tensor:
    """`F.gelu(x + bias)`, for an `x` that `F.linear(input, weight)` made without its bias.

    Args:
        x: (..., D): fp32, bf16, fp16; fp64 through the reference.
        bias: (D,), any floating dtype.
        impl: "auto", "cuda", "triton", "cpu" or "reference".

    Returns:
        y (..., D), dtype of `x`.

    Raises:
        TypeError: If a dtype is not among those above.
        ValueError: If a shape or an option is not as above.
        RuntimeError: If `impl` cannot run this call, with the reason.

    The exact GELU, u * P(N(0, 1) <= u), in fp32; deterministic. Kept for the backward: x and bias.
    """
    _check(x, bias)
    chosen = _select(impl, x)
    if chosen == "reference":
        return reference.bias_gelu(x, bias)
    if _library.needs_autograd(x, bias):
        return _BiasGelu.apply(x, bias, chosen)
    return _fwd(x, bias, chosen)


def _check(x: Tensor, bias: Tensor) -> None:
    check_tensor("x", x)
    check_tensor("bias", bias)
    if x.dim() < 1 or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"x must be (..., D) and bias (D,), got {tuple(x.shape)} and {tuple(bias.shape)}"
        )
    if x.dtype not in (*_DTYPES, torch.float64):
        raise TypeError(f"x must be fp32, bf16, fp16 or fp64, got {x.dtype}")
    if not bias.dtype.is_floating_point:
        raise TypeError(f"bias must be floating, got {bias.dtype}")
    if bias.device != x.device:
        raise ValueError(f"bias is on {bias.device}, x on {x.device}")


def _select(impl: str, x: Tensor) -> str:
    def problem(backend: str) -> str | None:
        reason = _library.backend_problem(backend, _NAME, x.device.type)
        if reason is None and x.dtype not in _DTYPES:
            reason = f"it takes fp32, bf16 and fp16, x is {x.dtype}"
        if reason is None and x.shape[-1] % 8:
            reason = f"D must be a multiple of 8, got {x.shape[-1]}"
        return reason

    kernels = [(name, functools.partial(problem, name)) for name in _KERNELS]
    return _library.select(_NAME, impl, [*kernels, ("reference", lambda: None)])


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., D)
        bias: Tensor,  # (D,)
        impl: str,
    ) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.impl = impl
        return _fwd(x, bias, impl)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        _library.refuse_second_order(_NAME)
        x, bias = ctx.saved_tensors
        dx, dbias = _bwd(dy, x, bias, ctx.needs_input_grad[1], ctx.impl)
        return dx, dbias.to(bias.dtype) if ctx.needs_input_grad[1] else None, None


def _run_fwd(x: Tensor, bias: Tensor, impl: str) -> Tensor:
    y = _fake_fwd(x, bias, impl)
    if x.numel():
        operands = {"x": x.contiguous(), "bias": bias.float().contiguous()}
        native.launch(impl, "bias_gelu_fwd", **operands, y=y)
    return y


def _fake_fwd(x: Tensor, bias: Tensor, impl: str) -> Tensor:
    return x.new_empty(x.shape)


_fwd = _library.define(
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


_bwd = _library.define(
    "bias_gelu_bwd",
    "(Tensor dy, Tensor x, Tensor bias, bool needs_bias, str impl) -> (Tensor, Tensor)",
    _run_bwd,
    _fake_bwd,
)
