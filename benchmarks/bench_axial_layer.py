"""Whole layers, projections included: `AxialAttention` against what people use.

    pip install axial-attention timesformer-pytorch einops    # else these two are left out
    pytest benchmarks/bench_axial_layer.py --benchmark-only

    permute + SDPA       one packed projection, lines copied together, SDPA
    axial-attention      that package's layer, which sums T, H and W and knows no [CLS]
    timesformer-pytorch  that package's attention over time, then over the tokens of a frame; its
                         [CLS] attends to all tokens of the clip
    dense                nn.MultiheadAttention over all tokens of a clip, another function

Everybody has the same weights, and the tokens that each attention returns are compared with those
of our reference. Backward makes the gradients of the input and of every weight. FLOPs are those of
the projections and of the lines.
"""

from __future__ import annotations

import functools
import importlib
import math

import common
import interleaved
import pytest
import torch
import torch.nn.functional as F
from axial_lines import each_axis, near
from torch import Tensor, nn

from vimpac_kernels import AxialAttention

Grid = tuple[int, int, int]
CASES = {"T": ("T",), "H|W": ("H|W",), "T, then HW": ("T", "HW"), "T + H + W": ("T", "H", "W")}
PEERS = {
    "T": ("permute + SDPA", "dense"),
    "H|W": ("permute + SDPA", "dense"),
    "T, then HW": ("permute + SDPA", "timesformer-pytorch"),
    "T + H + W": ("permute + SDPA", "axial-attention"),
}
SHAPES = {"cuda": (common.SMALL, common.LARGE), "cpu": (common.LAPTOP,)}


class Ours(nn.Module):
    """`AxialAttention` with a fixed grid."""

    def __init__(self, layer: AxialAttention, grid: Grid) -> None:
        super().__init__()
        self.layer, self.grid = layer, grid

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.layer(x, self.grid)


class PermuteSDPA(Ours):
    """The same parameters, in plain PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        layer = self.layer
        qkv = F.linear(x, layer.in_proj_weight, layer.in_proj_bias)
        qkv = qkv.unflatten(-1, (3, layer.num_heads, layer.head_dim))
        attend = each_axis(F.scaled_dot_product_attention)
        return layer.out_proj(attend(qkv, self.grid, layer.axes).flatten(2))


class Dense(Ours):
    """Attention over all tokens."""

    def __init__(self, layer: AxialAttention, grid: Grid) -> None:
        super().__init__(layer, grid)
        self.layer = nn.MultiheadAttention(layer.embed_dim, layer.num_heads, batch_first=True)
        self.layer.load_state_dict(layer.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.layer(x, x, x, need_weights=False)[0]


class TimeSformer(Ours):
    """timesformer-pytorch's attention over time, or over the tokens of a frame."""

    def __init__(self, layer: AxialAttention, grid: Grid) -> None:
        package = importlib.import_module("timesformer_pytorch.timesformer_pytorch")
        super().__init__(layer, grid)
        self.layer = package.Attention(layer.embed_dim, layer.head_dim, layer.num_heads)
        self.layer.to_qkv.weight.data.copy_(layer.in_proj_weight)
        self.layer.to_out[0].load_state_dict(layer.out_proj.state_dict())
        T, H, W = grid
        self.sizes = {"n": H * W} if layer.axes == "T" else {"f": T}
        self.lines = "(b n) f d" if layer.axes == "T" else "(b f) n d"

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        return self.layer(x, "b (f n) d", self.lines, **self.sizes)


class AxialAttentionPackage(Ours):
    """The package axial-attention along one axis, without [CLS]."""

    def __init__(self, layer: AxialAttention, grid: Grid) -> None:
        package = importlib.import_module("axial_attention.axial_attention")
        super().__init__(layer, grid)
        permutations = package.calculate_permutations(3, -1)
        attention = package.SelfAttention(layer.embed_dim, layer.num_heads)
        self.layer = package.PermuteToFrom(permutations["THW".index(layer.axes)], attention)
        D = layer.embed_dim
        attention.to_q.weight.data.copy_(layer.in_proj_weight[:D])
        attention.to_kv.weight.data.copy_(layer.in_proj_weight[D:])
        attention.to_out.load_state_dict(layer.out_proj.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """(B, T*H*W, D) -> (B, T*H*W, D)."""
        return self.layer(x.unflatten(1, self.grid)).flatten(1, 3)


IMPLS: dict[str, type[Ours]] = {
    "ours": Ours,
    "permute + SDPA": PermuteSDPA,
    "dense": Dense,
    "timesformer-pytorch": TimeSformer,
    "axial-attention": AxialAttentionPackage,
}


def apply(blocks: list[Ours], case: str, x: Tensor) -> Tensor:
    """The sum of the blocks, or one after the other."""
    if "+" in case:
        return functools.reduce(torch.add, [block(x) for block in blocks])
    for block in blocks:
        x = block(x)
    return x


def flops(shape: common.Shape, case: str) -> int:
    """Forward and backward, which has two products for each one of the forward; attention five."""
    D = shape.N * shape.Dh
    sizes = {"T": shape.T, "H": shape.H, "W": shape.W}
    total = 0
    for axes in CASES[case]:
        groups = axes.split("|")
        for group in groups:
            attention = common.axial_attention_flops(shape, math.prod(sizes[a] for a in group))
            total += sum(attention) // len(groups)
        total += 3 * 8 * shape.rows * D * D
    return total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES[common.default_device()], ids=lambda shape: shape.label)
def test_layer(bench, shape: common.Shape, case: str, dtype: torch.dtype) -> None:
    """Times forward and backward of the layers of a case."""
    torch.manual_seed(0)
    grid, D = (shape.T, shape.H, shape.W), shape.N * shape.Dh
    has_cls = "+" not in case
    place = {"device": bench.device, "dtype": dtype}
    x = torch.randn((shape.B, shape.cells + has_cls, D), **place, requires_grad=True)
    # Weights as large as trained ones, so that softmax is not flat and an error shows.
    layers = [AxialAttention(D, shape.N, axes, device=bench.device) for axes in CASES[case]]

    def check(name: str, blocks: list[Ours]) -> None:
        for block, layer in zip(blocks, layers, strict=True):
            exact = AxialAttention(D, shape.N, "THW" if name == "dense" else layer.axes)
            exact.load_state_dict(layer.state_dict())
            exact.impl = "sdpa" if name == "dense" else "reference"  # holds no S x S of each head
            truth = exact.to(bench.device)(x.detach().float(), grid)
            near(block(x.detach())[:, int(has_cls) :], truth[:, int(has_cls) :])

    def candidate(name: str) -> interleaved.Candidate:
        blocks = [IMPLS[name](layer, grid).to(**place) for layer in layers]
        weights = [weight for block in blocks for weight in block.parameters()]
        return interleaved.Candidate(
            functools.partial(apply, blocks, case, x),
            functools.partial(check, name, blocks),
            inputs=(x, *weights),
            flops=flops(shape, case),
            bf16=dtype == torch.bfloat16,
        )

    label = f"{shape.label} {case} {str(dtype).removeprefix('torch.')}"
    bench("axial_attention_layer", label, ("ours", *PEERS[case]), candidate)
