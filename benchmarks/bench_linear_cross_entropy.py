"""linear_cross_entropy against eager, autocast, torch.compile, torch's own, Liger, CCE and fla.

    pytest benchmarks/bench_linear_cross_entropy.py --benchmark-only

Loss and all gradients over 8,197 classes, in the device's own dtype and under bf16 autocast. An
implementation may make its gradients in the forward, so only the sum of both times compares. The
error of the weight's gradient against fp64 is in the benchmark's extra_info.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import common
import interleaved
import pytest
import torch
import torch.nn.functional as F
from cases import Case, Tensors, dtypes, leaves_of, name_of
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

    def candidate(name: str) -> interleaved.Candidate:
        loss = OTHERS[name]() if name in OTHERS else ours(name)
        forward = functools.partial(autocast(loss) if cast else loss, *leaves, target)
        check_it = functools.partial(check, name, forward)
        inputs = leaves[:2] if "no bias" in name else leaves
        bf16 = cast or dtype == torch.bfloat16
        return interleaved.Candidate(forward, check_it, inputs=inputs, flops=flops, bf16=bf16)

    mode = "autocast" if cast else str(dtype).removeprefix("torch.")
    label = f"M{rows} D{width} V{common.VOCABULARY} {mode}"
    names = (*common.KERNELS[bench.device], *(("eager",) if cast else OTHERS))
    bench("linear_cross_entropy", label, names, candidate)


WORDS = 30_522  # BERT's, of SimVTP: more than a block of CUDA C++ holds in registers
ROWS = {  # of linear_cross_entropy: M, D, V, share of rows that count
    "published": (
        *((*size, common.VOCABULARY, 1.0) for size in SHAPES["cuda"]),
        (23_760, 512, common.VOCABULARY, 0.58),  # as in the step: masked of all that may be
        (4096, 768, WORDS, 1.0),
    ),
    "check": ((777, 512, common.VOCABULARY, 0.58), (300, 64, WORDS, 1.0)),
    "small": ((50, 64, 1031, 1.0), (50, 64, 1031, 0.58)),
}


def cases(scale: str, device: str) -> Iterator[Case]:
    """The calls that a visit to a GPU checks and times."""
    for size in ROWS[scale]:
        yield from (_case(*size, dtype, device) for dtype in dtypes(scale))


def _case(M: int, D: int, V: int, share: float, dtype: torch.dtype, device: str) -> Case:
    """Every fifth target is ignored; with a share below 1, `count` says how many rows are live."""
    live = int(M * share)
    count = torch.tensor(live, dtype=torch.int32, device=device) if share < 1 else None

    def make() -> Tensors:
        x, weight, bias = leaves_of([(M, D), (V, D), (V,)], dtype, device)
        with torch.no_grad():
            weight *= 2 / D**0.5
        target = torch.randint(V, (M,), device=device)
        target[::5] = -100
        return [x, weight, bias, target]

    def run(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, *, impl: str) -> Any:
        return vimpac_kernels.linear_cross_entropy(
            x, weight, target, linear_bias=bias, count=count, impl=impl
        )

    def plain(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return eager(x[:live], weight, bias, target[:live])

    flops = sum(common.linear_cross_entropy_flops(M, D, V))
    label = f"M{M} D{D} V{V} {name_of(dtype)}" + (f" count {live}" if share < 1 else "")
    peer = ("eager", plain)
    row = -(-V // 64) * 64 * dtype.itemsize
    kernel = (live + M) * row  # live rows are read, all of them written, in place
    return Case("linear_cross_entropy", label, D, dtype, make, run, None, peer, flops, kernel)


def triton_calls() -> Iterator[common.TritonCall]:
    """Triton kernels with the arguments of real calls on meta tensors, for the static report."""
    from vimpac_kernels.ops.linear_cross_entropy import triton

    fp32, int32 = torch.float32, torch.int32
    V, stride, rows = 8197, 8256, 5120
    for dtype in (torch.bfloat16, fp32):
        z = torch.empty(rows, stride, dtype=dtype, device="meta")
        target = torch.empty(rows, dtype=torch.int64, device="meta")
        positions = torch.empty(rows, dtype=int32, device="meta")
        losses, partial = (torch.empty(n, dtype=fp32, device="meta") for n in (rows, stride))
        counts, bias = positions[:2], partial[:V]
        tensors = (z, bias, target, positions, counts[0], losses, losses, counts, partial)
        flags = {"GRADIENT": True, "SMOOTH": True, "V": V}
        scalars = (rows, 0, -100, 0.1, 1e-4)
        yield (
            triton.linear_cross_entropy_fwd_kernel,
            (*tensors, *scalars),
            flags | triton.tile_of(stride),
        )
    yield triton.linear_cross_entropy_dbias_kernel, (partial, bias, 132), triton.sums_of(V, stride)
