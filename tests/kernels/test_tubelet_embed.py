"""tubelet_embed against the reference in fp64, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.checks import assert_close
from vimpac_kernels import reference, tubelet_embed

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# (B, T, H, W), (t, P), V, D, dtype
CASES = {
    "one-pixel": ((1, 1, 1, 1), (1, 1), 1, 8, FP32),
    "P1": ((2, 2, 3, 5), (2, 1), 3, 8, BF16),
    "P3-unaligned": ((2, 2, 6, 9), (1, 3), 5, 24, FP16),
    "P8-fp32": ((3, 4, 16, 24), (2, 8), 7, 40, FP32),
    "P8-unaligned-rows": ((2, 2, 8, 24), (1, 8), 3, 16, BF16),
    "P14": ((2, 2, 14, 28), (2, 14), 2, 16, FP32),
    "P16-bf16": ((2, 2, 32, 32), (2, 16), 5, 264, BF16),
    "P16-fp16": ((1, 2, 16, 32), (2, 16), 3, 72, FP16),
}


def _inputs(case: tuple, device: str) -> dict[str, Tensor]:
    """Tubelets are repeated and in any order. Clips are crops of larger frames."""
    (B, T, H, W), (t, P), V, D, dtype = case
    generator = torch.Generator().manual_seed(D)
    N, K = T * H * W // (t * P * P), 3 * t * P * P
    frames = torch.randint(0, 256, (B, T, H + 2, W + 8, 3), generator=generator, dtype=torch.uint8)
    weight = torch.randn(D, 3, t, P, P, generator=generator) / K**0.5
    return {
        "video": frames[:, :, 1:-1, 8:].to(device),
        "tubelets": torch.randint(0, N, (B, V), generator=generator, dtype=torch.int32).to(device),
        "weight": weight.to(device, dtype),
        "bias": torch.randn(D, generator=generator).to(device, dtype),
        "positions": torch.randn(N, D, generator=generator).to(device),
    }


def _run(function, tensors: dict[str, Tensor], dtype: torch.dtype | None = None, **options):
    """The rows, dweight and dbias, all in fp64 if `dtype` is."""
    weight, bias = leaves = [
        tensors[name].detach().to(dtype or tensors[name].dtype).requires_grad_()
        for name in ("weight", "bias")
    ]
    y = function(**tensors | {"weight": weight, "bias": bias}, **options)
    generator = torch.Generator().manual_seed(1)  # bf16, which fp32 and fp64 hold
    dy = torch.randn(y.shape, generator=generator).bfloat16()
    return y, *torch.autograd.grad(y, leaves, dy.to(y))


def _reference(**tensors):
    return reference.tubelet_embed(**{"mean": MEAN, "std": STD} | tensors)


def _check(impl, tensors: dict[str, Tensor], **options) -> None:
    truth = _run(_reference, tensors, torch.float64, **options)
    same = _run(_reference, tensors, **options)
    actual = _run(tubelet_embed, tensors, impl=impl.name, **options)
    for y, t, r in zip(actual, truth, same, strict=True):
        assert_close(y, t, r)


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward_match_reference(impl, name: str) -> None:
    _check(impl, _inputs(CASES[name], impl.device))


@pytest.mark.sanitize
@pytest.mark.parametrize("name", ["P3-unaligned", "P8-fp32"])
def test_one_tubelet_of_each_clip_matches_reference(impl, name: str) -> None:
    tensors = _inputs(CASES[name], impl.device)
    _check(impl, tensors | {"tubelets": tensors["tubelets"][:, :1]})


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("name", ["P3-unaligned", "P14", "P16-bf16"])
def test_instruction_sets_match_reference(impl, isa: str, name: str) -> None:
    _check(impl, _inputs(CASES[name], impl.device))


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((-1.0, 0.0, 3.0), (1.0, 0.1, 2.0))],
    ids=["half", "outside of a byte"],
)
def test_any_normalisation_matches_reference(impl, mean: tuple, std: tuple) -> None:
    _check(impl, _inputs(CASES["P8-unaligned-rows"], impl.device), mean=mean, std=std)


def test_every_byte_becomes_its_pixel(impl) -> None:
    """Of each channel, which weights pick."""
    video = torch.arange(256, device=impl.device).to(torch.uint8)
    video = video[:, None].expand(-1, 3).contiguous().view(1, 1, 1, 256, 3)
    tubelets = torch.arange(256, dtype=torch.int32, device=impl.device)[None]
    weight = torch.eye(8, 3, device=impl.device).view(8, 3, 1, 1, 1)
    zeros = torch.zeros(256, 8, device=impl.device)
    y = tubelet_embed(video, tubelets, weight, zeros[0], zeros, impl=impl.name)
    value = torch.arange(256, dtype=torch.float64)[:, None] / 255
    expected = (value - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD).double()
    torch.testing.assert_close(y[0, :, :3].cpu(), expected.float(), rtol=0, atol=1e-6)
    assert not y[0, :, 3:].any()


@pytest.mark.impls("cpu", "triton", "cuda")
@pytest.mark.parametrize("layout", ["channels first", "every second frame", "one clip for all"])
def test_a_clip_of_any_strides_is_read_right(impl, layout: str) -> None:
    tensors = _inputs(CASES["P8-fp32"], impl.device)
    video = tensors["video"]
    tensors["video"] = {
        "channels first": video.movedim(-1, 1).contiguous().movedim(1, -1),
        "every second frame": video.repeat_interleave(2, dim=1)[:, ::2],
        "one clip for all": video[:1].expand(3, -1, -1, -1, -1),
    }[layout]
    actual = _run(tubelet_embed, tensors, impl=impl.name)
    tensors["video"] = tensors["video"].contiguous()
    tensors["tubelets"] = tensors["tubelets"].T.contiguous().T
    expected = _run(tubelet_embed, tensors, impl=impl.name)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_is_the_formula_that_it_replaces() -> None:
    video, tubelets, weight, bias, positions = _inputs(CASES["P8-fp32"], "cpu").values()
    x = ((video / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).movedim(-1, 1)
    y = F.conv3d(x, weight, bias, stride=weight.shape[2:]).flatten(2).mT + positions
    y = y.gather(1, tubelets.long()[..., None].expand(-1, -1, len(weight)))
    for impl in ("reference", "auto"):
        torch.testing.assert_close(
            tubelet_embed(video, tubelets, weight, bias, positions, impl=impl), y,
            rtol=1e-5, atol=1e-5,
        )  # fmt: skip


@pytest.mark.impls("reference", "cpu", "cuda")
def test_autocast_computes_in_its_dtype(impl) -> None:
    tensors = _inputs(CASES["P8-fp32"], impl.device)
    truth = _run(_reference, tensors, torch.float64)
    with torch.autocast(impl.device, BF16):
        actual = _run(tubelet_embed, tensors, impl=impl.name)
        same = _run(_reference, tensors)
    assert actual[0].dtype == BF16 and actual[1].dtype == FP32
    for y, t, r in zip(actual, truth, same, strict=True):
        assert_close(y, t, r)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_frozen_parameter_gets_no_gradient(impl, frozen: str) -> None:
    tensors = _inputs(CASES["P8-fp32"], impl.device)
    expected = dict(
        zip(("weight", "bias"), _run(tubelet_embed, tensors, impl=impl.name)[1:], strict=True)
    )
    for name in expected:
        tensors[name].requires_grad_(name != frozen)
    y = tubelet_embed(**tensors, impl=impl.name)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y))
    for name, gradient in expected.items():
        assert (tensors[name].grad is None) == (name == frozen)
        assert name == frozen or torch.equal(tensors[name].grad, gradient)


@pytest.mark.parametrize(("B", "V"), [(0, 3), (2, 0)])
def test_no_tubelets_give_no_rows_and_zero_gradients(impl, B: int, V: int) -> None:
    tensors = _inputs(((B, 2, 8, 8), (1, 4), V, 16, FP32), impl.device)
    y, *gradients = _run(tubelet_embed, tensors, impl=impl.name)
    assert y.shape == (B, V, 16)
    assert [g.shape for g in gradients] == [(16, 3, 1, 4, 4), (16,)]
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("tubelet", [-1, 12, 2**31 - 1])
def test_a_tubelet_outside_the_grid(impl, tubelet: int) -> None:
    """Is refused where looking costs nothing; elsewhere its row is NaN, and the others are not."""
    tensors = _inputs(CASES["P8-fp32"], impl.device)
    expected = tubelet_embed(**tensors, impl=impl.name)
    tensors["tubelets"][1, 2] = tubelet
    if impl.name in ("cpu", "reference") and impl.device == "cpu":
        with pytest.raises(IndexError, match=rf"tubelet {tubelet} of clip 1 is outside \[0, 12\)"):
            tubelet_embed(**tensors, impl=impl.name)
        return
    y = _run(tubelet_embed, tensors, impl=impl.name)[0]
    assert y[1, 2].isnan().all()
    expected[1, 2] = torch.nan
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


def test_bytes_filled_anew_before_the_backward_change_nothing(impl) -> None:
    """As a loader does with its buffer, which autograd does not see."""
    if impl.device != "cpu":
        pytest.skip("NumPy has no memory on a GPU")
    tensors = _inputs(CASES["P8-fp32"], impl.device)
    expected = _run(tubelet_embed, tensors, impl=impl.name)[1]
    video = np.ascontiguousarray(tensors["video"].numpy())
    tensors["video"], weight = torch.from_numpy(video), tensors["weight"].requires_grad_()
    y = tubelet_embed(**tensors, impl=impl.name)
    video[:] = 0
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y))
    assert torch.equal(weight.grad, expected)


def test_repeats_bit_for_bit(impl) -> None:
    tensors = _inputs(CASES["P16-bf16"], impl.device)
    first, second = (_run(tubelet_embed, tensors, impl=impl.name) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.impls("cpu", "cuda")
def test_operators_pass_opcheck(impl) -> None:
    tensors = _inputs(CASES["P8-unaligned-rows"], impl.device)
    ops, options = torch.ops.vimpac_kernels, {"mean": MEAN, "std": STD}
    call = options | {"dtype": BF16, "save": True, "impl": impl.name}
    torch.library.opcheck(ops.tubelet_embed_fwd.default, tuple(tensors.values()), call)
    y, patches = ops.tubelet_embed_fwd(*tensors.values(), **call)
    torch.library.opcheck(ops.tubelet_embed_bwd.default, (y, patches, 1, 8, MEAN, STD, impl.name))


def test_gradcheck() -> None:
    tensors = _inputs(((1, 1, 2, 4), (1, 2), 3, 2, torch.float64), "cpu")
    weight, bias = (tensors.pop(name).requires_grad_() for name in ("weight", "bias"))
    assert torch.autograd.gradcheck(
        lambda w, b: tubelet_embed(**tensors, weight=w, bias=b), (weight, bias)
    )


def test_one_graph_serves_every_number_of_tubelets() -> None:
    """After that of the first."""
    tensors, counter = _inputs(CASES["P8-fp32"], "cpu"), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(tubelet_embed, fullgraph=True, backend=counter)
    for V in (7, 5, 2):
        tensors["tubelets"] = tensors["tubelets"][:, :V].contiguous()
        torch.testing.assert_close(_run(compiled, tensors), _run(tubelet_embed, tensors))
    assert counter.frame_count == 2


def test_meta_tensors_have_the_shape_of_the_result() -> None:
    tensors = {name: t.to("meta") for name, t in _inputs(CASES["P16-bf16"], "cpu").items()}
    y = tubelet_embed(**tensors)
    assert y.is_meta and y.shape == (2, 5, 264) and y.dtype == BF16


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"video": torch.zeros(2, 4, 16, 24, 3)}, TypeError, "must be uint8, as decoders give it"),
        (
            {"video": torch.zeros(3, 4, 16, 20, 3, dtype=torch.uint8)},
            ValueError,
            r"whole tubelets of weight, \(2, 8, 8\), but its clips are \(4, 16, 20\)",
        ),
        ({"tubelets": torch.zeros(3, 5, dtype=torch.int64)}, TypeError, "tubelets must be int32"),
        ({"positions": torch.zeros(3, 40)}, ValueError, r"positions must be \(N, D\), \(12, 40\)"),
        (
            {"weight": torch.zeros(40, 3, 2, 8, 8).to(torch.float8_e4m3fn)},
            TypeError,
            "weight must be fp32, bf16, fp16 or fp64, got torch.float8_e4m3fn",
        ),
        ({"bias": torch.zeros(40, dtype=BF16)}, TypeError, "give them one dtype or use"),
        (
            {"positions": torch.zeros(12, 40, requires_grad=True)},
            ValueError,
            r"pass positions.detach\(\), or add learned ones to the result",
        ),
        ({"std": (1.0, 0.0, 1.0)}, ValueError, "std must be three numbers > 0"),
    ],
    ids=["dtype", "size", "tubelets", "positions", "fp8", "bias", "learned positions", "std"],
)
def test_rejects_what_does_not_fit(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        tubelet_embed(**_inputs(CASES["P8-fp32"], "cpu") | change)


def test_other_widths_and_dtypes_are_served_by_the_reference() -> None:
    tensors = _inputs(((1, 1, 2, 4), (1, 2), 3, 13, FP32), "cpu")
    expected = _reference(**tensors)
    assert torch.equal(tubelet_embed(**tensors), expected)
    with pytest.raises(RuntimeError, match="D must be a multiple of 8, got 13"):
        tubelet_embed(**tensors, impl="cpu")
    wide = tensors | {name: tensors[name].double() for name in ("weight", "bias")}
    assert tubelet_embed(**wide).dtype == torch.float64
    with pytest.raises(RuntimeError, match="takes fp32, bf16 and fp16, weight is torch.float64"):
        tubelet_embed(**wide, impl="cpu")
