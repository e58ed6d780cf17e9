"""A call that gpu_check.sh checks and times, and the shapes of such calls.

There are three scales of them: `published` is timed, `check` has the same lines and widths with few
clips, for a comparison in fp64, and `small` is for the emulator and for compute-sanitizer. The
calls of an op are in its bench_<op>.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import common
import torch
from common import Shape
from torch import Tensor

Tensors = list[Tensor]
BF16, FP32 = torch.bfloat16, torch.float32
TINY = Shape("tiny", 2, 3, 4, 5, 2, 64)
SCALES = {
    "published": common.SHAPES["cuda"],
    "check": (
        dataclasses.replace(common.SMALL, B=2),
        dataclasses.replace(common.LARGE, B=1, N=4),
        dataclasses.replace(common.LARGE_HALF, B=1, N=4),
    ),
    "small": (TINY, dataclasses.replace(TINY, name="long", B=1, T=2, H=17, W=3, Dh=32)),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an op.

    Args:
        op: Its name.
        label: Of the shape, as in the tables of results.
        width: Of a head or a row, by which predictions go.
        dtype: Of its results.
        make: Makes its tensors; those of floating point have gradients.
        run: Takes them and `impl`; returns its outputs.
        moved: Least bytes of forward and backward, or None where products bound it.
        flops: Of both together, where products bound it.
        kernel: Least bytes of our own kernels, where products take most of the time.
        peer: (name, the same in plain PyTorch), what a user would write.
    """

    op: str
    label: str
    width: int
    dtype: torch.dtype
    make: Callable[[], Tensors]
    run: Callable[..., Any]
    moved: tuple[int, int] | None
    peer: tuple[str, Callable[..., Any]]
    flops: int | None = None
    kernel: int | None = None

    def call(self, tensors: Tensors, impl: str) -> tuple[Tensor, ...]:
        """The outputs of one implementation, or of the peer."""
        name, plain = self.peer
        out = plain(*tensors) if impl == name else self.run(*tensors, impl=impl)
        return tuple(out) if isinstance(out, tuple) else (out,)

    def inputs(self, tensors: Tensors) -> Tensors:
        """Those that have gradients."""
        return [t for t in tensors if t.requires_grad]


def shapes(scale: str) -> Iterator[tuple[Shape, torch.dtype]]:
    """Every shape of a scale with each of its dtypes."""
    for shape in SCALES[scale]:
        yield from ((shape, dtype) for dtype in dtypes(scale))


def dtypes(scale: str) -> tuple[torch.dtype, ...]:
    """fp32 is checked, not timed."""
    return (BF16,) if scale == "published" else (BF16, FP32)


def name_of(dtype: torch.dtype) -> str:
    """bfloat16, ..."""
    return str(dtype).removeprefix("torch.")


def leaves_of(sizes: list[tuple[int, ...]], dtype: torch.dtype, device: str) -> Tensors:
    """Random tensors that have gradients."""
    torch.manual_seed(sum(map(len, sizes)))
    return [torch.randn(size, device=device, dtype=dtype, requires_grad=True) for size in sizes]
