"""y = LayerNorm(residual + dropout(x + linear_bias)), each direction in one pass over memory.

The forward reads x and residual and writes y and the sum, which the backward needs; the backward
reads dy and the sum and writes dx and dresidual: 4 units of (rows, D) each instead of 7.5. Without
dropout dx and dresidual are one tensor. If y has two readers (post-LN), the backward reads both
gradients: 5 units instead of 7 with autograd's addition. Statistics are fp32, dropout bits are
drawn again, sums over rows have two ordered stages. CPU (C++), CUDA, Triton; bound by bandwidth.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vimpac_kernels.ops.dropout_add_layer_norm import operators, reference
from vimpac_kernels.runtime import autograd, philox, registry, sharded
from vimpac_kernels.runtime.checks import as_int, check_dropout, check_eps, check_flag, check_tensor

_NAME = "dropout_add_layer_norm"
_KERNELS = ("cuda", "triton", "cpu")  # best first
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    linear_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    prenorm: bool = False,
    readers: int = 1,
    seed: int | Tensor | None = None,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`F.layer_norm(residual + F.dropout(x + linear_bias, p), (D,), weight, bias, eps)`.

    Args:
        x: (..., D), the branch: fp32, bf16, fp16; fp64 through the reference.
        residual: (..., D), dtype of `x` or fp32.
        weight: (D,), any floating dtype.
        bias: (D,), any floating dtype.
        linear_bias: (D,), the bias of the Linear that made `x`, any floating dtype.
        dropout_p: In [0, 1), quantised to 1/65536; 0 outside training.
        eps: Added to the variance, >= 0.
        prenorm: Also return the sum, for blocks that normalise before the branch.
        readers: 2 returns y twice, for blocks that normalise after the branch: for the next branch
            and the next residual sum. The backward adds both gradients in fp32 as it reads them.
            Both share memory, so neither may be changed in place. Not with `prenorm`.
        seed: int in [-2^63, 2^63), or 0-d int64 tensor on the device of `x`; None draws one
            from PyTorch's generator if there is dropout.
        impl: "auto", "cuda", "triton", "cpu" or "reference".

    Returns:
        y (..., D), dtype of `x`; with `prenorm` (y, sum), the sum in the dtype of `residual`; with
        `readers=2` (y, y).

    Raises:
        TypeError: If a dtype is not among those above.
        ValueError: If a shape or an option is not as above.
        RuntimeError: If `impl` cannot run this call, with the reason.

    Statistics are fp32, of the sum rounded to its dtype, as in the eager program and as the
    backward reads it. Every backend drops the same elements. Results repeat bit for bit on one
    device; on another one sums over rows may differ. Kept for the backward: the sum, mean and rstd
    of each row.
    """
    if sharded.has_dtensors(x, residual, weight, bias, linear_bias):
        rows = {"x": x, "residual": residual}
        shared = {"weight": weight, "bias": bias, "linear_bias": linear_bias}
        batch = sharded.split(_NAME, rows, shared, dropout_p=dropout_p, seed=seed)
        result = dropout_add_layer_norm(
            **batch.tensors, dropout_p=dropout_p, eps=eps, prenorm=prenorm, readers=readers,
            seed=sharded.local("seed", seed), impl=impl,
        )  # fmt: skip
        return batch.join(result)
    _check(x, residual, weight, bias, linear_bias, dropout_p, eps)
    check_flag("prenorm", prenorm)
    if as_int("readers", readers) not in (1, 2) or (readers == 2 and prenorm):
        raise ValueError(f"readers must be 1, or 2 without prenorm, got {readers}")
    chosen = _select(impl, x)
    if seed is None:
        seed = philox.fresh_seed(x.device) if dropout_p > 0 else 0
    key = philox.as_seed(seed, x.device)
    if chosen == "reference":
        return reference.dropout_add_layer_norm(
            x, residual, weight, bias, linear_bias=linear_bias, dropout_p=dropout_p, eps=eps,
            prenorm=prenorm, readers=readers, seed=key,
        )  # fmt: skip
    tensors = (x, residual, weight, bias, linear_bias, key)
    if autograd.needs_autograd(_NAME, *tensors):
        options = (dropout_p, eps, prenorm, readers, chosen)
        y, second = operators.DropoutAddLayerNorm.apply(*tensors, *options)
    else:
        y, total, *_ = operators.dropout_add_layer_norm_fwd(
            *tensors, dropout_p, eps, prenorm, chosen
        )
        second = total if prenorm else y
    return (y, second) if prenorm or readers == 2 else y


def _check(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    linear_bias: Tensor | None,
    dropout_p: float,
    eps: float,
) -> None:
    tensors = {"x": x, "residual": residual, "weight": weight, "bias": bias}
    tensors |= {} if linear_bias is None else {"linear_bias": linear_bias}
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    if x.dim() < 1 or x.shape != residual.shape:
        raise ValueError(
            f"x and residual must be (..., D) alike, got {tuple(x.shape)} and "
            f"{tuple(residual.shape)}"
        )
    for name, tensor in list(tensors.items())[2:]:
        if tensor.shape != x.shape[-1:]:
            raise ValueError(f"{name} must be {tuple(x.shape[-1:])}, got {tuple(tensor.shape)}")
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}")
    if residual.device != x.device:
        raise ValueError(f"residual is on {residual.device}, x on {x.device}")
    if x.dtype not in (*_DTYPES, torch.float64):
        raise TypeError(f"x must be fp32, bf16, fp16 or fp64, got {x.dtype}")
    if residual.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"residual must be {x.dtype} as x, or fp32, got {residual.dtype}")
    check_dropout(dropout_p)
    check_eps(eps)


def _select(impl: str, x: Tensor) -> str:
    def problem(backend: str) -> str | None:
        reason = registry.backend_problem(backend, _NAME, x.device.type)
        if reason is None and x.dtype not in _DTYPES:
            reason = f"it takes fp32, bf16 and fp16, x is {x.dtype}"
        if reason is None and (x.shape[-1] % 8 or not 0 < x.shape[-1] <= 8192):
            reason = f"D must be a multiple of 8 up to 8192, got {x.shape[-1]}"
        return reason

    kernels = [(name, functools.partial(problem, name)) for name in _KERNELS]
    return registry.select(_NAME, impl, [*kernels, ("reference", lambda: None)])
