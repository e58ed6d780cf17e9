"""axial_attention in use: oracles that share no code with it, joint axes, selection, messages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.cases.axial_attention import dtype_of, random_padding, random_qkv, run
from tests.checks import assert_close
from vimpac_kernels import axial_attention
from vimpac_kernels.ops.axial_attention import sdpa


def folded_attention(qkv: Tensor, grid: tuple[int, int, int], axis: str) -> Tensor:
    """Attention along one axis without [CLS]: the other axes become heads of one dense call."""
    B, S, _, N, Dh = qkv.shape
    names = ("T", "H", "W")
    x = qkv.unflatten(1, grid).movedim(1 + names.index(axis), 1)  # (B, L, a, b, 3, N, Dh)
    q, k, v = x.permute(4, 0, 2, 3, 5, 1, 6).flatten(2, 4)  # (B, a*b*N, L, Dh) each
    out = F.scaled_dot_product_attention(q, k, v).unflatten(1, (*x.shape[2:4], N))
    out = out.permute(0, 4, 1, 2, 3, 5).movedim(1, 1 + names.index(axis))  # (B, T, H, W, N, Dh)
    return out.reshape(B, S, N, Dh)


@pytest.mark.parametrize("axis", ["T", "H", "W"])
def test_without_cls_equals_dense_attention_with_the_other_axes_as_heads(impl, axis: str) -> None:
    grid = (3, 4, 5)
    low = random_qkv(grid, axis, has_cls=False).to(dtype_of(impl))
    truth = folded_attention(low.double(), grid, axis)
    actual = axial_attention(low.to(impl.device), grid, axis, impl=impl.name)
    assert_close(actual, truth, folded_attention(low, grid, axis))


@pytest.mark.parametrize("axes", ["T", "H|W", "HW"])
@pytest.mark.parametrize("padded", [False, True], ids=["all keys", "padding"])
def test_gradients_are_those_of_finite_differences(axes: str, padded: bool) -> None:
    grid = (2, 3, 2)
    qkv = random_qkv(grid, axes, batch=1, head_dim=2).requires_grad_()
    padding = random_padding(grid, 2)[:1] if padded else None

    def function(qkv: Tensor) -> Tensor:
        return axial_attention(
            qkv, grid, axes, key_padding_mask=padding, dropout_p=0.3, seed=1, impl="reference"
        )

    assert torch.autograd.gradcheck(function, (qkv,))


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
@pytest.mark.parametrize("axes", ["HW", "THW", "T", "H|W"])
def test_sdpa_follows_the_reference(axes: str, has_cls: bool) -> None:
    """In fp64, and with a clip that is all padding, on which the backends of SDPA disagree."""
    grid = (2, 3, 4)
    qkv = random_qkv(grid, axes, has_cls=has_cls)
    dout = torch.randn(qkv[:, :, 0].shape, generator=torch.Generator().manual_seed(3)).double()
    for padding in (None, random_padding(grid)):
        truth = run(qkv, dout, grid, axes, impl="reference", scale=0.3, key_padding_mask=padding)
        leaf = qkv.clone().requires_grad_()
        out = sdpa.axial_attention(leaf, grid, axes, padding, 0.0, 0.3)
        actual = [out, *torch.autograd.grad(out, leaf, dout)[0].unbind(2)]
        for a, t in zip(actual, truth, strict=True):
            torch.testing.assert_close(a, t, rtol=1e-12, atol=1e-12)


def test_sdpa_splits_batches_beyond_a_grid_dimension() -> None:
    """Of 65,535, in CUDA: here more lines than that in one call, the last with padding."""
    grid = (2, 128, 258)
    qkv = random_qkv(grid, "T", head_dim=4).float()
    for padding in (None, random_padding(grid)):
        options = {"key_padding_mask": padding}
        split = axial_attention(qkv, grid, "T", impl="sdpa", **options)
        whole = axial_attention(qkv, grid, "T", impl="reference", **options)
        torch.testing.assert_close(split, whole)


CUBE, LONG = (2, 3, 4), (1, 1, 300)


@pytest.mark.parametrize(
    ("impl_name", "axes", "grid", "head_dim", "dtype", "words"),
    [
        ("cpu", "T", CUBE, 32, torch.float64, "does not take torch.float64"),
        ("cpu", "T", CUBE, 257, torch.float32, "head dims up to 256, not 257"),
        ("triton", "T", CUBE, 24, torch.float32, r"head dims \(16, 32, 64, 128\), not 24"),
        ("triton", "THW", CUBE, 32, torch.float32, "joint axes go through"),
        ("cuda", "W", LONG, 32, torch.bfloat16, "300 tokens, it takes at most 64"),
        ("sdpa", "T", CUBE, 32, torch.float64, "fp64 is for the reference"),
        ("sdpa", "T", CUBE, 32, torch.float32, "cannot follow a seed"),
    ],
)
def test_forced_implementation_says_why_it_cannot_run(
    impl_name: str,
    axes: str,
    grid: tuple[int, int, int],
    head_dim: int,
    dtype: torch.dtype,
    words: str,
) -> None:
    qkv = torch.zeros(1, 1 + math.prod(grid), 3, 1, head_dim, dtype=dtype)
    with pytest.raises(RuntimeError, match=f"impl='{impl_name}' cannot run this call: .*{words}"):
        axial_attention(qkv, grid, axes, dropout_p=0.1, seed=3, impl=impl_name)


def test_rejects_an_unknown_implementation() -> None:
    with pytest.raises(ValueError, match="impl must be 'auto' or one of 'cuda'.*got 'flash'"):
        axial_attention(torch.zeros(1, 25, 3, 1, 8), (2, 3, 4), impl="flash")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"qkv": torch.zeros(1, 25, 3, 2, 8, dtype=torch.int32)}, TypeError, "qkv must be fp16"),
        ({"qkv": torch.zeros(1, 25, 3, 2, 8).to(torch.float8_e5m2)}, TypeError, "qkv must be fp16"),
        ({"qkv": torch.zeros(1, 25, 2, 8)}, ValueError, r"\(B, S, 3, N, Dh\), got \(1, 25, 2, 8\)"),
        ({"qkv": torch.zeros(1, 25, 3, 0, 8)}, ValueError, r"\(B, S, 3, N, Dh\)"),
        ({"qkv": torch.zeros(1, 26, 3, 2, 8)}, ValueError, "has 26 rows, grid.*needs 24, or 25"),
        ({"grid": (2, 12)}, ValueError, r"three sizes \(T, H, W\)"),
        ({"grid": (2, 3, 0)}, ValueError, r">= 1, got \(2, 3, 0\)"),
        ({"axes": ""}, ValueError, "axes must be one of T, H, W.*got ''"),
        ({"axes": "T|T"}, ValueError, "axes must be one of"),
        ({"axes": "T|H|W"}, ValueError, "heads in 3 equal groups, got 2"),
        ({"key_padding_mask": torch.zeros(1, 2, 3, 4)}, TypeError, "must be bool, got torch.float"),
        (
            {"key_padding_mask": torch.zeros(1, 24, dtype=torch.bool)},
            ValueError,
            r"key_padding_mask must be \(B, T, H, W\) = \(1, 2, 3, 4\), got \(1, 24\)",
        ),
        (
            {"key_padding_mask": torch.zeros(1, 2, 3, 4, dtype=torch.bool, device="meta")},
            ValueError,
            "key_padding_mask is on meta, qkv on cpu",
        ),
        ({"dropout_p": 1.0}, ValueError, r"dropout_p must be in \[0, 1\), got 1.0"),
        ({"scale": math.inf}, ValueError, "scale must be within"),
        ({"scale": torch.tensor(0.3)}, TypeError, "scale must be a number"),
        ({"seed": torch.zeros(1), "dropout_p": 0.1}, ValueError, "seed must be an int or a 0-d"),
    ],
)
def test_rejects_bad_arguments(change: dict, error: type[Exception], words: str) -> None:
    arguments = {"qkv": torch.zeros(1, 25, 3, 2, 8), "grid": (2, 3, 4), "axes": "T", **change}
    with pytest.raises(error, match=words):
        axial_attention(**arguments)


def test_meta_tensors_give_shapes() -> None:
    qkv = torch.empty(2, 25, 3, 2, 8, device="meta")
    for axes in ("T", "H|W", "HW", "THW"):
        assert axial_attention(qkv, (2, 3, 4), axes).shape == (2, 25, 2, 8)


@pytest.mark.impls("cpu", "reference", "sdpa")
@pytest.mark.parametrize("axes", ["W", "HW"])
def test_mask_that_is_filled_anew_before_the_backward_changes_no_gradient(impl, axes):
    """As memory of NumPy's, which a loader refills and autograd cannot see."""
    padding = np.zeros((1, 1, 2, 3), bool)
    padding[:, :, 0] = True
    qkv = torch.randn(1, 7, 3, 2, 16, requires_grad=True)
    out = axial_attention(
        qkv, (1, 2, 3), axes, key_padding_mask=torch.from_numpy(padding), impl=impl.name
    )
    (expected,) = torch.autograd.grad(out.sum(), qkv, retain_graph=True)
    padding[:] = False
    (actual,) = torch.autograd.grad(out.sum(), qkv)
    assert torch.equal(actual, expected)
