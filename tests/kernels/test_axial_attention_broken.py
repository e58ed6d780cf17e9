"""axial_attention of values that are not finite: nothing broken is hidden, no hidden key counts.

A broken value spoils the queries that attend it and the gradients that they reach. On a GPU that
may be more: zero weights times NaN are NaN, in the products of a tile that holds several lines.
"""

import math

import pytest
import torch

from tests.cases.axial_attention import dtype_of, random_qkv, run
from vimpac_kernels import axial_attention

LONG = (1, 14, 14)  # a frame is a line of the CPU's kernel for long ones
values = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
parts = pytest.mark.parametrize("part", [0, 1, 2], ids=["q", "k", "v"])
places = pytest.mark.parametrize(
    ("where", "has_cls"),
    [
        *(("live", True), ("live", False), ("padded", True), ("padded", False)),
        *(("[CLS]", True), ("everywhere", True), ("everywhere", False)),
    ],
)


def assert_hides_nothing(
    impl, axes, grid, part, where, has_cls, value, dtype=None, **arguments
) -> None:
    """What is not finite in the reference is not in the kernel; on a CPU, nothing else."""
    qkv = random_qkv(grid, axes, has_cls=has_cls).abs().to(dtype or dtype_of(impl))
    row = {"live": has_cls + 3, "padded": has_cls, "[CLS]": 0, "everywhere": slice(None)}[where]
    qkv[0, row, part, :, 0] = value
    dout = torch.ones(qkv[:, :, 0].shape)
    padding = torch.zeros(2, *grid, dtype=torch.bool)
    padding[:, 0, 0, 0] = True
    expected = run(qkv, dout, grid, axes, impl="reference", key_padding_mask=padding, **arguments)
    actual = run(
        qkv.to(impl.device), dout, grid, axes, impl=impl.name,
        key_padding_mask=padding.to(impl.device), **arguments,
    )  # fmt: skip
    for a, e in zip(actual, expected, strict=True):
        finite = a.cpu().isfinite()
        assert not (finite & ~e.isfinite()).any()
        assert finite[1].all()
        if impl.name in ("reference", "cpu"):
            assert torch.equal(finite, e.isfinite())


@values
@places
@parts
def test_hides_no_broken_activation(impl, part, where, has_cls, value):
    assert_hides_nothing(impl, "T", (3, 2, 1), part, where, has_cls, value)


@pytest.mark.impls("cuda")
@values
@places
@parts
def test_cuda_hides_no_broken_activation_in_fp32(impl, part, where, has_cls, value):
    assert_hides_nothing(impl, "T", (3, 2, 1), part, where, has_cls, value, torch.float32)


@pytest.mark.impls("cpu")
@pytest.mark.parametrize(("axes", "grid"), [("T|H", (4, 2, 3)), ("HW", LONG)], ids=["", "long"])
@values
@places
@parts
def test_cpu_hides_no_broken_activation(impl, axes, grid, part, where, has_cls, value):
    for dropout_p in (0.0, 0.4):
        options = {"dropout_p": dropout_p, "seed": 3}
        assert_hides_nothing(impl, axes, grid, part, where, has_cls, value, **options)


def assert_hidden_keys_are_not_there(impl, axes, grid, has_cls, value):
    """Whatever the scores of the others are, and their own."""
    qkv = random_qkv(grid, axes, has_cls=has_cls).abs().to(dtype_of(impl))
    qkv[0, :, 1, 0, 0] = value
    qkv[0, -1, 1] = math.nan
    padding = torch.zeros(2, *grid, dtype=torch.bool)
    padding.view(2, -1)[:, -1] = True
    out = axial_attention(
        qkv.to(impl.device), grid, axes, impl=impl.name, key_padding_mask=padding.to(impl.device)
    )
    live = (math.prod(grid) - 1, 1, 1)
    expected = axial_attention(qkv[:, :-1].double(), live, "T", impl="reference")
    tolerance = {"rtol": 0, "atol": 8 * torch.finfo(out.dtype).eps}
    actual = out[:, :-1].cpu().double()
    torch.testing.assert_close(actual, expected, equal_nan=True, **tolerance)


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.0])
def test_hidden_key_is_as_one_that_is_not_there(impl, has_cls, value):
    assert_hidden_keys_are_not_there(impl, "T", (4, 1, 1), has_cls, value)


@pytest.mark.impls("reference", "cpu")
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.0])
def test_hidden_key_of_a_long_line_is_as_one_that_is_not_there(impl, has_cls, value):
    assert_hidden_keys_are_not_there(impl, "HW", LONG, has_cls, value)


@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
def test_dropped_weight_that_is_not_finite_stays_so(impl, has_cls):
    """As in `F.dropout`, it is multiplied by 0. Here every weight is dropped."""
    qkv = random_qkv((1, 1, 1), "T", has_cls=has_cls)
    qkv[0, :, 0] = math.nan
    qkv = qkv.to(impl.device, dtype_of(impl))
    out = axial_attention(qkv, (1, 1, 1), dropout_p=0.9999, seed=1, impl=impl.name)
    assert out[0].isnan().all() and not out[1].any()
