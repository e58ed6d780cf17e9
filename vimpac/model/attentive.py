"""An attentive probe: one learnt query reads all tokens of a frozen encoder (V-JEPA, Sec. 4).

q = query + W_o attention(W_q query, W_kv LN(hidden))
q = q + MLP(LN(q))
logits = W q + b
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac.checkpoints.hub import HubModel
from vimpac.checks import check_kind, check_whole
from vimpac.model.contrastive import without_autocast
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.initial import init_bert
from vimpac.model.layer import LAYER_NORM_EPS
from vimpac.tokens import PAD_TOKEN


class AttentiveClassifier(nn.Module, HubModel):
    """Classifies clips by a cross-attention over the states of an encoder that does not learn.

    Args:
        encoder: A pre-trained encoder, shared and not copied; its parameters no longer require
            gradients, and it stays in evaluation mode.
        num_classes: Number of classes.

    Raises:
        TypeError: If an argument has a wrong type, naming it.
        ValueError: If a number is out of range.
    """

    _files = "vimpac.checkpoints.model_dir"

    def __init__(self, encoder: VideoTokenEncoder, num_classes: int) -> None:
        super().__init__()
        check_kind("encoder", encoder, VideoTokenEncoder)
        check_whole("num_classes", num_classes, least=1)
        width = encoder.width
        self.heads = math.gcd(encoder.config.heads, width)
        self.encoder = encoder.requires_grad_(False).eval()
        self.query = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width, eps=LAYER_NORM_EPS),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )
        self.classifier = nn.Linear(width, num_classes)
        for module in (self.to_query, self.to_key_value, self.out, self.mlp):
            module.apply(init_bert)
        nn.init.normal_(self.query, std=0.02)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def train(self, mode: bool = True) -> AttentiveClassifier:
        """Sets the mode of all but the encoder."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(
        self,
        tokens: Tensor,  # (B, T, H, W) integer
        *,
        has_padding: bool = True,
        seed: Tensor | None = None,  # unused: nothing in here drops
    ) -> Tensor:  # (B, num_classes) logits, at least fp32 also under autocast
        """Classifies clips; `has_padding` is the encoder's."""
        with torch.no_grad():
            hidden = self.encoder(tokens, has_padding=has_padding)  # (B, S, D)
        B, D = hidden.shape[0], hidden.shape[2]
        query = self.to_query(self.query).view(1, self.heads, 1, -1).expand(B, -1, -1, -1)
        keys, values = (
            self.to_key_value(self.norm(hidden)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        )  # (B, S, N, Dh) each
        mask = None
        if has_padding:  # [CLS] is never padding
            real = F.pad(tokens.flatten(1) != PAD_TOKEN, (1, 0), value=True)
            mask = real[:, None, None]
        read = F.scaled_dot_product_attention(
            query.to(keys.dtype), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask
        )  # (B, N, 1, Dh)
        pooled = self.query + self.out(read.reshape(B, D))
        pooled = pooled + self.mlp(pooled)
        with without_autocast(pooled.device):
            pooled = pooled.to(torch.promote_types(pooled.dtype, self.classifier.weight.dtype))
            return self.classifier(pooled)
