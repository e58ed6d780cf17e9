"""Inputs of linear_cross_entropy, and its comparison with the reference in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checks import assert_close
from vimpac_kernels import linear_cross_entropy
from vimpac_kernels.reference import LinearCrossEntropyOutput

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = {  # M, V, D
    "aligned": (32, 64, 64),
    "ragged": (17, 37, 24),
    "all ones": (1, 1, 8),
    "vimpac vocabulary": (9, 8197, 64),
}
FAST = pytest.mark.impls("cpu", "triton", "cuda")
GRADIENTS = ("input", "linear_weight", "linear_bias")


def make_case(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict[str, Tensor]:
    """Logits of standard deviation about 2, every fifth target ignored."""
    M, V, D = shape
    generator = torch.Generator().manual_seed(M + V + D)
    case = {
        "input": torch.randn(M, D, generator=generator),
        "linear_weight": torch.randn(V, D, generator=generator) * 2 / D**0.5,
        "linear_bias": torch.randn(V, generator=generator),
    }
    case = {name: t.to(device=device, dtype=dtype) for name, t in case.items()}
    target = torch.randint(0, V, (M,), generator=generator)
    target[1::5] = -100
    return case | {"target": target.to(device)}


def run(
    impl: str, case: dict[str, Tensor], needs: tuple[str, ...] = GRADIENTS, **options: Any
) -> tuple[LinearCrossEntropyOutput, dict[str, Tensor]]:
    """The outputs and the gradients of `needs`; rows of reduction "none" are weighted."""
    case = {n: t.detach().clone().requires_grad_(n in needs) for n, t in case.items()}
    output = linear_cross_entropy(**case, return_stats=True, impl=impl, **options)
    assert isinstance(output, LinearCrossEntropyOutput)
    weight = torch.linspace(0.5, 2, output.loss.numel(), device=output.loss.device)
    loss = (output.loss * weight.view_as(output.loss)).sum()
    gradients = torch.autograd.grad(loss, [case[n] for n in needs])
    return output, dict(zip(needs, gradients, strict=True))


def doubled(case: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers in fp64."""
    return {n: t.double() if t.dtype.is_floating_point else t for n, t in case.items()}


def check(impl: Any, case: dict[str, Tensor], **options: Any) -> None:
    """Every output and gradient of `impl` is as near to the truth as the reference.

    Losses are compared row by row: in a mean the errors of the reference may cancel.
    """
    actual, gradients = run(impl.name, case, **options)
    reference, same_dtype = run("reference", case, **options)
    _, true_gradients = run("reference", doubled(case), **options)
    assert actual.loss.dtype == torch.float32 and actual.num_targets.dtype == torch.int32
    rows = {
        name: run(which, tensors, **options | {"reduction": "none"})[0].loss
        for name, which, tensors in (
            ("actual", impl.name, case),
            ("truth", "reference", doubled(case)),
            ("reference", "reference", case),
        )
    }
    assert_close(rows["actual"], rows["truth"], rows["reference"])
    total = rows["actual"].sum() if actual.loss.dim() == 0 else rows["actual"]
    mean = options.get("reduction", "mean") == "mean"
    total = total / actual.num_targets.clamp(min=1) if mean else total
    torch.testing.assert_close(actual.loss, total, rtol=1e-6, atol=0)
    assert torch.equal(actual.num_targets, reference.num_targets)
    if case["input"].dtype == torch.float32:  # rounded logits may tie
        assert torch.equal(actual.accuracy, reference.accuracy)
    for name in GRADIENTS:
        assert gradients[name].dtype == case[name].dtype
        assert_close(gradients[name], true_gradients[name], same_dtype[name])


INF = float("inf")
EXTREMES = {  # three of 37 logits that are else random
    "a loss of 60": (-60.0, 0.0, 0.0),
    "a loss of 300": (0.0, 300.0, 0.0),
    "the target far ahead": (300.0, 0.0, -300.0),
    "near the largest float": (2.9e38, 3.0e38, -3.0e38),
    "the target near the smallest": (-3.0e38, 1.0, 2.0),
    "a class that never comes": (1.0, -INF, 0.0),
    "a target that never comes": (-INF, 1.0, 0.0),
    "an infinity elsewhere": (1.0, INF, 0.0),
    "an infinite target": (INF, 1.0, 0.0),
    "NaN elsewhere": (1.0, float("nan"), 0.0),
    "a NaN target": (float("nan"), 1.0, 0.0),
}


def check_extreme(impl: Any, logits: tuple[float, ...], V: int = 37) -> None:
    """Loss, accuracy and gradient of logits that are nothing but the bias; the target is first."""
    case = make_case((1, V, 8), torch.float32, impl.device)
    case["input"] = torch.zeros_like(case["input"])
    case["linear_bias"][[5, V - 1, V // 2]] = torch.tensor(logits, device=impl.device)
    case["target"] = torch.tensor([5], device=impl.device)
    needs = ("linear_bias",)
    output, gradients = run(impl.name, case, needs)
    if INF in logits:
        assert not output.loss.isfinite()
        return
    reference, _ = run("reference", case, needs)
    truth, true_gradients = run("reference", doubled(case), needs)
    torch.testing.assert_close(output.loss, truth.loss.float(), equal_nan=True)
    expected = true_gradients["linear_bias"].float()
    torch.testing.assert_close(gradients["linear_bias"], expected, equal_nan=True)
    if not case["linear_bias"].isnan().any():
        assert output.accuracy == reference.accuracy
