"""Inputs of axial_attention, and its comparison with the specification in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.checks import assert_close
from vimpac_kernels import axial_attention, reference

WAYS = ("added by the op", "in qkv")
ways = pytest.mark.parametrize("way", WAYS)


def random_qkv(grid, axes, *, batch=2, heads=1, head_dim=32, has_cls=True, seed=0) -> Tensor:
    """fp64 (B, S, 3, N, Dh) with `heads` heads for each axis."""
    generator = torch.Generator().manual_seed(seed)
    rows = math.prod(grid) + has_cls
    heads *= axes.count("|") + 1
    return torch.randn(batch, rows, 3, heads, head_dim, dtype=torch.float64, generator=generator)


def random_padding(grid, batch=2) -> Tensor:
    """Two fifths padding; a whole clip in the second half of the batch."""
    mask = torch.rand(batch, *grid, generator=torch.Generator().manual_seed(1)) < 0.4
    mask[-1] = True
    return mask


def dtype_of(impl) -> torch.dtype:
    """fp32 where the backend takes it."""
    return torch.bfloat16 if impl.name == "cuda" else torch.float32


def run(qkv: Tensor, dout: Tensor, grid, axes, **arguments) -> list[Tensor]:
    """Output and gradient: [out, dq, dk, dv]."""
    qkv = qkv.detach().requires_grad_()
    out = axial_attention(qkv, grid, axes, **arguments)
    (dqkv,) = torch.autograd.grad(out, qkv, dout.to(out))
    return [out.detach(), *dqkv.unbind(2)]


def assert_matches_reference(impl, qkv: Tensor, grid, axes, dtype=None, *, size=1.0, **arguments):
    """Output and gradients are as near to fp64 as eager PyTorch of the same dtype, within 2x.

    `size` is that of dout.
    """
    dtype = dtype or dtype_of(impl)
    dout = torch.randn(qkv[:, :, 0].shape, generator=torch.Generator().manual_seed(9)) * size
    dout = dout.to(dtype).double()
    low = qkv.to(dtype)
    truth = run(low.double(), dout, grid, axes, impl="reference", **arguments)
    eager = run(low, dout, grid, axes, impl="reference", **arguments)
    moved = {k: v.to(impl.device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    actual = run(low.to(impl.device), dout.to(impl.device), grid, axes, impl=impl.name, **moved)
    for a, t, e in zip(actual, truth, eager, strict=True):
        assert_close(a, t, e)


def added_before(qkv: Tensor, bias: Tensor, grid, axes: str, **arguments) -> Tensor:
    """The specification on qkv + bias, in the dtype of qkv."""
    return reference.axial_attention(qkv + bias.to(qkv.dtype), grid, axes, **arguments)


def in_qkv(qkv: Tensor, bias: Tensor, grid, axes: str, **arguments) -> Tensor:
    """The op on a qkv to which a product has added the bias."""
    qkv = qkv + bias.detach().to(qkv.dtype)
    return axial_attention(qkv, grid, axes, bias=bias, bias_in_qkv=True, **arguments)


def function_of(way: str):
    """The op on qkv and bias, one way or the other."""
    return in_qkv if way == "in qkv" else axial_attention


def run_with_bias(function, qkv: Tensor, bias: Tensor, dout: Tensor, grid, axes: str, **arguments):
    """Output, dqkv and dbias."""
    leaves = [t.detach().requires_grad_() for t in (qkv, bias)]
    out = function(leaves[0], bias=leaves[1], grid=grid, axes=axes, **arguments)
    return out, *torch.autograd.grad(out, leaves, dout.to(out))


def assert_bias_matches_reference(
    impl, way, axes, grid, dtype, *, has_cls=True, heads=2, head_dim=32, **arguments
):
    """Output, dqkv and dbias are as near to fp64 as eager PyTorch of the same dtype, within 2x."""
    qkv = random_qkv(grid, axes, heads=heads, head_dim=head_dim, has_cls=has_cls).to(dtype)
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(qkv.shape[2:], generator=generator)
    dout = torch.randn(qkv[:, :, 0].shape, generator=generator).to(dtype)
    wide = [t.double() for t in (qkv, bias, dout)]
    truth = run_with_bias(added_before, *wide, grid, axes, **arguments)
    eager = run_with_bias(added_before, qkv, bias, dout, grid, axes, **arguments)
    moved = [t.to(impl.device) for t in (qkv, bias, dout)]
    arguments = {k: v.to(impl.device) if isinstance(v, Tensor) else v for k, v in arguments.items()}
    actual = run_with_bias(function_of(way), *moved, grid, axes, impl=impl.name, **arguments)
    for a, t, e in zip(actual, truth, eager, strict=True):
        assert_close(a, t, e)
