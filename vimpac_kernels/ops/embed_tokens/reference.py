"""embed_tokens in eager PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_kernels.runtime import philox
from vimpac_kernels.runtime.dtypes import accumulation_dtype
from vimpac_kernels.runtime.philox import keep_mask


def embed_tokens(
    tokens: Tensor,
    embedding: Tensor,
    positions: Sequence[Tensor],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    cls: Tensor | None = None,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    dtype: torch.dtype | None = None,
    seed: int | Tensor = 0,
) -> Tensor:
    """`vimpac_kernels.embed_tokens`: tokens (B, *grid) -> (B, S, D), S = [cls] + cells of the grid.

    Everything is computed in fp32 (fp64 for an fp64 embedding) and rounded once, to `dtype`. The
    row of an id outside the embedding is NaN. Dropout decision of (row, column): counter
    (column // 8, row low word, row high word, stream), rows being counted over (B, S).
    """
    high = accumulation_dtype(embedding.dtype)
    ids, D = tokens.flatten(1).long(), embedding.shape[1]
    outside = (ids < 0) | (ids >= len(embedding))
    x = F.embedding(ids.masked_fill(outside, 0), embedding.to(high))  # (B, cells, D)
    place = torch.zeros((1, D), dtype=high, device=x.device)
    for table in positions:  # the last axis runs fastest
        place = (place[:, None] + table.to(high)).flatten(0, 1)
    x = torch.where(outside[..., None], math.nan, x + place)
    if cls is not None:
        x = torch.cat((cls.to(high).expand(len(x), 1, D), x), dim=1)
    if weight is not None and bias is not None:
        x = F.layer_norm(x, (D,), weight.to(high), bias.to(high), eps)
    if dropout_p > 0:
        row = torch.arange(x.shape[0] * x.shape[1], device=x.device)
        last = philox.STREAM_EMBEDDING << 24
        threshold = philox.dropout_threshold(dropout_p)
        key = philox.as_seed(seed, x.device)
        keep = keep_mask(key, threshold, D, row, row >> 32, last)  # (rows, D)
        x = x * keep.view(x.shape) * philox.dropout_scale(threshold)
    return x.to(dtype or embedding.dtype)
