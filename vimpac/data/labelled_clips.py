"""What a classifier reads of a video: a random clip to train on, or evenly spaced ones to judge."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vimpac.config import FinetuneConfig
from vimpac.data.clips import ClipDataset
from vimpac.data.labels import Split
from vimpac.data.store import TokenStore
from vimpac.tokens import PAD_TOKEN


class RandomClips(Dataset[tuple[Tensor, int]]):
    """A random clip (T, H, W) and its class, indexed by (sample number, video of the split)."""

    def __init__(self, store: TokenStore, config: FinetuneConfig, split: Split) -> None:
        self.split = split
        self.clips = ClipDataset(
            store,
            num_frames=config.clips.frames,
            clips_per_video=1,
            frame_stride=config.clips.frame_stride,
            variant=config.clips.variant,
            pad_token=PAD_TOKEN,
            seed=config.seed,
            videos=split.videos,
        )

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, int]:
        return self.clips[index][0], self.split.classes[index[1]]


class EvenClips(Dataset[Tensor]):
    """Evenly spaced clips (views, T, H, W) of a video of the split, of every unflipped 1x crop."""

    def __init__(self, store: TokenStore, config: FinetuneConfig, split: Split) -> None:
        self.store, self.config, self.split = store, config, split
        names = store.meta.variants
        crops = [i for i, name in enumerate(names) if re.fullmatch(r"1x-[a-z]+", name)]
        chosen = config.clips.variant
        self.variants = (crops or [0]) if chosen is None else [chosen]
        self.views = config.test_clips * len(self.variants)

    def __len__(self) -> int:
        return len(self.split.videos)

    def __getitem__(self, i: int) -> Tensor:
        video, stride = self.split.videos[i], self.config.clips.frame_stride
        span = self.config.clips.span
        frames = self.store.num_frames(video)
        starts = np.linspace(0, max(frames - span, 0), self.config.test_clips).round().astype(int)
        clips = []
        for variant, start in product(self.variants, starts):
            tokens = self.store.read(video, start, min(start + span, frames), variant)
            missing = ((0, span - len(tokens)), (0, 0), (0, 0))
            clips.append(np.pad(tokens.astype(np.int32), missing, constant_values=PAD_TOKEN))
        return torch.from_numpy(np.stack(clips)[:, ::stride])
