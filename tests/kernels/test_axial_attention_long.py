"""Joint axes and long lines, which only the kernels of the CPU take: the same claims as others."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch

from tests.cases.axial_attention import (
    assert_bias_matches_reference,
    assert_matches_reference,
    random_padding,
    random_qkv,
    run,
    run_with_bias,
    ways,
)
from vimpac_kernels import axial_attention
from vimpac_kernels.runtime import registry

pytestmark = [pytest.mark.impls("cpu"), pytest.mark.usefixtures("one_thread")]
CASES = {
    "frames in one tile": ("HW", (3, 4, 5)),
    "a clip in one tile": ("THW", (2, 3, 4)),
    "frames": ("HW", (3, 16, 17)),
    "a clip": ("THW", (5, 7, 11)),
    "long rows": ("W", (1, 2, 257)),
    "long columns": ("H", (1, 300, 2)),
    "long rows, short columns": ("H|W", (2, 3, 261)),
}
cases = pytest.mark.parametrize(("axes", "grid"), CASES.values(), ids=list(CASES))
with_and_without_cls = pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
half_precision = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"]
)
FRAMES = (2, 16, 17)


@cases
@with_and_without_cls
def test_matches_reference(impl, axes, grid, has_cls):
    assert_matches_reference(impl, random_qkv(grid, axes, has_cls=has_cls), grid, axes)


@half_precision
@cases
def test_matches_reference_in_half_precision(impl, axes, grid, dtype):
    qkv = random_qkv(grid, axes, head_dim=64)
    assert_matches_reference(impl, qkv, grid, axes, dtype)


@pytest.mark.parametrize("axes", ["HW", "THW"])
def test_matches_reference_where_products_of_fp16_overflow(impl, axes):
    """q k^T and dout v^T pass 65504, what is made of them does not."""
    size = 300.0
    qkv, scale = random_qkv(FRAMES, axes) * size, 32**-0.5 / size**2
    assert_matches_reference(impl, qkv, FRAMES, axes, torch.float16, size=size, scale=scale)


@cases
@with_and_without_cls
def test_padding_is_never_a_key(impl, axes, grid, has_cls):
    """A whole clip is padding, too; without [CLS] it gives zeros, not NaN."""
    padding = random_padding(grid)
    qkv = random_qkv(grid, axes, has_cls=has_cls)
    assert_matches_reference(impl, qkv, grid, axes, key_padding_mask=padding)
    if not has_cls:
        out = axial_attention(qkv.float(), grid, axes, impl=impl.name, key_padding_mask=padding)
        assert out[-1].count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@cases
def test_matches_reference_with_everything_on(impl, axes, grid, dtype):
    assert_matches_reference(
        impl, random_qkv(grid, axes), grid, axes, dtype,
        key_padding_mask=random_padding(grid), dropout_p=0.3, scale=0.3, seed=11,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("head_dim", [3, 37, 72, 160, 256])
def test_takes_any_head_dim(impl, head_dim, dtype):
    qkv = random_qkv(FRAMES, "HW", head_dim=head_dim)
    assert_matches_reference(impl, qkv, FRAMES, "HW", dtype)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("head_dim", [1, 2])
def test_few_columns_of_a_head_lose_no_digits(impl, head_dim, seed):
    """Scores and gradients lie far apart there: sums over the keys are taken of shorter ones."""
    qkv = random_qkv(FRAMES, "HW", head_dim=head_dim, seed=seed)
    assert_matches_reference(impl, qkv, FRAMES, "HW")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("axes", "head_dim"), [("HW", 64), ("THW", 40), ("H|W", 8)])
def test_every_instruction_set_matches_reference(impl, isa, axes, head_dim, dtype):
    grid = (2, 9, 31) if axes != "H|W" else (1, 9, 263)
    assert_matches_reference(
        impl, random_qkv(grid, axes, head_dim=head_dim), grid, axes, dtype,
        key_padding_mask=random_padding(grid), dropout_p=0.2, seed=5,
    )  # fmt: skip


@pytest.mark.parametrize("axes", ["HW", "THW"])
def test_matches_reference_at_a_shape_of_the_paper(impl, axes):
    grid = (5, 16, 16)
    qkv = random_qkv(grid, axes, batch=1, heads=2, head_dim=64)
    assert_matches_reference(impl, qkv, grid, axes, torch.bfloat16)


@cases
def test_dropout_drops_the_same_elements_as_the_reference(impl, isa, axes, grid):
    """Uniform probabilities and one-hot values, of 256 keys at a time, show every decision."""
    heads = axes.count("|") + 1
    qkv = torch.zeros(2, 1 + math.prod(grid), 3, heads, 256)
    number = torch.arange(qkv.shape[1])
    for first in range(0, len(number), 256):
        window = number[first : first + 256]
        values = qkv[:, :, 2].zero_()
        values[:, window, :, window - first] = 1.0
        ours, expected = (
            axial_attention(qkv, grid, axes, dropout_p=0.25, seed=2**40 + 3, impl=name)
            for name in (impl.name, "reference")
        )
        assert torch.equal(ours[:, 1:] != 0, expected[:, 1:] != 0)
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("layout", ["slice of a wider buffer", "batch second", "last stride 2"])
def test_reads_strided_qkv(impl, layout):
    qkv = random_qkv(FRAMES, "HW", heads=2).float()
    B, S, _, N, Dh = qkv.shape
    if layout == "slice of a wider buffer":
        strided = qkv.new_full((B, S + 2, 5, N + 1, Dh + 8), math.nan)[:, 1:-1, 1:4, 1:, :Dh]
    elif layout == "batch second":
        strided = qkv.new_empty(S, B, 3, N, Dh).transpose(0, 1)
    else:
        strided = qkv.new_full((B, S, 3, N, Dh, 2), math.nan)[..., 0]
    strided.copy_(qkv)
    dout = torch.ones(B, S, N, Dh)
    results = [run(x, dout, FRAMES, "HW", impl=impl.name) for x in (qkv, strided)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@cases
@with_and_without_cls
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@ways
def test_bias_is_as_if_added_before(impl, way, axes, grid, has_cls, dtype):
    assert_bias_matches_reference(
        impl, way, axes, grid, dtype, has_cls=has_cls, head_dim=40, dropout_p=0.1, seed=1
    )


def test_result_does_not_depend_on_threads(impl):
    qkv = random_qkv(FRAMES, "HW", heads=3, head_dim=40).float()
    bias, dout = torch.randn(3, 3, 40), torch.randn(2, qkv.shape[1], 3, 40)
    results = []
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        results.append(
            run_with_bias(
                axial_attention, qkv, bias, dout, FRAMES, "HW", dropout_p=0.1, seed=1, impl="cpu"
            )
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["q", "k", "v"])
def test_hides_no_broken_activation(impl, isa, part, value, dtype):
    """Outputs are finite where, and only where, those of the reference are."""
    qkv = random_qkv(FRAMES, "HW").to(dtype)
    qkv[0, 3, part, 0, :8] = value
    out, expected = (axial_attention(qkv, FRAMES, "HW", impl=i) for i in (impl.name, "reference"))
    assert not expected.isfinite().all()
    assert torch.equal(out.isfinite(), expected.isfinite())


def test_empty_batch_gives_empty_output_and_gradient(impl):
    qkv = torch.empty(0, 545, 3, 2, 32, requires_grad=True)
    out = axial_attention(qkv, FRAMES, "HW", impl=impl.name)
    out.sum().backward()
    assert out.shape == (0, 545, 2, 32) and qkv.grad is not None and qkv.grad.shape == qkv.shape


def test_ops_pass_opcheck_and_compile_into_one_graph(impl):
    grid = (2, 16, 17)
    qkv = random_qkv(grid, "HW", batch=1, head_dim=8).float()
    plan = (list(grid), "HW", 0.2, 0, impl.name)
    ops, dout = torch.ops.vimpac_kernels, torch.ones_like(qkv[:, :, 0])
    torch.library.opcheck(ops.axial_attention_fwd.default, (qkv, None, None, None, *plan))
    torch.library.opcheck(
        ops.axial_attention_bwd.default, (dout, qkv, None, None, None, *plan, True)
    )
    compiled = torch.compile(axial_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(qkv, grid, "HW"), axial_attention(qkv, grid, "HW"))


@cases
def test_auto_takes_the_kernel(impl, axes, grid):
    qkv = random_qkv(grid, axes).float()
    expected = axial_attention(qkv, grid, axes, dropout_p=0.1, seed=3, impl=impl.name)
    assert torch.equal(axial_attention(qkv, grid, axes, dropout_p=0.1, seed=3), expected)


@pytest.mark.parametrize(
    ("axes", "grid", "expected"),
    [("HW", (2, 3, 4), "sdpa"), ("W", (1, 1, 300), "sdpa"), ("W", (1, 1, 256), "reference")],
)
def test_auto_without_kernels_takes_the_faster_of_the_others(axes, grid, expected):
    qkv = random_qkv(grid, axes).float()
    with registry.override_extension("cpu", ModuleType("a build without kernels")):
        actual = axial_attention(qkv, grid, axes)
    assert torch.equal(actual, axial_attention(qkv, grid, axes, impl=expected))
