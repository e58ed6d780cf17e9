"""What is the CUDA kernels' own in axial_attention: tiles, fp32, alignment, limits."""

import pytest
import torch

from tests.checks import assert_close
from vimpac_kernels import axial_attention
from vimpac_kernels.runtime import registry

pytestmark = pytest.mark.impls("cuda")


def assert_matches_reference(impl, grid, axes, N, Dh, dtype, *, batch=1, has_cls=True, **arguments):
    generator = torch.Generator().manual_seed(0)
    T, H, W = grid
    shape = (batch, T * H * W + has_cls, 3, N, Dh)
    qkv = torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
    dout = torch.randn(*shape[:2], N, Dh, dtype=torch.float64, generator=generator).to(dtype)
    results = []
    for name, device, x in (
        (impl.name, impl.device, qkv),
        ("reference", "cpu", qkv.double()),
        ("reference", "cpu", qkv),
    ):
        moved = {k: v.to(device) if torch.is_tensor(v) else v for k, v in arguments.items()}
        x = x.to(device).requires_grad_()
        out = axial_attention(x, grid, axes, impl=name, **moved)
        results.append((out.detach(), *torch.autograd.grad(out, x, dout.to(out))))
    for actual, truth, eager in zip(*results, strict=True):
        assert_close(actual, truth, eager)


@pytest.mark.parametrize("Dh", [32, 64, 128])
@pytest.mark.parametrize("length", [1, 11, 12, 23, 24, 39, 40, 64])
def test_every_tile_matches_reference(impl, length, Dh):
    """Lines on either side of the limits of 24, 40 and 72 rows, several and one to a tile."""
    padding = torch.rand(1, 1, 3, length, generator=torch.Generator().manual_seed(1)) < 0.3
    assert_matches_reference(
        impl, (1, 3, length), "W", 1, Dh, torch.bfloat16,
        key_padding_mask=padding, dropout_p=0.2, seed=3,
    )  # fmt: skip


@pytest.mark.sanitize
@pytest.mark.parametrize("Dh, length", [(32, 5), (64, 33), (128, 41)])
def test_streamed_and_held_tiles_match_reference(impl, length, Dh):
    grid = (1, 2, length)
    assert_matches_reference(impl, grid, "W|H", 2, Dh, torch.float16, dropout_p=0.2, seed=3)


@pytest.mark.parametrize(
    "Dh, length, lines", [(32, 5, 300), (64, 33, 65), (128, 17, 70), (32, 50, 65), (128, 64, 30)]
)
def test_warps_with_several_tiles_match_reference(impl, length, lines, Dh):
    """More tiles than warps of the emulated device, the last chunk shorter than the others."""
    assert_matches_reference(
        impl, (1, lines, length), "W", 1, Dh, torch.bfloat16, dropout_p=0.1, seed=4
    )


@pytest.mark.parametrize("lines, units", [(12, 12), (13, 7), (24, 12), (25, 9), (100, 34)])
def test_units_fill_whole_waves(impl, lines, units):
    """The emulated device works on three blocks of four warps at a time; a line is a tile."""
    if not impl.emulated:
        pytest.skip("other devices have other sizes")
    qkv = torch.zeros(1, 1 + lines * 23, 3, 1, 32, dtype=torch.bfloat16)
    arguments = {"qkv": qkv, "out": torch.empty_like(qkv[:, :, 0]), "grid": (1, lines, 23)}
    elements = []

    def allocate(count: int) -> torch.Tensor:
        elements.append(count)
        return torch.empty(count)

    registry.extension("cuda").axial_attention_fwd(arguments | {"axes": [2]}, 0, allocate)
    assert elements == [32 * units]


@pytest.mark.sanitize
@pytest.mark.parametrize("has_cls", [True, False], ids=["cls", "no cls"])
def test_fp32_matches_reference(impl, has_cls):
    padding = torch.zeros(2, 2, 3, 4, dtype=torch.bool)
    padding[1, :, 1] = True
    assert_matches_reference(
        impl, (2, 3, 4), "T|H|W", 3, 32, torch.float32, batch=2, has_cls=has_cls,
        key_padding_mask=padding, dropout_p=0.3, seed=-5,
    )  # fmt: skip


@pytest.mark.parametrize("Dh, length", [(64, 33), (128, 64)])
def test_long_fp32_lines_match_reference(impl, length, Dh):
    assert_matches_reference(impl, (1, 2, length), "W", 1, Dh, torch.float32, dropout_p=0.2, seed=3)


def test_rows_off_16_bytes_are_copied(impl):
    grid = (2, 3, 4)
    wide = torch.randn(25, 3 * 2 * 32 + 1, generator=torch.Generator().manual_seed(0))
    odd = wide.bfloat16().to(impl.device)[:, 1:].view(1, 25, 3, 2, 32)
    expected = axial_attention(odd.contiguous(), grid, "H|W", impl=impl.name)
    assert torch.equal(axial_attention(odd, grid, "H|W", impl=impl.name), expected)


@pytest.mark.parametrize(
    "grid, Dh, words", [((1, 1, 65), 64, "at most 64"), ((1, 1, 4), 48, "head dims")]
)
def test_says_what_it_does_not_take(impl, grid, Dh, words):
    qkv = torch.zeros(1, 1 + grid[2], 3, 1, Dh, dtype=torch.bfloat16, device=impl.device)
    with pytest.raises(RuntimeError, match=words):
        axial_attention(qkv, grid, "W", impl=impl.name)
