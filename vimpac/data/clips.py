"""Clips for contrastive pre-training: several per video, drawn uniformly (paper, Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from vimpac.data.joined_store import Store
from vimpac.data.random import CLIPS, each_below, words_of_each
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
        store: Store,
        *,
        num_frames: int,
        clips_per_video: int = 2,
        max_distance: float | None = None,
        pad_token: int = PAD_TOKEN,
        frame_stride: int = 1,
        variant: int | None = None,
        seed: int = 0,
        videos: Sequence[int] | np.ndarray | None = None,
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
        return self.batch([index])[0]

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> list[torch.Tensor]:
        """The samples of a batch, as a `DataLoader` asks for them."""
        return [*self.batch(indices)]

    def batch(self, indices: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Draws the clips of several samples, which are read at once.

        Args:
            indices: (sample number, video) of each.

        Returns:
            Token ids (B, C, T, H, W), int32.
        """
        samples, places = zip(*indices, strict=True)
        videos = np.asarray([self.videos[place] for place in places], np.int64)
        span = clip_span(self.num_frames, self.frame_stride)
        draws = words_of_each(CLIPS, self.seed, samples, 1 + self.clips_per_video)
        if self.variant is None:
            several = np.full(len(videos), len(self.store.meta.variants))
            variants = each_below(draws[:, 0], several)
        else:
            variants = np.full(len(videos), self.variant)
        starts = self._starts(draws[:, 1:], self.store.frames[videos].astype(np.int64) - span)
        clips = self.store.read_many(
            videos.repeat(self.clips_per_video),
            starts.ravel(),
            self.num_frames,
            stride=self.frame_stride,
            variants=variants.repeat(self.clips_per_video),
            fill=self.pad_token,
        )
        return torch.from_numpy(clips).unflatten(0, starts.shape)

    def _starts(
        self,
        draws: np.ndarray,  # (B, C) uint64
        last: np.ndarray,  # (B,), where the last whole clip starts
    ) -> np.ndarray:  # (B, C)
        """A start in [0, last] for every draw; 0 where the video is too short."""
        last = np.maximum(last, 0)[:, None]
        first = each_below(draws[:, :1], last + 1)
        low, high = np.zeros_like(last), last
        if self._reach is not None:
            low, high = np.maximum(first - self._reach, 0), np.minimum(first + self._reach, last)
        return np.concatenate([first, low + each_below(draws[:, 1:], high - low + 1)], 1)


def stand_ins(count: int, damaged: Collection[int]) -> Sequence[int] | np.ndarray:
    """For each of so many videos itself or, if it is damaged, the next one that is not.

    So a damaged video changes neither the number nor the order of the samples. A list of a million
    numbers would be copied by every data-loading process; these are not.

    Raises:
        VimpacError: All are damaged.
    """
    if not damaged:
        return range(count)
    whole = np.setdiff1d(np.arange(count), [*damaged])
    if not whole.size:
        raise VimpacError(f"all of {count} videos are damaged: copy the store again")
    return whole[np.searchsorted(whole, np.arange(count)) % whole.size]
