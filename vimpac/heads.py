"""The heads on top of the encoder: masked tokens, contrastive features, video classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac.encoder import LAYER_NORM_EPS, VideoTokenEncoder, init_bert
from vimpac.objective import BatchNorm
from vimpac.presets import EMBEDDING_ROWS, ModelConfig
from vimpac_kernels import LinearCrossEntropyOutput, linear_cross_entropy

IGNORE_INDEX = -100
ROWS_STEP = 128


class MaskedTokenHead(nn.Module):
    """Predicts masked tokens: u = LN(GELU(W h + b)), logits = u W_embed^T + b_word (Eq. 16-17).

    Args:
        embedding: The encoder's token embedding, whose weight is also the output weight. It is
            read in every forward and is neither a submodule nor in the state dict of the head.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        width = embedding.embedding_dim
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.bias = nn.Parameter(torch.zeros(EMBEDDING_ROWS))
        # In a tuple the embedding is not registered a second time.
        self._tied = (embedding,)
        self.apply(init_bert)

    @property
    def weight(self) -> Tensor:
        """The output weight (8197, D)."""
        return self._tied[0].weight

    def transform(self, hidden: Tensor) -> Tensor:
        """u of hidden (..., D)."""
        return self.norm(F.gelu(self.dense(hidden)))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., 8197) of hidden (..., D): for pictures and samples, not for training."""
        return F.linear(self.transform(hidden), self.weight, self.bias)

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

        Only masked rows go through the head, and nothing waits for the device. Since the number of
        masked rows is then unknown to the host, the transform works on `max_masked` rows; masked
        rows beyond that number are left out (`num_targets` tells how many were predicted).

        Args:
            hidden: (B, 1 + T*H*W, D) from the encoder.
            labels: (B, T, H, W) token ids. Without `positions`, -100 where nothing is masked.
            positions: (capacity,) int32 rows of the flattened (B * (1 + T*H*W), D) hidden states
                that are masked, from `mask_tokens(..., row_offset=1)`; then labels may be all ids.
            count: 0-d int32 on the device: how many positions count.
            max_masked: Bound on the number of masked rows. None: on the CPU, where reading the
                count is free, the number itself, rounded up to 128; elsewhere every token.

        Returns:
            (loss, accuracy, num_targets), 0-d and on the device.

        Raises:
            ValueError: If shapes do not match, or only one of positions and count is given.
        """
        B, rows, D = hidden.shape
        if labels.dim() != 4 or labels.numel() != B * (rows - 1) or len(labels) != B:
            raise ValueError(
                f"labels must be (B, T, H, W) with B={B} and T*H*W={rows - 1}, got "
                f"{tuple(labels.shape)}"
            )
        if (positions is None) != (count is None):
            raise ValueError("positions and count come together")
        labels = labels.flatten()
        if positions is None or count is None:
            positions, count = _masked_rows(labels, rows)
        capacity = positions.numel()
        if max_masked is not None:
            capacity = min(capacity, max_masked)
        elif hidden.device.type == "cpu" and not torch.compiler.is_compiling():
            # In steps: malloc keeps the memory of every size it has met, and counts differ always.
            capacity = min(capacity, -(-int(count) // ROWS_STEP) * ROWS_STEP)
        slot = torch.arange(capacity, dtype=torch.int32, device=hidden.device)
        live = slot < count
        # A dead slot reads the row of its own number: with distinct rows the scatter in backward
        # has no hot address, and adding a zero keeps it deterministic.
        row = torch.where(live, positions[:capacity], slot).long()
        masked = self.transform(hidden.flatten(0, 1).index_select(0, row))
        target = labels[row - row // rows - 1].long().masked_fill(~live, IGNORE_INDEX)
        output = linear_cross_entropy(
            masked,
            self.weight,
            target,
            linear_bias=self.bias,
            positions=slot,
            count=count.clamp(max=capacity),
            ignore_index=IGNORE_INDEX,
            return_stats=True,
        )
        assert isinstance(output, LinearCrossEntropyOutput)
        return output


def _masked_rows(
    labels: Tensor,  # (B*T*H*W,)
    rows: int,
) -> tuple[Tensor, Tensor]:  # (B*T*H*W,) int32, 0-d int32
    """The rows of the (B * rows, D) hidden states that have a label, and their number."""
    masked = labels != IGNORE_INDEX
    token = torch.arange(labels.numel(), dtype=torch.int32, device=labels.device)
    slot = torch.where(masked, masked.cumsum(0) - 1, labels.numel())
    positions = token.new_full((labels.numel() + 1,), -1)
    positions = positions.scatter(0, slot, token + token // max(rows - 1, 1) + 1)
    return positions[:-1], masked.sum(dtype=torch.int32)


class ContrastiveHead(nn.Module):
    """(n - 1) x [Linear, BatchNorm, ReLU], then a Linear without bias.

    BatchNorm takes its statistics over all ranks when torch.distributed is in use.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size = config.width
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
        return self.layers(cls)


class VideoClassifier(nn.Module):
    """The encoder with a zero-initialised Linear on [CLS].

    Args:
        encoder: A (pre-trained) encoder, shared and not copied.
        num_classes: Number of classes.
        dropout: Dropout before the Linear; the paper uses none.
    """

    def __init__(
        self, encoder: VideoTokenEncoder, num_classes: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
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
    ) -> Tensor:  # (B, num_classes) logits
        hidden = self.encoder(tokens, has_padding=has_padding)
        return self.classifier(self.dropout(hidden[:, 0]))
