"""What a trained model reads of a video: evenly spaced clips of some of its crops."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vimpac.errors import UsageError
from vimpac.tokens import PAD_TOKEN
from vimpac.train_config import clip_span


class Videos(Protocol):
    """What a `vimpac.data.store.TokenStore` offers, of which clips are taken."""

    def num_frames(self, i: int) -> int:
        """Number of frames of video `i`."""

    def read(self, i: int, start: int, stop: int, variant: int = 0) -> np.ndarray:
        """Tokens (stop - start, H, W) of a variant of video `i`."""


class TokenArray:
    """One video in memory, as `Videos`.

    Args:
        tokens: (variants, frames, H, W) ids.
    """

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def num_frames(self, i: int) -> int:
        """Number of its frames."""
        return self.tokens.shape[1]

    def read(self, i: int, start: int, stop: int, variant: int = 0) -> np.ndarray:
        """Tokens (stop - start, H, W) of a variant."""
        return self.tokens[variant, start:stop]


class EvenClips(Dataset[Tensor]):
    """Clips (T, H, W) of some videos, int32, PAD where a video has no more frames.

    A view is a clip of a crop. Clips of a short video may be the same, and several numbers of clips
    may share some: every view is there once. They are indexed by their number, video by video.

    Args:
        store: The token store, or another source of videos.
        videos: The store's numbers of the videos; a place is one of this sequence.
        frames: Frames T of a clip.
        stride: Stored frames from one frame of a clip to the next.
        clips: How many clips are taken of a video; several numbers are told apart by `chosen`.
        variants: The store's numbers of the crops.
    """

    def __init__(
        self,
        store: Videos,
        videos: Sequence[int],
        *,
        frames: int,
        stride: int,
        clips: Sequence[int],
        variants: Sequence[int],
    ) -> None:
        self.store, self.videos, self.frames = store, videos, frames
        self.stride, self.variants, self.clips = stride, variants, tuple(clips)
        self.span = clip_span(frames, stride)
        lengths = [len(self.starts(place)) * len(variants) for place in range(len(videos))]
        self._first = np.cumsum([0, *lengths])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, view: int) -> Tensor:
        place = int(np.searchsorted(self._first, view, "right")) - 1
        video, starts = self.videos[place], self.starts(place)
        crop, clip = divmod(view - int(self._first[place]), len(starts))
        start = starts[clip]
        stop = min(start + self.span, self.store.num_frames(video))
        tokens = self.store.read(video, start, stop, self.variants[crop])
        tokens = tokens[:: self.stride].astype(np.int32)
        missing = ((0, self.frames - len(tokens)), (0, 0), (0, 0))
        return torch.from_numpy(np.pad(tokens, missing, constant_values=PAD_TOKEN))

    def starts(self, place: int) -> list[int]:
        """The first frames of all clips of the video at a place, in order, each once."""
        return _merged(self._last(place), self.clips)

    def views_of(self, place: int) -> range:
        """The numbers of the views of the video at a place: its clips of the first crop, ..."""
        return range(int(self._first[place]), int(self._first[place + 1]))

    def chosen(self, place: int, clips: int) -> Tensor:
        """Which of `views_of(place)` so many clips are, one repeated where two are the same.

        Args:
            place: Of the video.
            clips: One of the numbers that were given.

        Returns:
            (crops * clips,) int64, the clips of the first crop first.
        """
        starts = self.starts(place)
        wanted = even_starts(self._last(place), clips)
        own = torch.from_numpy(np.searchsorted(starts, wanted))
        first = len(starts) * torch.arange(len(self.variants))
        return (first[:, None] + own).flatten()

    def _last(self, place: int) -> int:
        return max(self.store.num_frames(self.videos[place]) - self.span, 0)


def even_starts(last: int, clips: int) -> list[int]:
    """The first frames of evenly spaced clips.

    Args:
        last: The latest that leaves a whole clip.
        clips: How many; one is in the middle, more reach from 0 to `last`.
    """
    if clips == 1:
        return [round(last / 2)]
    return [int(start) for start in np.linspace(0, last, clips).round()]


@functools.lru_cache(maxsize=4096)
def _merged(last: int, clips: tuple[int, ...]) -> list[int]:
    return sorted({start for number in clips for start in even_starts(last, number)})


def find_crops(variants: Sequence[str], which: str, key: str = "test_crops") -> list[int]:
    """Resolves which crops of a store are read.

    Args:
        variants: The names of the store's variants.
        which: "all" (the unflipped ones at scale 1, or the first variant if there is none),
            "center", or names separated by commas.
        key: What the user set, for messages.

    Returns:
        Their numbers, in the order of the store or of the names.

    Raises:
        UsageError: The store has no such variant, or one is named twice.
    """
    if which == "all":
        crops = [i for i, name in enumerate(variants) if re.fullmatch(r"1x-[a-z]+", name)]
        return crops or [0]
    names = ["1x-center"] if which == "center" else [name.strip() for name in which.split(",")]
    for name in names:
        if name not in variants:
            raise UsageError(
                f"{key}={which}: the store has no variant '{name}', only {', '.join(variants)}"
            )
    if len({*names}) < len(names):
        raise UsageError(f"{key}={which} names a variant twice")
    return [variants.index(name) for name in names]
