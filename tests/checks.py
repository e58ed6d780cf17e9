"""The one way in which tests compare floating-point results."""

import math

import torch
from torch import Tensor


def ulp(truth: Tensor, dtype: torch.dtype) -> float:
    """The spacing of `dtype` at the largest magnitude in `truth`."""
    largest = truth.abs().max().item() if truth.numel() else 0.0
    exponent = math.floor(math.log2(largest)) if largest > 0 else 0
    return torch.finfo(dtype).eps * 2.0**exponent


def assert_close(actual: Tensor, truth: Tensor, same_dtype_reference: Tensor) -> None:
    """Asserts that `actual` is as near to the truth as eager PyTorch of the same dtype, within 2x.

    Passes if max|actual - truth| <= 2 * max|reference - truth| + 2 ulp.

    Args:
        actual: the result under test, any device.
        truth: the reference's result in fp64.
        same_dtype_reference: the reference's result from the inputs that `actual` was given.
    """
    assert truth.dtype == torch.float64, "the truth is computed in fp64"
    assert actual.shape == truth.shape and actual.dtype == same_dtype_reference.dtype
    actual, reference = actual.detach().cpu().double(), same_dtype_reference.detach().cpu().double()
    truth = truth.detach().cpu()
    if truth.numel() == 0:
        return
    error = (actual - truth).abs().max().item()
    allowed = 2 * (reference - truth).abs().max().item() + 2 * ulp(
        truth, same_dtype_reference.dtype
    )
    assert error <= allowed, f"max error {error:.3e}, allowed {allowed:.3e}"  # NaN fails too
