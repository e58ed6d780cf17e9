"""The specification: every op in eager PyTorch, for any floating dtype, differentiable by autograd.

Each function takes what the public function of the same name takes, with every default resolved
(a seed, a scale, block bounds), and defines what all kernels must return. Matrix products run in
the input's dtype, softmax and statistics in fp32 (fp64 for fp64 inputs). Speed is no concern here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_kernels import _philox
from vimpac_kernels._lines import AXES, from_lines, to_lines
from vimpac_kernels._philox import bounded, keep_mask, philox


class MaskedTokens(NamedTuple):
    """What `mask_tokens` returns."""

    inputs: Tensor  # (B, T, H, W), dtype of tokens: the model's input
    mask: Tensor  # (B, T, H, W) bool: what is to be predicted
    positions: Tensor  # (B*T*H*W,) int32: rows of masked tokens in increasing order, then -1
    count: Tensor  # type: ignore[assignment]  # 0-d int32 on the device, hides tuple.count


class LinearCrossEntropyOutput(NamedTuple):
    """What `linear_cross_entropy(..., return_stats=True)` returns."""

    loss: Tensor  # fp32, 0-d or (rows,)
    accuracy: Tensor  # 0-d fp32: fraction of the counted targets whose arg-max is right
    num_targets: Tensor  # 0-d int32: targets that count


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmax, statistics and losses: fp64 for fp64, fp32 otherwise."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def axial_attention(
    qkv: Tensor,
    grid: tuple[int, int, int],
    axes: str = "T",
    *,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """`vimpac_kernels.axial_attention`: qkv (B, S, 3, N, Dh) [+ bias] -> (B, S, N, Dh).

    In a line the tokens are numbers 0..L-1 and [CLS] is number L, both as queries and as keys.
    Dropout decision of (query, key): counter (key // 8, query, line, head | axis << 16), where
    line = clip * lines + index of the line in `to_lines` order and head counts over all groups.
    A line without any key (no [CLS], all padding) gives zeros.
    """
    qkv = qkv if bias is None else qkv + bias.to(qkv.dtype)
    (T, H, W), (B, S, _, N, Dh) = grid, qkv.shape
    has_cls = S == T * H * W + 1
    scale = Dh**-0.5 if scale is None else scale
    seed = _philox.as_seed(seed, qkv.device)
    names = axes.split("|")
    outputs = []
    for g, name in enumerate(names):
        heads = range(g * N // len(names), (g + 1) * N // len(names))
        x = qkv[:, :, :, heads.start : heads.stop]  # (B, S, 3, n, Dh)
        x, cls = (x[:, 1:], x[:, :1]) if has_cls else (x, None)
        x = to_lines(x.unflatten(1, (T, H, W)), name)  # (B, lines, L, 3, n, Dh)
        padding = None if key_padding_mask is None else to_lines(key_padding_mask, name)
        if cls is not None:
            x = torch.cat((x, cls[:, None].expand(B, x.shape[1], 1, *x.shape[3:])), dim=2)
            padding = None if padding is None else F.pad(padding, (0, 1))
        out = _line_attention(x, padding, scale, dropout_p, seed, heads.start, AXES[name][0])
        tokens = from_lines(out[:, :, : T * H * W // out.shape[1]], name, grid).flatten(1, 3)
        if cls is not None:
            mean = out[:, :, -1:].to(accumulation_dtype(out.dtype)).mean(1).to(out.dtype)
            tokens = torch.cat((mean, tokens), dim=1)
        outputs.append(tokens)
    return torch.cat(outputs, dim=2)


def _line_attention(
    qkv: Tensor,  # (B, lines, K, 3, n, Dh), K = L [+ 1]
    padding: Tensor | None,  # (B, lines, K) bool
    scale: float,
    dropout_p: float,
    seed: Tensor,
    first_head: int,
    axis: int,
) -> Tensor:  # (B, lines, K, n, Dh)
    q, k, v = qkv.transpose(2, 4).unbind(3)  # (B, lines, n, K, Dh) each
    scores = (q @ k.mT).to(accumulation_dtype(q.dtype)) * scale  # (B, lines, n, K, K)
    if padding is None:
        p = scores.softmax(-1)
    else:
        hidden = padding[:, :, None, None]
        p = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1)
        p = p.masked_fill(hidden, 0.0)
    if dropout_p > 0:
        B, lines, n, K, _ = scores.shape
        line = torch.arange(B * lines, device=q.device).view(B, lines, 1, 1)
        head = (torch.arange(n, device=q.device) + first_head).view(n, 1)
        query = torch.arange(K, device=q.device)
        last = head | axis << 16 | _philox.STREAM_ATTENTION << 24
        threshold = _philox.dropout_threshold(dropout_p)
        keep = keep_mask(seed, threshold, K, *torch.broadcast_tensors(query, line, last))
        p = p * keep * _philox.dropout_scale(threshold)
    return (p.to(v.dtype) @ v).transpose(2, 3)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    positions: Tensor | None = None,
    count: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> LinearCrossEntropyOutput:
    """`vimpac_kernels.linear_cross_entropy`: input (..., D), target (...) -> loss and statistics.

    Per row: nll = lse - z[target]; loss = (1 - s) * nll + s * (lse - mean(z)) + z_loss * lse^2.
    Rows that are ignored, or at positions[count:], give 0 and no gradient.
    """
    rows, labels = torch.atleast_2d(input).flatten(0, -2), target.flatten().long()
    if positions is not None:
        index = positions.long().clamp(min=0)
        rows, labels = rows[index], labels[index]
        slot = torch.arange(len(index), device=index.device)
        labels = labels.masked_fill(slot >= (len(index) if count is None else count), ignore_index)
    counted = labels != ignore_index
    rows = rows.masked_fill(~counted[:, None], 0.0)
    vocabulary = linear_weight.shape[0]
    outside = counted & ((labels < 0) | (labels >= vocabulary))
    z = F.linear(rows, linear_weight, linear_bias).to(accumulation_dtype(rows.dtype))  # (M, V)
    lse = z.logsumexp(-1)
    safe = labels.masked_fill(~counted | outside, 0)
    loss = lse - z.gather(-1, safe[:, None])[:, 0]
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (lse - z.mean(-1))
    if z_loss:
        loss = loss + z_loss * lse.square()
    loss = loss.masked_fill(outside, math.nan).masked_fill(~counted, 0.0)
    num_targets = counted.sum(dtype=torch.int32)
    hits = (z.argmax(-1) == labels) & counted if vocabulary else counted
    accuracy = hits.sum().float() / num_targets.clamp(min=1)
    if reduction != "none":
        loss = loss.sum()
        loss = loss / num_targets.clamp(min=1) if reduction == "mean" else loss
    return LinearCrossEntropyOutput(loss, accuracy, num_targets)


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    linear_bias: Tensor | None = None,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    prenorm: bool = False,
    seed: int | Tensor = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """`vimpac_kernels.dropout_add_layer_norm`: y = LN(residual + dropout(x + linear_bias)).

    y has the dtype of x; the sum, returned beside y if `prenorm`, that of residual, to which it is
    rounded before the LayerNorm reads it, as a sum of two tensors is (kernels keep that rounding
    out of y, and meet it in the backward). Dropout decision of (row, column): counter (column // 8,
    row low word, row high word, stream), rows being counted over all leading dimensions.
    """
    high = accumulation_dtype(residual.dtype if x.dtype != torch.float64 else x.dtype)
    branch = x.to(high) if linear_bias is None else x.to(high) + linear_bias.to(high)
    if dropout_p > 0:
        seed, columns = _philox.as_seed(seed, x.device), x.shape[-1]
        row = torch.arange(x.numel() // max(columns, 1), device=x.device)
        last = _philox.STREAM_RESIDUAL << 24
        threshold = _philox.dropout_threshold(dropout_p)
        keep = keep_mask(seed, threshold, columns, row, row >> 32, last)  # (rows, D)
        branch = branch * keep.view(x.shape) * _philox.dropout_scale(threshold)
    total = (residual.to(high) + branch).to(residual.dtype)
    y = F.layer_norm(total.to(high), total.shape[-1:], weight.to(high), bias.to(high), eps)
    return (y.to(x.dtype), total) if prenorm else y.to(x.dtype)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """`vimpac_kernels.bias_gelu`: y = GELU(x + bias), the exact one; y has the dtype of x."""
    high = accumulation_dtype(x.dtype)
    return F.gelu(x.to(high) + bias.to(high)).to(x.dtype)


def mask_tokens(
    tokens: Tensor,
    *,
    mask_token: int,
    strategy: str,
    num_blocks: int,
    ratio: float,
    pad_token: int | None,
    max_block: tuple[int, int, int],
    noise: tuple[float, float, float] | None,
    noise_unit: str,
    vocab_size: int,
    seed: int | Tensor,
    clip_offset: int = 0,
    row_offset: int = 0,
) -> MaskedTokens:
    """`vimpac_kernels.mask_tokens`: tokens (B, T, H, W) -> MaskedTokens.

    Words of a call (c0, c1, c2, stream), with c0 = clip_offset + clip, MASK and NOISE streams:
        box k         (clip, k, 0, MASK): words 0..2 give the lengths along T, H, W as
                      1 + bounded(word, max_block), word 3 the block's noise decision;
                      (clip, k, 1, MASK): words 0..2 give the starts as
                      bounded(word, size - length + 1)
        iid, token i  (clip, i // 4, 0, MASK): word i % 4 below round(ratio * 2^32) masks the token
        tube, cell i  (clip, i // 4, 0, MASK): word i % 4 is the cell's key; the floor(ratio * H * W
                      + 1/2) cells with the smallest (key, index) are masked in every frame
        noise, token i (clip, i // 2, 0, NOISE): word 2 * (i % 2) decides, the next word draws the
                      random id as bounded(word, vocab_size)
    A decision below round(noise[0] * 2^32) writes mask_token, below round((noise[0] + noise[1]) *
    2^32) a random id, otherwise keeps the token. With noise_unit "block" the last box that covers
    a token decides for it.
    """
    B, T, H, W = tokens.shape
    cells = T * H * W
    seed = _philox.as_seed(seed, tokens.device)
    clip = torch.arange(B, device=tokens.device).view(B, 1) + clip_offset
    ids = tokens.to(torch.int64).reshape(B, cells)
    block_decision = None
    if strategy == "block":
        mask, block_decision = _boxes(seed, clip, (T, H, W), num_blocks, max_block)
    elif strategy == "iid":
        mask = _per_token(seed, clip, cells, 0, _philox.STREAM_MASK) < round(ratio * 2**32)
    else:
        keys = _per_token(seed, clip, H * W, 0, _philox.STREAM_MASK)
        rank = keys.argsort(stable=True).argsort()
        mask = (rank < math.floor(ratio * H * W + 0.5)).repeat(1, T)
    if pad_token is not None:
        mask = mask & (ids != pad_token)
    inputs = ids.masked_fill(mask, mask_token)
    if noise is not None:
        pair = torch.arange(-(-cells // 2), device=seed.device)
        words = philox(seed, clip, pair, 0, _philox.STREAM_NOISE << 24)  # (B, pairs, 4)
        decision, draw = words.unflatten(-1, (2, 2)).flatten(1, 2)[:, :cells].unbind(-1)
        if noise_unit == "block" and block_decision is not None:
            decision = block_decision
        random_ids = bounded(draw, vocab_size)
        low, high = round(noise[0] * 2**32), round((noise[0] + noise[1]) * 2**32)
        noisy = torch.where(decision < high, random_ids, ids)
        inputs = torch.where(mask & (decision >= low), noisy, inputs)
    flat = mask.flatten()
    row = torch.arange(cells, device=ids.device) + row_offset
    row = (torch.arange(B, device=ids.device).view(B, 1) * (cells + row_offset) + row).flatten()
    positions = torch.full((B * cells + 1,), -1, dtype=torch.int32, device=ids.device)
    positions.scatter_(0, torch.where(flat, flat.cumsum(0) - 1, B * cells), row.int())
    return MaskedTokens(
        inputs.to(tokens.dtype).view(B, T, H, W),
        mask.view(B, T, H, W),
        positions[: B * cells],
        flat.sum(dtype=torch.int32),
    )


def _per_token(seed: Tensor, clip: Tensor, length: int, c2: int, stream: int) -> Tensor:
    """One 32-bit word per token: (B, length)."""
    group = torch.arange(-(-length // 4), device=seed.device)
    return philox(seed, clip, group, c2, stream << 24).flatten(-2)[:, :length]


def _boxes(
    seed: Tensor,
    clip: Tensor,  # (B, 1)
    grid: tuple[int, int, int],
    num_blocks: int,
    max_block: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """The union of the boxes, (B, T*H*W) bool, and the decision word of the last box on a token."""
    block = torch.arange(num_blocks, device=seed.device)
    stream = _philox.STREAM_MASK << 24
    size_words, start_words = (philox(seed, clip, block, g, stream) for g in (0, 1))  # (B, K, 4)
    inside = torch.ones((clip.shape[0], num_blocks, *grid), dtype=torch.bool, device=seed.device)
    for d, (size, longest) in enumerate(zip(grid, max_block, strict=True)):
        length = 1 + bounded(size_words[..., d], longest)
        start = bounded(start_words[..., d], size - length + 1)
        at = torch.arange(size, device=seed.device)
        covers = (at >= start[..., None]) & (at < (start + length)[..., None])  # (B, K, size)
        inside = inside & covers.view(*covers.shape[:2], *(size if i == d else 1 for i in range(3)))
    inside = inside.flatten(2)  # (B, K, cells)
    last = torch.where(inside, block[:, None] + 1, 0).amax(1) if num_blocks else inside.sum(1)
    words = F.pad(size_words[..., 3], (1, 0))  # (B, 1 + K)
    return last > 0, words.gather(1, last)
