"""bias_gelu against eager and torch.compile.

    pytest benchmarks/bench_bias_gelu.py --benchmark-only

On the hidden buffer of an MLP, alone and behind the Linear that makes it: others leave the bias to
that Linear, where a GPU's product adds it for nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import common
import interleaved
import pytest
import torch
import torch.nn.functional as F
from cases import Case, leaves_of, name_of, shapes
from torch import Tensor

import vimpac_kernels
from vimpac_kernels import reference

DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
# (x, bias) or (input, bias, weight) -> y
Op = Callable[..., Tensor]


def eager(x: Tensor, bias: Tensor, weight: Tensor | None = None) -> Tensor:
    """One torch operator after the other."""
    return F.gelu(x + bias if weight is None else F.linear(x, weight, bias))


def ours(impl: str) -> Op:
    """One implementation of this package."""

    def run(x: Tensor, bias: Tensor, weight: Tensor | None = None) -> Tensor:
        made = x if weight is None else F.linear(x, weight)
        return vimpac_kernels.bias_gelu(made, bias, impl=impl)

    return run


OTHERS: dict[str, Callable[[], Op]] = {
    "eager": lambda: eager,
    "torch.compile": lambda: torch.compile(eager, dynamic=False),
}


@pytest.mark.parametrize("linear", [False, True], ids=["alone", "linear"])
@pytest.mark.parametrize(
    "shape", common.SHAPES[common.default_device()], ids=lambda shape: shape.label
)
def test_bias_gelu(bench, shape: common.Shape, linear: bool) -> None:
    """Times the hidden buffer of one real configuration, four times as wide as the model."""
    dtype, device, width = DTYPE[bench.device], bench.device, shape.N * shape.Dh
    torch.manual_seed(0)
    hidden = 4 * width
    x = torch.randn(shape.rows, width if linear else hidden, device=device)
    leaves = [x, torch.randn(hidden, device=device)]
    if linear:
        leaves.append(torch.randn(hidden, width, device=device) / width**0.5)
    leaves = [t.to(dtype).requires_grad_() for t in leaves]

    def check(op: Op) -> None:
        wide = [t.detach().double() for t in leaves]
        made = F.linear(wide[0], wide[2]) if linear else wide[0]
        truth = reference.bias_gelu(made, wide[1])
        error = (op(*leaves).double() - truth).abs().max().item()
        assert error < (1e-4 if dtype == torch.float32 else 0.1), f"error {error:.1e}"

    def candidate(name: str) -> interleaved.Candidate:
        op = OTHERS[name]() if name in OTHERS else ours(name)
        return interleaved.Candidate(
            lambda: op(*leaves),
            functools.partial(check, op),
            inputs=leaves,
            moved_bytes=sum(common.bias_gelu_bytes(shape.rows, hidden, dtype.itemsize)),
            flops=3 * 2 * shape.rows * width * hidden if linear else None,  # three products
        )

    label = f"{shape.label} {str(dtype).removeprefix('torch.')}{' with Linear' if linear else ''}"
    bench("bias_gelu", label, (*common.KERNELS[bench.device], *OTHERS), candidate)


def cases(scale: str, device: str) -> Iterator[Case]:
    """The calls that a visit to a GPU checks and times."""
    for shape, dtype in shapes(scale):
        rows, hidden = shape.rows, 4 * shape.N * shape.Dh
        yield Case(
            "bias_gelu",
            f"{shape.label} {name_of(dtype)}",
            hidden,
            dtype,
            functools.partial(leaves_of, [(rows, hidden), (hidden,)], dtype, device),
            vimpac_kernels.bias_gelu,
            common.bias_gelu_bytes(rows, hidden, dtype.itemsize),
            ("eager", eager),
        )


def triton_calls() -> Iterator[common.TritonCall]:
    """Triton kernels with the arguments of real calls on meta tensors, for the static report."""
    from vimpac_kernels.ops.bias_gelu import triton

    M, D = 1280, 2048
    vector = torch.empty(D, device="meta")
    for dtype in (torch.bfloat16, torch.float32):
        x = torch.empty(M, D, dtype=dtype, device="meta")
        forward, backward = (
            triton.tile_of(D, triton.TUNING[k]) for k in ("FWD_ELEMENTS", "BWD_ELEMENTS")
        )
        yield triton.bias_gelu_fwd_kernel, (x, vector, x, M), forward
        yield triton.bias_gelu_bwd_kernel, (x, x, vector, x, vector, M), backward
    yield triton.bias_gelu_sum_kernel, (vector, vector, 132), triton.sums_of(D)
