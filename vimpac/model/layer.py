"""A layer of the encoder: attention blocks and an MLP, each of them a residual branch.

A branch returns its output projection without the bias; the bias, dropout, residual sum and
LayerNorm are one op:

    norm="post"           x = LN(x + dropout(f(x) + bias))
    norm="pre_textbook"   s = s + dropout(f(y) + bias);  y = LN_next(s), at last `final_norm`
    norm="pre"            the same, but attention adds to what it reads, the normalised stream:
                          s = y + dropout(f(y) + bias)

"pre" is what the released code computes and the pre-LN column of the paper's Table 13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vimpac.model.cls_per_line import attend_per_line, count_lines, merge_cls, repeat_cls
from vimpac.model.config import ModelConfig
from vimpac.model.drop_path import scale_branch
from vimpac.model.masked_rows import take_rows
from vimpac_kernels import AxialAttention, bias_gelu, dropout_add_layer_norm

LAYER_NORM_EPS = 1e-12


class Attention(nn.Module):
    """One attention block: axial attention, whose output projection lacks its bias, and a norm."""

    def __init__(self, config: ModelConfig, axes: str) -> None:
        super().__init__()
        self.per_line = config.cls == "paper"
        self.axial = AxialAttention(
            config.width,
            config.heads,
            axes,
            head_dim=config.head_dim,
            dropout=config.dropout,
        )
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)

    @property
    def out(self) -> nn.Linear:
        """The output projection."""
        return self.axial.out_proj

    def forward(
        self,
        x: Tensor,  # (B, S, D)
        grid: tuple[int, int, int],
        key_padding_mask: Tensor | None,  # (B, T, H, W) bool
        seed: Tensor | None,  # 0-d int64
        rows: Tensor | None = None,  # (R,) of the output; None: all
    ) -> Tensor:  # (B, S - 1 + cls_rows(grid), D) or (R, D), without the bias of `out`
        attend = self._attend_per_line if self.per_line else self.axial.attend
        attended = attend(x, grid, key_padding_mask, seed=seed).flatten(2)
        return F.linear(attended if rows is None else take_rows(attended, rows), self.out.weight)

    def _attend_per_line(
        self,
        x: Tensor,  # (B, S, D)
        grid: tuple[int, int, int],
        key_padding_mask: Tensor | None,  # (B, T, H, W) bool
        *,
        seed: Tensor | None,  # not followed
    ) -> Tensor:  # (B, S - 1 + cls_rows(grid), N, Dh)
        axial = self.axial
        qkv = F.linear(x, axial.in_proj_weight, axial.in_proj_bias)
        qkv = qkv.unflatten(-1, (3, axial.num_heads, axial.head_dim))
        dropout_p = axial.dropout if self.training else 0.0
        return attend_per_line(qkv, grid, axial.axes, key_padding_mask, dropout_p)

    def follows_seed(self, device: torch.device) -> bool:
        """Whether dropout in here follows the seed: not with the paper's [CLS]."""
        return not self.per_line and self.axial.follows_seed(device)

    def cls_rows(self, grid: tuple[int, int, int]) -> int:
        """Rows that stand for [CLS] in the output: 1, or one per line as in the paper's text."""
        return count_lines(grid, self.axial.axes) if self.per_line else 1


class MLP(nn.Module):
    """Linear, exact GELU, Linear, norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.out = nn.Linear(config.mlp_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)

    def forward(
        self,
        x: Tensor,  # (..., D)
    ) -> Tensor:  # (..., D), without the bias of `out`
        hidden = bias_gelu(F.linear(x, self.up.weight), self.up.bias)
        return F.linear(hidden, self.out.weight)


class Layer(nn.Module):
    """The attention blocks of the layout, then the MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.prenorm, self.dropout = config.prenorm, config.dropout
        self.attention_adds_to_normed = config.norm == "pre"
        self.attention = nn.ModuleList(Attention(config, axes) for axes in config.layout.split(","))
        self.mlp = MLP(config)

    def branches(self) -> list[Attention | MLP]:
        """The residual branches in order."""
        return [*(cast(Attention, block) for block in self.attention), self.mlp]

    def draws_from_generator(self, device: torch.device) -> bool:
        """Whether some dropout in here takes no seed."""
        return any(not b.follows_seed(device) for b in cast(list[Attention], self.attention))

    def forward(
        self,
        x: Tensor,  # (B, S, D), what the first branch reads
        stream: Tensor,  # (B, S, D), the residual; post-LN: x
        norms: Sequence[nn.LayerNorm],  # after each branch
        grid: tuple[int, int, int],
        key_padding_mask: Tensor | None,  # (B, T, H, W) bool
        seeds: Tensor | None,  # (branches, 2) int64, of the probabilities and of the output
        rows: Tensor | None = None,  # (R,) of the flattened (B * S, D); None: all
        recompute: bool = False,  # keep the arguments only, and run again in backward
        scales: Tensor | None = None,  # (branches, B) of stochastic depth; None: all 1
    ) -> tuple[Tensor, Tensor]:  # x and stream of the next layer, or their rows (R, D)
        if recompute:  # within the call, so that what compiles or shards a layer sees both runs
            arguments = x, stream, norms, grid, key_padding_mask, seeds, rows, False, scales
            # Most dropout follows the seeds among the arguments; the rest, the generator.
            draws = self.training and self.dropout > 0 and self.draws_from_generator(x.device)
            run = self.forward
            return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=draws)
        dropout_p = self.dropout if self.training else 0.0
        for i, (branch, norm) in enumerate(zip(self.branches(), norms, strict=True)):
            inner, outer = (None, None) if seeds is None else seeds[i].unbind()
            # After the last attention no row depends on another, but for the copies of [CLS].
            needed = rows if i == len(self.attention) - 1 else None
            if isinstance(branch, Attention):
                cls_rows = branch.cls_rows(grid)
                early = needed if cls_rows == 1 else None
                update = branch(x, grid, key_padding_mask, inner, early)
                # Under autocast x has lower precision, in which no sum is kept.
                residual = x.to(stream.dtype) if self.attention_adds_to_normed else stream
                if early is not None:
                    residual = take_rows(residual, early)
            else:
                update, cls_rows, residual = branch(x), 1, stream
            bias: Tensor | None = branch.out.bias
            if scales is not None:
                clip = None if update.dim() == 3 or rows is None else rows // (1 + math.prod(grid))
                update, bias = scale_branch(update, branch.out.bias, scales[i], clip), None
            x, stream = dropout_add_layer_norm(
                update,
                residual if cls_rows == 1 else repeat_cls(residual, cls_rows),
                norm.weight,
                norm.bias,
                linear_bias=bias,
                dropout_p=dropout_p,
                eps=LAYER_NORM_EPS,
                prenorm=self.prenorm,
                readers=1 if self.prenorm else 2,
                seed=outer,
            )
            if cls_rows > 1:
                x, stream = merge_cls(x, stream, cls_rows, norm if self.prenorm else None)
                if needed is not None:
                    x, stream = take_rows(x, needed), take_rows(stream, needed)
        return x, stream
