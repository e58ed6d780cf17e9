"""bias_gelu against the reference in fp64, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.checks import assert_close
from vimpac_kernels import bias_gelu, reference

# rows, D, dtype of x, dtype of the bias
CASES = {
    "one-row": (1, 8, torch.float32, torch.float32),
    "ragged-fp32": (13, 72, torch.float32, torch.float32),
    "small-model-bf16": (37, 2048, torch.bfloat16, torch.float32),
    "bias-bf16": (9, 264, torch.bfloat16, torch.bfloat16),
    "fp16": (5, 136, torch.float16, torch.float32),
}


def _inputs(case: tuple, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """x, bias and dy; dy in bf16, which every dtype holds."""
    rows, D, x_type, bias_type = case
    generator = torch.Generator().manual_seed(rows * D)
    x, dy = 2 * torch.randn(2, rows, D, generator=generator)
    bias = torch.randn(D, generator=generator)
    return x.to(device, x_type), bias.to(device, bias_type), dy.to(device, torch.bfloat16)


def _run(function, tensors: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype | None = None, **kw):
    """y, dx and dbias, all in fp64 if `dtype` is."""
    *leaves, dy = tensors
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in leaves]
    y = function(*leaves, **kw)
    return y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))


def _check(impl, case: tuple) -> None:
    tensors = _inputs(case, impl.device)
    truth = _run(reference.bias_gelu, tensors, torch.float64)
    same = _run(reference.bias_gelu, tensors)
    actual = _run(bias_gelu, tensors, impl=impl.name)
    for y, t, r in zip(actual, truth, same, strict=True):
        assert_close(y, t, r)


@pytest.mark.sanitize
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_match_reference(impl, name: str) -> None:
    _check(impl, CASES[name])


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("name", ["ragged-fp32", "small-model-bf16", "fp16"])
def test_instruction_sets_match_reference(impl, isa: str, name: str) -> None:
    _check(impl, CASES[name])


def test_many_rows_match_reference(impl) -> None:
    """More rows than the chunks, blocks or programs of every backend hold at a time."""
    _check(impl, (1100, 24, torch.float32, torch.float32))


@pytest.mark.impls("cpu")
def test_tails_keep_their_digits(impl, isa: str) -> None:
    """Down to u = -10, where GELU is -7.6e-23; -0.5 u^2, rounded, costs 50 units in the last."""
    x = torch.linspace(-10, 10, 4001, dtype=torch.float64)[:4000].view(10, 400)
    x = x.float().requires_grad_()
    y = bias_gelu(x, torch.zeros(400), impl=impl.name)
    wide = x.double().detach()
    below = torch.special.erfc(-wide / math.sqrt(2)) / 2
    density = torch.exp(-wide.square() / 2) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(y.double(), wide * below, rtol=5e-6, atol=0)
    (dx,) = torch.autograd.grad(y.sum(), x)
    terms = below + wide.abs() * density  # of opposite signs below zero, where they cancel
    assert ((dx.double() - (below + wide * density)).abs() <= 5e-6 * terms).all()


@pytest.mark.impls("cpu", "triton", "cuda")
def test_what_is_huge_or_not_finite_goes_where_it_does_in_fp64(impl) -> None:
    """PyTorch's own in fp32 makes NaN of +inf on a CPU. From 13.2 on a bell is below 2^-126."""
    values = [math.nan, math.inf, -math.inf, 1e30, -1e30, 100.0, -100.0, 0.0]
    values += [sign * size for size in (13.1, 13.3, 13.8, 14.4) for sign in (1, -1)]
    x = torch.tensor([values], device=impl.device, requires_grad=True)
    bias, results = torch.zeros(16, device=impl.device), []
    for y in (bias_gelu(x, bias, impl=impl.name), F.gelu(x.double())):
        results.append([t.float() for t in (y, *torch.autograd.grad(y.sum(), x))])
    torch.testing.assert_close(*results, equal_nan=True)


def test_repeats_bit_for_bit(impl) -> None:
    tensors = _inputs(CASES["small-model-bf16"], impl.device)
    first, second = (_run(bias_gelu, tensors, impl=impl.name) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_frozen_bias_gets_no_gradient(impl) -> None:
    x, bias, dy = _inputs(CASES["ragged-fp32"], impl.device)
    results = []
    for frozen in (False, True):
        leaves = [x.clone().requires_grad_(), bias.clone().requires_grad_(not frozen)]
        bias_gelu(*leaves, impl=impl.name).backward(dy.float())
        results.append([leaf.grad for leaf in leaves])
    (dx, dbias), (dx_alone, none) = results
    assert dbias is not None and none is None and torch.equal(dx, dx_alone)


def test_empty_batch_gives_empty_output_and_zero_gradients(impl) -> None:
    tensors = _inputs((0, 16, torch.float32, torch.float32), impl.device)
    y, dx, dbias = _run(bias_gelu, tensors, impl=impl.name)
    assert y.shape == dx.shape == (0, 16)
    assert dbias.shape == (16,) and not dbias.any()


def test_noncontiguous_input_is_read_right(impl) -> None:
    x, dy = (torch.randn(32, 3, 24, device=impl.device).movedim(0, -1) for _ in range(2))
    bias = torch.randn(64, device=impl.device)[::2]
    actual = _run(bias_gelu, (x, bias, dy), impl=impl.name)
    packed = tuple(t.contiguous() for t in (x, bias, dy))
    torch.testing.assert_close(actual, _run(bias_gelu, packed, impl="reference"))


def test_gradcheck() -> None:
    leaves = [torch.randn(*s, dtype=torch.float64).requires_grad_() for s in ((2, 3, 8), (8,))]
    assert torch.autograd.gradcheck(bias_gelu, leaves)


def test_fullgraph_compile_equals_eager() -> None:
    tensors = _inputs(CASES["ragged-fp32"], "cpu")
    compiled = torch.compile(bias_gelu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(_run(compiled, tensors), _run(bias_gelu, tensors))


def test_takes_what_a_linear_made_under_autocast() -> None:
    linear, x = torch.nn.Linear(16, 32), torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = bias_gelu(F.linear(x, linear.weight), linear.bias)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), F.gelu(linear(x)), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(())}, ValueError, "x must be"),
        ({"bias": torch.zeros(9)}, ValueError, r"bias \(D,\), got \(2, 8\) and \(9,\)"),
        ({"x": torch.zeros(2, 8, dtype=torch.int32)}, TypeError, "x must be fp32"),
        ({"bias": torch.zeros(8, dtype=torch.int32)}, TypeError, "bias must be floating"),
        ({"bias": torch.zeros(8, device="meta")}, ValueError, "bias is on meta, x on cpu"),
        ({"impl": "fastest"}, ValueError, "impl must be"),
    ],
    ids=["scalar", "bias", "dtype", "bias-dtype", "device", "impl"],
)
def test_rejects_what_does_not_fit(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        bias_gelu(**({"x": torch.zeros(2, 8), "bias": torch.zeros(8)} | change))


def test_odd_widths_are_served_by_the_reference() -> None:
    x, bias = torch.randn(3, 13), torch.randn(13)
    torch.testing.assert_close(bias_gelu(x, bias), F.gelu(x + bias))
    with pytest.raises(RuntimeError, match="D must be a multiple of 8, got 13"):
        bias_gelu(x, bias, impl="cpu")
