"""axial_attention in eager PyTorch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_kernels.ops.axial_attention.lines import AXES, from_lines, to_lines
from vimpac_kernels.runtime import philox
from vimpac_kernels.runtime.dtypes import accumulation_dtype
from vimpac_kernels.runtime.philox import keep_mask


def axial_attention(
    qkv: Tensor,
    grid: tuple[int, int, int],
    axes: str = "T",
    *,
    bias: Tensor | None = None,
    bias_in_qkv: bool = False,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """`vimpac_kernels.axial_attention`: qkv (B, S, 3, N, Dh) [+ bias] -> (B, S, N, Dh).

    In a line the tokens are numbers 0..L-1 and [CLS] is number L, both as queries and as keys.
    Dropout decision of (query, key): counter (key // 8, query, line, head | axis << 16), where
    line = clip * lines + index of the line in `to_lines` order and head counts over all groups.
    A hidden key is as one that is not there, also where scores are not finite (but 0 * v is NaN of
    a v that is not); a line without any key (no [CLS], all padding) gives zeros. Everything is
    computed in fp32 (fp64 for fp64), autocast or not, and rounded once.
    """
    qkv = qkv if bias is None else add_bias(qkv, bias, bias_in_qkv)
    tokens = math.prod(grid)
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    seed = philox.as_seed(seed, qkv.device)
    outputs = []
    for name, first_head, x, padding in _groups(qkv, grid, axes, key_padding_mask):
        with _no_autocast(qkv.device):
            out = _line_attention(x, padding, scale, dropout_p, seed, first_head, AXES[name][0])
        rows = from_lines(out[:, :, : tokens // out.shape[1]], name, grid).flatten(1, 3)
        if qkv.shape[1] > tokens:
            rows = torch.cat((out[:, :, -1:].mean(1), rows), dim=1)
        outputs.append(rows)
    return torch.cat(outputs, dim=2).to(qkv.dtype)


def axial_attention_weights(
    qkv: Tensor,  # (B, S, 3, N, Dh), with its bias
    grid: tuple[int, int, int],
    axes: str = "T",
    *,
    key_padding_mask: Tensor | None = None,  # (B, T, H, W) bool
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    """The probabilities of `axial_attention` before dropout, of each group of heads.

    Returns:
        (B, n, lines, K, K) for each axis of `axes`, fp32 (fp64 for fp64): of its n = N / groups
        heads, of its lines in `to_lines` order, from a query to a key. K = L [+ 1]: the tokens of
        a line, then [CLS]. The line of token (t, h, w) is h*W + w for "T", t*W + w for "H",
        t*H + h for "W", t for "HW", 0 for "THW". A hidden key has 0, and so has every key of a line
        in which all are hidden; else a query's sum to 1.
    """
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    weights = []
    for _, _, x, padding in _groups(qkv, grid, axes, key_padding_mask):
        with _no_autocast(qkv.device):
            weights.append(_line_weights(x, padding, scale).transpose(1, 2))
    return tuple(weights)


def _groups(
    qkv: Tensor,  # (B, S, 3, N, Dh)
    grid: tuple[int, int, int],
    axes: str,
    key_padding_mask: Tensor | None,  # (B, T, H, W) bool
) -> Iterator[tuple[str, int, Tensor, Tensor | None]]:
    """For each axis: its name, first head, lines (B, lines, K, 3, n, Dh), (B, lines, K) hidden."""
    B, S, _, N, _ = qkv.shape
    high = qkv.to(accumulation_dtype(qkv.dtype))
    has_cls = S == math.prod(grid) + 1
    names = axes.split("|")
    for g, name in enumerate(names):
        heads = range(g * N // len(names), (g + 1) * N // len(names))
        x = high[:, :, :, heads.start : heads.stop]  # (B, S, 3, n, Dh)
        x, cls = (x[:, 1:], x[:, :1]) if has_cls else (x, None)
        x = to_lines(x.unflatten(1, grid), name)  # (B, lines, L, 3, n, Dh)
        padding = None if key_padding_mask is None else to_lines(key_padding_mask, name)
        if cls is not None:
            x = torch.cat((x, cls[:, None].expand(B, x.shape[1], 1, *x.shape[3:])), dim=2)
            padding = None if padding is None else F.pad(padding, (0, 1))
        yield name, heads.start, x, padding


def add_bias(
    qkv: Tensor,  # (B, S, 3, N, Dh)
    bias: Tensor,  # (3, N, Dh)
    bias_in_qkv: bool,
) -> Tensor:
    """qkv with the bias; with one that it contains, as it is, and differentiable by the bias."""
    return qkv + (bias - bias.detach() if bias_in_qkv else bias).to(qkv.dtype)


def _no_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Keeps products of fp32 in fp32; meta tensors know no autocast."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _line_attention(
    qkv: Tensor,  # (B, lines, K, 3, n, Dh), K = L [+ 1]
    padding: Tensor | None,  # (B, lines, K) bool
    scale: float,
    dropout_p: float,
    seed: Tensor,
    first_head: int,
    axis: int,
) -> Tensor:  # (B, lines, K, n, Dh)
    p = _line_weights(qkv, padding, scale)
    if dropout_p > 0:
        B, lines, n, K, _ = p.shape
        line = torch.arange(B * lines, device=p.device).view(B, lines, 1, 1)
        head = (torch.arange(n, device=p.device) + first_head).view(n, 1)
        query = torch.arange(K, device=p.device)
        last = head | axis << 16 | philox.STREAM_ATTENTION << 24
        threshold = philox.dropout_threshold(dropout_p)
        keep = keep_mask(seed, threshold, K, *torch.broadcast_tensors(query, line, last))
        p = p * keep * philox.dropout_scale(threshold)
    return (p @ qkv[:, :, :, 2].transpose(2, 3)).transpose(2, 3)


def _line_weights(
    qkv: Tensor,  # (B, lines, K, 3, n, Dh)
    padding: Tensor | None,  # (B, lines, K) bool
    scale: float,
) -> Tensor:  # (B, lines, n, K, K)
    q, k, _ = qkv.transpose(2, 4).unbind(3)  # (B, lines, n, K, Dh) each
    scores = q @ k.mT * scale
    if padding is None:
        return scores.softmax(-1)
    hidden = padding[:, :, None, None]
    no_key = hidden.all(-1, keepdim=True)  # whose softmax would be NaN
    return scores.masked_fill(hidden & ~no_key, -math.inf).softmax(-1).masked_fill(hidden, 0.0)
