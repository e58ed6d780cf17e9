"""The probabilities that AxialAttention returns: shapes, sums, and the output from them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_kernels import AxialAttention
from vimpac_kernels.reference import to_lines

GRID = (2, 3, 4)
D, N = 24, 6
LINES = {"T": (12, 2), "H": (8, 3), "W": (6, 4), "HW": (2, 12), "THW": (1, 24)}


def _case(axes: str, cls: bool) -> tuple[AxialAttention, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = AxialAttention(D, N, axes, dtype=torch.float64)
    nn.init.normal_(layer.in_proj_bias)
    padding = torch.rand(2, *GRID) < 0.3
    padding[1] = True  # lines without any key but [CLS]
    return layer, torch.randn(2, 24 + cls, D, dtype=torch.float64), padding


def _hidden(padding: Tensor, axis: str, cls: bool) -> Tensor:
    return F.pad(to_lines(padding, axis), (0, int(cls)))  # (B, lines, K)


@pytest.mark.parametrize("cls", [True, False], ids=["cls", "no cls"])
@pytest.mark.parametrize("axes", ["T", "T|H|W", "W|H", "HW", "THW"])
def test_weights_sum_to_one_over_the_keys_that_are_there(axes: str, cls: bool) -> None:
    layer, x, padding = _case(axes, cls)
    _, weights = layer(x, GRID, padding, need_weights=True)
    names = axes.split("|")
    assert len(weights) == len(names)
    for name, p in zip(names, weights, strict=True):
        lines, K = LINES[name][0], LINES[name][1] + cls
        assert p.shape == (2, N // len(names), lines, K, K) and p.dtype == torch.float64
        hidden = _hidden(padding, name, cls)[:, None, :, None]  # (B, 1, lines, 1, K)
        assert not p.masked_select(hidden).any()
        some_key = (~hidden).any(-1).expand(p.shape[:-1]).double()
        torch.testing.assert_close(p.sum(-1), some_key)


@pytest.mark.parametrize("cls", [True, False], ids=["cls", "no cls"])
@pytest.mark.parametrize("axes", ["T", "T|H|W", "W|H", "HW", "THW"])
def test_weights_and_values_make_the_output(axes: str, cls: bool) -> None:
    layer, x, padding = _case(axes, cls)
    out, weights = layer(x, GRID, padding, need_weights=True)
    assert torch.equal(out, layer(x, GRID, padding))
    v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).view(2, 24 + cls, 3, N, D // N)[
        :, :, 2
    ]
    attended, heads = torch.zeros_like(v), 0
    for name, p in zip(axes.split("|"), weights, strict=True):
        n = p.shape[1]
        for t, h, w in torch.cartesian_prod(*map(torch.arange, GRID)).tolist():
            line, place = _place(name, t, h, w)
            keys = [r for r in range(24) if _place(name, *_cell(r))[0] == line]
            rows = [cls + r for r in keys] + [0] * cls
            values = v[:, rows, heads : heads + n]  # (B, K, n, Dh)
            token = cls + (t * GRID[1] + h) * GRID[2] + w
            attended[:, token, heads : heads + n] = torch.einsum(
                "bnk,bknd->bnd", p[:, :, line, place], values
            )
            if cls and place == 0:
                share = torch.einsum("bnk,bknd->bnd", p[:, :, line, -1], values)
                attended[:, 0, heads : heads + n] += share / LINES[name][0]
        heads += n
    torch.testing.assert_close(layer.out_proj(attended.flatten(2)), out)


def _cell(row: int) -> tuple[int, int, int]:
    _, H, W = GRID
    return row // (H * W), row // W % H, row % W


def _place(axis: str, t: int, h: int, w: int) -> tuple[int, int]:
    """The line of a token and its place in it, as the layer documents them."""
    _, H, W = GRID
    return {
        "T": (h * W + w, t),
        "H": (t * W + w, h),
        "W": (t * H + h, w),
        "HW": (t, h * W + w),
        "THW": (0, (t * H + h) * W + w),
    }[axis]


def test_weights_of_joint_axes_are_those_of_multihead_attention() -> None:
    """Not averaged over heads, and with [CLS] as the last one rather than the first."""
    mha = nn.MultiheadAttention(D, N, batch_first=True, dtype=torch.float64)
    layer = AxialAttention.from_multihead_attention(mha, "THW")
    x = torch.randn(2, 25, D, dtype=torch.float64)
    theirs = mha(x, x, x, average_attn_weights=False)[1]
    ours = layer(x, GRID, need_weights=True)[1][0][:, :, 0]
    torch.testing.assert_close(ours, theirs.roll((-1, -1), (-2, -1)))


def test_weights_are_those_before_dropout_and_take_a_grid_of_tokens() -> None:
    torch.manual_seed(0)
    layer, x = AxialAttention(D, N, "H|W", dropout=0.5), torch.randn(2, *GRID, D)
    out, weights = layer(x, need_weights=True, seed=1)
    assert out.shape == x.shape and torch.equal(out, layer(x, seed=1))
    expected = layer.eval()(x.flatten(1, 3), GRID, need_weights=True)[1]
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
    picture = weights[1][0, 0].view(2, 3, 4, 4)  # of each row of pixels, one head of clip 0
    assert math.isclose(picture[1, 2, 3].sum().item(), 1.0, rel_tol=1e-5)


def test_a_wrong_flag_is_named() -> None:
    with pytest.raises(TypeError, match="need_weights"):
        AxialAttention(D, N, "T")(torch.randn(2, 24, D), GRID, need_weights=1)
