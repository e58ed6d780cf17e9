"""A pre-LN transformer layer, of the encoder and of the decoder.

    s = s + attention(y);  y = LN(s);  s = s + mlp(y);  y = LN(s)

A layer reads the normalised rows y and the residual stream s, and each sum, with the bias of the
branch before it and the LayerNorm after it, is one op. So a layer holds the LayerNorm that the
next one begins with, and `Transformer` the first of all.
"""

from __future__ import annotations

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
    """Attention and MLP, and the LayerNorm after each."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(width, hidden)
        self.mlp_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(
        self,
        x: Tensor,  # (B, S, D), normalised
        stream: Tensor,  # (B, S, D), the residual
        keys: Tensor | None,  # (B, 1, 1, S) bool
        first: int = 0,  # the first row that is wanted
        scales: Tensor | None = None,  # (2, B): of both branches of a sample; None: 1
    ) -> tuple[Tensor, Tensor]:  # x and stream of the next layer, (B, S - first, D) each
        update = self.attention(x, keys, first)
        scale, other = (None, None) if scales is None else scales.unbind()
        stream = stream[:, first:]
        x, stream = _add_and_norm(update, stream, self.attention.out, self.attention_norm, scale)
        return _add_and_norm(self.mlp(x), stream, self.mlp.out, self.mlp_norm, other)


class Transformer(nn.Module):
    """The layers of an encoder or a decoder, one after the other."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))
        self.first_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.recompute = False  # keep what a layer reads only, and run it again in backward

    @property
    def last_norm(self) -> nn.LayerNorm:
        """The one after the last layer."""
        return cast(Layer, self.layers[-1]).mlp_norm

    def forward(
        self,
        stream: Tensor,  # (B, S, D)
        keys: Tensor | None = None,  # (B, 1, 1, S) bool: true where a key is read; None: all are
        first: int = 0,  # the first row that is wanted
        scales: Tensor | None = None,  # (layers, 2, B): of both branches of a sample; None: 1
    ) -> tuple[Tensor, Tensor]:  # (B, S - first, D) each: normalised, and the residual stream
        """Runs all; the last one computes no row that is not wanted, beyond its keys."""
        x = self.first_norm(stream)
        for i, layer in enumerate(self.layers):
            wanted = first if i + 1 == len(self.layers) else 0
            arguments = x, stream, keys, wanted, None if scales is None else scales[i]
            if self.recompute and self.training:
                x, stream = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x, stream = layer(*arguments)
        return x, stream


def _add_and_norm(
    update: Tensor,  # (B, S, D)
    stream: Tensor,  # (B, S, D)
    linear: nn.Linear,  # whose bias `update` lacks
    norm: nn.LayerNorm,
    scale: Tensor | None,  # (B,)
) -> tuple[Tensor, Tensor]:
    """LN(sum) and the sum."""
    bias: Tensor | None = linear.bias
    if scale is not None:
        factor = scale.to(update.dtype)[:, None, None]
        update, bias = (update + linear.bias.to(update.dtype)) * factor, None
    result = dropout_add_layer_norm(
        update,
        stream,
        norm.weight,
        norm.bias,
        linear_bias=bias,
        eps=norm.eps,
        prenorm=True,
    )
    assert isinstance(result, tuple)
    return result
