"""dropout_add_layer_norm as operators, and its gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.runtime import autograd, library, native, philox


class DropoutAddLayerNorm(torch.autograd.Function):
    """y and the sum, or y twice, with the gradients of all tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (..., D)
        residual: Tensor,  # (..., D)
        weight: Tensor,  # (D,)
        bias: Tensor,  # (D,)
        linear_bias: Tensor | None,  # (D,)
        seed: Tensor,  # 0-d int64
        dropout_p: float,
        eps: float,
        prenorm: bool,
        readers: int,
        impl: str,
    ) -> tuple[Tensor, Tensor | None]:
        y, total, mean, rstd = dropout_add_layer_norm_fwd(
            x, residual, weight, bias, linear_bias, seed, dropout_p, eps, True, impl
        )
        ctx.save_for_backward(total, mean, rstd, weight, seed)
        ctx.dropout_p, ctx.readers, ctx.impl = dropout_p, readers, impl
        ctx.dtypes = (x.dtype, bias.dtype, None if linear_bias is None else linear_bias.dtype)
        ctx.set_materialize_grads(False)
        if readers == 2:  # views: of several, autograd lets none be changed in place
            return y.view_as(y), y.view_as(y)
        return y, total if prenorm else None

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, second: Tensor | None) -> tuple[Tensor | None, ...]:
        autograd.refuse_second_order("dropout_add_layer_norm")
        dy_other, dtotal = (second, None) if ctx.readers == 2 else (None, second)
        total, mean, rstd, weight, seed = ctx.saved_tensors
        x_dtype, bias_dtype, linear_bias_dtype = ctx.dtypes
        needs_linear_bias = ctx.needs_input_grad[4]
        if dy is None:
            dy, dy_other = dy_other, None
        if dy is None:  # the sum alone was read
            dy = total.new_zeros(total.shape, dtype=x_dtype)
        dx, dresidual, dweight, dbias, dlinear_bias = dropout_add_layer_norm_bwd(
            dy, dy_other, dtotal, total, mean, rstd, weight, seed, ctx.dropout_p, x_dtype,
            needs_linear_bias, ctx.impl,
        )  # fmt: skip
        return (
            dresidual if _is_dresidual(total, ctx.dropout_p, x_dtype) else dx,
            dresidual,
            dweight.to(weight.dtype),
            dbias.to(bias_dtype),
            dlinear_bias.to(linear_bias_dtype) if needs_linear_bias else None,
            *(None,) * 6,
        )


def _fake_fwd(x: Tensor, residual: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, save, _impl = others
    shape = x.shape if save else (0,)
    rows = math.prod(x.shape[:-1]) if save else 0
    return (
        x.new_empty(x.shape),
        x.new_empty(shape, dtype=residual.dtype),
        x.new_empty(rows, dtype=torch.float32),
        x.new_empty(rows, dtype=torch.float32),
    )


@library.operator(_fake_fwd)
def dropout_add_layer_norm_fwd(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    linear_bias: Tensor | None,
    seed: Tensor,
    dropout_p: float,
    eps: float,
    save: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y (..., D), the sum (..., D), mean and rstd of each row: empty but y if not `save`."""
    outputs = _fake_fwd(x, residual, save, impl)
    if x.numel():
        y, total, mean, rstd = outputs
        native.launch(
            impl, "dropout_add_layer_norm_fwd", x=x.contiguous(), residual=residual.contiguous(),
            weight=_vector(weight), bias=_vector(bias), linear_bias=_vector(linear_bias), seed=seed,
            threshold=philox.dropout_threshold(dropout_p), eps=eps, y=y, total=total, mean=mean,
            rstd=rstd,
        )  # fmt: skip
    return outputs


def _vector(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.float().contiguous()


def _is_dresidual(total: Tensor, dropout_p: float, x_dtype: torch.dtype) -> bool:
    """Whether dx equals dresidual, which then serves as both; the raw op's dx is empty."""
    return total.dtype == x_dtype and philox.dropout_threshold(dropout_p) == 0


def _fake_bwd(
    dy: Tensor, dy_other: Tensor | None, dtotal: Tensor | None, total: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *_, dropout_p, x_dtype, needs_linear_bias, _impl = others
    D = total.shape[-1]
    dx_shape = (0,) if _is_dresidual(total, dropout_p, x_dtype) else total.shape
    return (
        total.new_empty(dx_shape, dtype=x_dtype),
        total.new_empty(total.shape),
        total.new_empty(D, dtype=torch.float32),
        total.new_empty(D, dtype=torch.float32),
        total.new_empty(D if needs_linear_bias else 0, dtype=torch.float32),
    )


@library.operator(_fake_bwd)
def dropout_add_layer_norm_bwd(
    dy: Tensor,
    dy_other: Tensor | None,
    dtotal: Tensor | None,
    total: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    seed: Tensor,
    dropout_p: float,
    x_dtype: torch.dtype,
    needs_linear_bias: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dx and dresidual (..., D), dweight, dbias and dlinear_bias (D,)."""
    outputs = _fake_bwd(dy, dy_other, dtotal, total, dropout_p, x_dtype, needs_linear_bias, impl)
    dx, dresidual, dweight, dbias, dlinear_bias = outputs
    if total.numel():
        native.launch(
            impl, "dropout_add_layer_norm_bwd", dy=dy.contiguous(),
            dy_other=None if dy_other is None else dy_other.contiguous(),
            dtotal=None if dtotal is None else dtotal.contiguous(), total=total, mean=mean,
            rstd=rstd, weight=_vector(weight), seed=seed,
            threshold=philox.dropout_threshold(dropout_p), dx=dx, dresidual=dresidual,
            dweight=dweight, dbias=dbias, dlinear_bias=dlinear_bias,
        )  # fmt: skip
    else:
        for output in outputs:
            output.zero_()
    return outputs
