"""dropout_add_layer_norm against the reference in fp64, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import vimpac_kernels
from tests.checks import assert_close
from vimpac_kernels import dropout_add_layer_norm, reference

# rows, D, dtype of x, dtype of residual, dropout, linear bias, what is returned
CASES = {
    "one-row": (1, 8, torch.float32, torch.float32, 0.0, False, "y"),
    "ragged-fp32": (13, 72, torch.float32, torch.float32, 0.3, True, "y, sum"),
    "small-model-bf16": (37, 512, torch.bfloat16, torch.bfloat16, 0.1, True, "y, y"),
    "prenorm-bf16-fp32": (9, 256, torch.bfloat16, torch.float32, 0.1, True, "y, sum"),
    "fp16": (5, 128, torch.float16, torch.float16, 0.1, False, "y"),
    "undropped-bf16": (21, 136, torch.bfloat16, torch.bfloat16, 0.0, True, "y, sum"),
    "undropped-bf16-fp32": (7, 64, torch.bfloat16, torch.float32, 0.0, True, "y"),
    "two-readers-bf16-fp32": (11, 80, torch.bfloat16, torch.float32, 0.2, False, "y, y"),
    "two-readers-fp32": (6, 144, torch.float32, torch.float32, 0.0, True, "y, y"),
    "wide": (3, 1544, torch.float32, torch.float32, 0.1, True, "y"),
}
RETURNED: dict[str, dict] = {"y": {}, "y, sum": {"prenorm": True}, "y, y": {"readers": 2}}


def _inputs(case: tuple, device: str) -> dict[str, Tensor | None]:
    rows, D, x_type, residual_type, _, has_linear_bias, _ = case
    generator = torch.Generator().manual_seed(rows * D)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    return {
        "x": draw(rows, D, dtype=x_type),
        "residual": draw(rows, D, dtype=residual_type),
        "weight": draw(D),
        "bias": draw(D),
        "linear_bias": draw(D) if has_linear_bias else None,
    }


def _run(function, tensors: dict, case: tuple, dtype: torch.dtype | None = None, **kwargs):
    """Outputs and gradients, all in fp64 if `dtype` is."""
    leaves = {
        name: t if t is None else t.detach().to(dtype or t.dtype).requires_grad_()
        for name, t in tensors.items()
    }
    kwargs |= RETURNED[case[6]]
    out = function(**leaves, dropout_p=case[4], seed=1234567890123, eps=1e-12, **kwargs)
    outputs = out if isinstance(out, tuple) else (out,)
    # Drawn, since a ramp over the rows cancels in sums of many; in bf16, which fp32 and fp64 hold.
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator).bfloat16().to(o) for o in outputs]
    torch.autograd.backward(outputs, upstream)
    return [*outputs, *(t.grad for t in leaves.values() if t is not None)]


@pytest.mark.sanitize
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_match_reference(impl, name: str) -> None:
    _check(impl, CASES[name])


def _check(impl, case: tuple) -> None:
    tensors = _inputs(case, impl.device)
    truth = _run(reference.dropout_add_layer_norm, tensors, case, torch.float64)
    same = _run(reference.dropout_add_layer_norm, tensors, case)
    actual = _run(dropout_add_layer_norm, tensors, case, impl=impl.name)
    for y, t, r in zip(actual, truth, same, strict=True):
        assert_close(y, t, r)


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("name", ["ragged-fp32", "small-model-bf16", "fp16"])
def test_instruction_sets_match_reference(impl, isa: str, name: str) -> None:
    _check(impl, CASES[name])


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("rows", [70, 1100], ids=["five-chunks", "62-longer-chunks"])
def test_many_chunks_of_rows_match_reference(impl, rows: int) -> None:
    _check(impl, (rows, 24, torch.float32, torch.float32, 0.1, True, "y, sum"))


def test_drops_the_elements_of_the_reference(impl) -> None:
    """With x = 1 and a residual of 0 the sum shows every decision."""
    x = torch.ones(11, 136, device=impl.device)
    zeros, ones = torch.zeros(136, device=impl.device), torch.ones(136, device=impl.device)
    arguments = (x, torch.zeros_like(x), ones, zeros)
    options = dict(dropout_p=0.25, prenorm=True, seed=99)
    _, total = dropout_add_layer_norm(*arguments, **options, impl=impl.name)
    _, expected = reference.dropout_add_layer_norm(*arguments, **options)
    assert torch.equal(total, expected)
    assert 0.2 < (total == 0).float().mean() < 0.3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_dropped_element_that_is_not_finite_stays_nan(impl, value: float) -> None:
    """As in `F.dropout`: it is multiplied by 0. So are gradients."""
    device, results = impl.device, []
    upstream = torch.ones(3, 16, device=device)
    upstream[2] = value
    for name in (impl.name, "reference"):
        x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).to(device)
        x[1] = value
        x.requires_grad_()
        ones = torch.ones(16, device=device)
        y, total = dropout_add_layer_norm(
            x, torch.zeros_like(x), ones, ones, dropout_p=0.5, seed=1, prenorm=True, impl=name
        )
        (gradient,) = torch.autograd.grad(total, x, upstream)
        results.append([t.isfinite() for t in (y, total, gradient[::2])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    _, total, gradient = results[0]
    assert not total[1].any() and not gradient[1].any() and gradient[0].all()


def test_repeats_bit_for_bit(impl) -> None:
    case = CASES["small-model-bf16"]
    tensors = _inputs(case, impl.device)
    first, second = (_run(dropout_add_layer_norm, tensors, case, impl=impl.name) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_one_gradient_is_both_without_dropout(impl) -> None:
    x, residual = torch.randn(2, 5, 16, device=impl.device, requires_grad=True).unbind()
    weight, bias = torch.ones(16, device=impl.device), torch.zeros(16, device=impl.device)
    for dropout_p, tensors in ((0.0, 1), (0.5, 2)):
        y = dropout_add_layer_norm(
            x, residual, weight, bias, dropout_p=dropout_p, seed=1, impl=impl.name
        )
        gradients = torch.autograd.grad(y.square().sum(), (x, residual))
        assert len({gradient.data_ptr() for gradient in gradients}) == tensors


def test_empty_batch_gives_empty_output_and_zero_gradients(impl) -> None:
    case = (0, 16, torch.float32, torch.float32, 0.0, True, "y")
    y, *grads = _run(dropout_add_layer_norm, _inputs(case, impl.device), case, impl=impl.name)
    assert y.shape == (0, 16)
    assert all(not g.any() for g in grads)


@pytest.mark.parametrize("returned", ["y, sum", "y, y"])
def test_gradcheck(returned: str) -> None:
    tensors = [torch.randn(*s, dtype=torch.float64) for s in ((2, 8), (2, 8), (8,), (8,), (8,))]

    def function(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor):
        options = {"linear_bias": linear_bias, "dropout_p": 0.2, "seed": 3, **RETURNED[returned]}
        return dropout_add_layer_norm(x, residual, weight, bias, **options)

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in tensors])


@pytest.mark.parametrize("returned", RETURNED)
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_fullgraph_compile_equals_eager(dropout_p: float, returned: str) -> None:
    leaves = [t.clone().requires_grad_() for t in torch.randn(2, 3, 16, 32)]
    weight, bias = torch.randn(2, 32).unbind()
    options = {"dropout_p": dropout_p, "seed": 5, **RETURNED[returned]}

    def function(x: Tensor, residual: Tensor) -> Tensor:
        out = dropout_add_layer_norm(x, residual, weight, bias, **options)
        first, second = out if isinstance(out, tuple) else (out, out)
        return first.square() + second.sin()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = []
    for run in (function, compiled):
        y = run(*leaves)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*results)


def test_noncontiguous_input_is_read_right(impl) -> None:
    x = torch.randn(32, 24, device=impl.device).T  # (24, 32)
    residual, weight, bias = torch.zeros_like(x), torch.ones(32), torch.zeros(32)
    arguments = (residual, weight.to(impl.device), bias.to(impl.device))
    y = dropout_add_layer_norm(x, *arguments, impl=impl.name)
    expected = dropout_add_layer_norm(x.contiguous(), *arguments, impl="reference")
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"residual": torch.zeros(2, 9)}, ValueError, "alike"),
        ({"weight": torch.ones(9)}, ValueError, "weight must be"),
        ({"weight": None}, TypeError, "weight must be a tensor, got None"),
        ({"bias": None}, TypeError, "bias must be a tensor, got None"),
        ({"x": torch.zeros(2, 8, dtype=torch.int32)}, TypeError, "x must be"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p must be in"),
        ({"eps": -1.0}, ValueError, "eps must be"),
        ({"readers": 3}, ValueError, "readers must be 1, or 2 without prenorm, got 3"),
        ({"readers": 2, "prenorm": True}, ValueError, "or 2 without prenorm"),
        ({"impl": "fastest"}, ValueError, "impl must be"),
    ],
    ids=[
        *("residual", "weight", "no-weight", "no-bias", "dtype", "dropout", "eps", "readers"),
        *("readers-of-prenorm", "impl"),
    ],
)
def test_rejects_what_does_not_fit(change: dict, error: type, message: str) -> None:
    arguments = {
        "x": torch.zeros(2, 8),
        "residual": torch.zeros(2, 8),
        "weight": torch.ones(8),
        "bias": torch.zeros(8),
    }
    with pytest.raises(error, match=message):
        dropout_add_layer_norm(**(arguments | change))


def test_is_available_everywhere() -> None:
    assert "reference" in vimpac_kernels.available_impls("dropout_add_layer_norm")
