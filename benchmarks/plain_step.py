"""The training step as a careful user writes it in plain PyTorch: the baseline of our kernels.

It avoids what the released step wastes: [CLS] is projected once, q, k and v are one product,
attention is F.scaled_dot_product_attention, and the token head sees masked rows only. It holds a
`Vimpac` for its parameters and calls none of this library's ops.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from axial_lines import each_axis
from torch import Tensor, nn

from vimpac import Vimpac
from vimpac.model.config import ModelConfig
from vimpac.model.contrastive import info_nce
from vimpac.model.layer import LAYER_NORM_EPS, MLP, Attention


class PlainModel(nn.Module):
    """Encoder, token head on masked rows, contrastive head; post-LN.

    Args:
        config: Sizes, layout and dropout of the model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = Vimpac(config)
        self.config = config

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """(2B, T, H, W) masked ids and labels, -100 where not masked -> the loss."""
        x = self.encode(tokens)
        return self.token_loss(x[:, 1:], labels) + self.contrastive_loss(x[:, 0])

    def encode(self, tokens: Tensor) -> Tensor:
        """(B, T, H, W) ids -> (B, 1 + T*H*W, D), [CLS] first."""
        x = self.embed(tokens)
        for layer in self.model.encoder.layers:
            for block in layer.attention:
                x = self.add_norm(block.norm, x, self.attend(block, x))
            x = self.add_norm(layer.mlp.norm, x, self.feed_forward(layer.mlp, x))
        return x

    def dropout(self, x: Tensor) -> Tensor:
        """Drops elements while training."""
        return F.dropout(x, self.config.dropout, self.training)

    def embed(self, tokens: Tensor) -> Tensor:
        """(2B, T, H, W) ids -> (2B, 1 + T*H*W, D)."""
        encoder, place = self.model.encoder, self.model.encoder.positions
        positions = place.time[:, None, None] + place.height[:, None] + place.width
        x = encoder.token_embedding(tokens.flatten(1)) + positions.flatten(0, 2)
        cls = (encoder.cls_token + place.cls).expand(len(tokens), 1, -1)
        return self.dropout(encoder.embedding_norm(torch.cat((cls, x), dim=1)))

    def attend(self, block: Attention, x: Tensor) -> Tensor:
        """(2B, S, D) -> (2B, S, D)."""
        dropout_p = self.config.dropout if self.training else 0.0

        def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)

        axial = block.axial
        qkv = F.linear(x, axial.in_proj_weight, axial.in_proj_bias)
        qkv = qkv.unflatten(-1, (3, axial.num_heads, axial.head_dim))
        return block.out(each_axis(sdpa)(qkv, self.config.grid, axial.axes).flatten(2))

    def feed_forward(self, mlp: MLP, x: Tensor) -> Tensor:
        """(2B, S, D) -> (2B, S, D)."""
        return mlp.out(F.gelu(mlp.up(x)))

    def add_norm(self, norm: nn.LayerNorm, residual: Tensor, branch: Tensor) -> Tensor:
        """The end of every block."""
        return F.layer_norm(
            residual + self.dropout(branch),
            norm.normalized_shape,
            norm.weight,
            norm.bias,
            LAYER_NORM_EPS,
        )

    def token_loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """(2B, T*H*W, D), (2B, T, H, W) -> the mean over masked tokens."""
        masked = labels.flatten(1) != -100
        return F.cross_entropy(
            self.model.token_head.logits(x[masked]).float(), labels.flatten(1)[masked]
        )

    def contrastive_loss(self, cls: Tensor) -> Tensor:
        """(2B, D) -> InfoNCE of both views."""
        loss = self.model.loss_config
        features = self.model.contrastive_head(cls)
        return loss.alpha * info_nce(features, loss.temperature, gamma=loss.gamma)
