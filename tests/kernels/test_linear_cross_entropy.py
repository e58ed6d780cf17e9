"""linear_cross_entropy: loss, accuracy and every gradient against the reference in fp64."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.cases.linear_cross_entropy import (
    DTYPES,
    EXTREMES,
    FAST,
    GRADIENTS,
    SHAPES,
    check,
    check_extreme,
    doubled,
    make_case,
    run,
)
from vimpac_kernels import linear_cross_entropy
from vimpac_kernels.ops.linear_cross_entropy import operators
from vimpac_kernels.runtime import transforms


@FAST
@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", list(SHAPES)[:3])
def test_matches_reference(impl, shape: str, dtype: str) -> None:
    """Loss and gradients, for aligned, ragged and minimal shapes."""
    check(impl, make_case(SHAPES[shape], DTYPES[dtype], impl.device))


@FAST
def test_matches_reference_at_the_model_vocabulary(impl) -> None:
    """8,197 classes: odd, so that no row but the first is aligned without padding."""
    check(impl, make_case(SHAPES["vimpac vocabulary"], torch.float32, impl.device))


@FAST
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"z_loss": 1e-2}, {}], ids=str)
def test_options_match_reference(impl, reduction: str, options: dict[str, float]) -> None:
    """Every reduction with label smoothing, z-loss and neither."""
    case = make_case(SHAPES["ragged"], torch.float32, impl.device)
    check(impl, case, reduction=reduction, **options)


@FAST
@pytest.mark.sanitize
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_the_counted_positions_are_predicted(impl, reduction: str) -> None:
    """Rows at positions[:count] and no others have a loss and a gradient."""
    case = make_case((40, 37, 16), torch.float32, impl.device)
    generator = torch.Generator().manual_seed(0)
    positions = torch.randperm(40, generator=generator).int()[:20].to(impl.device)
    positions[13:] = -1
    count = torch.tensor(13, dtype=torch.int32, device=impl.device)
    options = {"positions": positions, "count": count, "reduction": reduction}
    check(impl, case, **options)
    output, gradients = run(impl.name, case, **options)
    rest = torch.ones(40, dtype=torch.bool, device=impl.device)
    rest[positions[:13].long()] = False
    assert not gradients["input"][rest].any()
    if reduction == "none":
        assert output.loss.shape == (20,) and not output.loss[13:].any()


def _hide_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in compiled code and on a GPU, where nobody looks whether a count is too large."""
    monkeypatch.setattr(transforms, "hides_values", lambda: True)


@FAST
@pytest.mark.sanitize
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("count", [13, 40, 50])
def test_count_alone_predicts_the_first_rows(
    impl, reduction: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows from `count` on have neither loss nor gradient, whatever their target says."""
    if count > 40:
        _hide_values(monkeypatch)
    case = make_case((40, 37, 16), torch.float32, impl.device)
    tensor = torch.tensor(count, dtype=torch.int32, device=impl.device)
    check(impl, case, count=tensor, reduction=reduction)
    case["target"][count:] = 37  # outside, and not read
    output, gradients = run(impl.name, case, count=tensor, reduction=reduction)
    fewer = {n: t[:count] if n in ("input", "target") else t for n, t in case.items()}
    expected, _ = run("reference", fewer, reduction=reduction)
    torch.testing.assert_close(output[1:], expected[1:])
    torch.testing.assert_close(output.loss.flatten()[:count], expected.loss.flatten())
    assert not output.loss.flatten()[count:].any() and not gradients["input"][count:].any()


@FAST
def test_positions_without_count_are_all_predicted(impl) -> None:
    """count=None takes the whole of positions, but not the -1 that `mask_tokens` puts behind."""
    case = make_case((12, 37, 16), torch.float32, impl.device)
    positions = torch.arange(1, 12, 3, dtype=torch.int32, device=impl.device)
    check(impl, case, positions=positions)
    longer = torch.cat((positions, torch.full_like(positions, -1)))
    for name in ("reference", impl.name):
        expected, actual = (run(name, case, positions=p) for p in (positions, longer))
        torch.testing.assert_close(actual, expected)


@FAST
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_chunks_of_rows_give_what_one_piece_gives(impl, dtype: str, monkeypatch) -> None:
    """17 rows in chunks of 4: dW and db are still summed in fp32 over all rows."""
    backend = operators.BACKENDS[impl.name]
    small = dataclasses.replace(backend, chunk_bytes=4 * 64 * (4 if dtype == "fp32" else 2))
    monkeypatch.setitem(operators.BACKENDS, impl.name, small)
    case = make_case((17, 64, 24), DTYPES[dtype], impl.device)
    check(impl, case)
    check(impl, case, reduction="none")


@FAST
def test_bf16_gradients_do_not_lose_small_terms(impl, monkeypatch) -> None:
    """Rows one by one, the first 256 times the others: a sum in bf16 would stay at that one."""
    backend = operators.BACKENDS[impl.name]
    by_row = dataclasses.replace(backend, chunk_bytes=1)
    monkeypatch.setitem(operators.BACKENDS, impl.name, by_row)
    rows = 64 if impl.emulated or impl.label == "triton (interpreted)" else 2048
    case = make_case((1, 64, 8), torch.bfloat16, impl.device)
    case["input"] = case["input"].repeat(rows, 1) * 2**-10  # logits are those of the bias
    case["input"][0] *= 256
    case["target"] = case["target"].expand(rows)
    _, gradients = run(impl.name, case, reduction="sum")
    _, truth = run("reference", doubled(case), reduction="sum")
    for name in ("linear_weight", "linear_bias"):
        error = (gradients[name].double() - truth[name]).abs().max()
        assert error <= 2**-7 * truth[name].abs().max()


@FAST
@pytest.mark.parametrize("needs", [(n,) for n in GRADIENTS], ids=str)
def test_each_tensor_may_be_the_only_one_trained(impl, needs: tuple[str, ...]) -> None:
    """A frozen trunk still trains the head, and the other way round."""
    case = make_case(SHAPES["ragged"], torch.float32, impl.device)
    for reduction in ("mean", "none"):
        _, alone = run(impl.name, case, needs, reduction=reduction)
        _, together = run(impl.name, case, reduction=reduction)
        assert torch.equal(alone[needs[0]], together[needs[0]])


@FAST
def test_no_bias_is_a_zero_bias(impl) -> None:
    """Loss and gradients are those of a zero bias."""
    case = make_case(SHAPES["ragged"], torch.float32, impl.device)
    zero = case | {"linear_bias": torch.zeros_like(case["linear_bias"])}
    none = {n: t for n, t in case.items() if n != "linear_bias"}
    output, gradients = run(impl.name, none, GRADIENTS[:2])
    expected, expected_gradients = run(impl.name, zero)
    assert torch.equal(output.loss, expected.loss)
    for name in GRADIENTS[:2]:
        assert torch.equal(gradients[name], expected_gradients[name])


@FAST
def test_leading_dimensions_strides_and_int32_targets(impl) -> None:
    """(B, S, D) input with strides, int32 targets, same loss and gradient."""
    case = make_case((12, 37, 16), torch.float32, impl.device)
    flat, expected = run(impl.name, case)
    strided = case["input"].view(3, 4, 16).transpose(0, 1).contiguous().transpose(0, 1)
    strided.requires_grad_()
    loss = linear_cross_entropy(
        strided,
        case["linear_weight"].T.contiguous().T,
        case["target"].view(3, 4).int(),
        linear_bias=case["linear_bias"],
        impl=impl.name,
    )
    assert torch.equal(loss, flat.loss)
    (gradient,) = torch.autograd.grad(loss * 0.5, strided)  # the factor in `run`
    assert torch.equal(gradient, expected["input"].view(3, 4, 16))


@FAST
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_one_row_needs_no_leading_dimension(impl, reduction: str) -> None:
    """(D,) with a 0-d target, as F.linear and F.cross_entropy take them."""
    case = make_case((1, 37, 16), torch.float32, impl.device)
    flat, expected = run(impl.name, case, reduction=reduction)
    row = case | {"input": case["input"][0], "target": case["target"][0]}
    output, gradients = run(impl.name, row, reduction=reduction)
    assert torch.equal(output.loss, flat.loss)
    assert torch.equal(gradients["input"], expected["input"][0])
    assert torch.equal(gradients["linear_weight"], expected["linear_weight"])


@pytest.mark.impls("reference", "cpu", "triton", "cuda")
@pytest.mark.parametrize("positions", [True, False], ids=["positions", "rows"])
@pytest.mark.parametrize("case", ["no rows", "all ignored", "count 0", "count -2"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_nothing_to_predict_gives_zeros(
    impl, case: str, reduction: str, positions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, accuracy and gradients are 0, never NaN."""
    if case == "count -2":
        _hide_values(monkeypatch)
    tensors = make_case((0 if case == "no rows" else 6, 37, 16), torch.float32, impl.device)
    options: dict[str, Any] = {"reduction": reduction}
    if case == "all ignored":
        tensors["target"] = torch.full_like(tensors["target"], -100)
    if case.startswith("count"):
        options["count"] = torch.tensor(int(case[6:]), dtype=torch.int32, device=impl.device)
    if positions:
        rows = len(tensors["target"])
        options["positions"] = torch.arange(rows, dtype=torch.int32, device=impl.device)
    output, gradients = run(impl.name, tensors, **options)
    for result in (*output, *gradients.values()):
        assert torch.equal(result, torch.zeros_like(result))


@pytest.mark.impls("reference", "cpu", "triton", "cuda")
@pytest.mark.parametrize("wrong", [37, -1, 2**31 - 1])
def test_target_out_of_range_is_never_a_silent_number(impl, wrong: int) -> None:
    """IndexError naming the value on the CPU, NaN where looking would synchronise."""
    case = make_case(SHAPES["ragged"], torch.float32, impl.device)
    case["target"][3] = wrong
    if impl.name in ("reference", "cpu") and impl.device == "cpu":
        with pytest.raises(IndexError, match=rf"target {wrong} is outside \[0, 37\)"):
            linear_cross_entropy(**case, impl=impl.name)
    else:
        output, _ = run(impl.name, case)
        assert output.loss.isnan()


@FAST
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_logit_shows_in_the_loss(impl, value: float) -> None:
    """NaN and infinite activations are not swallowed by the maximum."""
    case = make_case(SHAPES["ragged"], torch.float32, impl.device)
    case["input"][0, 3] = value
    assert run(impl.name, case)[0].loss.isnan()


@FAST
def test_large_logits_do_not_overflow(impl) -> None:
    """Logits of several hundred, where exp without the maximum is infinite."""
    case = make_case(SHAPES["ragged"], torch.float32, impl.device)
    case["linear_weight"] = case["linear_weight"] * 200
    check(impl, case)


@FAST
@pytest.mark.parametrize("logits", EXTREMES)
def test_extreme_logits(impl, logits: str) -> None:
    """Overflow, -inf and NaN give what they give in fp64; +inf shows in the loss."""
    check_extreme(impl, EXTREMES[logits])


@pytest.mark.impls("cpu")
def test_instruction_sets_match_reference(impl, isa: str) -> None:
    """Every instruction set of this processor, and the same bits on 1 and 2 threads."""
    check(impl, make_case(SHAPES["ragged"]), label_smoothing=0.1)
    case = make_case((130, 515, 8))  # three blocks of rows
    check(impl, case)
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        output, gradients = run("cpu", case)
        results.append((output.loss, gradients["linear_bias"]))
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.impls("cpu")
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_pass_takes_logits_of_every_dtype(impl, isa: str, dtype: str, monkeypatch) -> None:
    """Every instruction set widens 16-bit logits and rounds their gradient, once."""
    backend = operators.BACKENDS["cpu"]
    as_given = dataclasses.replace(backend, logits_dtype=lambda dtype: dtype)
    monkeypatch.setitem(operators.BACKENDS, "cpu", as_given)
    for shape in ("aligned", "ragged", "all ones"):
        check(impl, make_case(SHAPES[shape], DTYPES[dtype]))
        check(impl, make_case(SHAPES[shape], DTYPES[dtype]), label_smoothing=0.1, z_loss=1e-2)


@pytest.mark.impls("cpu")
def test_bf16_is_multiplied_as_bf16_where_the_processor_can(impl, isa: str) -> None:
    """fp16 never: torch multiplies it slower than fp32."""
    logits_dtype = operators.BACKENDS["cpu"].logits_dtype
    expected = torch.bfloat16 if isa == "avx512bf16" else torch.float32
    assert logits_dtype(torch.bfloat16) == expected
    assert logits_dtype(torch.float16) == logits_dtype(torch.float32) == torch.float32
