"""The bias of the projection in axial_attention: as if it had been added before."""

from __future__ import annotations

import pytest
import torch
from checks import assert_close
from test_axial_attention import dtype_of, random_padding, random_qkv
from torch import Tensor

from vimpac_kernels import axial_attention, reference


def added_before(qkv: Tensor, bias: Tensor, grid, axes: str, **arguments) -> Tensor:
    """The specification on qkv + bias, in the dtype of qkv."""
    return reference.axial_attention(qkv + bias.to(qkv.dtype), grid, axes, **arguments)


def run(function, qkv: Tensor, bias: Tensor, dout: Tensor, grid, axes: str, **arguments):
    """Output, dqkv and dbias."""
    leaves = [t.detach().requires_grad_() for t in (qkv, bias)]
    out = function(leaves[0], bias=leaves[1], grid=grid, axes=axes, **arguments)
    return out, *torch.autograd.grad(out, leaves, dout.to(out))


def assert_matches_reference(impl, axes, grid, dtype, *, has_cls=True, head_dim=32, **arguments):
    qkv = random_qkv(grid, axes, heads=2, head_dim=head_dim, has_cls=has_cls).to(dtype)
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(qkv.shape[2:], generator=generator)
    dout = torch.randn(qkv[:, :, 0].shape, generator=generator).to(dtype)
    wide = [t.double() for t in (qkv, bias, dout)]
    truth = run(added_before, *wide, grid, axes, **arguments)
    eager = run(added_before, qkv, bias, dout, grid, axes, **arguments)
    moved = [t.to(impl.device) for t in (qkv, bias, dout)]
    arguments = {k: v.to(impl.device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    actual = run(axial_attention, *moved, grid, axes, impl=impl.name, **arguments)
    for a, t, e in zip(actual, truth, eager, strict=True):
        assert_close(a, t, e)


@pytest.mark.parametrize("axes", ["T", "H|W"])
def test_matches_reference(impl, axes):
    grid = (3, 4, 5)
    assert_matches_reference(
        impl, axes, grid, dtype_of(impl),
        key_padding_mask=random_padding(grid), dropout_p=0.2, scale=0.3, seed=4,
    )  # fmt: skip


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
@pytest.mark.parametrize(
    ("axes", "grid", "head_dim"),
    [("T|H|W", (3, 4, 6), 40), ("W|T", (2, 3, 70), 8), ("H", (1, 9, 11), 37)],
    ids=["all axes", "long lines", "odd head dim"],
)
def test_cpu_matches_reference(impl, isa, axes, grid, head_dim, has_cls):
    """Several tasks a clip, heads in groups, rows that end within a vector."""
    assert_matches_reference(
        impl, axes, grid, torch.float32, has_cls=has_cls, head_dim=head_dim, dropout_p=0.1, seed=1
    )


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_cpu_matches_reference_in_half_precision(impl, dtype):
    assert_matches_reference(impl, "H|W", (2, 6, 16), dtype, head_dim=64)


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_cpu_takes_a_bias_of_any_dtype_with_gaps(impl, dtype):
    """As a packed fp32 bias of the same values; the gradient has the dtype of the bias."""
    grid = (2, 3, 4)
    qkv, dout = random_qkv(grid, "H|W").float(), torch.randn(2, 25, 2, 32)
    bias = torch.randn(3, 2, 64).to(dtype)[..., ::2]
    *same, dbias = run(axial_attention, qkv, bias, dout, grid, "H|W", impl=impl.name)
    plain = bias.float().contiguous()
    *packed, wide = run(axial_attention, qkv, plain, dout, grid, "H|W", impl=impl.name)
    assert all(torch.equal(a, b) for a, b in zip(same, packed, strict=True))
    assert dbias.dtype == dtype and torch.equal(dbias, wide.to(dtype))


@pytest.mark.impls("cpu")
def test_cpu_gradient_does_not_depend_on_threads(impl):
    qkv = random_qkv((5, 16, 16), "T|H").float()
    bias, dout = torch.randn(3, 2, 32), torch.randn(2, qkv.shape[1], 2, 32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(run(axial_attention, qkv, bias, dout, (5, 16, 16), "T|H", impl="cpu"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_empty_batch_gives_a_gradient_of_zero(impl):
    qkv = torch.empty(0, 25, 3, 2, 32, device=impl.device, dtype=dtype_of(impl))
    bias = torch.ones(3, 2, 32, device=impl.device, requires_grad=True)
    axial_attention(qkv, (2, 3, 4), "H|W", bias=bias, impl=impl.name).sum().backward()
    assert bias.grad is not None and not bias.grad.any()


@pytest.mark.parametrize("axes", ["HW", "THW"])
def test_joint_axes_take_it_too(axes):
    grid = (2, 3, 4)
    qkv, bias = random_qkv(grid, axes).float(), torch.randn(3, 1, 32)
    actual = axial_attention(qkv, grid, axes, bias=bias)
    torch.testing.assert_close(actual, axial_attention(qkv + bias, grid, axes))


def test_gradients_are_those_of_finite_differences():
    qkv = random_qkv((2, 2, 2), "T", batch=1, head_dim=2).requires_grad_()
    bias = torch.randn(3, 1, 2, dtype=torch.float64, requires_grad=True)

    def function(qkv: Tensor, bias: Tensor) -> Tensor:
        return axial_attention(qkv, (2, 2, 2), "T", bias=bias)

    assert torch.autograd.gradcheck(function, (qkv, bias))


def test_compiles_into_one_graph_that_equals_eager():
    qkv, bias = random_qkv((2, 3, 4), "H|W").float(), torch.randn(3, 2, 32)
    dout = torch.randn(qkv[:, :, 0].shape)
    compiled = torch.compile(axial_attention, fullgraph=True, backend="aot_eager")
    results = (run(f, qkv, bias, dout, (2, 3, 4), "H|W") for f in (axial_attention, compiled))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


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
