"""What is the CUDA kernel's own in embed_tokens: rows of two warps, parts of a batch, carries."""

import pytest
import torch

from tests.checks import assert_close
from vimpac_kernels import embed_tokens, reference

pytestmark = pytest.mark.impls("cuda")


def run(function, device, dtype, B, grid, V, D, place=torch.clone, **options):
    """Output and gradients; `place` puts each tensor somewhere in memory."""
    generator = torch.Generator().manual_seed(D)
    shapes = [(V, D), *((n, D) for n in grid), (D,), (D,), (D,)]
    leaves = [torch.randn(*shape, generator=generator) for shape in shapes]
    dy = torch.randn(B, 1 + grid.numel(), D, generator=generator)
    tokens = torch.randint(0, V, (B, *grid), generator=generator, dtype=torch.int32)
    tokens.view(-1)[::2] = V // 2
    leaves = [place(t.to(device, dtype)).requires_grad_() for t in leaves]
    embedding, *tables, weight, bias, cls = leaves
    options = dict(cls=cls, dropout_p=0.2, seed=4, **options)
    y = function(tokens.to(device), embedding, tables, weight, bias, **options)
    return y, *torch.autograd.grad(y, leaves, place(dy.to(device, dtype)))


def check(impl, *case):
    actual = run(embed_tokens, impl.device, torch.float32, *case, impl=impl.name)
    same, truth = (
        run(reference.embed_tokens, "cpu", dtype, *case) for dtype in (torch.float32, torch.float64)
    )
    for result, t, r in zip(actual, truth, same, strict=True):
        assert_close(result, t, r)


@pytest.mark.sanitize
def test_rows_of_two_warps_of_a_usual_block(impl):
    """640 columns, the second warp's row in part; half of the ids are one, whose sums are carried.

    Few places and columns, as a block of 512 threads takes ThreadSanitizer long.
    """
    check(impl, 4, torch.Size((1, 1, 2)), 3, 640)


def test_parts_of_a_batch_and_longer_runs_are_added_in_order(impl):
    """33 clips make three parts by places, 8,448 tokens runs of five by ids."""
    check(impl, 33, torch.Size((4, 8, 8)), 17, 8)


def test_tensors_off_16_bytes_are_copied(impl):
    """Parameters and gradients may be views into a flat buffer, from any element of it on."""

    def shifted(tensor):
        return torch.cat((tensor.flatten()[:1], tensor.flatten()))[1:].view_as(tensor)

    case = (impl.device, torch.float32, 2, torch.Size((2, 3, 4)), 7, 40)
    results = (
        run(embed_tokens, *case, place=place, impl=impl.name) for place in (torch.clone, shifted)
    )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
