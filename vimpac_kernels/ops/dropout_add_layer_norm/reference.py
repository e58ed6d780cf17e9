"""dropout_add_layer_norm in eager PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac_kernels.runtime import philox
from vimpac_kernels.runtime.dtypes import accumulation_dtype
from vimpac_kernels.runtime.philox import keep_mask


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
    readers: int = 1,
    seed: int | Tensor = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """`vimpac_kernels.dropout_add_layer_norm`: y = LN(residual + dropout(x + linear_bias)).

    y has the dtype of x and is returned once for each of `readers`; the sum, returned beside y if
    `prenorm`, that of residual, to which it is rounded before the LayerNorm reads it, as a sum of
    two tensors is. Dropout decision of (row, column): counter (column // 8, row low word, row high
    word, stream), rows being counted over all leading dimensions.
    """
    high = accumulation_dtype(residual.dtype if x.dtype != torch.float64 else x.dtype)
    branch = x.to(high) if linear_bias is None else x.to(high) + linear_bias.to(high)
    if dropout_p > 0:
        seed, columns = philox.as_seed(seed, x.device), x.shape[-1]
        row = torch.arange(x.numel() // max(columns, 1), device=x.device)
        last = philox.STREAM_RESIDUAL << 24
        threshold = philox.dropout_threshold(dropout_p)
        keep = keep_mask(seed, threshold, columns, row, row >> 32, last)  # (rows, D)
        branch = branch * keep.view(x.shape) * philox.dropout_scale(threshold)
    total = (residual.to(high) + branch).to(residual.dtype)
    y = F.layer_norm(total.to(high), total.shape[-1:], weight.to(high), bias.to(high), eps)
    y = y.to(x.dtype)
    if readers == 2:  # views of several outputs, which autograd lets none change in place
        first, second = y.expand(2, *y.shape).unbind()
        return first, second
    return (y, total) if prenorm else y
