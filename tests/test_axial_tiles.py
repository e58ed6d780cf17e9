"""The parts of Triton's axial attention that only compiled kernels take."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = triton.language

from vimpac_kernels._triton.axial_tiles import dot  # noqa: E402 (imports triton)


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
    product = dot(tl.load(a + m * K + k[None, :]), tl.load(b + k[:, None] * N + n[None, :]), False)
    tl.store(out + m * N + n[None, :], product)


@pytest.mark.impls("triton")
def test_fp32_products_in_parts_are_whole_products(impl):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-9, 10, s, generator=generator).float() for s in ((32, 64), (64, 16)))
    out = torch.full((32, 16), torch.nan, device=impl.device)
    _product_kernel[(1,)](a.to(impl.device), b.to(impl.device), out, 32, 16, 64)
    assert torch.equal(out.cpu(), a @ b)  # integers: exact in any order
