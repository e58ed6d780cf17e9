"""A model made ready to turn the videos of a store into features.

The feature of a view is the encoder's [CLS], or the mean of its states of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from vimpac.checkpoints.model_dir import load_encoder
from vimpac.data.even_clips import EvenClips, find_crops
from vimpac.errors import UsageError
from vimpac.eval.applied import Reading, fit_to_store
from vimpac.eval.config import FeatureConfig
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.paths import local_path
from vimpac.tokens import PAD_TOKEN
from vimpac.train.batches import damage_warning, damaged_videos, open_store
from vimpac.train.distributed import World

Pool = Literal["cls", "mean"]


class Featurizer:
    """A model and a store, whose clips it turns into features.

    Args:
        model: A model directory, or an encoder of the clips' shape on the world's device, which is
            in evaluation mode from now on.
        config: The store, and how it is computed.
        world: The processes.
        pool: "cls", or "mean" over the tokens that are not PAD.
        clips: Evenly spaced clips of a video and crop.
        crops: "all", "center" or names: see `vimpac.data.even_clips.find_crops`.

    Attributes:
        store: The videos.
        videos: The store's numbers of those that are not left out.
        width: D, of a feature.
        notes: What is not as it was in training, or is left out, a line each.

    Raises:
        UsageError: Model, store and settings do not fit together.
        VimpacError: A file is damaged.
    """

    def __init__(
        self,
        model: str | Path | VideoTokenEncoder,
        config: FeatureConfig,
        world: World,
        *,
        pool: Pool = "cls",
        clips: int = 10,
        crops: str = "all",
    ) -> None:
        if pool not in get_args(Pool):
            raise UsageError(f"pool={pool}: give cls or mean")
        if clips < 1:
            raise UsageError(f"clips={clips} must be positive")
        self.config, self.world, self.pool, self.clips = config, world, pool, clips
        self.store = open_store(config.data, cache=config.shard_cache)
        self.variants = find_crops(self.store.meta.variants, crops, "--crops")
        self.encoder, self.reading = self._load(model)
        self.notes = [*self.reading.notes]
        self.width = self.encoder.width
        self.videos: Sequence[int] = range(len(self.store))
        damaged = damaged_videos(self.store, config.clips)
        if damaged:
            self.videos = sorted({*self.videos} - {*damaged})
            self.notes += damage_warning(self.store, damaged)
            if not self.videos:
                raise UsageError(f"all videos of {config.data} are damaged: copy the store again")
        self._has_padding = int(self.store.frames.min()) < self.views([]).span

    def _load(self, model: str | Path | VideoTokenEncoder) -> tuple[VideoTokenEncoder, Reading]:
        clips, meta = self.config.clips, self.store.meta
        if isinstance(model, VideoTokenEncoder):
            grid = (clips.frames or model.grid[0], meta.height, meta.width)
            if grid != model.grid:
                raise UsageError(
                    f"the encoder reads clips {model.grid}, those of {self.config.data} are {grid}:"
                    " interpolate its positions (encoder.positions.resize_)"
                )
            return model.eval(), Reading(grid[0], clips.frame_stride or 1, [])
        path = local_path(model)
        encoder, description = load_encoder(path)
        reading = fit_to_store(
            encoder, path, description, meta, frames=clips.frames, stride=clips.frame_stride
        )
        return encoder.to(self.world.device).eval(), reading

    def views(self, videos: Sequence[int]) -> EvenClips:
        """The clips that are read of some videos of the store."""
        return EvenClips(
            self.store,
            videos,
            frames=self.reading.frames,
            stride=self.reading.stride,
            clips=[self.clips],
            variants=self.variants,
        )

    @torch.no_grad()
    def encode(
        self,
        tokens: Tensor,  # (B, T, H, W), on any device
    ) -> Tensor:  # (B, D) fp32
        """The features of clips."""
        tokens = tokens.to(self.world.device, non_blocking=True)
        with self.world.autocast(self.config.precision):
            if self.pool == "cls":
                return self.encoder.cls(tokens, has_padding=self._has_padding).float()
            states = self.encoder(tokens, has_padding=self._has_padding)[:, 1:].float()
        real = (tokens != PAD_TOKEN).flatten(1)[..., None]
        return (states * real).sum(1) / real.sum(1)
