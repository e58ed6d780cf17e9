"""linear_cross_entropy against eager, autocast, torch.compile, torch's own, Liger, CCE and fla.

    pytest benchmarks/bench_linear_cross_entropy.py --benchmark-only

Loss and all gradients over 8,197 classes, in the device's own dtype and under bf16 autocast. An
implementation may make its gradients in the forward, so only the sum of both times compares. The
error of the weight's gradient against fp64 is in the benchmark's extra_info.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import common
import pytest
import torch
import torch.nn.functional as F
import turns
from torch import Tensor

import vimpac_kernels

SHAPES = {  # M, D
    "cpu": ((512, 512), (2000, 512), (8192, 512)),
    "cuda": ((5000, 512), (23_760, 512), (122_880, 1024)),
}
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of dweight, relative to its largest
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # input, weight, bias, target


def eager(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """The two operators that everyone starts from."""
    return F.cross_entropy(F.linear(x, weight, bias), target)


def autocast(loss: Loss) -> Loss:
    """`loss` on fp32 tensors under bf16 autocast."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return loss(x, weight, bias, target)

    return run


def ours(impl: str) -> Loss:
    """One implementation of this package."""

    def run(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        loss = vimpac_kernels.linear_cross_entropy(x, weight, target, linear_bias=bias, impl=impl)
        assert isinstance(loss, Tensor)
        return loss

    return run


def torch_chunked() -> Loss:
    """PyTorch's own operator, torch >= 2.13."""
    loss = F.linear_cross_entropy
    return lambda x, weight, bias, target: loss(x, weight, target, linear_bias=bias)


def liger() -> Loss:
    """Liger-Kernel."""
    module = importlib.import_module("liger_kernel.transformers")
    loss = module.LigerFusedLinearCrossEntropyLoss()
    return lambda x, weight, bias, target: loss(weight, x, target, bias)


def cut_cross_entropy() -> Loss:
    """Apple's cut-cross-entropy, whose releases take no bias."""
    module = importlib.import_module("cut_cross_entropy")
    return lambda x, weight, bias, target: module.linear_cross_entropy(x, weight, target)


def fla() -> Loss:
    """flash-linear-attention's module."""
    module = importlib.import_module("fla.modules")
    loss = module.FusedLinearCrossEntropyLoss()
    return lambda x, weight, bias, target: loss(x, target, weight, bias)


OTHERS: dict[str, Callable[[], Loss]] = {
    "eager": lambda: eager,
    "torch.compile": lambda: torch.compile(eager),
    "torch": torch_chunked,
    "liger": liger,
    "cut-cross-entropy, no bias": cut_cross_entropy,
    "fla": fla,
}


def _tensors(rows: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x = torch.randn(rows, width, device=device)
    weight = torch.randn(common.VOCABULARY, width, device=device) * 2 / width**0.5
    bias = torch.randn(common.VOCABULARY, device=device)
    leaves = (t.to(dtype).requires_grad_() for t in (x, weight, bias))
    return *leaves, torch.randint(common.VOCABULARY, (rows,), device=device)


@functools.cache
def _true_weight_gradient(
    rows: int, width: int, dtype: torch.dtype, device: str, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """Loss and dweight in fp64, in pieces of 1,024 rows."""
    x, weight, bias, target = (t.detach() for t in _tensors(rows, width, dtype, device))
    weight, bias = weight.double().requires_grad_(), has_bias * bias.double()
    total = torch.zeros((), dtype=torch.float64, device=device)
    for piece, labels in zip(x.double().split(1024), target.split(1024), strict=True):
        loss = F.cross_entropy(F.linear(piece, weight, bias), labels, reduction="sum")
        (loss / rows).backward()
        total += loss.detach() / rows
    assert weight.grad is not None
    return total, weight.grad


@pytest.mark.parametrize("cast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize(("rows", "width"), SHAPES[common.default_device()])
def test_linear_cross_entropy(bench, rows: int, width: int, cast: bool) -> None:
    """Times a mean over random targets; under autocast ours and eager alone."""
    dtype = torch.float32 if cast else DTYPE[bench.device]
    *leaves, target = _tensors(rows, width, dtype, bench.device)
    flops = sum(common.linear_cross_entropy_flops(rows, width, common.VOCABULARY))

    def check(name: str, forward: Callable[[], Tensor]) -> None:
        case = rows, width, dtype, bench.device
        true_loss, truth = _true_weight_gradient(*case, has_bias="no bias" not in name)
        value = forward()
        (gradient,) = torch.autograd.grad(value, leaves[1])
        error = ((gradient.double() - truth).abs().max() / truth.abs().max()).item()
        bench.benchmark.extra_info[f"dweight error, {name}"] = error
        assert error < LARGEST_ERROR[torch.bfloat16 if cast else dtype]
        assert abs(value.item() - true_loss.item()) < 1e-2 * true_loss.item()

    def candidate(name: str) -> turns.Candidate:
        loss = OTHERS[name]() if name in OTHERS else ours(name)
        forward = functools.partial(autocast(loss) if cast else loss, *leaves, target)
        check_it = functools.partial(check, name, forward)
        inputs = leaves[:2] if "no bias" in name else leaves
        bf16 = cast or dtype == torch.bfloat16
        return turns.Candidate(forward, check_it, inputs=inputs, flops=flops, bf16=bf16)

    mode = "autocast" if cast else str(dtype).removeprefix("torch.")
    label = f"M{rows} D{width} V{common.VOCABULARY} {mode}"
    names = (*common.KERNELS[bench.device], *(("eager",) if cast else OTHERS))
    bench("linear_cross_entropy", label, names, candidate)
