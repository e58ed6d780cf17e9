"""A pre-LN transformer layer, of the encoder and of the decoder.

    s = s + attention(y);  y = LN(s);  s = s + mlp(y);  y = LN_next(s)

A layer reads the normalised rows y and the residual stream s, and each sum, with the bias of the
branch before it and the LayerNorm after it, is one op.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimpac_kernels import bias_gelu, dropout_add_layer_norm

LAYER_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Softmax attention. Keys have no bias: it would move all scores of a query alike."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # rows (q | k | v) x heads x Dh
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,  # (B, S, D)
        keys: Tensor | None,  # (B, 1, 1, S) bool: true where a key is read; None: all are
        first: int,  # the first row whose output is wanted
    ) -> Tensor:  # (B, S - first, D), without the bias of `out`
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, N, S, Dh) each
        out = F.scaled_dot_product_attention(q[:, :, first:], k, v, attn_mask=keys)
        return F.linear(out.transpose(1, 2).flatten(2), self.out.weight)


class MLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(
        self,
        x: Tensor,  # (B, S, D)
    ) -> Tensor:  # (B, S, D), without the bias of `out`
        return F.linear(bias_gelu(F.linear(x, self.up.weight), self.up.bias), self.out.weight)


class Layer(nn.Module):
    """Attention and MLP, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, hidden)

    def forward(
        self,
        x: Tensor,  # (B, S, D), normalised
        stream: Tensor,  # (B, S, D), the residual
        next_norm: nn.LayerNorm,
        keys: Tensor | None,  # (B, 1, 1, S) bool
        first: int = 0,  # the first row that is wanted
    ) -> tuple[Tensor, Tensor]:  # x and stream of the next layer, (B, S - first, D) each
        update = self.attention(x, keys, first)
        x, stream = _add_and_norm(update, stream[:, first:], self.attention.out, self.mlp_norm)
        return _add_and_norm(self.mlp(x), stream, self.mlp.out, next_norm)


def run_layers(
    layers: Sequence[nn.Module],
    stream: Tensor,  # (B, S, D)
    last_norm: nn.LayerNorm,
    keys: Tensor | None = None,  # (B, 1, 1, S) bool: true where a key is read; None: all are
    first: int = 0,  # the first row that is wanted
    recompute: bool = False,  # keep what a layer reads only, and run it again in backward
) -> tuple[Tensor, Tensor]:  # (B, S - first, D) each: normalised, and the residual stream
    """Runs `Layer`s. The last one computes no row that is not wanted, beyond its keys."""
    run = cast(Sequence[Layer], layers)
    norms = [*(layer.attention_norm for layer in run), last_norm]
    x = norms[0](stream)
    for i, layer in enumerate(run):
        arguments = x, stream, norms[i + 1], keys, first if i + 1 == len(run) else 0
        if recompute:
            x, stream = checkpoint(layer, *arguments, use_reentrant=False)
        else:
            x, stream = layer(*arguments)
    return x, stream


def _add_and_norm(
    update: Tensor,  # (B, S, D)
    stream: Tensor,  # (B, S, D)
    linear: nn.Linear,  # whose bias `update` lacks
    norm: nn.LayerNorm,
) -> tuple[Tensor, Tensor]:
    """LN(sum) and the sum."""
    result = dropout_add_layer_norm(
        update,
        stream,
        norm.weight,
        norm.bias,
        linear_bias=linear.bias,
        eps=norm.eps,
        prenorm=True,
    )
    assert isinstance(result, tuple)
    return result
