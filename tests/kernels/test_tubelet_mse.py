"""tubelet_mse against the reference in fp64, on every backend, and the reference's targets."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.checks import assert_close
from vimpac_kernels import reference, tubelet_mse


class Case(NamedTuple):
    """A call: B, T, H, W of the clips, M tubelets (t, P) of each, dtype of pred."""

    clips: tuple[int, int, int, int]
    M: int
    tubelet: tuple[int, int]
    dtype: torch.dtype


CASES = {
    "two-pixels": Case((1, 2, 1, 1), 1, (2, 1), torch.float32),
    "P2-unaligned-bf16": Case((2, 2, 4, 6), 4, (1, 2), torch.bfloat16),
    "P3": Case((2, 3, 6, 9), 5, (3, 3), torch.float32),
    "P8-fp16": Case((2, 4, 16, 24), 7, (2, 8), torch.float16),
    "P14-bf16": Case((1, 2, 14, 28), 2, (2, 14), torch.bfloat16),
    "P16-bf16": Case((1, 4, 32, 48), 5, (2, 16), torch.bfloat16),
    "largest": Case((1, 4, 32, 32), 1, (4, 32), torch.float32),
}


def _inputs(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """pred, video, tubelets; tubelet 0 of the first clip is flat, the next nearly so."""
    (B, T, H, W), (t, P) = case.clips, case.tubelet
    generator = torch.Generator().manual_seed(H * W + case.M)
    video = torch.randint(0, 256, (B, T, H, W, 3), dtype=torch.uint8, generator=generator)
    N = T // t * (H // P) * (W // P)
    video[0, :t, :P, : min(2 * P, W)] = 250
    video[0, 0, 0, min(2 * P, W) - 1, 1] = 251
    tubelets = torch.stack([torch.randperm(N, generator=generator)[: case.M] for _ in range(B)])
    tubelets[0, 0] = 0
    pred = torch.randn((B, case.M, t * P * P * 3), generator=generator)
    return pred.to(device, case.dtype), video.to(device), tubelets.int().to(device)


def _run(
    function, tensors: tuple[Tensor, ...], dtype: torch.dtype | None = None, **options
) -> tuple[Tensor, Tensor]:
    """The loss and dpred, both in fp64 if `dtype` is."""
    pred, *others = tensors
    leaf = pred.detach().to(dtype or pred.dtype).requires_grad_()
    loss = function(leaf, *others, **options)
    return loss, *torch.autograd.grad(loss, leaf, torch.tensor(3.0).to(loss))


def _check(impl, case: Case, **options) -> None:
    tensors, options = _inputs(case, impl.device), {"tubelet": case.tubelet} | options
    truth = _run(reference.tubelet_mse, tensors, torch.float64, **options)
    same = _run(reference.tubelet_mse, tensors, **options)
    actual = _run(tubelet_mse, tensors, impl=impl.name, **options)
    for y, t, r in zip(actual, truth, same, strict=True):
        assert_close(y, t, r)


@pytest.mark.sanitize
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_match_reference(impl, name: str) -> None:
    _check(impl, CASES[name])


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("name", ["P2-unaligned-bf16", "P3", "P8-fp16", "P16-bf16", "largest"])
def test_instruction_sets_match_reference(impl, isa: str, name: str) -> None:
    _check(impl, CASES[name])


@pytest.mark.parametrize("P", [2, 8])
def test_many_tubelets_match_reference(impl, P: int) -> None:
    """More of them than the chunks, warps or programs of every backend hold at a time."""
    B = {"cpu": 65, "triton": 1}.get(impl.name, 5) if impl.device == "cpu" else 700
    _check(impl, Case((B, 1, 4 * P, 5 * P), 20, (1, P), torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_targets_are_those_of_videomae(dtype: torch.dtype) -> None:
    """In fp64, up to the square root: (x - mean) / (unbiased std + eps) of x = video / 255."""
    _, video, tubelets = _inputs(CASES["P8-fp16"], "cpu")
    x = video.double().view(2, 2, 2, 2, 8, 3, 8, 3) / 255  # B T/t t H/P P W/P P 3
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(2, 12, 128, 3)
    x = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True).sqrt() + 1e-6)
    expected = x.flatten(2)[torch.arange(2)[:, None], tubelets.long()].to(dtype)
    actual = reference.tubelet_targets(video, tubelets, tubelet=(2, 8), dtype=dtype)
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-8}[dtype]  # of a flat tubelet x - mean is
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)  # 1e-14, not 0


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_target_of_a_flat_tubelet_is_zero(impl, eps: float) -> None:
    """Exactly, at any level; a mean in fp32 would leave a rounding error to divide by eps."""
    levels = torch.arange(0, 256, 17, dtype=torch.uint8, device=impl.device)
    video = levels.view(16, 1, 1, 1, 1).expand(-1, 1, 3, 3, 3)
    tubelets = torch.zeros(16, 1, dtype=torch.int32, device=impl.device)
    pred = torch.zeros(16, 1, 27, device=impl.device)
    options = {"tubelet": (1, 3), "eps": eps, "impl": impl.name}
    loss, dpred = _run(tubelet_mse, (pred, video, tubelets), **options)
    assert loss == 0 and not dpred.any()


def test_eps_is_added_to_the_deviation(impl) -> None:
    """A large one, and none at all where a value differs by one level from the others."""
    _check(impl, CASES["P3"], eps=0.5)
    _check(impl, CASES["P3"], eps=0.0)


def test_repeats_bit_for_bit(impl) -> None:
    """On a CPU on any number of threads."""
    case, threads = Case((1, 4, 64, 64), 32, (2, 16), torch.float32), torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count if impl.name == "cpu" else threads)
        options = {"tubelet": case.tubelet, "impl": impl.name}
        results.append(_run(tubelet_mse, _inputs(case, impl.device), **options))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("sizes", [(0, 2), (2, 0)], ids=["B0", "M0"])
def test_no_tubelets_have_loss_and_gradient_zero(impl, sizes: tuple[int, int]) -> None:
    pred = torch.zeros(*sizes, 24, device=impl.device)
    video = torch.zeros(sizes[0], 2, 2, 4, 3, dtype=torch.uint8, device=impl.device)
    tubelets = torch.zeros(sizes, dtype=torch.int32, device=impl.device)
    loss, dpred = _run(tubelet_mse, (pred, video, tubelets), tubelet=(2, 2), impl=impl.name)
    assert loss == 0 and loss.dtype == torch.float32 and dpred.shape == pred.shape


@pytest.mark.impls("cpu", "triton", "cuda")
def test_noncontiguous_tensors_are_read_right(impl) -> None:
    """Clips as decoders leave them, channels first or as a part of longer ones."""
    case = CASES["P8-fp16"]
    tensors = pred, video, tubelets = _inputs(case, impl.device)
    views = (
        pred.movedim(0, -1).contiguous().movedim(-1, 0),
        torch.cat((video, video), 1).movedim(4, 1).contiguous().movedim(1, 4)[:, :4],
        tubelets.T.contiguous().T,
    )
    assert not any(view.is_contiguous() for view in views)
    options = {"tubelet": case.tubelet, "impl": impl.name}
    actual, expected = (_run(tubelet_mse, t, **options) for t in (views, tensors))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.impls("cpu", "triton", "cuda")
def test_tensors_may_start_anywhere(impl) -> None:
    """As parts of a flat buffer do, from its second element on."""

    def shifted(tensor: Tensor) -> Tensor:
        return torch.cat((tensor.flatten()[:1], tensor.flatten()))[1:].view_as(tensor)

    tensors, options = (
        _inputs(CASES["P8-fp16"], impl.device),
        {"tubelet": (2, 8), "impl": impl.name},
    )
    views = tuple(shifted(tensor) for tensor in tensors)
    actual, expected = (_run(tubelet_mse, t, **options) for t in (views, tensors))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.impls("cpu")
def test_a_loader_may_reuse_the_memory_of_a_clip(impl) -> None:
    """Before the backward, and without autograd noticing, as through a NumPy array."""
    case = CASES["P8-fp16"]
    options = {"tubelet": case.tubelet, "impl": impl.name}
    _, expected = _run(tubelet_mse, _inputs(case, "cpu"), **options)
    pred, video, tubelets = _inputs(case, "cpu")
    loss = tubelet_mse(pred.requires_grad_(), video, tubelets, **options)
    video.numpy().fill(0)
    tubelets.numpy().fill(0)
    (dpred,) = torch.autograd.grad(loss, pred, torch.tensor(3.0))
    assert torch.equal(dpred, expected)


@pytest.mark.impls("reference", "cpu")
@pytest.mark.parametrize("index", [-1, 12])
def test_an_index_outside_the_grid_is_named(impl, index: int) -> None:
    pred, video, tubelets = _inputs(CASES["P8-fp16"], "cpu")
    tubelets[1, 3] = index
    with pytest.raises(IndexError, match=rf"tubelets: index {index} is outside \[0, 12\)"):
        tubelet_mse(pred, video, tubelets, tubelet=(2, 8), impl=impl.name)


@pytest.mark.impls("triton", "cuda")
@pytest.mark.parametrize("index", [-1, 2**31 - 1])
def test_an_index_outside_the_grid_makes_nan_where_none_looks(impl, index: int) -> None:
    tensors = _inputs(CASES["P8-fp16"], impl.device)
    tensors[2][1, 3] = index
    loss, dpred = _run(tubelet_mse, tensors, tubelet=(2, 8), impl=impl.name)
    nan = dpred.isnan()
    assert loss.isnan() and nan[1, 3].all() and nan.sum() == nan[1, 3].numel()


def test_gradcheck() -> None:
    pred, *others = _inputs(CASES["P2-unaligned-bf16"], "cpu")
    leaf = pred.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tubelet_mse(x, *others, tubelet=(1, 2)), leaf)


def test_fullgraph_compile_equals_eager() -> None:
    tensors, options = _inputs(CASES["P3"], "cpu"), {"tubelet": CASES["P3"].tubelet}
    compiled = torch.compile(tubelet_mse, fullgraph=True, backend="aot_eager")
    actual, expected = _run(compiled, tensors, **options), _run(tubelet_mse, tensors, **options)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.impls("cpu")
def test_operators_pass_opcheck(impl) -> None:
    """Schema, fake tensors and dispatch of the private operators."""
    tensors, options = _inputs(CASES["P3"], "cpu"), (3, 3, 1e-6, impl.name)
    ops = torch.ops.vimpac_kernels
    torch.library.opcheck(ops.tubelet_mse_fwd.default, (*tensors, *options))
    torch.library.opcheck(ops.tubelet_mse_bwd.default, (torch.tensor(2.0), *tensors, *options))


def test_loss_is_fp32_under_autocast() -> None:
    pred, *others = _inputs(CASES["P16-bf16"], "cpu")
    x, linear = torch.randn(1, 5, 4), torch.nn.Linear(4, pred.shape[2])
    with torch.autocast("cpu", torch.bfloat16):
        loss = tubelet_mse(linear(x), *others)
        plain = tubelet_mse(linear(x), *others, impl="reference")
    assert loss.dtype == plain.dtype == torch.float32
    torch.testing.assert_close(loss, plain)
    assert torch.autograd.grad(loss, linear.weight)[0].any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pred": torch.zeros(2, 3, 23)}, ValueError, r"\(2, 3, 24\) .* got \(2, 3, 23\)"),
        ({"pred": torch.zeros(2, 3, 24).int()}, TypeError, "pred must be fp32"),
        ({"video": torch.zeros(2, 2, 4, 6, 3)}, TypeError, "video must be uint8, got torch.float"),
        ({"video": torch.zeros(2, 2, 5, 6, 3).byte()}, ValueError, "H and W of 2, .*5, 6, 3"),
        ({"video": torch.zeros(2, 3, 2, 2).byte()}, ValueError, r"video must be \(B, T, H, W, 3\)"),
        ({"video": torch.zeros(2, 2, 0, 6, 3).byte()}, ValueError, r"got \(2, 2, 0, 6, 3\)"),
        ({"tubelets": torch.zeros(2, 3).long()}, TypeError, r"use tubelets.int\(\)"),
        ({"tubelets": torch.zeros(3, 3).int()}, ValueError, r"\(B, M\), B = 2, got \(3, 3\)"),
        ({"tubelets": torch.zeros(2, 3, device="meta").int()}, ValueError, "tubelets is on meta"),
        ({"tubelet": (1, 1)}, ValueError, "one pixel, and one value no unbiased variance"),
        ({"tubelet": (2, 2, 2)}, ValueError, "tubelet must be two sizes"),
        ({"eps": -1.0}, ValueError, "eps must be >= 0"),
    ],
    ids=str,
)
def test_rejects_what_does_not_fit(change: dict, error: type, message: str) -> None:
    right = {"pred": torch.zeros(2, 3, 24), "video": torch.zeros(2, 2, 4, 6, 3).byte()}
    right |= {"tubelets": torch.zeros(2, 3).int(), "tubelet": (2, 2)}
    with pytest.raises(error, match=message):
        tubelet_mse(**(right | change))


def test_larger_tubelets_are_served_by_the_reference() -> None:
    video = torch.zeros(1, 1, 65, 65, 3, dtype=torch.uint8)
    pred, tubelets = torch.ones(1, 1, 65 * 65 * 3), torch.zeros(1, 1).int()
    assert math.isclose(tubelet_mse(pred, video, tubelets, tubelet=(1, 65)), 1, rel_tol=1e-6)
    with pytest.raises(RuntimeError, match="up to 4096 pixels, these have 4225"):
        tubelet_mse(pred, video, tubelets, tubelet=(1, 65), impl="cpu")
