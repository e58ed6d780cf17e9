"""dropout_add_layer_norm against eager, torch.compile, Liger and flash-attn.

    pytest benchmarks/bench_dropout_add_layer_norm.py --benchmark-only

The branch's Linear bias, dropout 0.1, the residual and the post-norm of one block. Liger has no
dropout and no Linear bias in its kernel, so it runs behind eager ones; flash-attn has no Linear
bias. None of the others drops the elements that ours drops: they are checked without dropout.
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
from cases import Case, leaves_of, name_of, shapes
from torch import Tensor

import vimpac_kernels
from vimpac_kernels import reference

DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
EPS = 1e-12
# x, residual, weight, bias, linear_bias, dropout_p -> y
Op = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]


def eager(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor, p: float
) -> Tensor:
    """One torch operator after the other."""
    total = residual + F.dropout(x + linear_bias, p)
    return F.layer_norm(total, total.shape[-1:], weight, bias, EPS)


def ours(impl: str) -> Op:
    """One implementation of this package."""

    def run(
        x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, linear_bias: Tensor, p: float
    ) -> Tensor:
        y = vimpac_kernels.dropout_add_layer_norm(
            x, residual, weight, bias, linear_bias=linear_bias, dropout_p=p, eps=EPS, seed=1,
            impl=impl,
        )  # fmt: skip
        assert isinstance(y, Tensor)
        return y

    return run


def liger() -> Op:
    """Liger-Kernel's layer norm behind an eager bias, dropout and addition."""
    module = importlib.import_module("liger_kernel.transformers.functional")
    return lambda x, residual, weight, bias, linear_bias, p: module.liger_layer_norm(
        residual + F.dropout(x + linear_bias, p), weight, bias, EPS
    )


def flash_attn() -> Op:
    """flash-attn's Triton layer norm behind an eager bias."""
    module = importlib.import_module("flash_attn.ops.triton.layer_norm")
    return lambda x, residual, weight, bias, linear_bias, p: module.layer_norm_fn(
        x + linear_bias, weight, bias, residual=residual, eps=EPS, dropout_p=p
    )


def compiled() -> Op:
    """The compiled formula at its best: static, and with the faster generator of each device."""
    on_cpu = common.default_device() == "cpu"
    # Dynamic, the rate would be an input of the graph, as the check has another one.
    return torch.compile(eager, dynamic=False, options={"fallback_random": on_cpu})


OTHERS: dict[str, Callable[[], Op]] = {
    "eager": lambda: eager,
    "torch.compile": compiled,
    "liger": liger,
    "flash-attn": flash_attn,
}


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    "shape", common.SHAPES[common.default_device()], ids=lambda shape: shape.label
)
def test_dropout_add_layer_norm(bench, dropout_p: float, shape: common.Shape) -> None:
    """Times the hidden buffer of one real configuration."""
    dtype, device, width = DTYPE[bench.device], bench.device, shape.N * shape.Dh
    torch.manual_seed(0)
    leaves = [torch.randn(shape.rows, width, device=device, dtype=dtype) for _ in range(2)]
    leaves += [torch.randn(width, device=device, dtype=dtype) for _ in range(3)]
    leaves = [t.requires_grad_() for t in leaves]
    moved = common.dropout_add_layer_norm_bytes(shape.rows, width, dtype.itemsize, dropout_p > 0)

    def check(op: Op, p: float) -> None:
        truth = reference.dropout_add_layer_norm(
            *(t.double() for t in leaves[:4]),
            linear_bias=leaves[4].double(),
            dropout_p=p,
            eps=EPS,
            seed=1,
        )
        error = (op(*leaves, p).double() - truth).abs().max().item()
        assert error < (1e-4 if dtype == torch.float32 else 0.1), f"error {error:.1e}"

    def candidate(name: str) -> interleaved.Candidate:
        other = name in OTHERS
        op = OTHERS[name]() if other else ours(name)
        return interleaved.Candidate(
            lambda: op(*leaves, dropout_p),
            functools.partial(check, op, 0.0 if other else dropout_p),
            inputs=leaves,
            moved_bytes=sum(moved),
        )

    label = f"{shape.label} {str(dtype).removeprefix('torch.')} dropout {dropout_p}"
    names = (*common.KERNELS[bench.device], *OTHERS)
    bench("dropout_add_layer_norm", label, names, candidate)


def cases(scale: str, device: str) -> Iterator[Case]:
    """The calls that a visit to a GPU checks and times."""
    for shape, dtype in shapes(scale):
        rows, width = shape.rows, shape.N * shape.Dh
        sizes = [(rows, width), (rows, width), (width,), (width,), (width,)]
        for dropout, readers in ((0.0, 1), (0.1, 1), (0.1, 2)):
            forward, backward = common.dropout_add_layer_norm_bytes(
                rows, width, dtype.itemsize, dropout > 0
            )
            backward += (readers - 1) * rows * width * dtype.itemsize
            yield Case(
                "dropout_add_layer_norm",
                f"{shape.label} {name_of(dtype)} dropout {dropout}" + " readers 2" * (readers - 1),
                width,
                dtype,
                functools.partial(leaves_of, sizes, dtype, device),
                functools.partial(_ours_layer_norm, dropout, readers),
                (forward, backward),
                ("eager", functools.partial(_eager_layer_norm, dropout, readers)),
            )


def _ours_layer_norm(dropout: float, readers: int, *tensors: Tensor, impl: str) -> Any:
    *four, linear_bias = tensors
    eps = EPS
    options: dict[str, Any] = {
        "linear_bias": linear_bias,
        "dropout_p": dropout,
        "eps": eps,
        "seed": 1,
    }
    options["readers"] = readers
    return vimpac_kernels.dropout_add_layer_norm(*four, **options, impl=impl)


def _eager_layer_norm(dropout: float, readers: int, *tensors: Tensor) -> Any:
    y = eager(*tensors, dropout)
    return y if readers == 1 else (y, y.view_as(y))


def triton_calls() -> Iterator[common.TritonCall]:
    """Triton kernels with the arguments of real calls on meta tensors, for the static report."""
    from vimpac_kernels.ops.dropout_add_layer_norm import triton

    bf16, fp32 = torch.bfloat16, torch.float32
    for dtype, wide, D in ((bf16, bf16, 512), (bf16, fp32, 1024), (fp32, fp32, 512)):
        x = torch.empty(1280, D, dtype=dtype, device="meta")
        r = torch.empty(1280, D, dtype=wide, device="meta")
        vector = torch.empty(D, dtype=fp32, device="meta")
        seed = torch.empty((), dtype=torch.int64, device="meta")
        (threshold, keep_scale), constants = triton.dropout_of(6554)
        scalars = (1280, threshold, keep_scale)
        forward = (x, r, vector, vector, vector, seed, x, r, vector, vector)
        tile = triton.tile_of(D, triton.TUNING["FWD_ELEMENTS"])
        yield (
            triton.dropout_add_layer_norm_fwd_kernel,
            (*forward, *scalars, 1e-12),
            constants | tile,
        )
        backward = (x, x, r, r, vector, vector, vector, seed, x, r, vector)
        constants["LINEAR_BIAS"] = True
        tile = triton.tile_of(D, triton.TUNING["BWD_ELEMENTS"], x.element_size())
        yield triton.dropout_add_layer_norm_bwd_kernel, (*backward, *scalars), constants | tile
        yield (
            triton.dropout_add_layer_norm_sum_kernel,
            (vector, vector, vector, vector, 528),
            triton.sums_of(D),
        )
