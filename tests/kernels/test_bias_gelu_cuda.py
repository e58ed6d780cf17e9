"""What is the CUDA kernel's own in bias_gelu: rows that a thread walks, 16-byte loads."""

import pytest
import torch

from tests.checks import assert_close
from vimpac_kernels import bias_gelu, reference

pytestmark = pytest.mark.impls("cuda")


def test_rows_that_a_thread_walks_match_reference(impl):
    """67,848 columns leave one block to each group of them: threads get two or three rows."""
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, 19, 67_848, generator=generator)
    bias = torch.randn(67_848, generator=generator)

    def run(function, device, dtype, **options):
        leaves = [t.to(device, dtype).requires_grad_() for t in (x, bias)]
        y = function(*leaves, **options)
        return y, *torch.autograd.grad(y, leaves, dy.to(device, dtype))

    actual = run(bias_gelu, impl.device, torch.float32, impl=impl.name)
    same, truth = (run(reference.bias_gelu, "cpu", t) for t in (torch.float32, torch.float64))
    for result, t, r in zip(actual, truth, same, strict=True):
        assert_close(result, t, r)


def test_tensors_off_16_bytes_are_copied(impl):
    """Parameters and gradients may be views into a flat buffer, from any element of it on."""

    def shifted(tensor):
        return torch.cat((tensor.flatten()[:1], tensor.flatten()))[1:].view_as(tensor)

    generator = torch.Generator().manual_seed(0)
    x, dy, bias = (torch.randn(*s, 40, generator=generator) for s in ((5,), (5,), ()))
    results = []
    for place in (torch.clone, shifted):
        leaves = [place(t.to(impl.device)).requires_grad_() for t in (x, bias)]
        y = bias_gelu(*leaves, impl=impl.name)
        results.append((y, *torch.autograd.grad(y, leaves, place(dy.to(impl.device)))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
