"""linear_cross_entropy: positions and counts that are wrong, not looked at, or changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cases.linear_cross_entropy import FAST, make_case
from vimpac_kernels import linear_cross_entropy, reference
from vimpac_kernels.ops.linear_cross_entropy import operators


@pytest.mark.impls("cpu", "reference")
@pytest.mark.parametrize("position", [-1, -7, 10, 2**31 - 1])
def test_counted_position_outside_the_rows(impl, position: int) -> None:
    x, weight = torch.randn(10, 16), torch.randn(13, 16)
    positions = torch.tensor([3, position, 1], dtype=torch.int32)
    target, count = torch.randint(0, 13, (10,)), torch.tensor(2, dtype=torch.int32)
    with pytest.raises(IndexError, match=rf"position {position} is outside \[0, 10\)"):
        linear_cross_entropy(x, weight, target, positions=positions, count=count, impl=impl.name)


@pytest.mark.impls("cpu", "reference")
@pytest.mark.parametrize(
    ("positions", "count", "message"),
    [
        ([0, -1, 3], None, r"position -1 is outside \[0, 4\)"),
        ([0, 4], None, r"position 4 is outside \[0, 4\)"),
        ([2, 0, 2], None, "position 2 is there twice"),
        ([2, 0, 2], 3, "position 2 is there twice"),
        ([0, 1], 3, r"count 3 is outside \[0, 2\], the number of positions"),
        ([0, 1], -3, r"count -3 is outside \[0, 2\], the number of positions"),
        (None, 5, r"count 5 is outside \[0, 4\], the number of rows"),
        (None, -1, r"count -1 is outside \[0, 4\], the number of rows"),
    ],
)
def test_no_row_is_dropped_or_counted_twice_in_silence(impl, positions, count, message) -> None:
    x, weight, target = torch.randn(4, 8), torch.randn(5, 8), torch.arange(4)
    named = {"positions": positions, "count": count}
    options = {k: torch.tensor(v, dtype=torch.int32) for k, v in named.items() if v is not None}
    with pytest.raises(IndexError, match=message):
        linear_cross_entropy(x, weight, target, **options, impl=impl.name)


@FAST
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("ignore_index", [-100, -2])
def test_negative_counted_position_is_never_a_row(impl, reduction: str, ignore_index: int) -> None:
    """NaN on a GPU; no memory outside the tensors is read or written; a CPU raises.

    Compiled code cannot look before it calls, so the kernels must.
    """
    case = make_case((10, 37, 16), torch.float32, impl.device)
    case["target"] = case["target"].clamp(min=0)
    positions = torch.tensor([3, -2, 1, -2], dtype=torch.int32, device=impl.device)
    options = {"positions": positions, "ignore_index": ignore_index, "reduction": reduction}
    options["count"] = torch.tensor(3, dtype=torch.int32, device=impl.device)
    inputs = (case["input"], case["linear_weight"], case["target"], case["linear_bias"])
    call = operators.Options(ignore_index, 0.0, 0.0, torch.float32)
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in inputs]

    def run_op() -> tuple[Tensor, Tensor, Tensor]:
        return operators.LinearCrossEntropy.apply(
            *leaves, positions, options["count"], call, reduction, impl.name
        )

    if impl.name == "cpu":
        with pytest.raises(IndexError, match=r"position -2 is outside \[0, 10\)"):
            run_op()
        return
    loss, _, targets = run_op()
    assert targets == 3
    if reduction == "mean":
        assert loss.isnan()
    else:
        assert loss.isnan().tolist() == [False, True, False, False]
    expected = reference.linear_cross_entropy(
        case["input"], case["linear_weight"], case["target"], linear_bias=case["linear_bias"],
        **options,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected.loss, equal_nan=True)
    (dinput,) = torch.autograd.grad(loss.nansum() if reduction == "none" else loss, leaves[0])
    others = [row for row in range(10) if row not in (1, 3)]
    assert not dinput[others].any()


@pytest.mark.impls("cpu", "reference")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_memory_that_is_filled_anew_before_the_backward_changes_no_gradient(
    impl, reduction: str
) -> None:
    """As NumPy's, which a loader refills and autograd cannot see."""
    arrays = {"target": np.arange(6) % 5, "positions": np.array([0, 2], np.int32)}
    arrays["count"] = np.array(2, np.int32)
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(5, 8)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    options = tensors | {"reduction": reduction, "impl": impl.name}
    loss = linear_cross_entropy(x, weight, **options).sum()
    (expected,) = torch.autograd.grad(loss, x, retain_graph=True)
    arrays["target"][:], arrays["positions"][:], arrays["count"][...] = 4, [3, 5], 1
    (actual,) = torch.autograd.grad(loss, x)
    assert torch.equal(actual, expected)


@pytest.mark.impls("cpu", "reference")
@pytest.mark.parametrize("rows", [4, 0])
def test_positions_that_do_not_count_may_say_anything(impl, rows: int) -> None:
    """Those from `count` on are not looked at."""
    x, weight, target = torch.randn(rows, 8), torch.randn(5, 8), torch.arange(rows)
    count = torch.tensor(min(rows, 1), dtype=torch.int32)
    positions = torch.tensor([0, rows, -1, 2**31 - 1][4 - rows :], dtype=torch.int32)
    if rows == 0:
        positions = torch.tensor([-1, 7], dtype=torch.int32)
    loss = linear_cross_entropy(x, weight, target, positions=positions, count=count, impl=impl.name)
    expected = torch.nn.functional.cross_entropy(x[:1] @ weight.T, target[:1]) if rows else 0.0
    torch.testing.assert_close(loss, torch.as_tensor(expected))
