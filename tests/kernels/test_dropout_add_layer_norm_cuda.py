"""What is the CUDA kernel's own in dropout_add_layer_norm: rows of several warps."""

import pytest
import torch

from tests.checks import assert_close
from vimpac_kernels import dropout_add_layer_norm, reference

pytestmark = pytest.mark.impls("cuda")


@pytest.mark.sanitize
@pytest.mark.parametrize(("rows", "D"), [(3, 1032), (2, 8192)], ids=["three-warps", "widest"])
def test_rows_of_several_warps_match_reference(impl, rows, D):
    """The forward alone, as column sums take many more threads."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(rows, D, generator=generator) for _ in range(2)]
    tensors += [torch.randn(D, generator=generator) for _ in range(2)]
    moved = [t.to(impl.device) for t in tensors]
    actual = dropout_add_layer_norm(*moved, dropout_p=0.2, seed=4, impl=impl.name)
    eager = reference.dropout_add_layer_norm(*tensors, dropout_p=0.2, seed=4)
    truth = reference.dropout_add_layer_norm(*(t.double() for t in tensors), dropout_p=0.2, seed=4)
    assert_close(actual, truth, eager)


@pytest.mark.parametrize("D", [64, 1024], ids=["one-warp", "two-warps"])
def test_a_block_walks_over_many_rows(impl, D):
    """More rows than the emulated device has warps, each gradient the same as of the rows alone."""
    rows = 50
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(rows, D, generator=generator).to(impl.device) for _ in range(4)]
    weight, bias = torch.randn(2, D, generator=generator).to(impl.device).unbind()

    def run(x, residual, *upstream):
        leaves = [t.clone().requires_grad_() for t in (x, residual)]
        pair = dropout_add_layer_norm(*leaves, weight, bias, readers=2, impl=impl.name)
        return (pair[0], *torch.autograd.grad(pair, leaves, upstream))

    whole, parts = run(*tensors), [run(*(t[i : i + 1] for t in tensors)) for i in (0, 17, 49)]
    for all_rows, *single in zip(whole, *parts, strict=True):
        assert torch.equal(all_rows[[0, 17, 49]], torch.cat(single))


def test_tensors_off_16_bytes_are_copied(impl):
    """Parameters and gradients may be views into a flat buffer, from any element of it on."""

    def shifted(tensor):
        return torch.cat((tensor.flatten()[:1], tensor.flatten()))[1:].view_as(tensor)

    generator = torch.Generator().manual_seed(0)
    rows, vectors = (torch.randn(n, 40, generator=generator) for n in (20, 3))
    results = []
    for place in (torch.clone, shifted):
        tensors = (place(t.to(impl.device)) for t in (*rows.split(5), *vectors))
        dy, dtotal, *leaves, linear_bias = tensors
        leaves = [t.requires_grad_() for t in (*leaves, linear_bias)]
        options = {"linear_bias": linear_bias, "prenorm": True, "impl": impl.name}
        outputs = dropout_add_layer_norm(*leaves[:4], **options)
        results.append((*outputs, *torch.autograd.grad(outputs, leaves, (dy, dtotal))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
