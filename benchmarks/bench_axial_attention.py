"""axial_attention against dense attention and every other way to the same result.

    pytest benchmarks/bench_axial_attention.py --benchmark-only

Each candidate is checked against the reference first (the dense one computes something else and is
checked against dense attention). GB/s are of the ideal traffic, 4 units forward and 7 backward;
% of ceiling is the ratio to the copy floor, for joint lines to the machine's own product.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import common
import interleaved
import pytest
import torch
import torch.nn.functional as F
from axial_lines import Attention, each_axis, eager_attention, near, with_cls_lines
from cases import Case, leaves_of, name_of, shapes
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vimpac_kernels import axial_attention

AXES = ("T", "H|W")
DENSE = {  # backends of F.scaled_dot_product_attention; a CPU has MATH as well, at 4 times the time
    "cpu": ("FLASH_ATTENTION",),
    "cuda": ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"),
}


@functools.cache
def _line_mask(
    grid: tuple[int, int, int], axis: str, device: str
) -> tuple[object, Callable[..., Tensor]]:
    """FlexAttention's block mask of one axis over the whole sequence, [CLS] as a key of all."""
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    token = torch.arange(math.prod(grid), device=device)
    _, H, W = grid
    t, h, w = token // (H * W), token // W % H, token % W
    line = {"T": h * W + w, "H": t * W + w, "W": t * H + h}[axis]
    line = F.pad(line + 1, (1, 0))

    def same_line(b: Tensor, n: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (line[i] == line[j]) | (j == 0)

    S = len(line)
    return flex.create_block_mask(same_line, None, None, S, S, device=device), flex.flex_attention


@functools.cache
def _compiled_flex(device: str) -> Callable[..., Tensor]:
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    return torch.compile(flex.flex_attention, dynamic=False)


def flex_attention(qkv: Tensor, grid: tuple[int, int, int], axes: str) -> Tensor:
    """One masked attention over 1 + T*H*W tokens; [CLS]'s own row, a mean over lines, apart."""
    outputs = []
    for part, axis in zip(qkv.chunk(axes.count("|") + 1, dim=3), axes.split("|"), strict=True):
        mask, _ = _line_mask(grid, axis, qkv.device.type)
        q, k, v = part.permute(2, 0, 3, 1, 4)
        tokens = _compiled_flex(qkv.device.type)(q, k, v, block_mask=mask).transpose(1, 2)
        lines = with_cls_lines(part, grid, axis)
        q, k, v = lines.permute(3, 0, 1, 4, 2, 5)  # (B, lines, n, L + 1, Dh)
        cls = eager_attention(q[..., :1, :], k, v).mean(1).transpose(1, 2)
        outputs.append(torch.cat((cls, tokens[:, 1:]), dim=1))
    return torch.cat(outputs, dim=2)


def natten_without_cls(qkv: Tensor, grid: tuple[int, int, int], axes: str) -> Tensor:
    """Dilated neighbourhood attention: a line is every H*W-th, W-th or single token. No [CLS]."""
    natten = importlib.import_module("natten")
    T, H, W = grid
    outputs = []
    for part, axis in zip(qkv.chunk(axes.count("|") + 1, dim=3), axes.split("|"), strict=True):
        x = part[:, 1:] if axis == "T" else part[:, 1:].unflatten(1, (T, H * W)).flatten(0, 1)
        if axis == "W":
            x = x.unflatten(1, (H, W)).flatten(0, 1)
        length, dilation = {"T": (T, H * W), "H": (H, W), "W": (W, 1)}[axis]
        y = natten.na1d(*x.unbind(2), kernel_size=length, dilation=dilation)
        outputs.append(y.reshape(qkv.shape[0], -1, *y.shape[2:]))
    return F.pad(torch.cat(outputs, dim=2), (0, 0, 0, 0, 1, 0))


def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """flash-attn's own kernel."""
    flash = importlib.import_module("flash_attn").flash_attn_func
    return flash(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@functools.cache
def _compiled_eager() -> Attention:
    return torch.compile(each_axis(eager_attention), dynamic=False)


OTHERS: dict[str, Attention] = {
    "permute + SDPA": each_axis(F.scaled_dot_product_attention),
    "eager formula": each_axis(eager_attention),
    "compiled formula": lambda *args: _compiled_eager()(*args),
    "FlexAttention": flex_attention,
    "NATTEN na1d, no [CLS]": natten_without_cls,
    "permute + flash-attn": each_axis(flash_attention),
}


def _inputs(bench, shape: common.Shape, dtype: torch.dtype) -> tuple[Tensor, tuple[int, int, int]]:
    grid = (shape.T, shape.H, shape.W)
    torch.manual_seed(0)
    size = (shape.B, 1 + shape.cells, 3, shape.N, shape.Dh)
    return torch.randn(size, device=bench.device, dtype=dtype, requires_grad=True), grid


dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
SHAPES = common.SHAPES[common.default_device()]
DENSE_SHAPES = {"cuda": SHAPES, "cpu": (common.LAPTOP, common.LARGE_SLICE)}


def _against_others(
    bench,
    op: str,
    shape: common.Shape,
    axes: str,
    dtype: torch.dtype,
    others: Iterable[str],
    flops: int | None = None,
) -> None:
    """Times all implementations, their rates by bytes where no FLOPs are given."""
    qkv, grid = _inputs(bench, shape, dtype)
    moved = common.axial_attention_bytes(shape, qkv.element_size())

    def check(name: str, run: Attention) -> None:
        truth = axial_attention(qkv.detach(), grid, axes, impl="reference")
        if name == "NATTEN na1d, no [CLS]":
            truth = axial_attention(qkv.detach()[:, 1:], grid, axes, impl="reference")
            truth = F.pad(truth, (0, 0, 0, 0, 1, 0))
        near(run(qkv.detach(), grid, axes), truth)

    def candidate(name: str) -> interleaved.Candidate:
        if name == "FlexAttention" and bench.device == "cpu":
            raise NotImplementedError("it has no backward on the CPU")  # it compiles before it says
        run = OTHERS.get(name) or functools.partial(axial_attention, impl=name)
        return interleaved.Candidate(
            functools.partial(run, qkv, grid, axes),
            functools.partial(check, name, run),
            inputs=(qkv,),
            moved_bytes=sum(moved),
            flops=flops,
            bf16=dtype == torch.bfloat16,
        )

    label = f"{shape.label} {axes} {str(dtype).removeprefix('torch.')}"
    bench(op, label, (*common.KERNELS[bench.device], "reference", *others), candidate)


@pytest.mark.parametrize("axes", AXES)
@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.label)
def test_axial_attention(bench, axes: str, dtype: torch.dtype, shape: common.Shape) -> None:
    """Times lines of one axis."""
    _against_others(bench, "axial_attention", shape, axes, dtype, OTHERS)


@pytest.mark.skipif(common.default_device() != "cpu", reason="a GPU takes SDPA itself for these")
@dtypes
@pytest.mark.parametrize("shape", (common.LAPTOP, common.FRAMES), ids=lambda shape: shape.label)
def test_joint(bench, dtype: torch.dtype, shape: common.Shape) -> None:
    """Times the joint lines of a frame."""
    flops = sum(common.axial_attention_flops(shape, shape.H * shape.W))
    others = ("sdpa", "permute + SDPA", "eager formula", "compiled formula")
    _against_others(bench, "axial_attention_joint", shape, "HW", dtype, others, flops)


@dtypes
@pytest.mark.parametrize(
    "shape", DENSE_SHAPES[common.default_device()], ids=lambda shape: shape.label
)
def test_against_dense(bench, dtype: torch.dtype, shape: common.Shape) -> None:
    """Times the attention of a layer, T and H|W, and the dense one; on a CPU forward only."""
    on_cpu = bench.device == "cpu"
    qkv, grid = _inputs(bench, shape, dtype)
    if on_cpu:
        qkv = qkv.detach()
    inputs = () if on_cpu else (qkv,)
    forward, backward = common.axial_attention_bytes(shape, qkv.element_size())

    def blocks() -> Tensor:  # as in a model, where the second starts without the first's output
        axial_attention(qkv, grid, "T")
        return axial_attention(qkv, grid, "H|W")

    def layer() -> Tensor:  # one output to differentiate; in a model nothing adds the two
        return axial_attention(qkv, grid, "T") + axial_attention(qkv, grid, "H|W")

    def dense(backend: str) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    def check_layer() -> None:
        truth = sum(axial_attention(qkv.detach(), grid, a, impl="reference") for a in AXES)
        near(layer().detach(), truth)

    def check_dense(backend: str) -> None:  # one head of one clip: all of its scores are held
        truth = axial_attention(qkv.detach()[:1, :, :, :1], grid, "THW", impl="reference")
        near(dense(backend).detach()[:1, :, :1], truth)

    def candidate(name: str) -> interleaved.Candidate:
        if name == "ours":
            moved = 2 * (forward + (0 if on_cpu else backward))
            return interleaved.Candidate(blocks if on_cpu else layer, check_layer, inputs, moved)
        backend = name.split()[-1].upper()
        run, check = functools.partial(dense, backend), functools.partial(check_dense, backend)
        return interleaved.Candidate(run, check, inputs)

    label = f"{shape.label} {str(dtype).removeprefix('torch.')}"
    names = ("ours", *(f"dense SDPA {backend.lower()}" for backend in DENSE[bench.device]))
    bench("axial_attention_dense", label, names, candidate)


def cases(scale: str, device: str) -> Iterator[Case]:
    """Without the bias of qkv, as others have it, and with its gradient, as the model does."""
    for shape, dtype in shapes(scale):
        grid = (shape.T, shape.H, shape.W)
        qkv, bias = (shape.B, 1 + shape.cells, 3, shape.N, shape.Dh), (3, shape.N, shape.Dh)
        plain = each_axis(F.scaled_dot_product_attention)
        for axes in AXES:
            for biased, dropout in ((False, 0.0), (True, 0.0 if scale == "published" else 0.1)):
                sizes = [qkv, bias] if biased else [qkv]
                label = f"{shape.label} {axes} {name_of(dtype)}{' dbias' if biased else ''}"
                yield Case(
                    "axial_attention",
                    label + (f" dropout {dropout}" if dropout else ""),
                    shape.Dh,
                    dtype,
                    functools.partial(leaves_of, sizes, dtype, device),
                    functools.partial(_axial_ours, grid, axes, dropout),
                    common.axial_attention_bytes(shape, dtype.itemsize),
                    ("permute + SDPA", functools.partial(_axial_plain, plain, grid, axes)),
                )


def _axial_ours(
    grid: tuple[int, int, int], axes: str, dropout: float, *tensors: Tensor, impl: str
) -> Tensor:
    qkv, bias = (*tensors, None)[:2]
    return axial_attention(
        qkv, grid, axes, bias=bias, bias_in_qkv=bias is not None, dropout_p=dropout, seed=7,
        impl=impl,
    )  # fmt: skip


def _axial_plain(
    plain: Callable, grid: tuple[int, int, int], axes: str, qkv: Tensor, bias: Tensor | None = None
) -> Tensor:
    return plain(qkv if bias is None else qkv + (bias - bias.detach()), grid, axes)


def triton_calls() -> Iterator[common.TritonCall]:
    """Triton kernels with the arguments of real calls on meta tensors, for the static report."""
    from vimpac_kernels.ops.axial_attention import triton_sums

    dtypes, grids = (torch.bfloat16, torch.float32), ((5, 16, 16), (10, 32, 32), (10, 64, 64))
    for dtype, grid, D in itertools.product(dtypes, grids, (16, 32, 64, 128)):
        if D >= 64:  # shorter rows take fewer registers forward
            yield _triton_call(grid, D, dtype, "FWD")
        yield _triton_call(grid, D, dtype, "BWD")
    sums = torch.empty(2, 1281, 8, 64, device="meta")
    arguments = (sums, sums.bfloat16(), 5, 16, 16, 1281, 8, 8, 86, 1, 1, 86)
    sizes = {"AXES": 0, "MEAN": True, "PARTS": 1, "D": 64, "CHUNK": 16, "num_warps": 1}
    yield triton_sums.axial_attention_cls_kernel, arguments, sizes


def _triton_call(
    grid: tuple[int, int, int], D: int, dtype: torch.dtype, direction: str
) -> common.TritonCall:
    """T and H of 8 heads with [CLS], padding, dropout and the gradient of a bias."""
    from vimpac_kernels.ops.axial_attention import triton

    qkv = torch.empty(2, 1 + math.prod(grid), 3, 8, D, dtype=dtype, device="meta")
    out, sums = qkv[:, :, 0], torch.empty(1, dtype=torch.float32, device="meta")
    seed = torch.empty((), dtype=torch.int64, device="meta")
    mask = torch.empty(2, *grid, dtype=torch.bool, device="meta")
    _, scalars, constants, _ = triton.launch_arguments(
        qkv, grid, (0, 1), mask, 6554, D**-0.5, direction
    )
    last = (mask.view(torch.uint8), seed, *scalars)
    if direction == "FWD":
        return triton.axial_attention_fwd_kernel, (qkv, out, sums, *last), constants
    return triton.axial_attention_bwd_kernel, (qkv, out, qkv, sums, sums, *last), constants
