"""y = GELU(x + bias), the bias being that of the Linear that made x: each direction in one pass.

The forward reads x and writes y; the backward reads dy and x, writes dx and adds up dbias on the
way: 5 units of (rows, D) in all. A Linear with a bias before `F.gelu` writes or reads 7: on a CPU
PyTorch fills the product's output with the bias first, and dbias is a pass of its own over dx. The
arithmetic is fp32, dbias is summed in two ordered stages. Serves CPU (C++), CUDA and Triton; bound
by bandwidth.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vimpac_kernels.ops.bias_gelu import operators, reference
from vimpac_kernels.runtime import autograd, registry, sharded
from vimpac_kernels.runtime.checks import check_tensor

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
    if sharded.has_dtensors(x, bias):
        batch = sharded.split(_NAME, {"x": x}, {"bias": bias})
        return batch.join(bias_gelu(**batch.tensors, impl=impl))
    _check(x, bias)
    chosen = _select(impl, x)
    if chosen == "reference":
        return reference.bias_gelu(x, bias)
    if autograd.needs_autograd(_NAME, x, bias):
        return operators.BiasGelu.apply(x, bias, chosen)
    return operators.bias_gelu_fwd(x, bias, chosen)


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
        reason = registry.backend_problem(backend, _NAME, x.device.type)
        if reason is None and x.dtype not in _DTYPES:
            reason = f"it takes fp32, bf16 and fp16, x is {x.dtype}"
        if reason is None and x.shape[-1] % 8:
            reason = f"D must be a multiple of 8, got {x.shape[-1]}"
        return reason

    kernels = [(name, functools.partial(problem, name)) for name in _KERNELS]
    return registry.select(_NAME, impl, [*kernels, ("reference", lambda: None)])
