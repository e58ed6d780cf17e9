"""Pixels of masked tubelets, from the encoder's rows of the visible ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vimpac.simvtp.config import NetworkConfig
from vimpac.simvtp.layer import LAYER_NORM_EPS, Layer, run_layers
from vimpac.simvtp.positions import sine_table


class Decoder(nn.Module):
    """A narrow ViT over [visible rows ; mask tokens], each with its position."""

    table: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.project = nn.Linear(config.width, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.layers = nn.ModuleList(
            Layer(width, config.decoder_heads, config.decoder_mlp_width)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(width, config.pixels)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.register_buffer("table", sine_table(config.tubelets, width), persistent=False)
        self.activation_checkpointing = False

    def forward(
        self,
        hidden: Tensor,  # (B, V, D), the encoder's rows of the visible tubelets
        visible: Tensor,  # (B, V) int32
        masked: Tensor,  # (B, M) int32
    ) -> Tensor:  # (B, M, t*P*P*3): normalised pixels (frame, row, column, channel)
        seen = self.project(hidden)
        table = self.table.to(seen.dtype)
        blanks = self.mask_token.to(seen.dtype) + table[masked.long()]
        stream = torch.cat((seen + table[visible.long()], blanks), 1)
        recompute = self.activation_checkpointing and self.training
        x, _ = run_layers(
            [*self.layers], stream, self.norm, first=visible.shape[1], recompute=recompute
        )
        return self.head(x)
