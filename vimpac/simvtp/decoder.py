"""Pixels of masked tubelets, from the encoder's rows of the visible ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vimpac.simvtp.config import NetworkConfig
from vimpac.simvtp.layer import Transformer
from vimpac.simvtp.positions import sine_table


class Decoder(nn.Module):
    """A narrow ViT over [visible rows ; mask tokens], each with its position."""

    table: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.project = nn.Linear(config.width, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.transformer = Transformer(
            config.decoder_layers, width, config.decoder_heads, config.decoder_mlp_width
        )
        self.head = nn.Linear(width, config.pixels)
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.register_buffer("table", sine_table(config.tubelets, width), persistent=False)

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
        ((x, _),) = self.transformer([stream], [None], first=visible.shape[1])
        return self.head(x)
