"""tubelet_embed against eager and torch.compile.

    pytest benchmarks/bench_tubelet_embed.py --benchmark-only

Clips of a masked autoencoder with tube masks, of which a tenth of the cells is visible in every
frame, from the bytes that a loader gives. Eager PyTorch normalises all of the clip and convolves it
(VideoMAE, SimVTP), or gathers the visible bytes by an index and multiplies them (as a masked
autoencoder of images may).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import common
import interleaved
import pytest
import torch
import torch.nn.functional as F
from cases import BF16, FP32, Case, Tensors, dtypes, leaves_of, name_of
from torch import Tensor

import vimpac_kernels
from vimpac_kernels import reference

DTYPE = {"cpu": FP32, "cuda": BF16}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# video, tubelets, weight, bias, positions -> (B, V, D)
Op = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Clips:
    """One configuration: clips, frames and pixels of a side, those of a tubelet, width, cells."""

    name: str
    B: int
    T: int
    side: int
    t: int
    P: int
    D: int
    visible: int  # cells of a frame

    @property
    def cells(self) -> int:
        """Of a frame."""
        return (self.side // self.P) ** 2

    @property
    def V(self) -> int:
        """Visible tubelets of a clip."""
        return self.visible * (self.T // self.t)

    @property
    def N(self) -> int:
        """Tubelets of a clip."""
        return self.cells * (self.T // self.t)

    @property
    def label(self) -> str:
        """As printed in tables."""
        tubelet = f"{self.t}x{self.P}x{self.P}"
        return (
            f"{self.name} B{self.B} {self.T}x{self.side}x{self.side} {tubelet} D{self.D} "
            f"{self.V} of {self.N}"
        )

    def tubelets(self, device: str) -> Tensor:
        """(B, V): cells that are visible in every frame, drawn for each clip."""
        order = torch.rand(self.B, self.cells).argsort(1)[:, : self.visible].sort().values
        frames = torch.arange(self.T // self.t)[None, :, None] * self.cells
        return (frames + order[:, None]).flatten(1).to(device, torch.int32)

    def video(self, device: str) -> Tensor:
        """(B, T, side, side, 3) uint8."""
        size = (self.B, self.T, self.side, self.side, 3)
        return torch.randint(0, 256, size, dtype=torch.uint8, device=device)

    def sizes(self) -> list[tuple[int, ...]]:
        """Of weight and bias."""
        return [(self.D, 3, self.t, self.P, self.P), (self.D,)]


BASE = Clips("ViT-B", 32, 16, 224, 2, 16, 768, 20)
SMALL = Clips("ViT-S", 4, 8, 112, 2, 16, 384, 5)
SHAPES = {
    "cuda": (BASE, dataclasses.replace(BASE, name="ViT-L", D=1024)),
    "cpu": (dataclasses.replace(BASE, B=2), SMALL),
}
SCALES = {
    "published": SHAPES["cuda"],
    "check": (dataclasses.replace(BASE, B=2), SMALL),
    "small": (Clips("tiny", 2, 4, 32, 2, 8, 64, 3), Clips("odd", 2, 2, 15, 1, 3, 64, 4)),
}


def normalised(video: Tensor) -> Tensor:
    """In fp32, channels last."""
    constants = (torch.tensor(values, device=video.device) for values in (MEAN, STD))
    mean, std = constants
    return (video / 255 - mean) / std


def eager(
    video: Tensor, tubelets: Tensor, weight: Tensor, bias: Tensor, positions: Tensor
) -> Tensor:
    """All tubelets; the visible ones are chosen by a mask, as in VideoMAE."""
    x = normalised(video).movedim(-1, 1).to(weight.dtype)
    y = F.conv3d(x, weight, bias, stride=weight.shape[2:]).flatten(2).mT + positions
    mask = torch.zeros(y.shape[:2], dtype=torch.bool, device=y.device)
    mask.scatter_(1, tubelets.long(), True)
    return y[mask].view(len(y), -1, y.shape[2]).to(weight.dtype)


def gathered(
    video: Tensor, tubelets: Tensor, weight: Tensor, bias: Tensor, positions: Tensor
) -> Tensor:
    """The bytes of the visible tubelets first, then a Linear layer."""
    _, _, t, P, _ = weight.shape
    B, T, H, W, _ = video.shape
    cells = video.view(B, T // t, t, H // P, P, W // P, P, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
    index, clip = tubelets.long(), torch.arange(B, device=video.device)[:, None]
    frame, cell = index // (H // P * (W // P)), index % (H // P * (W // P))
    patches = cells[clip, frame, cell // (W // P), cell % (W // P)]  # (B, V, t, P, P, 3)
    x = normalised(patches).to(weight.dtype).flatten(2)
    y = F.linear(x, weight.permute(0, 2, 3, 4, 1).flatten(1), bias)
    return (y + positions[index]).to(weight.dtype)


OTHERS: dict[str, Callable[[], Op]] = {
    "eager": lambda: eager,
    "gather + Linear": lambda: gathered,
    "torch.compile": lambda: torch.compile(eager, dynamic=False),
    "torch.compile of gather + Linear": lambda: torch.compile(gathered, dynamic=False),
}


@pytest.mark.parametrize("clips", SHAPES[common.default_device()], ids=lambda clips: clips.name)
def test_tubelet_embed(bench, clips: Clips) -> None:
    """Times the embedding of one configuration, with the gradients of weight and bias."""
    dtype, device = DTYPE[bench.device], bench.device
    leaves = _leaves(clips, dtype, device)
    tensors = clips.video(device), clips.tubelets(device), *leaves
    positions = torch.randn(clips.N, clips.D, device=device)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    y = reference.tubelet_embed(*tensors[:2], *wide, positions, mean=MEAN, std=STD)
    truth = [y.detach(), *torch.autograd.grad(y.square().sum(), wide)]

    def check(op: Op) -> None:
        y = op(*tensors, positions)
        found = [y, *torch.autograd.grad(y.float().square().sum(), leaves)]
        for mine, true in zip(found, truth, strict=True):
            error = ((mine.double() - true).abs().max() / true.abs().max()).item()
            assert error < (1e-4 if dtype == FP32 else 0.03), f"relative error {error:.1e}"

    def candidate(name: str) -> interleaved.Candidate:
        ours = functools.partial(vimpac_kernels.tubelet_embed, impl=name)
        op = OTHERS[name]() if name in OTHERS else ours
        return interleaved.Candidate(
            lambda: op(*tensors, positions),
            functools.partial(check, op),
            inputs=leaves,
            flops=sum(common.tubelet_embed_flops(clips.B * clips.V, *leaves[0].shape)),
        )

    label = f"{clips.label} {name_of(dtype)}"
    bench("tubelet_embed", label, (*common.KERNELS[bench.device], *OTHERS), candidate)


def _leaves(clips: Clips, dtype: torch.dtype, device: str) -> Tensors:
    """Weight and bias, whose products have the size of the bias."""
    weight, bias = leaves_of(clips.sizes(), dtype, device)
    with torch.no_grad():
        weight *= weight[0].numel() ** -0.5
    return [weight, bias]


def cases(scale: str, device: str) -> Iterator[Case]:
    """The calls that a visit to a GPU checks and times."""
    for clips in SCALES[scale]:
        yield from (_case(clips, dtype, device) for dtype in dtypes(scale))


def _case(clips: Clips, dtype: torch.dtype, device: str) -> Case:
    @functools.cache
    def positions() -> Tensor:
        return torch.randn(clips.N, clips.D, device=device)

    def make() -> Tensors:
        return [*_leaves(clips, dtype, device), clips.video(device), clips.tubelets(device)]

    def run(weight: Tensor, bias: Tensor, video: Tensor, tubelets: Tensor, *, impl: str) -> Tensor:
        tensors = (video, tubelets, weight, bias, positions())
        return vimpac_kernels.tubelet_embed(*tensors, impl=impl)

    def plain(weight: Tensor, bias: Tensor, video: Tensor, tubelets: Tensor) -> Tensor:
        return eager(video, tubelets, weight, bias, positions())

    size, rows = clips.sizes()[0], clips.B * clips.V
    # Bytes are read and pixels are written twice, bytes written once; rows are written.
    pixels = rows * clips.t * clips.P**2 * 3
    kernel = pixels * (3 + 2 * dtype.itemsize) + rows * clips.D * dtype.itemsize
    return Case(
        "tubelet_embed",
        f"{clips.label} {name_of(dtype)}",
        clips.D,
        dtype,
        make,
        run,
        None,
        ("eager", plain),
        sum(common.tubelet_embed_flops(rows, *size)),
        kernel,
    )


def triton_calls() -> Iterator[common.TritonCall]:
    """Triton kernels with the arguments of real calls on meta tensors, for the static report."""
    from vimpac_kernels.ops.tubelet_embed import triton

    video = torch.empty(2, 16, 224, 224, 3, dtype=torch.uint8, device="meta")
    tubelets = torch.empty(2, 160, dtype=torch.int32, device="meta")
    vector, table = torch.empty(768, device="meta"), torch.empty(1568, 768, device="meta")
    for dtype in (BF16, FP32):
        pixels = torch.empty(320, 1536, dtype=dtype, device="meta")
        patches = pixels.to(torch.uint8)
        numbers = (*video.stride()[:3], 160, 8, 14, 14, *(0.02,) * 3, *(-2.0,) * 3)
        forward = (video, tubelets, table, vector, pixels, pixels[:, :768].contiguous(), patches)
        yield triton.tubelet_embed_fwd_kernel, (*forward, *numbers), triton.tile_of(2, 16, 768)
        backward = (video, tubelets, None, None, pixels, None, None)
        yield triton.tubelet_embed_fwd_kernel, (*backward, *numbers), triton.tile_of(2, 16, 0)
