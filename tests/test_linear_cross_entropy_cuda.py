"""What is the CUDA kernel's own in linear_cross_entropy: rows of several warps, limits."""

import pytest
import torch
from checks import assert_close

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
def test_rows_of_several_warps_match_reference(impl):
    """600 classes, padded to 640, take two warps; without a bias there are no column sums."""
    case = random_case(3, 600, 16)
    results = (
        run(case, impl.name, impl.device),
        run(case, "reference", dtype=torch.float64),
        run(case, "reference"),
    )
    for actual, truth, eager in zip(*results, strict=True):
        assert_close(actual, truth, eager)


def test_more_classes_than_a_block_holds_go_elsewhere(impl):
    case = [t.to(impl.device) for t in random_case(2, 10_241, 8)]
    expected = linear_cross_entropy(*random_case(2, 10_241, 8), impl="reference")
    assert torch.allclose(linear_cross_entropy(*case).cpu(), expected, rtol=1e-5)
    with pytest.raises(RuntimeError, match="10240 classes, not 10241"):
        linear_cross_entropy(*case, impl=impl.name)


@pytest.mark.parametrize("target, hits", [(5, 1.0), (300, 0.0), (590, 0.0)])
def test_the_first_maximum_counts_over_warps(impl, target, hits):
    """Equal logits in two warps and in their second chunk of columns."""
    weight = torch.zeros(600, 16, device=impl.device)
    weight[[5, 300, 590]] = 1.0
    input, targets = torch.ones(2, 16, device=impl.device), torch.full((2,), target)
    output = linear_cross_entropy(
        input, weight, targets.to(impl.device), return_stats=True, impl=impl.name
    )
    assert output.accuracy == hits
