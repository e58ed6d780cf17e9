"""What SimVTP's passes give."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vimpac.errors import VimpacError
from vimpac_kernels.reference import tubelet_targets


@dataclasses.dataclass
class SimVTPOutput:
    """What a forward pass returns.

    Attributes:
        loss: The weighted sum of the four losses, 0-d.
        pixel_loss: Mean squared error of masked, normalised pixels.
        word_loss: Mean cross-entropy of masked words.
        word_accuracy: Share of them that is predicted right.
        contrastive_loss: Video-text contrast (VTC), both directions added.
        match_loss: Video-text matching (VTM).
        match_accuracy: Share of pairs that is told right.
        predicted_pixels: (B, M, t*P*P*3) of the M masked tubelets, (frame, row, column, channel);
            None where the weight of their loss is 0.
    """

    loss: Tensor
    pixel_loss: Tensor
    word_loss: Tensor
    word_accuracy: Tensor
    contrastive_loss: Tensor
    match_loss: Tensor
    match_accuracy: Tensor
    predicted_pixels: Tensor | None
    _video: Tensor
    _masked: Tensor
    _tubelet: tuple[int, int]

    @property
    def target_pixels(self) -> Tensor:
        """(B, M, t*P*P*3), what `predicted_pixels` should be; made when it is asked for."""
        pixels = self.predicted_pixels
        double = pixels is not None and pixels.dtype == torch.float64
        dtype = torch.float64 if double else torch.float32
        return tubelet_targets(self._video, self._masked, tubelet=self._tubelet, dtype=dtype)


@dataclasses.dataclass
class Passes:
    """What the encoder passes of a micro-batch give; means are at least fp32.

    Attributes:
        pixel_loss: 0-d.
        word_loss: 0-d, the mean over the micro-batch's masked words.
        word_accuracy: 0-d.
        match_loss: 0-d.
        match_accuracy: 0-d.
        video: (B, D), the mean of the video-only pass; None without contrast.
        text: (B, D), the mean of the text-only pass; None without contrast.
        predicted_pixels: (B, M, t*P*P*3); None without pixel loss.
    """

    pixel_loss: Tensor
    word_loss: Tensor
    word_accuracy: Tensor
    match_loss: Tensor
    match_accuracy: Tensor
    video: Tensor | None = None
    text: Tensor | None = None
    predicted_pixels: Tensor | None = None


def check_finite(found: Tensor, what: str) -> Tensor:
    """Returns what a model computed, such as "features".

    Raises:
        VimpacError: A number of it is infinite or no number.
    """
    if not found.isfinite().all():
        raise VimpacError(f"{what} are not finite: the weights of the model are damaged")
    return found
