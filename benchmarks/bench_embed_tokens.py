"""embed_tokens against eager and torch.compile.

    pytest benchmarks/bench_embed_tokens.py --benchmark-only

The embedding of a real configuration, every seventh token being [MASK]: lookup, positions, [CLS],
LayerNorm, dropout 0.1 and, on a GPU, the cast to bf16, from fp32 parameters. The others drop other
elements than ours: they are checked without dropout.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import common
import interleaved
import pytest
import torch
import torch.nn.functional as F
from cases import FP32, Case, Tensors, leaves_of, name_of, shapes
from common import Shape
from torch import Tensor

import vimpac_kernels
from vimpac_kernels import reference

DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
EPS = 1e-12
# tokens, (embedding, time, height, width, weight, bias, cls), dropout_p, dtype -> (B, S, D)
Op = Callable[[Tensor, list[Tensor], float, torch.dtype], Tensor]


def eager(tokens: Tensor, leaves: list[Tensor], p: float, dtype: torch.dtype) -> Tensor:
    """One torch operator after the other."""
    embedding, time, height, width, weight, bias, cls = leaves
    place = time[:, None, None] + height[:, None] + width  # (T, H, W, D)
    x = F.embedding(tokens.flatten(1), embedding) + place.flatten(0, 2)
    x = torch.cat((cls.expand(len(x), 1, -1), x), dim=1)
    x = F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    return F.dropout(x, p).to(dtype)


def _by(function: Callable[..., Tensor], **options: object) -> Op:
    """A function with the arguments of the op."""

    def run(tokens: Tensor, leaves: list[Tensor], p: float, dtype: torch.dtype) -> Tensor:
        embedding, *places, weight, bias, cls = leaves
        return function(
            tokens, embedding, places, weight, bias, cls=cls, dropout_p=p, eps=EPS, dtype=dtype,
            seed=1, **options,
        )  # fmt: skip

    return run


def compiled() -> Op:
    """The compiled formula at its best: static, and with the faster generator of each device."""
    on_cpu = common.default_device() == "cpu"
    return torch.compile(eager, dynamic=False, options={"fallback_random": on_cpu})


OTHERS: dict[str, Callable[[], Op]] = {"eager": lambda: eager, "torch.compile": compiled}


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize(
    "shape", common.SHAPES[common.default_device()], ids=lambda shape: shape.label
)
def test_embed_tokens(bench, dropout_p: float, shape: common.Shape) -> None:
    """Times the embedding of one real configuration."""
    dtype, device, width = DTYPE[bench.device], bench.device, shape.N * shape.Dh
    torch.manual_seed(0)
    grid = shape.T, shape.H, shape.W
    tokens = torch.randint(0, 8192, (shape.B, *grid), device=device)
    tokens = tokens.masked_fill(torch.rand(tokens.shape, device=device) < 1 / 7, 8196)
    sizes = [(common.VOCABULARY, width), *((n, width) for n in grid), *((width,),) * 3]
    leaves = [torch.randn(size, device=device).requires_grad_() for size in sizes]

    def check(op: Op, p: float) -> None:
        wide = [t.detach().double() for t in leaves]
        truth = _by(reference.embed_tokens)(tokens, wide, p, torch.float64)
        error = (op(tokens, leaves, p, dtype).double() - truth).abs().max().item()
        assert error < (1e-4 if dtype == torch.float32 else 0.1), f"error {error:.1e}"

    def candidate(name: str) -> interleaved.Candidate:
        other = name in OTHERS
        op = OTHERS[name]() if other else _by(vimpac_kernels.embed_tokens, impl=name)
        return interleaved.Candidate(
            lambda: op(tokens, leaves, dropout_p, dtype),
            functools.partial(check, op, 0.0 if other else dropout_p),
            inputs=leaves,
            moved_bytes=sum(common.embed_tokens_bytes(shape, dtype.itemsize)),
        )

    label = f"{shape.label} {str(dtype).removeprefix('torch.')} dropout {dropout_p}"
    bench("embed_tokens", label, (*common.KERNELS[bench.device], *OTHERS), candidate)


def cases(scale: str, device: str) -> Iterator[Case]:
    """The calls that a visit to a GPU checks and times."""
    yield from (_case(shape, dtype, device) for shape, dtype in shapes(scale))


def _case(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    grid, width = (shape.T, shape.H, shape.W), shape.N * shape.Dh
    sizes = [(common.VOCABULARY, width), *((n, width) for n in grid), *((width,),) * 3]

    def make() -> Tensors:
        tokens = torch.randint(0, common.VOCABULARY, (shape.B, *grid), device=device)
        tokens[torch.rand(tokens.shape, device=device) < 1 / 7] = 8196  # [MASK], as masks make many
        return [*leaves_of(sizes, FP32, device), tokens]

    def run(*tensors: Tensor, impl: str) -> Tensor:
        embedding, *places, weight, bias, cls, tokens = tensors
        wide = dtype if embedding.dtype == FP32 else embedding.dtype
        return vimpac_kernels.embed_tokens(
            tokens, embedding, places, weight, bias, cls=cls, dropout_p=0.1, dtype=wide, seed=1,
            eps=EPS, impl=impl,
        )  # fmt: skip

    def plain(*tensors: Tensor) -> Tensor:
        return eager(tensors[-1], list(tensors[:-1]), 0.1, dtype)

    return Case(
        "embed_tokens",
        f"{shape.label} {name_of(dtype)} dropout 0.1",
        width,
        dtype,
        make,
        run,
        common.embed_tokens_bytes(shape, dtype.itemsize),
        ("eager", plain),
    )


def triton_calls() -> Iterator[common.TritonCall]:
    """Triton kernels with the arguments of real calls on meta tensors, for the static report."""
    yield from _triton_places()
    yield from _triton_ids()


def _triton_places() -> Iterator[common.TritonCall]:
    from vimpac_kernels.ops.embed_tokens import triton

    bf16, fp32 = torch.bfloat16, torch.float32
    for dtype, D in ((bf16, 512), (bf16, 1024), (fp32, 512)):
        y = torch.empty(4, 1281, D, dtype=dtype, device="meta")
        table = torch.empty(8197, D, dtype=fp32, device="meta")
        vector = torch.empty(5124, dtype=fp32, device="meta")
        tokens = torch.empty(4, 5, 16, 16, dtype=torch.int32, device="meta")
        seed = torch.empty((), dtype=torch.int64, device="meta")
        tables, tile = (tokens, *(table,) * 4), triton.tile_of(D, True)
        sizes = (4, 16, 16, 1281, 8197, 6554, 65536 / (65536 - 6554))
        outputs = (y, vector, vector)
        inputs = (*tables, *(vector,) * 3, seed, *outputs, *sizes, 1e-12)
        yield triton.embed_tokens_fwd_kernel, inputs, tile
        scratch = (table, table)
        yield (
            triton.embed_tokens_places_kernel,
            (y, *tables, *(vector,) * 4, seed, *scratch, *sizes),
            tile,
        )
        columns = {
            "D": D,
            "COLUMNS": triton.TUNING["SUM_COLUMNS"],
            "CHUNK": triton.TUNING["SUM_CHUNK"],
        }
        counts = (5, 16, 16, 1281, 1, 321)
        yield triton.embed_tokens_axes_kernel, (*scratch, table, *counts), {"CLS": 1} | columns


def _triton_ids() -> Iterator[common.TritonCall]:
    from vimpac_kernels.ops.embed_tokens import triton_ids

    bf16, fp32 = torch.bfloat16, torch.float32
    for dtype, D in ((bf16, 512), (bf16, 1024), (fp32, 512)):
        dy = torch.empty(4, 1281, D, dtype=dtype, device="meta")
        table = torch.empty(8197, D, dtype=fp32, device="meta")
        vector = torch.empty(5124, dtype=fp32, device="meta")
        ids = torch.empty(5120, dtype=torch.int32, device="meta")
        order = torch.empty(5120, dtype=torch.int64, device="meta")
        seed = torch.empty((), dtype=torch.int64, device="meta")
        tensors = (dy, ids, order, *(table,) * 4, *(vector,) * 3, seed, table, table)
        sizes = (5120, 16, 16, 1281, 8197, 4, 6554, 65536 / (65536 - 6554))
        yield (
            triton_ids.embed_tokens_ids_kernel,
            tensors + sizes,
            {"CLS": 1} | triton_ids.ids_tile_of(D, True),
        )
        tile = {
            "COLUMNS": triton_ids.TUNING["CARRY_COLUMNS"],
            "CHUNK": triton_ids.TUNING["CARRY_CHUNK"],
        }
        yield (
            triton_ids.embed_tokens_carry_kernel,
            (ids, table, table, 8197, 4, 1280),
            {"D": D} | tile,
        )
