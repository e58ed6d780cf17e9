"""embed_tokens against the reference in fp64, on every backend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import vimpac_kernels
from tests.checks import assert_close
from vimpac_kernels import embed_tokens, reference

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

# B, grid, V, D, dtype of the embedding, of the output, dropout, LayerNorm, [CLS]
CASES = {
    "one-token": (1, (1, 1, 1), 1, 8, FP32, FP32, 0.0, True, False),
    "ragged-fp32": (3, (2, 3, 5), 11, 72, FP32, FP32, 0.3, True, True),
    "small-model-bf16": (2, (3, 2, 4), 20, 512, FP32, BF16, 0.1, True, True),
    "prenorm": (2, (3, 2, 4), 7, 136, FP32, FP32, 0.1, False, True),
    "all-bf16": (3, (2, 2, 4), 9, 64, BF16, BF16, 0.1, True, True),
    "fp16": (2, (2, 3, 3), 50, 128, FP16, FP16, 0.0, True, True),
    "bf16-to-fp32": (2, (2, 3, 3), 5, 24, BF16, FP32, 0.1, True, False),
    "images": (4, (3, 7), 12, 40, FP32, FP32, 0.1, True, True),
    "text": (5, (9,), 12, 32, FP32, BF16, 0.2, True, False),
    "wide": (2, (1, 2, 2), 3, 1544, FP32, FP32, 0.1, True, True),
}


def _inputs(case: tuple, device: str) -> dict[str, Tensor]:
    B, grid, V, D, e_type, _, _, norm, cls = case
    generator = torch.Generator().manual_seed(B * D)

    def draw(*shape: int, dtype: torch.dtype = FP32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(device)

    tensors = {"embedding": draw(V, D, dtype=e_type)}
    tensors |= {f"axis{i}": draw(n, D) for i, n in enumerate(grid)}
    tensors |= {"weight": draw(D), "bias": draw(D)} if norm else {}
    return tensors | ({"cls": draw(D)} if cls else {})


def _tokens(case: tuple) -> Tensor:
    """Every third token is the last id, as masked ones are."""
    B, grid, V = case[:3]
    generator = torch.Generator().manual_seed(V)
    tokens = torch.randint(0, V, (B, *grid), generator=generator)
    tokens.view(-1)[::3] = V - 1
    return tokens


def _run(function, tensors: dict, case: tuple, dtype: torch.dtype | None = None, **options):
    """Output and gradients, all in fp64 if `dtype` is."""
    leaves = {name: t.detach().to(dtype or t.dtype).requires_grad_() for name, t in tensors.items()}
    named = {n: t for n, t in leaves.items() if not n.startswith("axis")}
    positions = [t for n, t in leaves.items() if n.startswith("axis")]
    tokens = options.pop("tokens", _tokens(case)).to(leaves["embedding"].device)
    y = function(
        tokens, positions=positions, **named, dropout_p=case[6], dtype=dtype or case[5],
        seed=1234567890123, **options,
    )  # fmt: skip
    # Drawn, since a ramp over the rows cancels in sums of many; in bf16, which fp32 and fp64 hold.
    generator = torch.Generator().manual_seed(1)
    y.backward(torch.randn(y.shape, generator=generator).bfloat16().to(y))
    return [y, *(t.grad for t in leaves.values())]


def _check(impl, case: tuple, **options) -> None:
    tensors = _inputs(case, impl.device)
    truth = _run(reference.embed_tokens, tensors, case, torch.float64, **options)
    same = _run(reference.embed_tokens, tensors, case, **options)
    actual = _run(embed_tokens, tensors, case, impl=impl.name, **options)
    for y, t, r in zip(actual, truth, same, strict=True):
        assert_close(y, t, r)


@pytest.mark.sanitize
@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_match_reference(impl, name: str) -> None:
    _check(impl, CASES[name])


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("name", ["ragged-fp32", "small-model-bf16", "fp16", "prenorm"])
def test_instruction_sets_match_reference(impl, isa: str, name: str) -> None:
    _check(impl, CASES[name])


@pytest.mark.impls("cpu")
def test_blocks_of_rows_match_reference(impl) -> None:
    """2,623 rows: the backward takes 2,048 at a time, which end within a line."""
    _check(impl, (43, (3, 4, 5), 30, 24, FP32, FP32, 0.1, True, True))


@pytest.mark.impls("cpu")
def test_number_of_threads_changes_no_bit(impl) -> None:
    case, threads = (37, (3, 4, 5), 30, 264, FP32, FP32, 0.1, True, True), torch.get_num_threads()
    tensors, results = _inputs(case, "cpu"), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(_run(embed_tokens, tensors, case, impl="cpu"))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.impls("reference", "cpu", "cuda")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32], ids=str)
def test_ids_of_every_integer_dtype(impl, dtype: torch.dtype) -> None:
    case = CASES["images"]
    tensors = _inputs(case, impl.device)
    expected = _run(embed_tokens, tensors, case, impl=impl.name)
    actual = _run(embed_tokens, tensors, case, impl=impl.name, tokens=_tokens(case).to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_drops_the_elements_of_the_reference(impl) -> None:
    device = impl.device
    tokens = torch.zeros(3, 2, 2, 2, dtype=torch.int32, device=device)
    embedding, cls = torch.ones(1, 136, device=device), torch.ones(136, device=device)
    tables = [torch.zeros(2, 136, device=device)] * 3
    options = dict(cls=cls, dropout_p=0.25, seed=99)
    y = embed_tokens(tokens, embedding, tables, **options, impl=impl.name)
    assert torch.equal(y, reference.embed_tokens(tokens, embedding, tables, **options))
    assert 0.2 < (y == 0).float().mean() < 0.3


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("norm", [False, True], ids=["", "norm"])
def test_dropped_element_that_is_not_finite_stays_nan(impl, norm: bool, value: float) -> None:
    """As in `F.dropout`: it is multiplied by 0. So are gradients."""
    device = impl.device
    tokens = torch.tensor([[0, 1, 2]], device=device)
    tables = [torch.zeros(3, 16, device=device)]
    vectors = [torch.ones(16, device=device)] * 2 if norm else []
    upstream = torch.ones(1, 3, 16, device=device)
    upstream[0, 2] = value
    results = []
    for name in (impl.name, "reference"):
        embedding = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).to(device)
        embedding[1] = value
        embedding.requires_grad_()
        y = embed_tokens(tokens, embedding, tables, *vectors, dropout_p=0.5, seed=1, impl=name)
        (gradient,) = torch.autograd.grad(y, embedding, upstream)
        results.append((y.isfinite(), gradient.isfinite()))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert not results[0][0][0, 1].any() and not results[0][1][2].any()


def test_repeats_bit_for_bit(impl) -> None:
    case = CASES["ragged-fp32"]
    tensors = _inputs(case, impl.device)
    first, second = (_run(embed_tokens, tensors, case, impl=impl.name) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_one_id_everywhere(impl) -> None:
    """The longest run of one id that a batch can have, between ids that no token has."""
    case = (2, (3, 4, 4), 9, 16, FP32, FP32, 0.0, True, True)
    options = {"tokens": torch.full((2, 3, 4, 4), 4)}
    _check(impl, case, **options)
    tensors = _inputs(case, impl.device)
    dembedding = _run(embed_tokens, tensors, case, impl=impl.name, **options)[1]
    assert dembedding[4].any() and not dembedding[[0, 1, 2, 3, 5, 6, 7, 8]].any()


@pytest.mark.parametrize("frozen", ["embedding", "all but the embedding"])
def test_frozen_tensors_get_no_gradient(impl, frozen: str) -> None:
    case = CASES["ragged-fp32"]
    tensors = _inputs(case, impl.device)
    expected = dict(
        zip(tensors, _run(embed_tokens, tensors, case, impl=impl.name)[1:], strict=True)
    )
    for name, tensor in tensors.items():
        tensor.requires_grad_((name == "embedding") != (frozen == "embedding"))
    tables = [tensors.pop(f"axis{i}") for i in range(3)]
    y = embed_tokens(
        _tokens(case).to(impl.device), positions=tables, **tensors, dropout_p=0.3,
        seed=1234567890123, impl=impl.name,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    y.backward(torch.randn(y.shape, generator=generator).bfloat16().to(y))
    for name, tensor in (tensors | {f"axis{i}": t for i, t in enumerate(tables)}).items():
        if tensor.requires_grad:
            assert torch.equal(tensor.grad, expected[name])
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("token", [-1, 11, 2**32])
def test_id_outside_the_embedding(impl, token: int) -> None:
    """Is refused where looking costs nothing; elsewhere its row is NaN, and the others are not."""
    case = CASES["ragged-fp32"]
    tensors, tokens = _inputs(case, impl.device), _tokens(case)
    tokens[1, 0, 2, 3] = token
    if impl.name in ("cpu", "reference"):
        with pytest.raises(IndexError, match=rf"token {token} is outside \[0, 11\)"):
            _run(embed_tokens, tensors, case, impl=impl.name, tokens=tokens)
        return
    y, dembedding, *_ = _run(embed_tokens, tensors, case, impl=impl.name, tokens=tokens)
    expected, dexpected, *_ = _run(reference.embed_tokens, tensors, case, tokens=tokens)
    assert y[1, 1 + 13].isnan().any() and torch.equal(y.isnan(), expected.isnan())
    torch.testing.assert_close((y, dembedding), (expected, dexpected), equal_nan=True)


def test_empty_batch_gives_empty_output_and_zero_gradients(impl) -> None:
    case = (0, (2, 3, 4), 5, 16, FP32, FP32, 0.1, True, True)
    tokens = torch.zeros(0, 2, 3, 4, dtype=torch.int64)
    y, *grads = _run(embed_tokens, _inputs(case, impl.device), case, impl=impl.name, tokens=tokens)
    assert y.shape == (0, 25, 16)
    assert all(not g.any() for g in grads)


def test_noncontiguous_input_is_read_right(impl) -> None:
    tokens = torch.arange(24, device=impl.device).view(4, 3, 2).mT  # (4, 2, 3)
    embedding, tables = torch.randn(16, 24, device=impl.device).T, torch.randn(2, 5, 16)
    tables = [tables[0].to(impl.device)[1:3], tables[1].to(impl.device)[::2]]
    y = embed_tokens(tokens, embedding, tables, impl=impl.name)
    expected = reference.embed_tokens(tokens, embedding, tables)
    torch.testing.assert_close(y, expected)


def test_gradcheck() -> None:
    shapes = ((5, 8), (2, 8), (3, 8), (8,), (8,), (8,))
    leaves = [torch.randn(*s, dtype=torch.float64).requires_grad_() for s in shapes]
    tokens = torch.randint(0, 5, (2, 2, 3))

    def function(embedding: Tensor, height: Tensor, width: Tensor, *vectors: Tensor) -> Tensor:
        weight, bias, cls = vectors
        options = dict(cls=cls, dropout_p=0.2, seed=3)
        return embed_tokens(tokens, embedding, (height, width), weight, bias, **options)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_fullgraph_compile_equals_eager(dropout_p: float) -> None:
    case = (2, (2, 3, 4), 9, 32, FP32, BF16, dropout_p, True, True)
    tensors = _inputs(case, "cpu")
    compiled = torch.compile(embed_tokens, fullgraph=True, backend="aot_eager")
    results = [_run(function, tensors, case) for function in (embed_tokens, compiled)]
    torch.testing.assert_close(*results)


_ZEROS = torch.zeros(2, 3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": _ZEROS.float()}, TypeError, "tokens must be integers"),
        ({"tokens": torch.zeros(2, dtype=torch.int64)}, ValueError, "tokens must be"),
        ({"embedding": torch.zeros(8)}, ValueError, "embedding must be"),
        ({"positions": [torch.zeros(3, 8)]}, ValueError, "positions must be"),
        ({"positions": torch.zeros(2, 3, 8)}, ValueError, r"positions must be \[\(3, 8\), \(4"),
        ({"weight": torch.ones(8)}, ValueError, "come together"),
        ({"cls": torch.ones(1, 8)}, ValueError, r"cls must be \(8,\)"),
        ({"cls": torch.ones(8, dtype=torch.int32)}, TypeError, "cls must be floating"),
        ({"dtype": torch.int32}, TypeError, "dtype must be"),
        ({"dropout_p": 1.0}, ValueError, "dropout_p must be in"),
        ({"eps": -1.0}, ValueError, "eps must be"),
        ({"impl": "fastest"}, ValueError, "impl must be"),
    ],
)
def test_rejects_what_does_not_fit(change: dict, error: type, message: str) -> None:
    arguments = {
        "tokens": _ZEROS,
        "embedding": torch.zeros(5, 8),
        "positions": [torch.zeros(3, 8), torch.zeros(4, 8)],
    }
    with pytest.raises(error, match=message):
        embed_tokens(**(arguments | change))


def test_is_available_everywhere() -> None:
    assert "reference" in vimpac_kernels.available_impls("embed_tokens")


@pytest.mark.parametrize("shared", [False, True], ids=["in place", "memory of NumPy"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8], ids=lambda d: d.__name__)
@pytest.mark.parametrize("token", [3, 127], ids=["within", "outside"])
def test_ids_filled_anew_before_the_backward(impl, token: int, dtype: type, shared: bool) -> None:
    """As a loader does with its buffer: the old ids get the gradient, or there is an error."""
    if shared and impl.device != "cpu":
        pytest.skip("NumPy has no memory on a GPU")
    buffer = np.zeros((2, 3), dtype=dtype)
    tokens = torch.from_numpy(buffer).to(impl.device)
    embedding = torch.randn(17, 16, device=impl.device, requires_grad=True)
    positions = [torch.randn(3, 16, device=impl.device)]
    y = embed_tokens(tokens, embedding, positions, impl=impl.name)
    if shared:
        buffer[:] = token
    else:
        tokens.fill_(token)
    if impl.device != "cpu" and dtype != np.uint8:  # of which kernels get a copy
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        return
    y.sum().backward()
    assert embedding.grad[0].eq(6).all() and not embedding.grad[1:].any()


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("token", [-1, 20, 10**9])
def test_backward_writes_nothing_outside_the_gradient(impl, token: int) -> None:
    """The operator by itself, whose ids no forward has checked."""
    tokens, table = torch.full((2, 1, 1, 3), token), torch.randn(3, 16)
    empty, seed = torch.empty(0), torch.tensor(0)
    tensors = (torch.randn(17, 16), None, None, table, None, None, seed, empty, empty)
    with pytest.raises(IndexError, match=rf"token {token} is outside \[0, 17\)"):
        torch.ops.vimpac_kernels.embed_tokens_bwd(
            torch.ones(2, 3, 16), tokens, *tensors, 0.0, True, True, impl.name
        )
