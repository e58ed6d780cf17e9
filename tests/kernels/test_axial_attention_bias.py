"""The bias of the projection in axial_attention: as if it had been added before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.cases.axial_attention import (
    WAYS,
    added_before,
    assert_bias_matches_reference,
    dtype_of,
    function_of,
    in_qkv,
    random_padding,
    random_qkv,
    run_with_bias,
    ways,
)
from vimpac_kernels import axial_attention
from vimpac_kernels.ops.axial_attention import operators


@ways
@pytest.mark.sanitize
@pytest.mark.parametrize("axes", ["T", "H|W"])
def test_matches_reference(impl, way, axes):
    grid = (3, 4, 5)
    assert_bias_matches_reference(
        impl, way, axes, grid, dtype_of(impl),
        key_padding_mask=random_padding(grid), dropout_p=0.2, scale=0.3, seed=4,
    )  # fmt: skip


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
@pytest.mark.parametrize("head_dim", [32, 128])
@pytest.mark.parametrize("length", [4, 30, 50])
def test_every_tile_matches_reference(impl, length, head_dim, has_cls):
    assert_bias_matches_reference(
        impl, "in qkv", "W", (1, 3, length), dtype_of(impl), has_cls=has_cls, heads=1,
        head_dim=head_dim, dropout_p=0.2, seed=4,
    )  # fmt: skip


@pytest.mark.impls("cuda")
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
def test_cuda_matches_reference_in_fp32(impl, has_cls):
    grid = (3, 4, 5)
    assert_bias_matches_reference(impl, "in qkv", "T|H|W", grid, torch.float32, has_cls=has_cls)


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
@pytest.mark.parametrize(
    ("axes", "grid", "head_dim"),
    [("T|H|W", (3, 4, 6), 40), ("W|T", (2, 3, 70), 8), ("H", (1, 9, 11), 37)],
    ids=["all axes", "long lines", "odd head dim"],
)
def test_cpu_matches_reference(impl, isa, axes, grid, head_dim, has_cls):
    """Several tasks a clip, heads in groups, rows that end within a vector."""
    assert_bias_matches_reference(
        impl, WAYS[has_cls], axes, grid, torch.float32, has_cls=has_cls, head_dim=head_dim,
        dropout_p=0.1, seed=1,
    )  # fmt: skip


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@ways
def test_cpu_matches_reference_in_half_precision(impl, way, dtype):
    assert_bias_matches_reference(impl, way, "H|W", (2, 6, 16), dtype, head_dim=64)


@ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_takes_a_bias_of_any_dtype_with_gaps(impl, way, dtype):
    """As a packed bias of the same values; the gradient has the dtype of the bias."""
    grid, function = (2, 3, 4), function_of(way)
    qkv = random_qkv(grid, "H|W").to(impl.device, dtype_of(impl))
    dout = torch.randn(2, 25, 2, 32, device=impl.device)
    bias = torch.randn(3, 2, 64, device=impl.device).to(dtype)[..., ::2]
    *same, dbias = run_with_bias(function, qkv, bias, dout, grid, "H|W", impl=impl.name)
    plain = bias.float().contiguous()
    *packed, wide = run_with_bias(function, qkv, plain, dout, grid, "H|W", impl=impl.name)
    assert all(torch.equal(a, b) for a, b in zip(same, packed, strict=True))
    assert dbias.dtype == dtype
    if impl.name != "reference":  # which sums in the dtype of qkv, in an order of its own
        assert torch.equal(dbias, wide.to(dtype))


@pytest.mark.impls("cpu", "triton", "cuda")
@ways
def test_repeats_bit_for_bit(impl, way):
    grid = (3, 5, 4)
    qkv = random_qkv(grid, "H|W").to(impl.device, dtype_of(impl))
    bias = torch.randn(3, 2, 32, device=impl.device)
    dout = torch.randn(qkv[:, :, 0].shape, device=impl.device)
    first, second = (
        run_with_bias(function_of(way), qkv, bias, dout, grid, "H|W", impl=impl.name)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@ways
def test_a_frozen_bias_costs_no_sum(impl, way, monkeypatch):
    """Nothing is summed for it, and the other gradient is the same."""
    grid = (2, 3, 4)
    qkv = random_qkv(grid, "H|W").to(impl.device, dtype_of(impl))
    bias, dout = torch.randn(3, 2, 32, device=impl.device), torch.ones_like(qkv[:, :, 0])
    _, dqkv, _ = run_with_bias(function_of(way), qkv, bias, dout, grid, "H|W", impl=impl.name)
    asked = []
    operator = operators.axial_attention_bwd
    monkeypatch.setattr(
        operators,
        "axial_attention_bwd",
        lambda *arguments: asked.append(arguments[-1]) or operator(*arguments),
    )
    leaf = qkv.clone().requires_grad_()
    out = function_of(way)(leaf, bias=bias, grid=grid, axes="H|W", impl=impl.name)
    assert torch.equal(torch.autograd.grad(out, leaf, dout)[0], dqkv)
    assert asked == ([] if impl.name == "reference" else [False])


def test_a_frozen_projection_leaves_the_gradient_of_the_bias(impl):
    grid = (2, 3, 4)
    qkv = random_qkv(grid, "H|W").to(impl.device, dtype_of(impl))
    bias, dout = torch.randn(3, 2, 32, device=impl.device), torch.ones_like(qkv[:, :, 0])
    *_, expected = run_with_bias(in_qkv, qkv, bias, dout, grid, "H|W", impl=impl.name)
    leaf = bias.clone().requires_grad_()
    in_qkv(qkv, leaf, grid, "H|W", impl=impl.name).backward(dout)
    assert torch.equal(leaf.grad, expected)


@pytest.mark.impls("triton", "cuda")
def test_gradient_of_the_bias_of_k_is_next_to_nothing(impl):
    """It moves all scores of a query alike, which no softmax notices."""
    grid = (3, 4, 5)
    qkv, bias = random_qkv(grid, "H|W").to(impl.device, dtype_of(impl)), torch.randn(3, 2, 32)
    dout = torch.randn(qkv[:, :, 0].shape, device=impl.device)
    *_, dbias = run_with_bias(in_qkv, qkv, bias.to(impl.device), dout, grid, "H|W", impl=impl.name)
    dq, dk, dv = dbias.abs().amax((1, 2))
    assert dk < 0.02 * torch.minimum(dq, dv)


@pytest.mark.impls("cpu")
def test_cpu_gradient_does_not_depend_on_threads(impl):
    qkv = random_qkv((5, 16, 16), "T|H").float()
    bias, dout = torch.randn(3, 2, 32), torch.randn(2, qkv.shape[1], 2, 32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(
                run_with_bias(axial_attention, qkv, bias, dout, (5, 16, 16), "T|H", impl="cpu")
            )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@ways
def test_empty_batch_gives_a_gradient_of_zero(impl, way):
    qkv = torch.empty(0, 25, 3, 2, 32, device=impl.device, dtype=dtype_of(impl))
    bias = torch.ones(3, 2, 32, device=impl.device, requires_grad=True)
    out = function_of(way)(qkv, bias=bias, grid=(2, 3, 4), axes="H|W", impl=impl.name)
    out.sum().backward()
    assert bias.grad is not None and not bias.grad.any()


@ways
@pytest.mark.parametrize("axes", ["HW", "THW"])
def test_sdpa_takes_it_too(axes, way):
    grid = (2, 3, 4)
    qkv, bias = random_qkv(grid, axes).float(), torch.randn(3, 1, 32)
    dout = torch.randn(qkv[:, :, 0].shape)
    actual = run_with_bias(function_of(way), qkv, bias, dout, grid, axes, impl="sdpa")
    expected = run_with_bias(added_before, qkv, bias, dout, grid, axes)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@ways
def test_gradients_are_those_of_finite_differences(way):
    qkv = random_qkv((2, 2, 2), "T", batch=1, head_dim=2).requires_grad_()
    bias = torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True)

    def function(qkv: Tensor, bias: Tensor) -> Tensor:
        return function_of(way)(qkv, bias=bias, grid=(2, 2, 2), axes="T")

    assert torch.autograd.gradcheck(function, (qkv, bias))


@pytest.mark.impls("cpu", "triton", "cuda")
@ways
def test_compiles_into_one_graph_that_equals_eager(impl, way):
    grid, function = (2, 3, 4), function_of(way)
    qkv = random_qkv(grid, "H|W").to(impl.device, dtype_of(impl))
    bias, dout = torch.randn(3, 2, 32, device=impl.device), torch.randn_like(qkv[:, :, 0])
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = (
        run_with_bias(f, qkv, bias, dout, grid, "H|W", impl=impl.name) for f in (function, compiled)
    )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@ways
def test_autocast_leaves_the_gradient_in_fp32(impl, way):
    grid = (2, 3, 4)
    qkv = random_qkv(grid, "H|W").float().to(impl.device)
    bias, dout = torch.randn(3, 2, 32, device=impl.device), torch.randn_like(qkv[:, :, 0])
    with torch.autocast(impl.device, dtype=torch.bfloat16):
        out, dqkv, dbias = run_with_bias(
            function_of(way), qkv, bias, dout, grid, "H|W", impl=impl.name
        )
    assert (out.dtype, dqkv.dtype, dbias.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    torch.testing.assert_close(dbias, dqkv.sum((0, 1)), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("bias", "error", "message"),
    [
        (torch.zeros(3, 2, 31), ValueError, r"bias must be \(3, N, Dh\) = \(3, 2, 32\)"),
        (torch.zeros(3, 2, 32, dtype=torch.int32), TypeError, "bias must be floating"),
        (torch.zeros(3, 2, 32, device="meta"), ValueError, "bias is on meta, qkv on cpu"),
    ],
    ids=["shape", "dtype", "device"],
)
def test_rejects_what_does_not_fit(bias, error, message):
    with pytest.raises(error, match=message):
        axial_attention(torch.zeros(1, 2, 3, 2, 32), (2, 1, 1), bias=bias)


def test_rejects_a_bias_in_qkv_that_is_not_given():
    with pytest.raises(ValueError, match="bias_in_qkv=True needs the bias"):
        axial_attention(torch.zeros(1, 2, 3, 2, 32), (2, 1, 1), bias_in_qkv=True)
