"""linear_cross_entropy in use: autograd, autocast, torch.compile, DDP, and what users got wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases.linear_cross_entropy import FAST, GRADIENTS, SHAPES, doubled, make_case, run
from tests.checks import assert_close
from vimpac_kernels import TiedLinearCrossEntropy, linear_cross_entropy
from vimpac_kernels.ops.linear_cross_entropy import operators
from vimpac_kernels.runtime import native

EVERY = pytest.mark.impls("reference", "cpu", "triton", "cuda")


@EVERY
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_backward_gives_the_same_gradients(impl, reduction: str) -> None:
    """A retained graph is read, not changed, by its backward."""
    case = make_case(SHAPES["ragged"], torch.float32, impl.device)
    leaves = [case[n].requires_grad_() for n in GRADIENTS]
    loss = linear_cross_entropy(**case, reduction=reduction, impl=impl.name).sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, leaves), strict=True):
        assert torch.equal(one, other)


@EVERY
def test_gradients_scale_with_that_of_the_loss(impl) -> None:
    """As a gradient scaler or an accumulation step asks."""
    case = make_case(SHAPES["ragged"], torch.float32, impl.device)
    leaves = [case[n].requires_grad_() for n in GRADIENTS]
    loss = linear_cross_entropy(**case, impl=impl.name)
    once = torch.autograd.grad(loss, leaves, retain_graph=True)
    for one, scaled in zip(once, torch.autograd.grad(loss * 1024, leaves), strict=True):
        assert torch.equal(one * 1024, scaled)


@FAST
def test_results_repeat_bit_for_bit(impl) -> None:
    """Loss and gradients of two runs are equal."""
    case = make_case((50, 37, 16), torch.float32, impl.device)
    (one, first), (other, second) = run(impl.name, case), run(impl.name, case)
    assert torch.equal(one.loss, other.loss)
    for name in GRADIENTS:
        assert torch.equal(first[name], second[name])


@FAST
def test_autocast_rounds_operands_and_returns_fp32_parameters_gradients(impl) -> None:
    """fp32 tensors under bf16 autocast: products of bf16 operands, gradients in fp32."""
    case = make_case(SHAPES["aligned"], torch.float32, impl.device)
    with torch.autocast(impl.device, torch.bfloat16):
        actual, gradients = run(impl.name, case)
        reference, same_dtype = run("reference", case)
    truth, true_gradients = run("reference", doubled(case))
    assert_close(actual.loss, truth.loss, reference.loss)
    for name in GRADIENTS:
        assert gradients[name].dtype == torch.float32
        assert_close(gradients[name], true_gradients[name], same_dtype[name])
    exact, _ = run(impl.name, case)
    assert not torch.equal(exact.loss, actual.loss), "the operands were not rounded"


@FAST
@pytest.mark.parametrize("how", ["no_grad", "nothing requires grad", "inference_mode"])
def test_evaluation_does_no_gradient_work(impl, how: str, monkeypatch) -> None:
    """The row pass is asked for no gradient, and only one product runs."""
    launch, asked = native.launch, []

    def watched(*names: str, **arguments: Any) -> int:
        asked.append(arguments["gradient"])
        return launch(*names, **arguments)

    monkeypatch.setattr(native, "launch", watched)
    case = make_case(SHAPES["ragged"], torch.float32, impl.device)
    if how != "nothing requires grad":
        case["linear_weight"].requires_grad_()
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
    with context.get(how, torch.enable_grad)():
        loss = linear_cross_entropy(**case, impl=impl.name)
    assert asked == [False] and not loss.requires_grad
    expected, _ = run(impl.name, case)
    torch.testing.assert_close(loss, expected.loss.detach(), rtol=1e-6, atol=0)


@pytest.mark.impls("triton", "cuda")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_is_read_back_from_the_device(impl, reduction: str) -> None:
    """No host synchronisation, forward and backward."""
    if impl.device == "cpu":
        pytest.skip("on the CPU count is read on purpose; a synchronisation needs a device")
    case = make_case((40, 37, 16), torch.float32, impl.device)
    positions = torch.arange(30, dtype=torch.int32, device=impl.device)
    count = torch.tensor(13, dtype=torch.int32, device=impl.device)
    run(impl.name, case, positions=positions, count=count, reduction=reduction)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(impl.name, case, positions=positions, count=count, reduction=reduction)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@EVERY
def test_full_graph_compile_equals_eager(impl) -> None:
    """torch.compile(fullgraph=True), forward and backward, with positions and statistics."""
    case = make_case((20, 37, 16), torch.float32, impl.device)
    positions = torch.arange(15, dtype=torch.int32, device=impl.device)
    count = torch.tensor(9, dtype=torch.int32, device=impl.device)

    def step(input, weight, bias, target):
        return linear_cross_entropy(
            input,
            weight,
            target,
            linear_bias=bias,
            positions=positions,
            count=count,
            return_stats=True,
            impl=impl.name,
        )

    leaves = [case[n].requires_grad_() for n in GRADIENTS]
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = [f(*leaves, case["target"]) for f in (step, compiled)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    gradients = [torch.autograd.grad(r.loss, leaves) for r in results]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@FAST
def test_operators_are_registered_correctly(impl) -> None:
    """opcheck: schema, fake tensors, dispatch."""
    case = make_case((6, 37, 16), torch.float32, impl.device)
    positions = torch.arange(5, dtype=torch.int32, device=impl.device)
    count = torch.tensor(3, dtype=torch.int32, device=impl.device)
    tensors = (*(case[n] for n in ("input", "linear_weight", "target", "linear_bias")), None, None)
    options = {"dtype": torch.float32, "ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0}
    options |= {"needs": [True] * 3, "impl": impl.name}
    torch.library.opcheck(operators.linear_cross_entropy_fwd, (*tensors, None), options)
    dinput = case["input"][:5]
    scale = torch.tensor(0.5, device=impl.device)
    arguments = (dinput, scale, positions, count, 6, torch.bfloat16)
    torch.library.opcheck(operators.linear_cross_entropy_bwd, arguments)


@pytest.mark.impls("reference")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(impl, reduction: str) -> None:
    """The reference in fp64 against finite differences."""
    case = doubled(make_case((4, 5, 8)))
    leaves = [case[n].requires_grad_() for n in GRADIENTS]

    def loss(input, weight, bias):
        return linear_cross_entropy(
            input,
            weight,
            case["target"],
            linear_bias=bias,
            reduction=reduction,
            label_smoothing=0.1,
            z_loss=0.01,
            impl=impl.name,
        )

    assert torch.autograd.gradcheck(loss, leaves)


def test_dtypes_of_the_outputs_do_not_follow_the_default_dtype() -> None:
    case = make_case((5, 7, 16))
    torch.set_default_dtype(torch.float64)
    try:
        output = linear_cross_entropy(**case, return_stats=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [t.dtype for t in output] == [torch.float32, torch.float32, torch.int32]


def test_meta_tensors_have_the_right_shapes() -> None:
    """Outputs and gradients on the meta device."""
    x, w = torch.empty(6, 16, device="meta"), torch.empty(37, 16, device="meta")
    target = torch.empty(6, dtype=torch.long, device="meta")
    loss = linear_cross_entropy(x, w.requires_grad_(), target)
    assert loss.shape == () and loss.dtype == torch.float32
    assert torch.autograd.grad(loss, w)[0].shape == (37, 16)


@pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="torch < 2.13 has no linear_cross_entropy"
)
def test_drops_in_for_torch() -> None:
    """The names, order and defaults of torch.nn.functional.linear_cross_entropy."""
    case = make_case((12, 37, 16))
    arguments = (case["input"], case["linear_weight"], case["target"])
    for options in ({}, {"linear_bias": case["linear_bias"]}, {"reduction": "sum"}):
        torch.testing.assert_close(
            linear_cross_entropy(*arguments, **options),
            F.linear_cross_entropy(*arguments, **options),
        )


@EVERY
def test_accuracy_takes_the_first_of_equal_logits(impl) -> None:
    """As torch.argmax: of equal logits the first is predicted."""
    x, w = torch.zeros(2, 8, device=impl.device), torch.ones(3, 8, device=impl.device)
    target = torch.tensor([0, 2], device=impl.device)
    output = linear_cross_entropy(x, w, target, return_stats=True, impl=impl.name)
    assert output.accuracy == 0.5 and output.num_targets == 2


@EVERY
def test_tied_weight_gets_both_gradients_once_and_runs_its_hooks(impl) -> None:
    """The embedding's and the head's gradients add up; hooks run once, as DDP needs."""
    torch.manual_seed(0)
    embedding = nn.Embedding(37, 16, device=impl.device)
    head = TiedLinearCrossEntropy(embedding.weight, impl=impl.name)
    assert head.bias is not None and sorted(head.state_dict()) == ["bias", "weight"]
    ids = torch.arange(0, 36, 3, device=impl.device)
    fired: list[torch.Size] = []
    for p in (embedding.weight, head.bias):
        p.register_post_accumulate_grad_hook(lambda p: fired.append(p.shape))
    output = head(embedding(ids), ids + 1)
    output.loss.backward()
    assert sorted(fired) == [(37,), (37, 16)]
    weight = embedding.weight.detach().clone().requires_grad_()
    bias = torch.zeros(37, device=impl.device)
    F.cross_entropy(F.linear(F.embedding(ids, weight), weight, bias), ids + 1).backward()
    torch.testing.assert_close(embedding.weight.grad, weight.grad)


@pytest.mark.impls("cpu")
def test_ddp_averages_the_gradients(impl, tmp_path: Path) -> None:
    """DistributedDataParallel sees the head's parameters."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        head = TiedLinearCrossEntropy(nn.Parameter(torch.randn(37, 16)), impl=impl.name)
        seen: list[int] = []
        ddp = nn.parallel.DistributedDataParallel(head)

        def hook(_: object, bucket):
            seen.append(bucket.buffer().numel())
            future: Any = torch.futures.Future()
            future.set_result(bucket.buffer() * 3)
            return future

        ddp.register_comm_hook(None, hook)
        x, target = torch.randn(5, 16), torch.arange(5)
        ddp(x, target).loss.backward()
        alone = torch.autograd.grad(head(x, target).loss, head.weight)[0]
        assert sum(seen) == 37 * 17
        torch.testing.assert_close(head.weight.grad, 3 * alone)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target": torch.zeros(3, dtype=torch.long)}, ValueError, r"target must be \(17,\)"),
        ({"input": torch.tensor(1.0)}, ValueError, r"input must be \(..., D\)"),
        ({"target": torch.zeros(17)}, TypeError, "target must be int32 or int64"),
        ({"linear_weight": torch.zeros(37, 8)}, ValueError, r"linear_weight \(V, D\)"),
        ({"linear_bias": torch.zeros(36)}, ValueError, r"linear_bias must be \(37,\)"),
        ({"linear_bias": torch.zeros(37).to(torch.float8_e5m2)}, TypeError, "bias must be fp32"),
        ({"linear_bias": torch.zeros(37).bfloat16()}, TypeError, "use torch.autocast"),
        ({"positions": torch.zeros(3)}, ValueError, "positions must be 1-d int32"),
        (
            {"positions": torch.zeros(3, dtype=torch.int32), "count": 2},
            TypeError,
            "count must be a 0-d int32 tensor, got 2",
        ),
        ({"reduction": "average"}, ValueError, "mean, sum, none"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing must be in"),
        ({"z_loss": -1.0}, ValueError, "z_loss must be >= 0"),
        ({"impl": "fast"}, ValueError, "impl must be 'auto' or one of"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_rejects(change: dict[str, Any], error: type[Exception], message: str) -> None:
    """One clear line that names the argument."""
    with pytest.raises(error, match=message):
        linear_cross_entropy(**(make_case(SHAPES["ragged"]) | change))


def test_a_width_that_kernels_do_not_take_goes_to_the_reference() -> None:
    """D = 20 works with impl="auto" and is refused, with the reason, by a kernel."""
    case = make_case((5, 7, 20))
    assert torch.equal(linear_cross_entropy(**case), linear_cross_entropy(**case, impl="reference"))
    with pytest.raises(RuntimeError, match="multiple of 8"):
        linear_cross_entropy(**case, impl="cpu")
