"""A pre-LN transformer layer, of the encoder and of the decoder.

    s = s + attention(y);  y = LN(s);  s = s + mlp(y);  y = LN(s)

A layer reads the normalised rows y and the residual stream s, and each sum, with the bias of the
branch before it and the LayerNorm after it, is one op. So a layer holds the LayerNorm that the
next one begins with, and `Transformer` the first of all.

Several batches of sequences go through together: their rows lie one after the other, (N, D), and
only attention takes them apart. A weight is read once, and its gradient is one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimpac_kernels import axial_attention, bias_gelu, dropout_add_layer_norm

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
        x: Tensor,  # (N, D), of all batches
        shapes: Sequence[tuple[int, int]],  # (B, S) of each
        keys: Sequence[Tensor | None],  # (B, 1, 1, S) bool each: true where a key is read, or all
        first: int,  # the first row of a sequence whose output is wanted
    ) -> Tensor:  # (N', D), without the bias of `out`
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, None if x.is_cpu else bias)
        outs, heads = [], (3, self.heads, x.shape[1] // self.heads)
        parts = qkv.split([B * S for B, S in shapes])
        for part, (B, S), mask in zip(parts, shapes, keys, strict=True):
            packed = part.view(B, S, *heads)
            if x.is_cpu:  # where our kernel is the faster one; it adds the bias, too
                hidden = None if mask is None else ~mask
                out = axial_attention(
                    packed, (1, 1, S), "THW", bias=bias.view(heads), key_padding_mask=hidden
                )[:, first:]
            else:
                q, k, v = packed.permute(2, 0, 3, 1, 4)  # (B, heads, S, Dh) each
                out = F.scaled_dot_product_attention(q[:, :, first:], k, v, attn_mask=mask)
                out = out.transpose(1, 2)
            outs.append(out.flatten(2).flatten(0, 1))
        return F.linear(outs[0] if len(outs) == 1 else torch.cat(outs), self.out.weight)


class MLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)

    def forward(
        self,
        x: Tensor,  # (N, D)
    ) -> Tensor:  # (N, D), without the bias of `out`
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
        x: Tensor,  # (N, D), normalised
        stream: Tensor,  # (N, D), the residual
        shapes: Sequence[tuple[int, int]],  # (B, S) of each batch
        keys: Sequence[Tensor | None],  # (B, 1, 1, S) bool of each
        first: int = 0,  # the first row of a sequence that is wanted
        scales: Tensor | None = None,  # (2, N'): of both branches of a row; None: 1
    ) -> tuple[Tensor, Tensor]:  # x and stream of the next layer, (N', D) each
        update = self.attention(x, shapes, keys, first)
        scale, other = (None, None) if scales is None else scales.unbind()
        if first:
            parts = zip(stream.split([B * S for B, S in shapes]), shapes, strict=True)
            stream = torch.cat([p.unflatten(0, of)[:, first:].flatten(0, 1) for p, of in parts])
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

    def norm_row(
        self,
        row: Tensor,  # (B, D), a mean of rows
    ) -> Tensor:  # (B, D)
        """The last LayerNorm of it, in the dtype of the parameters."""
        return self.last_norm(row.to(self.last_norm.weight.dtype))

    def forward(
        self,
        streams: Sequence[Tensor],  # (B, S, D) each
        keys: Sequence[Tensor | None],  # (B, 1, 1, S) bool each: true where a key is read, or all
        first: int = 0,  # the first row of a sequence that is wanted
        scales: Tensor | None = None,  # (layers, 2, B), of one batch: of both branches; None: 1
    ) -> list[tuple[Tensor, Tensor]]:  # (B, S - first, D): normalised, and the residual stream
        """Runs all; the last one computes no row that is not wanted, beyond its keys."""
        shapes = [(s.shape[0], s.shape[1]) for s in streams]
        rows = [s.flatten(0, 1) for s in streams]
        stream = rows[0] if len(rows) == 1 else torch.cat(rows)
        x = self.first_norm(stream)
        if scales is not None:
            scales = scales.repeat_interleave(shapes[0][1], -1)
        for i, layer in enumerate(self.layers):
            wanted = first if i + 1 == len(self.layers) else 0
            arguments = x, stream, shapes, keys, wanted, None if scales is None else scales[i]
            if self.recompute and self.training:
                x, stream = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x, stream = layer(*arguments)
        sizes = [B * (S - first) for B, S in shapes]
        parts = zip(x.split(sizes), stream.split(sizes), shapes, strict=True)
        return [
            (x.unflatten(0, (B, S - first)), s.unflatten(0, (B, S - first)))
            for x, s, (B, S) in parts
        ]


def _add_and_norm(
    update: Tensor,  # (N, D)
    stream: Tensor,  # (N, D)
    linear: nn.Linear,  # whose bias `update` lacks
    norm: nn.LayerNorm,
    scale: Tensor | None,  # (N,)
) -> tuple[Tensor, Tensor]:
    """LN(sum) and the sum."""
    bias: Tensor | None = linear.bias
    if scale is not None:
        factor = scale.to(update.dtype)[:, None]
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
