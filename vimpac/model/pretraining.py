"""VIMPAC for pre-training: the encoder, its two heads and the sum of their losses."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vimpac.checkpoints.hub import HubModel
from vimpac.checks import check_integers, check_kind
from vimpac.model.config import LossConfig, ModelConfig, preset
from vimpac.model.contrastive import info_nce
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.heads import ContrastiveHead, MaskedTokenHead
from vimpac.model.masked_rows import MaskedRows, choose_masked_rows, cls_rows
from vimpac_kernels import LinearCrossEntropyOutput


class PretrainingOutput(NamedTuple):
    """What a forward of `Vimpac` returns; every tensor is 0-d and on the device."""

    loss: Tensor  # LossConfig.total of the two below
    mask_loss: Tensor  # mean cross-entropy over the masked tokens of this rank
    accuracy: Tensor  # fraction of them predicted right
    contrastive_loss: Tensor  # gamma * (loss_a + loss_b); 0 without a contrastive head


class Vimpac(nn.Module, HubModel):
    """Masked token prediction and contrastive learning over one forward of the masked input.

    Args:
        config: Sizes, layout and options.
        loss: Weights of the losses; alpha=0 builds no contrastive head.
    """

    _files = "vimpac.checkpoints.model_dir"

    def __init__(self, config: ModelConfig, loss: LossConfig | None = None) -> None:
        super().__init__()
        check_kind("config", config, ModelConfig)
        if loss is not None:
            check_kind("loss", loss, LossConfig)
        self.config, self.loss_config = config, loss or LossConfig()
        self.encoder = VideoTokenEncoder(config)
        self.token_head = MaskedTokenHead(self.encoder.token_embedding)
        self.contrastive_head = ContrastiveHead(config) if self.loss_config.alpha else None

    @classmethod
    def from_preset(cls, /, name: str, **overrides: Any) -> Vimpac:
        """Builds a named preset, for example `from_preset("small", grid=(5, 16, 16))`.

        Args:
            name: A key of `vimpac.PRESETS`.
            overrides: Fields of `ModelConfig`, such as `layout`, `grid` or `dropout`, and of
                `LossConfig`, such as `alpha`.

        Returns:
            The model with fresh weights, on the current default device.

        Raises:
            ValueError: If there is no such preset, or a setting is illegal.
            TypeError: If an override is no setting of a model or a loss.
        """
        of_loss = {field.name for field in dataclasses.fields(LossConfig)} & overrides.keys()
        loss = LossConfig(**{key: overrides.pop(key) for key in of_loss})
        return cls(preset(name, **overrides), loss)

    def resize_grid(
        self, grid: tuple[int, int, int], optimizer: torch.optim.Optimizer | None = None
    ) -> None:
        """Interpolates the positions (and Adam's moments of them) to another input shape.

        Args:
            grid: The new (T, H, W).
            optimizer: The optimizer that trains this model, or None.

        Raises:
            TypeError: If `optimizer` is none.
            ValueError: If `grid` is not three positive sizes.
        """
        if optimizer is not None:
            check_kind("optimizer", optimizer, torch.optim.Optimizer)
        config = dataclasses.replace(self.config, grid=grid)  # checks the sizes
        self.encoder.positions.resize_(config.grid, optimizer)
        self.config = config

    def forward(
        self,
        clips: Tensor,  # (B, 2, T, H, W) integer, or view-major (2B, T, H, W)
        labels: Tensor,  # the shape of clips
        *,
        positions: Tensor | None = None,  # (capacity,) int32
        count: Tensor | None = None,  # 0-d int32
        max_masked: int | None = None,
        has_padding: bool = True,
        contrastive_batch: int | None = None,
    ) -> PretrainingOutput:
        """The losses of masked clips.

        Args:
            clips: (B, 2, T, H, W) masked token ids, two clips per video; or `view_major(clips)`.
            labels: Token ids of the same shape, -100 where nothing is to be predicted; with
                `positions` they may be the ids of all tokens.
            positions: Masked rows, from `mask_tokens(view_major(clips), row_offset=1)`.
            count: How many positions count.
            max_masked: Bound on the number of masked tokens (see `choose_masked_rows`).
            has_padding: False promises that no clip holds PAD.
            contrastive_batch: As in `info_nce`.

        Returns:
            The losses and the accuracy.

        Raises:
            IndexError: On the CPU, if an id, a label or a position is out of range.
            TypeError: If an argument has a wrong type, naming it.
            ValueError: If a shape does not fit.
        """
        check_integers("clips", clips)
        check_integers("labels", labels)
        if clips.dim() == 5 and labels.dim() == 5:
            clips, labels = view_major(clips), view_major(labels)
        if labels.shape != clips.shape:
            raise ValueError(
                f"labels must be as clips, got {tuple(labels.shape)} and {tuple(clips.shape)}"
            )
        masked = choose_masked_rows(labels, positions=positions, count=count, max_masked=max_masked)
        tokens, cls = predict_masked(
            self.encoder, self.token_head, clips, masked, has_padding=has_padding
        )
        contrastive = torch.zeros((), device=cls.device)
        if self.contrastive_head is not None:
            contrastive = self.contrastive_loss(cls, contrastive_batch)
        total = self.loss_config.total(tokens.loss, contrastive)
        return PretrainingOutput(total, tokens.loss, tokens.accuracy, contrastive)

    def contrastive_loss(
        self,
        cls: Tensor,  # (2B, D)
        contrastive_batch: int | None = None,
    ) -> Tensor:
        """The contrastive loss of this rank's clips, before its weight alpha.

        Args:
            cls: (2B, D), [CLS] of all first clips, then of all second clips.
            contrastive_batch: As in `info_nce`.

        Returns:
            0-d fp32.

        Raises:
            ValueError: If the model has no contrastive head (alpha=0).
        """
        if self.contrastive_head is None:
            raise ValueError("this model was built with alpha=0, without a contrastive head")
        features, loss = self.contrastive_head(cls), self.loss_config
        return info_nce(
            features, loss.temperature, gamma=loss.gamma, contrastive_batch=contrastive_batch
        )


def predict_masked(
    encoder: VideoTokenEncoder,
    token_head: MaskedTokenHead,
    clips: Tensor,  # (B, T, H, W) integer, masked
    masked: MaskedRows,
    *,
    has_padding: bool = True,
    seed: Tensor | None = None,  # 0-d int64
) -> tuple[LinearCrossEntropyOutput, Tensor]:
    """Encodes clips once, for both heads, and no row that neither reads.

    Args:
        encoder: The encoder.
        token_head: Its token head.
        clips: (B, T, H, W) masked token ids.
        masked: From `choose_masked_rows`.
        has_padding: False promises that no clip holds PAD.
        seed: Of the dropout, as the encoder takes it.

    Returns:
        What the token head returns, and [CLS] (B, D).
    """
    # [CLS] first: it then has the places, and the dropout, that it has in `encoder.cls`.
    rows = torch.cat((cls_rows(clips), masked.rows))
    hidden = encoder(clips, has_padding=has_padding, rows=rows, seed=seed)
    cls, hidden = hidden.split((len(clips), len(masked.rows)))
    return token_head.predict(hidden, masked), cls


def view_major(clips: Tensor) -> Tensor:
    """(B, 2, T, H, W) -> (2B, T, H, W): all first clips, then all second clips."""
    check_integers("clips", clips)
    if clips.dim() != 5 or clips.shape[1] != 2:
        raise ValueError(f"clips must be (B, 2, T, H, W), got {tuple(clips.shape)}")
    return clips.transpose(0, 1).flatten(0, 1)
