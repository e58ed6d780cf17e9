"""Clips for contrastive pre-training: several per video, drawn uniformly (paper, Sec. 3.2)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from vimpac.data.random import CLIPS, below, words
from vimpac.data.store import TokenStore
from vimpac.errors import VimpacError
from vimpac.tokens import PAD_TOKEN
from vimpac.train_config import clip_span


class ClipDataset(Dataset[torch.Tensor]):
    """Clips of the videos of a store, indexed by (sample number, video).

    The starts are uniform over the video and independent, or, with `max_distance`, the first
    is uniform and the others uniform within that distance of it. The randomness is a function
    of (seed, sample number) alone; `ResumableSampler` yields such pairs.

    Args:
        store: The token store.
        num_frames: Frames T per clip.
        clips_per_video: Clips C per sample.
        max_distance: Largest distance of the other starts from the first, in seconds.
        pad_token: Id that fills clips of videos that are too short, on the right.
        frame_stride: Stored frames from one frame of a clip to the next.
        variant: Which variant to read; None draws one per sample.
        seed: Seed of the starts and variants.
        videos: The video of the store that is read for each one asked for; None: itself.

    Raises:
        ValueError: A setting is out of range.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        num_frames: int,
        clips_per_video: int = 2,
        max_distance: float | None = None,
        pad_token: int = PAD_TOKEN,
        frame_stride: int = 1,
        variant: int | None = None,
        seed: int = 0,
        videos: Sequence[int] | None = None,
    ) -> None:
        if min(num_frames, clips_per_video, frame_stride) < 1:
            raise ValueError(f"{num_frames=}, {clips_per_video=}, {frame_stride=}: must be >= 1")
        if max_distance is not None and not max_distance >= 0:
            raise ValueError(f"{max_distance=} must not be negative")
        if variant is not None and not 0 <= variant < len(store.meta.variants):
            raise ValueError(f"{variant=} of a store with {len(store.meta.variants)} variants")
        if pad_token < store.meta.vocab_size:
            raise ValueError(
                f"{pad_token=} is a token of the store, which has ids below {store.meta.vocab_size}"
            )
        self.store = store
        self.num_frames = num_frames
        self.clips_per_video = clips_per_video
        self.pad_token = pad_token
        self.frame_stride = frame_stride
        self.variant = variant
        self.seed = seed
        self.videos = range(len(store)) if videos is None else videos
        self._reach = None if max_distance is None else int(max_distance * store.meta.fps + 1e-6)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: tuple[int, int]) -> torch.Tensor:
        """Draws the clips of one sample.

        Args:
            index: (sample number, video).

        Returns:
            Token ids (C, T, H, W), int32, PAD where the video has no more frames.
        """
        sample, video = index[0], self.videos[index[1]]
        frames = self.store.num_frames(video)
        span = clip_span(self.num_frames, self.frame_stride)
        draws = words(CLIPS, self.seed, sample, 1 + self.clips_per_video)
        variant = below(draws[0], len(self.store.meta.variants))
        if self.variant is not None:
            variant = self.variant
        clips = np.full((self.clips_per_video, self.num_frames, *self._map), self.pad_token)
        for clip, start in zip(clips, self._starts(draws[1:], frames - span), strict=True):
            tokens = self.store.read(video, start, min(start + span, frames), variant)
            tokens = tokens[:: self.frame_stride]
            clip[: len(tokens)] = tokens
        return torch.from_numpy(clips.astype(np.int32))

    @property
    def _map(self) -> tuple[int, int]:
        return self.store.meta.height, self.store.meta.width

    def _starts(self, draws: np.ndarray, last: int) -> list[int]:
        """A start in [0, last] for every draw; 0 where the video is too short."""
        last = max(last, 0)
        first = below(draws[0], last + 1)
        low, high = 0, last
        if self._reach is not None:
            low, high = max(first - self._reach, 0), min(first + self._reach, last)
        return [first, *(low + below(draw, high - low + 1) for draw in draws[1:])]


def stand_ins(count: int, damaged: Collection[int]) -> list[int]:
    """For each of so many videos itself or, if it is damaged, the next one that is not.

    So a damaged video changes neither the number nor the order of the samples.

    Raises:
        VimpacError: All are damaged.
    """
    left_out = frozenset(damaged)
    whole = [i for i in range(count) if i not in left_out]
    if not whole:
        raise VimpacError(f"all of {count} videos are damaged: copy the store again")
    return [whole[bisect_left(whole, i) % len(whole)] for i in range(count)]
