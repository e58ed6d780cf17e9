"""The heads on top of the encoder: masked tokens, contrastive features, video classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac.checkpoints.hub import HubModel
from vimpac.checks import (
    as_number,
    check_floating,
    check_integers,
    check_kind,
    check_whole,
)
from vimpac.model.config import ModelConfig
from vimpac.model.contrastive import BatchNorm, without_autocast
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.initial import init_bert
from vimpac.model.layer import LAYER_NORM_EPS
from vimpac.model.masked_rows import IGNORE_INDEX, MaskedRows, choose_masked_rows, take_rows
from vimpac_kernels import LinearCrossEntropyOutput, TiedLinearCrossEntropy


class MaskedTokenHead(nn.Module):
    """Predicts masked tokens: u = LN(GELU(W h + b)), logits = u W_embed^T + b_word (Eq. 16-17).

    Args:
        embedding: The encoder's token embedding, whose weight is also the output weight. It is
            read in every forward and is neither a submodule nor in the state dict of the head.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        check_kind("embedding", embedding, nn.Embedding)
        width = embedding.embedding_dim
        self.cross_entropy = TiedLinearCrossEntropy(embedding)
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.apply(init_bert)

    def transform(self, hidden: Tensor) -> Tensor:
        """u of hidden (..., D)."""
        return self.norm(F.gelu(self.dense(hidden)))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., 8197) of hidden (..., D): for pictures and samples, not for training."""
        head = self.cross_entropy
        return F.linear(self.transform(hidden), head.linear_weight, head.bias)

    def forward(
        self,
        hidden: Tensor,  # (B, 1 + T*H*W, D)
        labels: Tensor,  # (B, T, H, W) integer
        *,
        positions: Tensor | None = None,  # (capacity,) int32
        count: Tensor | None = None,  # 0-d int32
        max_masked: int | None = None,
    ) -> LinearCrossEntropyOutput:
        """The mean cross-entropy over masked tokens, and the fraction predicted right.

        Only masked rows go through the head, and nothing waits for the device.

        Args:
            hidden: (B, 1 + T*H*W, D) from the encoder.
            labels: As in `choose_masked_rows`.
            positions: As there.
            count: As there.
            max_masked: As there; `num_targets` tells how many tokens were predicted.

        Returns:
            (loss, accuracy, num_targets), 0-d and on the device.

        Raises:
            IndexError: On the CPU, if a position or label is out of range.
            TypeError: If an argument has a wrong type, naming it.
            ValueError: If shapes do not match, or only one of positions and count is given.
        """
        check_floating("hidden", hidden, "B", "1 + T*H*W", self.dense.in_features)
        check_integers("labels", labels)
        B, S, _ = hidden.shape
        if labels.dim() != 4 or labels.numel() != B * (S - 1) or len(labels) != B:
            raise ValueError(
                f"labels must be (B, T, H, W) with B={B} and T*H*W={S - 1}, got "
                f"{tuple(labels.shape)}"
            )
        masked = choose_masked_rows(labels, positions=positions, count=count, max_masked=max_masked)
        return self.predict(take_rows(hidden, masked.rows), masked)

    def predict(
        self,
        hidden: Tensor,  # (capacity, D), the states of masked.rows
        masked: MaskedRows,
    ) -> LinearCrossEntropyOutput:
        """`forward` for the rows that it would take, of which only the live ones count."""
        return self.cross_entropy(
            self.transform(hidden),
            masked.target,
            count=masked.num_live,
            ignore_index=IGNORE_INDEX,
        )


class ContrastiveHead(nn.Module):
    """(n - 1) x [Linear, BatchNorm, ReLU], then a Linear without bias.

    BatchNorm takes its statistics over all ranks when torch.distributed is in use.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        check_kind("config", config, ModelConfig)
        layers: list[nn.Module] = []
        self.width = size = config.width
        for _ in range(config.contrastive_layers - 1):
            layers += [
                nn.Linear(size, config.contrastive_width),
                BatchNorm(config.contrastive_width),
                nn.ReLU(),
            ]
            size = config.contrastive_width
        self.layers = nn.Sequential(*layers, nn.Linear(size, config.contrastive_dim, bias=False))
        self.apply(init_bert)

    def forward(
        self,
        cls: Tensor,  # (B, D)
    ) -> Tensor:  # (B, contrastive_dim), not normalised
        check_floating("cls", cls, "B", self.width)
        return self.layers(cls)


class VideoClassifier(nn.Module, HubModel):
    """The encoder with a zero-initialised Linear on [CLS].

    Args:
        encoder: A (pre-trained) encoder, shared and not copied.
        num_classes: Number of classes.
        dropout: Dropout before the Linear, in [0, 1]; the paper uses none.

    Raises:
        TypeError: If an argument has a wrong type, naming it.
        ValueError: If a number is out of range.
    """

    _files = "vimpac.checkpoints.model_dir"

    def __init__(
        self, encoder: VideoTokenEncoder, num_classes: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_kind("encoder", encoder, VideoTokenEncoder)
        check_whole("num_classes", num_classes, least=1)
        if not 0 <= as_number("dropout", dropout) <= 1:
            raise ValueError(f"dropout must be in [0, 1], got {dropout}")
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(encoder.width, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self,
        tokens: Tensor,  # (B, T, H, W) integer
        *,
        has_padding: bool = True,
        seed: Tensor | None = None,  # 0-d int64
    ) -> Tensor:  # (B, num_classes) logits, at least fp32 also under autocast
        """Classifies clips; `has_padding` and `seed` are the encoder's."""
        cls = self.encoder.cls(tokens, has_padding=has_padding, seed=seed)
        with without_autocast(cls.device):
            cls = cls.to(torch.promote_types(cls.dtype, self.classifier.weight.dtype))
            return self.classifier(self.dropout(cls))
