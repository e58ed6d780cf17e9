"""The calls that a visit to a GPU checks and times: every op at the published shapes.

A case is one call, with its tensors, its backward and the least bytes that each moves. There are
three scales of them: `published` is timed, `check` has the same lines and widths with few clips,
for a comparison in fp64, and `small` is for the emulator and for compute-sanitizer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import bench_axial_attention
import bench_bias_gelu
import bench_dropout_add_layer_norm
import bench_embed_tokens
import bench_linear_cross_entropy
import bench_mask_tokens
import common
import torch
import torch.nn.functional as F
from common import Shape
from torch import Tensor

import vimpac_kernels

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
WORDS = 30_522  # BERT's, of SimVTP: more than a block of CUDA C++ holds in registers
ROWS = {  # of linear_cross_entropy: M, D, V, share of rows that count
    "published": (
        *((*size, common.VOCABULARY, 1.0) for size in bench_linear_cross_entropy.SHAPES["cuda"]),
        (23_760, 512, common.VOCABULARY, 0.58),  # as in the step: masked of all that may be
        (4096, 768, WORDS, 1.0),
    ),
    "check": ((777, 512, common.VOCABULARY, 0.58), (300, 64, WORDS, 1.0)),
    "small": ((50, 64, 1031, 1.0), (50, 64, 1031, 0.58)),
}
CLIPS = {"published": (64, 1024), "check": (64,), "small": (3,)}  # of mask_tokens


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


def cases(scale: str, device: str) -> Iterator[Case]:
    """Every op's cases of one of `SCALES`."""
    types = (BF16,) if scale == "published" else (BF16, FP32)
    for shape in SCALES[scale]:
        for dtype in types:
            yield from _axial_attention(shape, dtype, device, scale)
            yield from _dropout_add_layer_norm(shape, dtype, device)
            yield _embed_tokens(shape, dtype, device)
            yield _bias_gelu(shape, dtype, device)
    for size in ROWS[scale]:
        for dtype in types:
            yield _linear_cross_entropy(*size, dtype, device)
    for clips in CLIPS[scale]:
        yield from _mask_tokens(clips, device, scale)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _leaves(sizes: list[tuple[int, ...]], dtype: torch.dtype, device: str) -> Tensors:
    torch.manual_seed(sum(map(len, sizes)))
    return [torch.randn(size, device=device, dtype=dtype, requires_grad=True) for size in sizes]


def _axial_attention(shape: Shape, dtype: torch.dtype, device: str, scale: str) -> Iterator[Case]:
    """Without the bias of qkv, as others have it, and with its gradient, as the model does."""
    grid = (shape.T, shape.H, shape.W)
    qkv, bias = (shape.B, 1 + shape.cells, 3, shape.N, shape.Dh), (3, shape.N, shape.Dh)
    plain = bench_axial_attention.each_axis(F.scaled_dot_product_attention)
    for axes in bench_axial_attention.AXES:
        for biased, dropout in ((False, 0.0), (True, 0.0 if scale == "published" else 0.1)):
            sizes = [qkv, bias] if biased else [qkv]
            label = f"{shape.label} {axes} {_name(dtype)}{' dbias' if biased else ''}"
            yield Case(
                "axial_attention",
                label + (f" dropout {dropout}" if dropout else ""),
                shape.Dh,
                dtype,
                functools.partial(_leaves, sizes, dtype, device),
                functools.partial(_axial_ours, grid, axes, dropout),
                common.axial_attention_bytes(shape, dtype.itemsize),
                ("permute + SDPA", functools.partial(_axial_plain, plain, grid, axes)),
            )


def _axial_ours(
    grid: tuple[int, int, int], axes: str, dropout: float, *tensors: Tensor, impl: str
) -> Tensor:
    qkv, bias = (*tensors, None)[:2]
    return vimpac_kernels.axial_attention(
        qkv, grid, axes, bias=bias, bias_in_qkv=bias is not None, dropout_p=dropout, seed=7,
        impl=impl,
    )  # fmt: skip


def _axial_plain(
    plain: Callable, grid: tuple[int, int, int], axes: str, qkv: Tensor, bias: Tensor | None = None
) -> Tensor:
    return plain(qkv if bias is None else qkv + (bias - bias.detach()), grid, axes)


def _dropout_add_layer_norm(shape: Shape, dtype: torch.dtype, device: str) -> Iterator[Case]:
    rows, width = shape.rows, shape.N * shape.Dh
    sizes = [(rows, width), (rows, width), (width,), (width,), (width,)]
    for dropout, readers in ((0.0, 1), (0.1, 1), (0.1, 2)):
        forward, backward = common.dropout_add_layer_norm_bytes(
            rows, width, dtype.itemsize, dropout > 0
        )
        backward += (readers - 1) * rows * width * dtype.itemsize
        yield Case(
            "dropout_add_layer_norm",
            f"{shape.label} {_name(dtype)} dropout {dropout}" + " readers 2" * (readers - 1),
            width,
            dtype,
            functools.partial(_leaves, sizes, dtype, device),
            functools.partial(_ours_layer_norm, dropout, readers),
            (forward, backward),
            ("eager", functools.partial(_eager_layer_norm, dropout, readers)),
        )


def _ours_layer_norm(dropout: float, readers: int, *tensors: Tensor, impl: str) -> Any:
    *four, linear_bias = tensors
    eps = bench_dropout_add_layer_norm.EPS
    options: dict[str, Any] = {
        "linear_bias": linear_bias,
        "dropout_p": dropout,
        "eps": eps,
        "seed": 1,
    }
    options["readers"] = readers
    return vimpac_kernels.dropout_add_layer_norm(*four, **options, impl=impl)


def _eager_layer_norm(dropout: float, readers: int, *tensors: Tensor) -> Any:
    y = bench_dropout_add_layer_norm.eager(*tensors, dropout)
    return y if readers == 1 else (y, y.view_as(y))


def _embed_tokens(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    grid, width = (shape.T, shape.H, shape.W), shape.N * shape.Dh
    sizes = [(common.VOCABULARY, width), *((n, width) for n in grid), *((width,),) * 3]

    def make() -> Tensors:
        tokens = torch.randint(0, common.VOCABULARY, (shape.B, *grid), device=device)
        tokens[torch.rand(tokens.shape, device=device) < 1 / 7] = 8196  # [MASK], as masks make many
        return [*_leaves(sizes, FP32, device), tokens]

    def run(*tensors: Tensor, impl: str) -> Tensor:
        embedding, *places, weight, bias, cls, tokens = tensors
        wide = dtype if embedding.dtype == FP32 else embedding.dtype
        return vimpac_kernels.embed_tokens(
            tokens, embedding, places, weight, bias, cls=cls, dropout_p=0.1, dtype=wide, seed=1,
            eps=bench_embed_tokens.EPS, impl=impl,
        )  # fmt: skip

    def eager(*tensors: Tensor) -> Tensor:
        return bench_embed_tokens.eager(tensors[-1], list(tensors[:-1]), 0.1, dtype)

    return Case(
        "embed_tokens",
        f"{shape.label} {_name(dtype)} dropout 0.1",
        width,
        dtype,
        make,
        run,
        common.embed_tokens_bytes(shape, dtype.itemsize),
        ("eager", eager),
    )


def _bias_gelu(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    rows, hidden = shape.rows, 4 * shape.N * shape.Dh
    return Case(
        "bias_gelu",
        f"{shape.label} {_name(dtype)}",
        hidden,
        dtype,
        functools.partial(_leaves, [(rows, hidden), (hidden,)], dtype, device),
        vimpac_kernels.bias_gelu,
        common.bias_gelu_bytes(rows, hidden, dtype.itemsize),
        ("eager", bench_bias_gelu.eager),
    )


def _linear_cross_entropy(
    M: int, D: int, V: int, share: float, dtype: torch.dtype, device: str
) -> Case:
    """Every fifth target is ignored; with a share below 1, `count` says how many rows are live."""
    live = int(M * share)
    count = torch.tensor(live, dtype=torch.int32, device=device) if share < 1 else None

    def make() -> Tensors:
        x, weight, bias = _leaves([(M, D), (V, D), (V,)], dtype, device)
        with torch.no_grad():
            weight *= 2 / D**0.5
        target = torch.randint(V, (M,), device=device)
        target[::5] = -100
        return [x, weight, bias, target]

    def run(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, *, impl: str) -> Any:
        return vimpac_kernels.linear_cross_entropy(
            x, weight, target, linear_bias=bias, count=count, impl=impl
        )

    def eager(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return bench_linear_cross_entropy.eager(x[:live], weight, bias, target[:live])

    flops = sum(common.linear_cross_entropy_flops(M, D, V))
    label = f"M{M} D{D} V{V} {_name(dtype)}" + (f" count {live}" if share < 1 else "")
    peer = ("eager", eager)
    row = -(-V // 64) * 64 * dtype.itemsize
    kernel = (live + M) * row  # live rows are read, all of them written, in place
    return Case("linear_cross_entropy", label, D, dtype, make, run, None, peer, flops, kernel)


def _mask_tokens(clips: int, device: str, scale: str) -> Iterator[Case]:
    shape = dataclasses.replace(common.SMALL if scale != "small" else TINY, B=clips)
    ways: tuple[dict[str, Any], ...] = ({},)
    if scale != "published":
        ways += (
            {"strategy": "iid", "ratio": 0.15},
            {"strategy": "tube", "ratio": 0.5},
            {"noise": (0.8, 0.1, 0.1), "vocab_size": 90},
        )
    for dtype in (torch.int64, torch.int16):
        for way in ways:

            def make(dtype: torch.dtype = dtype) -> Tensors:
                size = (shape.B, shape.T, shape.H, shape.W)
                return [torch.randint(0, 90, size, device=device).to(dtype)]

            def run(tokens: Tensor, *, impl: str, way: dict[str, Any] = way) -> Any:
                options = {"mask_token": 99, "seed": _seed(device), "row_offset": 1, **way}
                return vimpac_kernels.mask_tokens(tokens, **options, impl=impl)

            name = " ".join(map(str, way.values()))
            yield Case(
                "mask_tokens",
                f"{shape.label} {_name(dtype)} {name}".strip(),
                0,
                dtype,
                make,
                run,
                (common.mask_tokens_bytes(shape, dtype.itemsize), 0),
                ("torch", bench_mask_tokens.torch_vectorised),
            )


@functools.cache
def _seed(device: str) -> Tensor:
    return torch.tensor(7, device=device)
