"""Axial attention through F.scaled_dot_product_attention, with the library's rule for [CLS]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_kernels.ops.axial_attention.lines import from_lines, to_lines
from vimpac_kernels.runtime.dtypes import accumulation_dtype

_MAX_BATCH = 65535  # CUDA's limit on the second and third dimension of a grid


def axial_attention(
    qkv: Tensor,  # (B, S, 3, N, Dh)
    grid: tuple[int, int, int],
    axes: str,
    key_padding_mask: Tensor | None,  # (B, T, H, W) bool
    dropout_p: float,
    scale: float,
) -> Tensor:  # (B, S, N, Dh)
    """`vimpac_kernels.axial_attention`; dropout draws from PyTorch's generator.

    With "THW" the sequence is one line and is attended in place. Otherwise [CLS] is concatenated
    to every line, and row 0 becomes the mean of its outputs.
    """
    names = axes.split("|")
    heads = qkv.shape[3] // len(names)
    outputs = [
        _one_axis(
            qkv[:, :, :, g * heads : (g + 1) * heads],
            grid,
            name,
            key_padding_mask,
            dropout_p,
            scale,
        )
        for g, name in enumerate(names)
    ]
    return torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0].contiguous()


def _one_axis(
    qkv: Tensor,  # (B, S, 3, n, Dh)
    grid: tuple[int, int, int],
    axis: str,
    padding: Tensor | None,
    dropout_p: float,
    scale: float,
) -> Tensor:  # (B, S, n, Dh)
    B, S = qkv.shape[:2]
    has_cls = S == math.prod(grid) + 1
    if axis == "THW":
        hidden = None if padding is None else F.pad(padding.flatten(1), (int(has_cls), 0))
        return _attend(qkv, hidden, dropout_p, scale)
    x, cls = (qkv[:, 1:], qkv[:, :1]) if has_cls else (qkv, None)
    x = to_lines(x.unflatten(1, grid), axis)  # (B, lines, L, 3, n, Dh)
    lines, length = x.shape[1:3]
    hidden = None if padding is None else to_lines(padding, axis)
    if cls is not None:
        x = torch.cat((x, cls[:, None].expand(B, lines, 1, *x.shape[3:])), dim=2)
        hidden = None if hidden is None else F.pad(hidden, (0, 1))
    hidden = None if hidden is None else hidden.flatten(0, 1)
    out = _attend(x.flatten(0, 1), hidden, dropout_p, scale).unflatten(0, (B, lines))
    tokens = from_lines(out[:, :, :length], axis, grid).flatten(1, 3)
    if cls is None:
        return tokens
    mean = out[:, :, length:].to(accumulation_dtype(out.dtype)).mean(1).to(out.dtype)
    return torch.cat((mean, tokens), dim=1)


def _attend(
    x: Tensor,  # (M, K, 3, n, Dh)
    hidden: Tensor | None,  # (M, K) bool
    dropout_p: float,
    scale: float,
) -> Tensor:  # (M, K, n, Dh)
    if x.shape[0] > _MAX_BATCH:
        masks = (
            [None] * -(-x.shape[0] // _MAX_BATCH) if hidden is None else hidden.split(_MAX_BATCH)
        )
        parts = zip(x.split(_MAX_BATCH), masks, strict=True)
        return torch.cat([_attend(part, mask, dropout_p, scale) for part, mask in parts])
    q, k, v = x.transpose(1, 3).unbind(2)  # (M, n, K, Dh)
    if hidden is None:
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, scale=scale)
        return out.transpose(1, 2)
    empty = hidden.all(1, keepdim=True)  # backends disagree on rows without a key
    mask = ~hidden | empty
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask[:, None, None], dropout_p=dropout_p, scale=scale
    )
    return out.masked_fill(empty[:, :, None, None], 0.0).transpose(1, 2)
