"""What a classifier is trained on: a random clip of a video and its class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from vimpac.config import FinetuneConfig
from vimpac.data.clips import ClipDataset
from vimpac.data.joined_store import Store
from vimpac.data.labels import Split
from vimpac.tokens import PAD_TOKEN


class RandomClips(Dataset[tuple[Tensor, int]]):
    """A random clip (T, H, W) and its class, indexed by (sample number, video of the split)."""

    def __init__(self, store: Store, config: FinetuneConfig, split: Split) -> None:
        self.classes = np.array(split.classes)
        self.clips = ClipDataset(
            store,
            num_frames=config.clips.frames,
            clips_per_video=1,
            frame_stride=config.clips.frame_stride,
            variant=config.clips.variant,
            pad_token=PAD_TOKEN,
            seed=config.seed,
            videos=np.array(split.videos),
        )

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> list[tuple[Tensor, int]]:
        """The samples of a batch, as a `DataLoader` asks for them."""
        classes = [int(self.classes[place]) for _, place in indices]
        return [*zip(self.clips.batch(indices)[:, 0], classes, strict=True)]
