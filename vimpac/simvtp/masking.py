"""What is hidden of captioned clips: a function of the seed and of the number of a pair."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vimpac.data.random import DROPOUT, WORD_MASK, words
from vimpac.simvtp.objective import IGNORE_INDEX, MaskedWords
from vimpac.simvtp.run_config import SimVTPConfig
from vimpac.simvtp.text import SpecialTokens
from vimpac.simvtp.tubelets import draw_tubes
from vimpac_kernels import mask_tokens


@dataclasses.dataclass
class Prepared:
    """A micro-batch, masked."""

    video: Tensor  # (B, T, S, S, 3) uint8
    visible: Tensor  # (B, V) int32
    masked: Tensor  # (B, M) int32
    masked_ids: Tensor  # (B, L)
    attention: Tensor  # (B, L) bool
    words: MaskedWords
    whole_ids: Tensor | None  # (B, L): the text of the contrast, if not the masked one
    seed: Tensor  # 0-d int64, of the dropout

    @property
    def contrast_ids(self) -> Tensor:
        """(B, L): the text of the contrast."""
        return self.masked_ids if self.whole_ids is None else self.whole_ids


class Masker:
    """Masks micro-batches of a run, on their device.

    Args:
        config: The run's configuration.
        special: Ids that are no words.
        device: Where micro-batches are.
    """

    def __init__(self, config: SimVTPConfig, special: SpecialTokens, device: torch.device) -> None:
        self.config, self.special = config, special
        self._cells = config.mask.masked_cells(config.model.cells)
        self._video_seed = torch.tensor(config.seed, dtype=torch.int64, device=device)
        keys = (
            torch.from_numpy(words(WORD_MASK, config.seed, 0, 1).view("int64")),
            torch.from_numpy(words(DROPOUT, config.seed, 0, 1).view("int64")),
        )
        self._word_seed, self._dropout_seed = (key[0].to(device) for key in keys)

    def __call__(
        self,
        video: Tensor,  # (B, T, S, S, 3) uint8
        ids: Tensor,  # (B, L)
        sample: int,
    ) -> Prepared:
        """Masks pairs as the seed and the number of the first one say."""
        special, text = self.special, self.config.text
        visible, masked = draw_tubes(
            self.config.model, self._cells, len(video), self._video_seed, sample, ids.device
        )
        attention = ids != special.pad
        words_only = attention & (ids != special.cls) & (ids != special.sep)
        drawn = mask_tokens(
            torch.where(words_only, ids, special.pad)[:, None, None],
            mask_token=special.mask,
            strategy="iid",
            ratio=text.ratio,
            pad_token=special.pad,
            seed=self._word_seed,
            clip_offset=sample,
        )
        hidden = drawn.mask.flatten(1)
        return Prepared(
            video,
            visible,
            masked,
            ids.masked_fill(hidden, special.mask),
            attention,
            MaskedWords(ids.masked_fill(~hidden, IGNORE_INDEX), drawn.positions, drawn.count),
            ids if text.contrast == "whole" else None,
            self._dropout_seed + sample,
        )
