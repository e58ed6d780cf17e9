"""[CLS] as in the paper's text (Eq. 12, 15), which the released code does not do.

No key is [CLS]: tokens attend to the tokens of their line, and so does [CLS], once per line. The
output projection, dropout, residual sum and LayerNorm act on every line's copy of [CLS], and only
then are the copies averaged. Between the attention and that mean a hidden state has one row per
line, then the tokens: (B, lines + T*H*W, ...). In plain PyTorch: [CLS] is one query per line.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac_kernels import axial_attention
from vimpac_kernels.reference import accumulation_dtype, to_lines


def count_lines(grid: tuple[int, int, int], axis: str) -> int:
    """The number of lines of one axis or of joint axes."""
    T, H, W = grid
    return {"T": H * W, "H": T * W, "W": T * H, "HW": T, "THW": 1}[axis]


def attend_per_line(
    qkv: Tensor,  # (B, 1 + T*H*W, 3, N, Dh)
    grid: tuple[int, int, int],
    axis: str,
    key_padding_mask: Tensor | None,  # (B, T, H, W) bool
    dropout_p: float,
) -> Tensor:  # (B, lines + T*H*W, N, Dh)
    """Attention among the tokens of each line, and of [CLS] to each line; a line of PAD gives 0."""
    tokens = axial_attention(
        qkv[:, 1:],
        grid,
        axis,
        key_padding_mask=key_padding_mask,
        dropout_p=dropout_p,
    )
    q = qkv[:, 0, 0].to(accumulation_dtype(qkv.dtype)) * qkv.shape[-1] ** -0.5  # (B, N, Dh)
    k, v = to_lines(qkv[:, 1:, 1:].unflatten(1, grid), axis).unbind(3)  # (B, lines, L, N, Dh)
    scores = (q[:, None, None] * k).sum(-1)  # (B, lines, L, N)
    if key_padding_mask is None:
        p = scores.softmax(2)
    else:
        hidden = to_lines(key_padding_mask, axis)[..., None]  # (B, lines, L, 1)
        no_key = hidden.all(2, keepdim=True)  # whose softmax would be NaN
        p = scores.masked_fill(hidden & ~no_key, -math.inf).softmax(2).masked_fill(hidden, 0.0)
    p = F.dropout(p, dropout_p).to(v.dtype)
    cls = (p[..., None] * v).sum(2)  # (B, lines, N, Dh)
    return torch.cat((cls, tokens), dim=1)


def repeat_cls(
    x: Tensor,  # (B, 1 + T*H*W, D)
    lines: int,
) -> Tensor:  # (B, lines + T*H*W, D)
    """Gives every line its copy of [CLS]."""
    return torch.cat((x[:, :1].expand(-1, lines, -1), x[:, 1:]), dim=1)


def merge_cls(
    x: Tensor,  # (B, lines + T*H*W, D), what the next branch reads
    stream: Tensor,  # (B, lines + T*H*W, D), the residual; post-LN: x
    lines: int,
    norm: nn.LayerNorm | None,  # of pre-LN
) -> tuple[Tensor, Tensor]:  # (B, 1 + T*H*W, D) each
    """Averages the copies of [CLS]; pre-LN: of the sum, whose norm is then taken anew."""
    stream = torch.cat((stream[:, :lines].mean(1, keepdim=True), stream[:, lines:]), dim=1)
    if norm is None:
        return stream, stream
    return torch.cat((norm(stream[:, :1]).to(x.dtype), x[:, lines:]), dim=1), stream
