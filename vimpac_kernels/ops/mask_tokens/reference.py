"""mask_tokens in eager PyTorch."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_kernels.runtime import philox


class MaskedTokens(NamedTuple):
    """What `mask_tokens` returns."""

    inputs: Tensor  # (B, T, H, W), dtype of tokens: the model's input
    mask: Tensor  # (B, T, H, W) bool: what is to be predicted
    positions: Tensor  # (B*T*H*W,) int32: rows of masked tokens in increasing order, then -1
    count: Tensor  # type: ignore[assignment]  # 0-d int32 on the device, hides tuple.count


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
    clip_offset: int | Tensor = 0,
    row_offset: int = 0,
) -> MaskedTokens:
    """`vimpac_kernels.mask_tokens`: tokens (B, T, H, W) -> MaskedTokens.

    Words of a call (c0, c1, c2, stream), with c0 = clip_offset + clip, MASK and NOISE streams:
        box k         (clip, k, 0, MASK): words 0..2 give the lengths along T, H, W as
                      1 + philox.bounded(word, max_block), word 3 the block's noise decision;
                      (clip, k, 1, MASK): words 0..2 give the starts as
                      philox.bounded(word, size - length + 1)
        iid, token i  (clip, i // 4, 0, MASK): word i % 4 below round(ratio * 2^32) masks the token
        tube, cell i  (clip, i // 4, 0, MASK): word i % 4 is the cell's key; the floor(ratio * H * W
                      + 1/2) cells with the smallest (key, index) are masked in every frame
        noise, token i (clip, i // 2, 0, NOISE): word 2 * (i % 2) decides, the next word draws the
                      random id as philox.bounded(word, vocab_size)
    A decision below round(noise[0] * 2^32) writes mask_token, below round((noise[0] + noise[1]) *
    2^32) a random id, otherwise keeps the token. With noise_unit "block" the last box that covers
    a token decides for it.
    """
    B, T, H, W = tokens.shape
    cells = T * H * W
    seed = philox.as_seed(seed, tokens.device)
    clip = torch.arange(B, device=tokens.device).view(B, 1) + clip_offset
    ids = tokens.to(torch.int64).reshape(B, cells)
    block_decision = None
    if strategy == "block":
        mask, block_decision = _boxes(seed, clip, (T, H, W), num_blocks, max_block)
    elif strategy == "iid":
        mask = _per_token(seed, clip, cells, 0, philox.STREAM_MASK) < round(ratio * 2**32)
    else:
        keys = _per_token(seed, clip, H * W, 0, philox.STREAM_MASK)
        rank = keys.argsort(stable=True).argsort()
        mask = (rank < math.floor(ratio * H * W + 0.5)).repeat(1, T)
    if pad_token is not None:
        mask = mask & (ids != pad_token)
    inputs = ids.masked_fill(mask, mask_token)
    if noise is not None:
        pair = torch.arange(-(-cells // 2), device=seed.device)
        words = philox.philox(seed, clip, pair, 0, philox.STREAM_NOISE << 24)  # (B, pairs, 4)
        decision, draw = words.unflatten(-1, (2, 2)).flatten(1, 2)[:, :cells].unbind(-1)
        if noise_unit == "block" and block_decision is not None:
            decision = block_decision
        random_ids = philox.bounded(draw, vocab_size)
        low, high = round(noise[0] * 2**32), round((noise[0] + noise[1]) * 2**32)
        noisy = torch.where(decision < high, random_ids, ids)
        inputs = torch.where(mask & (decision >= low), noisy, inputs)
    flat = mask.flatten()
    row = torch.arange(cells, device=ids.device) + row_offset
    row = (torch.arange(B, device=ids.device).view(B, 1) * (cells + row_offset) + row).flatten()
    positions = torch.full((B * cells + 1,), -1, dtype=torch.int32, device=ids.device)
    positions = positions.scatter(0, torch.where(flat, flat.cumsum(0) - 1, B * cells), row.int())
    return MaskedTokens(
        inputs.to(tokens.dtype).view(B, T, H, W),
        mask.view(B, T, H, W),
        positions[: B * cells],
        flat.sum(dtype=torch.int32),
    )


def _per_token(seed: Tensor, clip: Tensor, length: int, c2: int, stream: int) -> Tensor:
    """One 32-bit word per token: (B, length)."""
    group = torch.arange(-(-length // 4), device=seed.device)
    return philox.philox(seed, clip, group, c2, stream << 24).flatten(-2)[:, :length]


def _boxes(
    seed: Tensor,
    clip: Tensor,  # (B, 1)
    grid: tuple[int, int, int],
    num_blocks: int,
    max_block: tuple[int, int, int],
) -> tuple[Tensor, Tensor]:
    """The union of the boxes, (B, T*H*W) bool, and the decision word of the last box on a token."""
    block = torch.arange(num_blocks, device=seed.device)
    stream = philox.STREAM_MASK << 24
    size_words = philox.philox(seed, clip, block, 0, stream)  # (B, K, 4)
    start_words = philox.philox(seed, clip, block, 1, stream)  # (B, K, 4)
    inside = torch.ones((clip.shape[0], num_blocks, *grid), dtype=torch.bool, device=seed.device)
    for d, (size, longest) in enumerate(zip(grid, max_block, strict=True)):
        length = 1 + philox.bounded(size_words[..., d], longest)
        start = philox.bounded(start_words[..., d], size - length + 1)
        at = torch.arange(size, device=seed.device)
        covers = (at >= start[..., None]) & (at < (start + length)[..., None])  # (B, K, size)
        inside = inside & covers.view(*covers.shape[:2], *(size if i == d else 1 for i in range(3)))
    inside = inside.flatten(2)  # (B, K, cells)
    last = torch.where(inside, block[:, None] + 1, 0).amax(1) if num_blocks else inside.sum(1)
    words = F.pad(size_words[..., 3], (1, 0))  # (B, 1 + K)
    return last > 0, words.gather(1, last)
