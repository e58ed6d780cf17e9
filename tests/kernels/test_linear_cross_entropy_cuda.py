"""What is the CUDA kernel's own in linear_cross_entropy: rows of several warps, limits."""

import pytest
import torch

from tests.cases.linear_cross_entropy import EXTREMES, check, check_extreme, make_case
from tests.checks import assert_close
from vimpac_kernels import linear_cross_entropy

pytestmark = pytest.mark.impls("cuda")


def run(case, impl, device="cpu", dtype=torch.float32):
    input, weight, target = (t.to(device) for t in case)
    input, weight = (t.to(dtype).requires_grad_() for t in (input, weight))
    loss = linear_cross_entropy(input, weight, target, impl=impl)
    return loss.detach(), *torch.autograd.grad(loss, (input, weight))


def random_case(M, V, D):
    generator = torch.Generator().manual_seed(V)
    draw = torch.randn(M + V, D, generator=generator)
    return draw[:M], draw[M:], torch.randint(V, (M,), generator=generator)


@pytest.mark.sanitize
@pytest.mark.parametrize("V", [1600, 9301])
def test_rows_of_several_warps_match_reference(impl, V):
    """Three warps, and rows that are read twice; without a bias there are no column sums."""
    case = random_case(3, V, 16)
    results = (
        run(case, impl.name, impl.device),
        run(case, "reference", dtype=torch.float64),
        run(case, "reference"),
    )
    for actual, truth, eager in zip(*results, strict=True):
        assert_close(actual, truth, eager)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_registers_do_not_hold_match_reference(impl, dtype):
    """9,301 classes: read twice, in pieces; column sums in shared and in global memory."""
    check(impl, make_case((3, 9301, 16), dtype, impl.device), label_smoothing=0.1, z_loss=0.01)


def test_the_longest_rows_match_reference(impl):
    check(impl, make_case((2, 32_768, 8), torch.float32, impl.device))


def test_more_rows_than_labels_at_once_match_reference(impl):
    """A block reads the labels of 128 rows at once, and here has more of them."""
    check(impl, make_case((700, 8, 8), torch.bfloat16, impl.device))


@pytest.mark.parametrize("V", [1600, 9301])
@pytest.mark.parametrize("logits", EXTREMES)
def test_extreme_logits_over_warps(impl, logits, V):
    check_extreme(impl, EXTREMES[logits], V)


def test_more_classes_than_a_block_holds_go_elsewhere(impl):
    case = [t.to(impl.device) for t in random_case(2, 32_769, 8)]
    expected = linear_cross_entropy(*random_case(2, 32_769, 8), impl="reference")
    assert torch.allclose(linear_cross_entropy(*case).cpu(), expected, rtol=1e-5)
    with pytest.raises(RuntimeError, match="32768 classes, not 32769"):
        linear_cross_entropy(*case, impl=impl.name)


@pytest.mark.parametrize("target, hits", [(5, 1.0), (300, 0.0), (1590, 0.0)])
def test_the_first_maximum_counts_over_warps(impl, target, hits):
    """Equal logits in two chunks of a warp and in another warp."""
    weight = torch.zeros(1600, 16, device=impl.device)
    weight[[5, 300, 1590]] = 1.0
    input, targets = torch.ones(2, 16, device=impl.device), torch.full((2,), target)
    output = linear_cross_entropy(
        input, weight, targets.to(impl.device), return_stats=True, impl=impl.name
    )
    assert output.accuracy == hits
