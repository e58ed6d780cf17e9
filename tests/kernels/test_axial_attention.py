"""axial_attention against the specification in fp64, the same body for every backend."""

import math
import mmap

import pytest
import torch

from tests.cases.axial_attention import (
    assert_matches_reference,
    dtype_of,
    random_padding,
    random_qkv,
    run,
)
from vimpac_kernels import axial_attention

CASES = {
    "frames": ("T", (5, 4, 3)),
    "columns": ("H", (2, 16, 3)),
    "rows": ("W", (3, 2, 17)),
    "columns and rows": ("H|W", (2, 7, 5)),
    "all axes": ("T|H|W", (3, 4, 6)),
    "one frame, long rows": ("W|T", (1, 1, 33)),
    "one token": ("T", (1, 1, 1)),
}
cases = pytest.mark.parametrize(("axes", "grid"), CASES.values(), ids=list(CASES))
with_and_without_cls = pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])


@cases
@with_and_without_cls
def test_matches_reference(impl, axes, grid, has_cls):
    assert_matches_reference(impl, random_qkv(grid, axes, has_cls=has_cls), grid, axes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("axes", "grid"), [("T", (5, 2, 8)), ("H|W", (2, 6, 16))], ids=["T", "H|W"]
)
def test_matches_reference_in_half_precision(impl, axes, grid, dtype):
    assert_matches_reference(impl, random_qkv(grid, axes, head_dim=64), grid, axes, dtype)


@pytest.mark.parametrize("axes", ["T", "H|W"])
def test_matches_reference_where_products_of_fp16_overflow(impl, axes):
    """q k^T and dout v^T pass 65504, what is made of them does not."""
    grid, size = (3, 4, 5), 300.0
    qkv, scale = random_qkv(grid, axes) * size, 32**-0.5 / size**2
    assert_matches_reference(impl, qkv, grid, axes, torch.float16, size=size, scale=scale)


@pytest.mark.sanitize
@pytest.mark.parametrize("axes", ["T", "H|W"])
def test_matches_reference_with_everything_on(impl, axes):
    grid = (3, 5, 4)
    assert_matches_reference(
        impl, random_qkv(grid, axes), grid, axes,
        key_padding_mask=random_padding(grid), dropout_p=0.3, scale=0.3, seed=11,
    )  # fmt: skip


def test_matches_reference_at_a_shape_of_the_paper(impl):
    grid, heads = (5, 16, 16), 4 if impl.name in ("reference", "cpu") else 1
    qkv = random_qkv(grid, "H|W", batch=1, heads=heads, head_dim=64)
    assert_matches_reference(impl, qkv, grid, "H|W", torch.bfloat16)


@cases
@with_and_without_cls
def test_padding_is_never_a_key(impl, axes, grid, has_cls):
    """Whole lines and a whole clip are padding; without [CLS] those give zeros, not NaN."""
    padding = random_padding(grid)
    qkv = random_qkv(grid, axes, has_cls=has_cls)
    assert_matches_reference(impl, qkv, grid, axes, key_padding_mask=padding)
    if not has_cls:
        out = axial_attention(
            qkv.to(impl.device, dtype_of(impl)), grid, axes, impl=impl.name,
            key_padding_mask=padding.to(impl.device),
        )  # fmt: skip
        assert out[-1].count_nonzero() == 0


@pytest.mark.parametrize("axes", ["T", "H", "W"])
def test_dropout_drops_the_same_elements_as_the_reference(impl, axes):
    """Uniform probabilities and one-hot values show every decision in the output."""
    grid, N, Dh = (5, 3, 7), 4, 32
    B, tokens, length = 2, math.prod(grid), grid["THW".index(axes)]
    qkv = torch.zeros(B, 1 + tokens, 3, N, Dh, dtype=dtype_of(impl))
    number = torch.arange(tokens) // {"T": 21, "H": 7, "W": 1}[axes] % length
    qkv[:, 1 + torch.arange(tokens), 2, :, number] = 1.0
    qkv[:, 0, 2, :, length] = 1.0
    kept = []
    for name, device in ((impl.name, impl.device), ("reference", "cpu")):
        out = axial_attention(
            qkv.to(device), grid, axes, dropout_p=0.25, seed=2**40 + 3, impl=name
        ).cpu()
        kept.append(torch.where(out[:, 1:] != 0, 1, 0))
        lines = out[:, 0] * (length + 1) * tokens / length * 0.75  # that keep the element
        kept.append(lines.float().round())
    assert torch.equal(kept[0], kept[2]) and torch.equal(kept[1], kept[3])
    assert abs(kept[0][..., : length + 1].float().mean() - 0.75) < 0.04


def test_seed_may_be_a_tensor_and_changes_the_draw(impl):
    grid = (3, 4, 5)
    qkv = random_qkv(grid, "H|W").to(impl.device, dtype_of(impl))

    def draw(seed):
        return axial_attention(qkv, grid, "H|W", dropout_p=0.5, seed=seed, impl=impl.name)

    assert torch.equal(draw(5), draw(torch.tensor(5, device=impl.device)))
    assert not torch.equal(draw(5), draw(6))
    torch.manual_seed(0)
    first = draw(None)
    assert not torch.equal(first, draw(None))
    torch.manual_seed(0)
    assert torch.equal(first, draw(None))


@pytest.mark.parametrize("layout", ["slice of a wider buffer", "batch second", "last stride 2"])
def test_reads_strided_qkv(impl, layout):
    grid, axes = (3, 4, 5), "H|W"
    qkv = random_qkv(grid, axes).to(impl.device, dtype_of(impl))
    B, S, _, N, Dh = qkv.shape
    if layout == "slice of a wider buffer":
        strided = qkv.new_full((B, S + 2, 5, N + 1, Dh + 8), math.nan)[:, 1:-1, 1:4, 1:, :Dh]
    elif layout == "batch second":
        strided = qkv.new_empty(S, B, 3, N, Dh).transpose(0, 1)
    else:
        strided = qkv.new_full((B, S, 3, N, Dh, 2), math.nan)[..., 0]
    strided.copy_(qkv)
    dout = torch.ones(B, S, N, Dh)
    results = [run(x, dout, grid, axes, impl=impl.name) for x in (qkv, strided)]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dimension", [0, 1, 2, 3], ids=["clips", "rows", "q k v", "heads"])
def test_reads_offsets_beyond_2_to_the_31(impl, dimension):
    """The third entry of a dimension lies there, while the stride itself has 31 bits."""
    if impl.device != "cpu":
        pytest.skip("the untouched pages of a huge mapping cost nothing on the host only")
    grid, axes = (2, 1, 1), "T"
    small = random_qkv(grid, axes, batch=3, heads=3).to(torch.bfloat16)
    strides = list(small.stride())
    strides[dimension] = 2**30 + 64
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, 2 * (2 * strides[dimension] + small.numel()), flags=flags) as memory:
        flat = torch.frombuffer(memory, dtype=torch.bfloat16)
        huge = flat.as_strided(small.shape, strides)
        huge.copy_(small)
        actual = axial_attention(huge, grid, axes, impl=impl.name)
        del huge, flat
    assert torch.equal(actual, axial_attention(small, grid, axes, impl=impl.name))


def test_takes_more_than_65535_lines(impl):
    if impl.name == "triton" and impl.device == "cpu":
        pytest.skip("interpreting thousands of programs takes minutes; runs on a GPU")
    grid = (1, 257, 256)
    qkv = random_qkv(grid, "T", batch=1).to(impl.device, dtype_of(impl))
    out = axial_attention(qkv, grid, "T", impl=impl.name).cpu()
    qkv = qkv.cpu()
    last = torch.cat((qkv[:, -1:], qkv[:, :1]), 1)  # the last line is its token and [CLS]
    q, k, v = last.double().unbind(2)
    tolerance = 8 * torch.finfo(out.dtype).eps
    weights = (torch.einsum("bnd,bjnd->bnj", q[:, 0], k) * 32**-0.5).softmax(-1)
    torch.testing.assert_close(
        out[:, -1].double(), torch.einsum("bnj,bjnd->bnd", weights, v), atol=tolerance, rtol=0
    )


@pytest.mark.impls("cpu", "triton", "cuda")
def test_repeats_bit_for_bit(impl):
    grid, axes = (3, 5, 4), "H|W"
    qkv = random_qkv(grid, axes).to(impl.device, dtype_of(impl))
    dout = torch.randn(qkv.shape[0], qkv.shape[1], 2, 32, device=impl.device)
    arguments = {"impl": impl.name, "dropout_p": 0.1, "seed": 3}
    first, second = (run(qkv, dout, grid, axes, **arguments) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_swapping_height_and_width_swaps_their_axes(impl):
    T, H, W = grid = (2, 3, 5)
    qkv = random_qkv(grid, "H").to(dtype_of(impl))
    swapped = qkv[:, 1:].unflatten(1, grid).transpose(2, 3).flatten(1, 3)
    swapped = torch.cat((qkv[:, :1], swapped), 1).to(impl.device)
    by_column = axial_attention(qkv.to(impl.device), grid, "H", impl=impl.name)
    by_row = axial_attention(swapped, (T, W, H), "W", impl=impl.name)
    back = by_row[:, 1:].unflatten(1, (T, W, H)).transpose(2, 3).flatten(1, 3)
    assert torch.equal(by_column[:, 1:], back)
    tolerance = {"rtol": 2 * torch.finfo(by_row.dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(by_column[:, 0], by_row[:, 0], **tolerance)


def test_empty_batch_gives_empty_output_and_gradient(impl):
    grid = (2, 3, 4)
    qkv = torch.empty(0, 25, 3, 2, 32, device=impl.device, dtype=dtype_of(impl), requires_grad=True)
    out = axial_attention(qkv, grid, "H|W", impl=impl.name)
    out.sum().backward()
    assert out.shape == (0, 25, 2, 32) and qkv.grad is not None and qkv.grad.shape == qkv.shape


@pytest.mark.impls("cpu", "triton", "cuda")
def test_ops_pass_opcheck(impl):
    grid, axes = (2, 3, 4), "H|W"
    qkv = random_qkv(grid, axes, batch=1).to(impl.device, dtype_of(impl))
    padding, seed = random_padding(grid, 1).to(impl.device), torch.tensor(3, device=impl.device)
    bias = torch.randn(3, 2, 32) if impl.name == "cpu" else None
    plan = (list(grid), axes, 0.2, 6554, impl.name)
    ops, dout = torch.ops.vimpac_kernels, torch.ones_like(qkv[:, :, 0])
    torch.library.opcheck(ops.axial_attention_fwd.default, (qkv, bias, padding, seed, *plan))
    plan = (list(grid), axes, 0.2, 0, impl.name)
    for wants_dbias in (False, True):
        arguments = (dout, qkv, bias, None, None, *plan, wants_dbias)
        torch.library.opcheck(ops.axial_attention_bwd.default, arguments)


@pytest.mark.impls("cpu", "triton", "cuda")
def test_compiles_into_one_graph(impl):
    grid, axes = (2, 3, 4), "H|W"
    qkv = random_qkv(grid, axes).to(impl.device, dtype_of(impl))
    dout = torch.randn(qkv.shape[0], qkv.shape[1], 2, 32, device=impl.device)

    def call(x):
        return axial_attention(x, grid, axes, dropout_p=0.2, seed=4, impl=impl.name) * 2

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    eager_leaf, leaf = (qkv.clone().requires_grad_() for _ in range(2))
    expected, actual = call(eager_leaf), compiled(leaf)
    expected.backward(dout)
    actual.backward(dout)
    assert torch.equal(actual, expected) and torch.equal(leaf.grad, eager_leaf.grad)


def test_autocast_casts_fp32(impl):
    grid = (2, 3, 4)
    qkv = random_qkv(grid, "H|W").float().to(impl.device)
    with torch.autocast(impl.device, dtype=torch.bfloat16):
        out = axial_attention(qkv, grid, "H|W", impl=impl.name)
    assert out.dtype == torch.bfloat16
    expected = axial_attention(qkv.bfloat16(), grid, "H|W", impl=impl.name)
    assert torch.equal(out, expected)


@pytest.mark.impls("triton", "cuda")
def test_captured_graph_follows_the_seed_tensor(impl):
    if impl.device == "cpu":
        pytest.skip("CUDA graphs need a device")
    grid = (3, 4, 5)
    qkv = random_qkv(grid, "H|W").bfloat16().to(impl.device)
    seed = torch.tensor(1, device=impl.device)
    arguments = {"dropout_p": 0.5, "seed": seed, "impl": impl.name}
    axial_attention(qkv, grid, "H|W", **arguments)  # compiles before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = axial_attention(qkv, grid, "H|W", **arguments)
    seed.fill_(2)
    graph.replay()
    assert torch.equal(out, axial_attention(qkv, grid, "H|W", **arguments))


@pytest.mark.impls("cpu")
def test_cpu_result_does_not_depend_on_threads(impl):
    grid, axes = (5, 16, 16), "T|H"
    qkv = random_qkv(grid, axes, head_dim=40).float()
    dout = torch.randn(2, qkv.shape[1], 2, 40)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(qkv, dout, grid, axes, dropout_p=0.1, seed=1, impl=impl.name))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("head_dim", [8, 37, 96])
def test_every_instruction_set_matches_reference(impl, isa, head_dim):
    grid, axes = (4, 3, 18), "W|T"
    assert_matches_reference(
        impl, random_qkv(grid, axes, head_dim=head_dim), grid, axes, torch.bfloat16,
        key_padding_mask=random_padding(grid), dropout_p=0.2, seed=5,
    )  # fmt: skip


@pytest.mark.impls("cpu")
def test_cpu_takes_lines_of_256_tokens(impl):
    grid = (1, 2, 256)
    assert_matches_reference(impl, random_qkv(grid, "W", batch=1), grid, "W")


@pytest.mark.impls("cpu")
def test_cpu_takes_heads_in_groups_where_lines_are_long(impl):
    """Three of the five heads' scores of 33 keys lie side by side, then two."""
    grid = (1, 2, 32)
    assert_matches_reference(
        impl, random_qkv(grid, "W", heads=5, head_dim=8), grid, "W",
        key_padding_mask=random_padding(grid), dropout_p=0.3, seed=7,
    )  # fmt: skip


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", [0, 1, 2], ids=["q", "k", "v"])
def test_cpu_hides_no_broken_activation(impl, isa, part, value):
    """Outputs are finite where, and only where, those of the reference are."""
    grid = (2, 3, 4)
    qkv = random_qkv(grid, "T").float()
    qkv[0, 3, part, 0, :8] = value
    out, expected = (axial_attention(qkv, grid, impl=name) for name in (impl.name, "reference"))
    assert not expected.isfinite().all()
    assert torch.equal(out.isfinite(), expected.isfinite())


@pytest.mark.parametrize("scale", [1e30, -1e30, 1e-30, 0.0])
@pytest.mark.parametrize("axes", ["T", "THW"])
def test_extreme_scales_give_what_the_reference_gives(impl, axes, scale):
    """The largest picks one key each, the smallest all of them."""
    if axes == "THW" and impl.name not in ("reference", "cpu"):
        pytest.skip("joint axes have no kernel on a GPU")
    grid = (4, 7, 7)  # which is a long line, too
    qkv, dtype = random_qkv(grid, axes), dtype_of(impl)
    out, expected = (
        axial_attention(qkv.to(device, dtype), grid, axes, scale=scale, impl=name).cpu()
        for name, device in ((impl.name, impl.device), ("reference", "cpu"))
    )
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
