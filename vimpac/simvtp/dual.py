"""Two encoders that start from a pre-trained one: what is fine-tuned to search videos by text.

A feature is the last LayerNorm of the mean row. The release starts this LayerNorm anew, though the
pre-trained one is there.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac.checkpoints.hub import HubModel
from vimpac.simvtp.config import NetworkConfig, ObjectiveConfig, TextConfig
from vimpac.simvtp.encoder import TubeletEmbedding, WordEmbedding
from vimpac.simvtp.inputs import check_pairs, check_text, check_video
from vimpac.simvtp.layer import Transformer
from vimpac.simvtp.model import SimVTP
from vimpac.simvtp.objective import mean_row


class DualEncoder(nn.Module, HubModel):
    """A video encoder and a text encoder.

    Args:
        config: The sizes; those of the decoder are not used.
        text: How texts are read.
        loss: Its temperature is used.
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
        sizes = config.layers, config.width, config.heads, config.mlp_width
        self.tubelets, self.video = TubeletEmbedding(config), Transformer(*sizes)
        self.words, self.text = WordEmbedding(config, self.text_config), Transformer(*sizes)

    @classmethod
    def of(cls, model: SimVTP, *, fresh_norm: bool = True) -> DualEncoder:
        """Two copies of a pre-trained encoder.

        Args:
            model: The pre-trained model, which stays as it is.
            fresh_norm: Start the last LayerNorm of both anew, as released.
        """
        with torch.device("meta"):
            dual = cls(model.config, model.text_config, model.loss_config)
        encoder = model.encoder
        dual.tubelets, dual.words = copy.deepcopy(encoder.tubelets), copy.deepcopy(encoder.words)
        dual.video, dual.text = (copy.deepcopy(encoder.transformer) for _ in range(2))
        if fresh_norm:
            dual.video.last_norm.reset_parameters()
            dual.text.last_norm.reset_parameters()
        return dual.requires_grad_()

    def forward(
        self,
        video: Tensor,  # (B, T, S, S, 3) uint8
        ids: Tensor,  # (B, L) integer
        attention: Tensor,  # (B, L) bool or integer
        seed: Tensor | None = None,  # 0-d int64, of the words' dropout
        scales: Tensor | None = None,  # (2, layers, 2, B): of stochastic depth, in both encoders
    ) -> tuple[Tensor, Tensor]:  # (B, D) each, not normalised
        """The features of videos and of texts.

        Raises:
            TypeError: An argument is no tensor.
            ValueError: A shape, a dtype or a device is another one.
        """
        check_video(video, self.config)
        check_text(ids, attention, self.config)
        check_pairs(video, ids)
        of_video, of_text = (None, None) if scales is None else scales.unbind()
        return self._see(video, of_video), self._read(ids, attention.bool(), seed, of_text)

    def _see(
        self,
        video: Tensor,  # (B, T, S, S, 3) uint8
        scales: Tensor | None = None,
    ) -> Tensor:  # (B, D)
        grid = torch.arange(self.config.tubelets, dtype=torch.int32, device=video.device)
        tubelets = self.tubelets(video, grid.expand(len(video), -1).contiguous())
        ((_, rows),) = self.video([tubelets], [None], scales=scales)
        return self.video.norm_row(mean_row(rows))

    def _read(
        self,
        ids: Tensor,  # (B, L)
        attention: Tensor,  # (B, L) bool
        seed: Tensor | None = None,
        scales: Tensor | None = None,
    ) -> Tensor:  # (B, D)
        keys = attention[:, None, None]
        ((_, rows),) = self.text([self.words(ids, seed)], [keys], scales=scales)
        pool = attention if self.text_config.pool == "words" else None
        return self.text.norm_row(mean_row(rows, pool))

    def embed_video(
        self,
        video: Tensor,  # (B, T, S, S, 3) uint8
    ) -> Tensor:  # (B, D)
        """L2-normalised features of whole videos.

        Raises:
            ValueError: The shape or the dtype is another one.
        """
        check_video(video, self.config)
        return F.normalize(self._see(video), dim=-1)

    def embed_text(
        self,
        ids: Tensor,  # (B, L) integer
        attention: Tensor,  # (B, L) bool or integer
    ) -> Tensor:  # (B, D)
        """L2-normalised features of texts.

        Raises:
            ValueError: A shape or a dtype is another one.
        """
        check_text(ids, attention, self.config)
        return F.normalize(self._read(ids, attention.bool()), dim=-1)
