"""SimVTP: one encoder for videos, texts and pairs, a decoder for pixels, and four losses.

    joint(video, text)   -> decoder -> pixels of masked tubelets;  -> masked words
    joint(other, text)   -> with the one above: does the text match the video (VTM)?
    video alone, text alone -> which text is of which video (VTC)

The released code runs the joint pass of the matching pairs twice, embeds every tubelet, and
predicts every word. Here that pass runs once, masked tubelets are never embedded, only masked words
are predicted, and all passes go through the layers together: the losses and gradients are the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac.checkpoints.hub import HubModel
from vimpac.simvtp.config import PRESETS, NetworkConfig, ObjectiveConfig, TextConfig
from vimpac.simvtp.decoder import Decoder
from vimpac.simvtp.encoder import Inputs, JointEncoder
from vimpac.simvtp.inputs import (
    check_mask,
    check_masked_words,
    check_negatives,
    check_pairs,
    check_text,
    check_video,
)
from vimpac.simvtp.objective import (
    MaskedWords,
    contrastive_loss,
    match_loss,
    mean_row,
    word_loss,
)
from vimpac.simvtp.outputs import Passes, SimVTPOutput
from vimpac.simvtp.tubelets import split_mask
from vimpac_kernels import tubelet_mse


class SimVTP(nn.Module, HubModel):
    """The whole network.

    Args:
        config: Its sizes.
        text: How texts are read.
        loss: Weights of the losses.
    """

    _files = "vimpac.simvtp.description"

    def __init__(
        self,
        config: NetworkConfig,
        text: TextConfig | None = None,
        loss: ObjectiveConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.text_config = text or TextConfig()
        self.loss_config = loss or ObjectiveConfig()
        self.encoder = JointEncoder(config, self.text_config)
        self.decoder = Decoder(config)
        self.word_head = nn.Linear(config.width, config.vocabulary)
        self.match_head = nn.Linear(config.width, 2)
        self.apply(_init_linear)
        if self.text_config.tied:
            self.word_head.register_parameter("weight", None)

    @classmethod
    def from_preset(cls, name: str, **settings: Any) -> SimVTP:
        """A network by name, with fresh weights.

        Args:
            name: "base" or "tiny".
            settings: Fields of `NetworkConfig` to change.

        Raises:
            ValueError: There is no such preset, or a setting is illegal.
        """
        if name not in PRESETS:
            raise ValueError(f"name: preset must be one of {', '.join(PRESETS)}; got {name!r}")
        return cls(dataclasses.replace(NetworkConfig().named(name), **settings))

    @property
    def word_weight(self) -> Tensor:
        """(V, D), by which words are predicted."""
        own: Tensor | None = self.word_head.weight
        return self.encoder.words.words.weight if own is None else own

    def forward(
        self,
        video: Tensor,
        mask: Tensor,
        text_ids: Tensor,
        text_attention: Tensor,
        text_masked_ids: Tensor,
        text_labels: Tensor,
        negatives: Tensor | None = None,
    ) -> SimVTPOutput:
        """All losses of one batch.

        Args:
            video: (B, T, S, S, 3) uint8.
            mask: (B, N) bool, true where a tubelet is masked, in as many places in every clip.
            text_ids: (B, L) integer: [CLS] words [SEP] padding.
            text_attention: (B, L) bool or integer, 0 where there is padding.
            text_masked_ids: (B, L): `text_ids` with [MASK] in some places.
            text_labels: (B, L) int32 or int64 ids of the masked words, -100 elsewhere.
            negatives: (B,) which clip, not its own, each text is shown beside as a mismatch; None:
                drawn. Not read without the match loss.

        Raises:
            TypeError: An argument is no tensor.
            ValueError: A shape, a dtype or a device is not as above, or there is one pair only; on
                the CPU also if an id or a number is out of range, or a text its own mismatch.
        """
        config = self.config
        check_video(video, config)
        if not len(video):
            raise ValueError("video must hold a clip or more, got none")
        check_text(text_ids, text_attention, config, "text_")
        check_pairs(video, text_ids, "text_")
        check_masked_words(text_masked_ids, text_labels, text_ids, config.vocabulary)
        if self.loss_config.match:
            check_negatives(negatives, video)
        masked = check_mask(mask, video, config)
        attention = text_attention.bool()
        visible, hidden = split_mask(mask, masked)
        tubelets = self.encoder.tubelets(video, visible)
        others = None
        if self.loss_config.match:
            if negatives is None:
                negatives = draw_negatives(len(video), video.device)
            others = tubelets[negatives.long()]
        whole = text_ids if self.text_config.contrast == "whole" else None
        words = MaskedWords.of(text_labels)
        found = self.passes(
            video, tubelets, others, visible, hidden, text_masked_ids, attention, words, whole
        )
        contrast = torch.zeros((), device=video.device)
        if found.text is not None and found.video is not None:
            contrast = contrastive_loss(found.text, found.video, self.loss_config.temperature)
        return SimVTPOutput(
            self.loss_config.total(found.pixel_loss, found.word_loss, contrast, found.match_loss),
            found.pixel_loss,
            found.word_loss,
            found.word_accuracy,
            contrast,
            found.match_loss,
            found.match_accuracy,
            found.predicted_pixels,
            video,
            hidden,
            (self.config.tubelet, self.config.patch),
        )

    def passes(
        self,
        video: Tensor,  # (B, T, S, S, 3) uint8
        tubelets: Tensor,  # (B, V, D) embedded, the visible ones
        others: Tensor | None,  # (B, V, D) embedded, of the clip that each text does not describe
        visible: Tensor,  # (B, V) int32
        masked: Tensor,  # (B, M) int32
        masked_ids: Tensor,  # (B, L)
        attention: Tensor,  # (B, L) bool
        words: MaskedWords,
        whole_ids: Tensor | None = None,  # (B, L): the text of the contrast, if not the masked one
        seed: Tensor | None = None,  # 0-d int64, of the dropout
    ) -> Passes:
        """Everything but the contrastive loss, which may meet more than this batch.

        What only a loss of weight 0 reads is not computed.
        """
        V, loss = tubelets.shape[1], self.loss_config
        zero = torch.zeros((), device=tubelets.device)
        text = self.encoder.words(masked_ids, seed)
        found = Passes(zero, zero, zero, zero, zero)
        wanted: list[Inputs] = []
        if loss.contrast:
            alone = text if whole_ids is None else self.encoder.words(whole_ids, seed)
            wanted += [Inputs(tubelets, None), Inputs(None, alone, attention)]
        is_joint = loss.words or loss.pixels or loss.match
        pairs, seen = tubelets, attention
        if others is not None:
            pairs, text = torch.cat((tubelets, others)), torch.cat((text, text))
            seen = torch.cat((attention, attention))
        if is_joint:
            wanted.append(Inputs(pairs, text, seen))
        if not wanted:
            return found
        hidden = [rows for rows, _ in self.encoder.together(wanted)]
        if loss.contrast:
            found.video, found.text = self._means(hidden[0], hidden[1], attention)
        if not is_joint:
            return found
        joint = hidden[-1]
        if others is not None:
            pooled = mean_row(joint, seen if self._skips else None)
            found.match_loss, found.match_accuracy = match_loss(pooled, self.match_head)
        joint = joint[: len(tubelets)]
        if loss.words:
            result = word_loss(joint[:, V:], words, self.word_head, self.word_weight)
            found.word_loss, found.word_accuracy = result.loss, result.accuracy
        if loss.pixels:
            found.predicted_pixels = self.decoder(joint[:, :V], visible, masked)
            sides = self.config.tubelet, self.config.patch
            found.pixel_loss = tubelet_mse(found.predicted_pixels, video, masked, tubelet=sides)
        return found

    def freeze_unused(self) -> None:
        """Freezes what only a loss of weight 0 would train."""
        loss = self.loss_config
        for part, weight in (
            (self.decoder, loss.pixels),
            (self.word_head, loss.words),
            (self.match_head, loss.match),
        ):
            part.requires_grad_(weight > 0)

    def features(
        self,
        tubelets: Tensor,  # (B, V, D) embedded, the visible ones
        ids: Tensor,  # (B, L): the text of the contrast
        attention: Tensor,  # (B, L) bool
        seed: Tensor | None = None,  # 0-d int64, of the dropout
    ) -> tuple[Tensor, Tensor]:  # (B, D) each: of videos and of texts
        """The two means that the contrastive loss compares, as `passes` computes them."""
        text = self.encoder.words(ids, seed)
        passes = [Inputs(tubelets, None), Inputs(None, text, attention)]
        (video, _), (words, _) = self.encoder.together(passes)
        return self._means(video, words, attention)

    def _means(self, video: Tensor, text: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
        return mean_row(video), mean_row(text, attention if self._skips else None)

    @property
    def _skips(self) -> bool:
        """Whether means leave padding out."""
        return self.text_config.pool == "words"

    def embed_video(
        self,
        video: Tensor,  # (B, T, S, S, 3) uint8
    ) -> Tensor:  # (B, D)
        """L2-normalised features of whole videos: the last LayerNorm of the mean row.

        So the released code pools when it fine-tunes. The contrastive loss of pre-training
        compares means of normalised rows.

        Raises:
            ValueError: The shape or the dtype is another one.
        """
        check_video(video, self.config)
        grid = torch.arange(self.config.tubelets, dtype=torch.int32, device=video.device)
        tubelets = self.encoder.tubelets(video, grid.expand(len(video), -1).contiguous())
        _, stream = self.encoder(tubelets, None)
        return F.normalize(self.encoder.transformer.norm_row(mean_row(stream)), dim=-1)

    def embed_text(
        self,
        ids: Tensor,  # (B, L) integer
        attention: Tensor,  # (B, L) bool or integer
    ) -> Tensor:  # (B, D)
        """L2-normalised features of texts, of which no word is masked; see `embed_video`.

        Raises:
            ValueError: A shape or a dtype is another one.
        """
        check_text(ids, attention, self.config)
        attention = attention.bool()
        _, stream = self.encoder(None, self.encoder.words(ids), attention)
        row = mean_row(stream, attention if self._skips else None)
        return F.normalize(self.encoder.transformer.norm_row(row), dim=-1)


def draw_negatives(pairs: int, device: torch.device) -> Tensor:
    """For every pair the number of another one, (B,) int64, from PyTorch's generator."""
    shift = torch.randint(1, pairs, (pairs,), device=device)
    return (torch.arange(pairs, device=device) + shift) % pairs


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
