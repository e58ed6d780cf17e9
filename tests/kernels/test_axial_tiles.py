"""Triton's axial attention in tiles of every size, and what only compiled kernels take."""

import pytest
import torch

from tests.cases.axial_attention import assert_matches_reference, random_qkv

triton = pytest.importorskip("triton")
tl = triton.language

from vimpac_kernels.ops.axial_attention.triton_tiles import add_dot, reciprocal  # noqa: E402 (imports triton)

pytestmark = pytest.mark.impls("triton")


@triton.jit
def _product_kernel(
    a,  # (M, K)
    b,  # (K, N)
    out,  # (M, N)
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N), tl.arange(0, K)
    ones = tl.full((M, N), 1.0, tl.float32)
    x, y = tl.load(a + m * K + k[None, :]), tl.load(b + k[:, None] * N + n[None, :])
    tl.store(out + m * N + n[None, :], add_dot(ones, x, y, False))


def test_fp32_products_in_parts_are_whole_products(impl):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-9, 10, s, generator=generator).float() for s in ((32, 64), (64, 16)))
    out = torch.full((32, 16), torch.nan, device=impl.device)
    _product_kernel[(1,)](a.to(impl.device), b.to(impl.device), out, 32, 16, 64)
    assert torch.equal(out.cpu(), a @ b + 1)  # integers: exact in any order


@triton.jit
def _reciprocal_kernel(x, y, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y + i, reciprocal(tl.load(x + i)))


def test_reciprocals_are_off_by_half_a_unit_at_most(impl):
    """In the last place, as 1 / x on a CPU: on a GPU `/` may be off by two."""
    x = 1 + torch.arange(1024, device=impl.device) / 1024
    y = torch.empty_like(x)
    _reciprocal_kernel[(1,)](x, y, 1024)
    assert ((y.double() - 1 / x.double()).abs() <= 1.001 * 2**-25).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(
    ("length", "head_dim"), [(5, 16), (17, 128), (40, 16), (40, 32), (40, 64), (40, 128)]
)
def test_every_tile_matches_reference(impl, length, head_dim, dtype):
    """Of 16, 32 and 64 rows; those of 64 in 16 bits take Hopper's own instruction."""
    grid = (1, 2, length)
    qkv = random_qkv(grid, "W", batch=1, head_dim=head_dim)
    assert_matches_reference(impl, qkv, grid, "W", dtype, dropout_p=0.2, seed=3)
