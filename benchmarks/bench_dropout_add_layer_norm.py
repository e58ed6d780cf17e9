"""dropout_add_layer_norm against eager, torch.compile, Liger and flash-attn.

    pytest benchmarks/bench_dropout_add_layer_norm.py --benchmark-only

The branch's Linear bias, dropout 0.1, the residual and the post-norm of one block. Liger has no
dropout and no Linear bias in its kernel, so it runs behind eager ones; flash-attn has no Linear
bias. None of the others drops the elements that ours drops: they are checked without dropout.
"""

from __future__ import annotations

from collections.abc import Callable

import common
import pytest
import torch
import torch.nn.functional as F
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
    module = pytest.importorskip("liger_kernel.transformers.functional", exc_type=ImportError)
    return lambda x, residual, weight, bias, linear_bias, p: module.liger_layer_norm(
        residual + F.dropout(x + linear_bias, p), weight, bias, EPS
    )


def flash_attn() -> Op:
    """flash-attn's Triton layer norm behind an eager bias."""
    module = pytest.importorskip("flash_attn.ops.triton.layer_norm", exc_type=ImportError)
    return lambda x, residual, weight, bias, linear_bias, p: module.layer_norm_fn(
        x + linear_bias, weight, bias, residual=residual, eps=EPS, dropout_p=p
    )


OTHERS: dict[str, Callable[[], Op]] = {
    "eager": lambda: eager,
    "torch.compile": lambda: torch.compile(eager),
    "liger": liger,
    "flash-attn": flash_attn,
}


@pytest.mark.parametrize("name", ["cuda", "triton", "cpu", *OTHERS])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    "shape", common.SHAPES[common.default_device()], ids=lambda shape: shape.label
)
def test_dropout_add_layer_norm(bench, name: str, dropout_p: float, shape: common.Shape) -> None:
    """Times one candidate on the hidden buffer of one real configuration."""
    dtype, device, width = DTYPE[bench.device], bench.device, shape.N * shape.Dh
    if name in OTHERS:
        op = OTHERS[name]()
    else:
        bench.require("dropout_add_layer_norm", name)
        op = ours(name)
    torch.manual_seed(0)
    leaves = [torch.randn(shape.rows, width, device=device, dtype=dtype) for _ in range(2)]
    leaves += [torch.randn(width, device=device, dtype=dtype) for _ in range(3)]
    leaves = [t.requires_grad_() for t in leaves]

    def forward() -> Tensor:
        return op(*leaves, dropout_p)

    def check() -> None:
        p = dropout_p if name not in OTHERS else 0.0
        truth = reference.dropout_add_layer_norm(
            *(t.double() for t in leaves[:4]),
            linear_bias=leaves[4].double(),
            dropout_p=p,
            eps=EPS,
            seed=1,
        )
        error = (op(*leaves, p).double() - truth).abs().max().item()
        assert error < (1e-4 if dtype == torch.float32 else 0.1), f"error {error:.1e}"

    moved = common.dropout_add_layer_norm_bytes(shape.rows, width, dtype.itemsize, dtype.itemsize)
    bench(
        "dropout_add_layer_norm",
        f"{shape.label} {str(dtype).removeprefix('torch.')} dropout {dropout_p}",
        name,
        forward,
        check=check,
        inputs=leaves,
        moved_bytes=sum(moved),
    )
