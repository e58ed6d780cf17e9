"""tubelet_mse against the chain of torch operators that VideoMAE trains with, and leaner ones.

    pytest benchmarks/bench_tubelet_mse.py --benchmark-only

Nine tenths of the tubelets of 16 frames are predicted, of 224 x 224 pixels and of a quarter of
that. The chain normalises all tubelets of a clip; the leaner one gathers the bytes of those that
are predicted first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import common
import interleaved
import pytest
import torch
import torch.nn.functional as F
from cases import Case, Tensors, dtypes, name_of
from torch import Tensor

import vimpac_kernels
from vimpac_kernels import reference

DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
EPS = 1e-6
# pred, video, tubelets, (t, P) -> the loss
Op = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]


@dataclass(frozen=True)
class Shape:
    """B clips of T frames of `side` pixels, M of whose tubelets (t, P) are predicted."""

    name: str
    B: int
    T: int
    side: int
    tubelet: tuple[int, int]
    M: int

    @property
    def elements(self) -> int:
        """Of pred for one tubelet."""
        t, P = self.tubelet
        return t * P * P * 3

    @property
    def label(self) -> str:
        """As printed in tables."""
        t, P = self.tubelet
        return f"{self.name} B{self.B} {self.T}x{self.side}x{self.side} {t}x{P}x{P} M{self.M}"

    def make(self, dtype: torch.dtype, device: str) -> Tensors:
        """pred, which has a gradient, random pixels, and chosen tubelets in increasing order."""
        torch.manual_seed(self.M)
        size = (self.B, self.T, self.side, self.side, 3)
        video = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
        (t, P), pred = self.tubelet, torch.randn(self.B, self.M, self.elements, device=device)
        N = self.T // t * (self.side // P) ** 2
        chosen = torch.rand(self.B, N, device=device).argsort(1)[:, : self.M].sort(1).values
        return [pred.to(dtype).requires_grad_(), video, chosen.int()]


RELEASED = Shape("released", 2, 16, 224, (2, 16), 1408)
REDUCED = Shape("reduced", 4, 16, 112, (2, 16), 352)
SHAPES = {
    "cpu": (RELEASED, REDUCED),
    "cuda": (Shape("released", 32, 16, 224, (2, 16), 1408), REDUCED),
    "published": (Shape("released", 32, 16, 224, (2, 16), 1408), REDUCED),
    "check": (Shape("released", 1, 16, 224, (2, 16), 1408), Shape("P14", 2, 4, 56, (2, 14), 20)),
    "small": (Shape("tiny", 1, 4, 32, (2, 16), 5), Shape("P3", 2, 2, 9, (1, 3), 11)),
}


def _patches(video: Tensor, tubelet: tuple[int, int]) -> Tensor:
    """(B, N, t*P*P, 3)"""
    (t, P), (B, T, H, W, _) = tubelet, video.shape
    x = video.view(B, T // t, t, H // P, P, W // P, P, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(B, -1, t * P * P, 3)


def _normalised(x: Tensor) -> Tensor:
    return (x - x.mean(-2, keepdim=True)) / (x.var(-2, keepdim=True).sqrt() + EPS)


def _chosen(x: Tensor, tubelets: Tensor) -> Tensor:
    clip = torch.arange(len(x), device=x.device)[:, None]
    return x[clip, tubelets.long()]


def eager(pred: Tensor, video: Tensor, tubelets: Tensor, tubelet: tuple[int, int]) -> Tensor:
    """One torch operator after the other, over all tubelets until the gather."""
    target = _chosen(_normalised(_patches(video.float() / 255, tubelet)), tubelets)
    return F.mse_loss(pred.float(), target.flatten(2))


def gather_first(pred: Tensor, video: Tensor, tubelets: Tensor, tubelet: tuple[int, int]) -> Tensor:
    """Only what is predicted is made fp32."""
    target = _normalised(_chosen(_patches(video, tubelet), tubelets).float() / 255)
    return F.mse_loss(pred.float(), target.flatten(2))


def ours(impl: str) -> Op:
    """One implementation of this package."""

    def run(pred: Tensor, video: Tensor, tubelets: Tensor, tubelet: tuple[int, int]) -> Tensor:
        return vimpac_kernels.tubelet_mse(
            pred, video, tubelets, tubelet=tubelet, eps=EPS, impl=impl
        )

    return run


OTHERS: dict[str, Callable[[], Op]] = {
    "eager": lambda: eager,
    "gather first": lambda: gather_first,
    "torch.compile": lambda: torch.compile(eager, dynamic=False),
    "torch.compile gather first": lambda: torch.compile(gather_first, dynamic=False),
}


@pytest.mark.parametrize("shape", SHAPES[common.default_device()], ids=lambda shape: shape.label)
def test_tubelet_mse(bench, shape: Shape) -> None:
    """Times the loss of one step of a configuration."""
    dtype = DTYPE[bench.device]
    pred, video, tubelets = shape.make(dtype, bench.device)

    def check(op: Op) -> None:
        options = {"tubelet": shape.tubelet, "eps": EPS}
        truth = reference.tubelet_mse(pred.double(), video, tubelets, **options)
        results = [(y, torch.autograd.grad(y, pred)[0].double()) for y in (truth, op_of(op))]
        (y, dy), (z, dz) = results
        error = (y - z).abs().item()
        of_gradient = ((dy - dz).abs().max() / dy.abs().max()).item()
        assert error < 1e-5, f"error {error:.1e}"
        assert of_gradient < (1e-5 if dtype == torch.float32 else 0.01), f"error {of_gradient:.1e}"

    def op_of(op: Op) -> Tensor:
        return op(pred, video, tubelets, shape.tubelet)

    def candidate(name: str) -> interleaved.Candidate:
        op = OTHERS[name]() if name in OTHERS else ours(name)
        moved = common.tubelet_mse_bytes(shape.B * shape.M, shape.elements, dtype.itemsize)
        return interleaved.Candidate(
            functools.partial(op_of, op),
            functools.partial(check, op),
            inputs=[pred],
            moved_bytes=sum(moved),
        )

    label = f"{shape.label} {name_of(dtype)}"
    bench("tubelet_mse", label, (*common.KERNELS[bench.device], *OTHERS), candidate)


def cases(scale: str, device: str) -> Iterator[Case]:
    """The calls that a visit to a GPU checks and times."""
    yield from (_case(s, dtype, device) for s in SHAPES[scale] for dtype in dtypes(scale))


def _case(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    def run(pred: Tensor, video: Tensor, tubelets: Tensor, *, impl: str) -> Tensor:
        return ours(impl)(pred, video, tubelets, shape.tubelet)

    def plain(pred: Tensor, video: Tensor, tubelets: Tensor) -> Tensor:
        return eager(pred, video, tubelets, shape.tubelet)

    return Case(
        "tubelet_mse",
        f"{shape.label} {name_of(dtype)}",
        0,
        dtype,
        functools.partial(shape.make, dtype, device),
        run,
        common.tubelet_mse_bytes(shape.B * shape.M, shape.elements, dtype.itemsize),
        ("eager", plain),
    )


def triton_calls() -> Iterator[common.TritonCall]:
    """Triton kernels with the arguments of real calls on meta tensors, for the static report."""
    from vimpac_kernels.ops.tubelet_mse import triton

    (t, P), M, B = RELEASED.tubelet, RELEASED.M, RELEASED.B
    number = torch.empty((), device="meta")
    video = torch.empty(B, RELEASED.T, *(RELEASED.side,) * 2, 3, dtype=torch.uint8, device="meta")
    tubelets = torch.empty(B, M, dtype=torch.int32, device="meta")
    tile = triton.tile_of(video, t, P)
    for dtype in (torch.bfloat16, torch.float32):
        pred = torch.empty(B, M, RELEASED.elements, dtype=dtype, device="meta")
        inputs = (pred, video, tubelets)
        yield triton.tubelet_mse_fwd_kernel, (*inputs, number, B * M, M, EPS * 255), tile
        backward = (*inputs, number, pred, B * M, M, EPS * 255, 1e-6)
        yield triton.tubelet_mse_bwd_kernel, backward, tile
    chunk = {"CHUNK": triton.TUNING["SUM_CHUNK"]}
    yield triton.tubelet_mse_sum_kernel, (number, number, 1056, pred.numel()), chunk
