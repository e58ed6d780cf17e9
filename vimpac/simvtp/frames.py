"""Clips of video files: which frames, and which part of the picture. All pixels stay uint8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from vimpac.data.clip_reader import clip_of, num_frames, read_frames
from vimpac.data.random import below
from vimpac.data.sources import Video, find_videos
from vimpac.data.store import DamagedVideo, TokenStore
from vimpac.data.store_format import META
from vimpac.data.video import SCARCE, UnreadableVideo
from vimpac.paths import local_path

__all__ = [
    "CROP_DRAWS",
    "Frames",
    "StoredFrames",
    "VideoFiles",
    "clip_of",
    "multi_scale_crop",
    "num_frames",
    "open_frames",
    "read_frames",
    "test_crops",
    "test_windows",
]

CROP_DRAWS = 2  # words that `multi_scale_crop` takes
_SCALES = (1.0, 0.875, 0.75, 0.66)  # of the shorter side
_SIDES = [(w, h) for w in range(len(_SCALES)) for h in range(len(_SCALES)) if abs(w - h) <= 1]
_CLOSE = 3  # pixels by which a side may differ from `size` and is taken to be it
# Quarters of the margin to the left and above: corners, edges, centre, and between them.
_OFFSETS = [(x, y) for x in (0, 2, 4) for y in (0, 2, 4)] + [(x, y) for x in (1, 3) for y in (1, 3)]


class VideoFiles:
    """Video files and how many frames they have, which is looked up once for each.

    Args:
        videos: (name, path) of each, as `find_videos` has them.

    Attributes:
        videos: The same.
        names: Of each.
        paths: Of each.
    """

    def __init__(self, videos: Sequence[Video]) -> None:
        self.videos = [*videos]
        self.names = [name for name, _ in videos]
        self.paths = [path for _, path in videos]
        self._counts: dict[int, int] = {}

    @classmethod
    def find(cls, *arguments: str, listed: str | None = None) -> VideoFiles:
        """The files, and the video files of the directories, as `find_videos` names them."""
        return cls(find_videos(arguments, listed))

    def __len__(self) -> int:
        return len(self.names)

    def num_frames(self, video: int) -> int:
        """How many frames a video has.

        Raises:
            UnreadableVideo: It cannot be used.
        """
        if video not in self._counts:
            with _absent_is_unreadable():
                self._counts[video] = num_frames(self.paths[video])
        return self._counts[video]

    def read(self, video: int, numbers: Sequence[int]) -> np.ndarray:
        """Frames of a video, RGB (N, H, W, 3) uint8; see `read_frames`.

        Raises:
            UnreadableVideo: It cannot be used.
        """
        with _absent_is_unreadable():
            return read_frames(self.paths[video], numbers)


@contextmanager
def _absent_is_unreadable() -> Iterator[None]:
    """A file that is gone or may not be opened is one unreadable video, not the end of a run."""
    try:
        yield
    except OSError as error:
        if error.errno in SCARCE:
            raise
        raise UnreadableVideo(error.strerror or type(error).__name__) from error


class StoredFrames:
    """The same of a store that `vimpac frames` made, where nothing is decoded.

    Args:
        path: The store.

    Attributes:
        store: It.
        names: Of the videos.

    Raises:
        VimpacError: There is no such store.
    """

    def __init__(self, path: str | Path) -> None:
        self.store = TokenStore(path, kind="pixels")
        self.names = [self.store.name(video) for video in range(len(self.store))]

    def __len__(self) -> int:
        return len(self.names)

    def num_frames(self, video: int) -> int:
        """How many frames a video has."""
        return self.store.num_frames(video)

    def read(self, video: int, numbers: Sequence[int]) -> np.ndarray:
        """Frames of a video.

        Args:
            video: Its number.
            numbers: Of the frames, N from 0 in any order; past the end it is the last one.

        Returns:
            RGB (N, S, S, 3) uint8.

        Raises:
            UnreadableVideo: The store is damaged there.
            ValueError: There are no numbers, or one is negative.
        """
        if len(numbers) == 0 or min(numbers) < 0:
            raise ValueError(f"numbers={[*numbers]} must be frames from 0")
        last = self.num_frames(video) - 1
        places = [min(int(number), last) for number in numbers]
        try:
            return np.concatenate([self.store.read(video, place, place + 1) for place in places])
        except DamagedVideo as error:
            raise UnreadableVideo(str(error)) from error


Frames = VideoFiles | StoredFrames


def open_frames(path: str) -> Frames:
    """The frames of a store, or else of the video file or the directory of such files at a path."""
    if (local_path(path) / META).is_file():
        return StoredFrames(path)
    return VideoFiles.find(path)


def multi_scale_crop(
    clip: np.ndarray,  # (T, H, W, 3)
    size: int,
    draws: Sequence[np.uint64] | np.ndarray,  # (2,)
) -> np.ndarray:
    """Cuts one part out of all frames and resizes it, as the training of the release does.

    Its sides are 1, 0.875, 0.75 or 0.66 of the shorter side of the picture, neighbours in this list
    or equal, and it lies at one of 13 places: all alike likely.

    Args:
        clip: RGB uint8.
        size: Side S of the result.
        draws: `CROP_DRAWS` words of `vimpac.data.random`, on which alone the part depends.

    Returns:
        RGB (T, S, S, 3) uint8.
    """
    height, width = clip.shape[1:3]
    sides = [max(1, int(min(height, width) * scale)) for scale in _SCALES]
    sides = [size if abs(side - size) < _CLOSE else side for side in sides]
    chosen_w, chosen_h = _SIDES[below(draws[0], len(_SIDES))]
    w, h = min(sides[chosen_w], width), min(sides[chosen_h], height)
    right, down = _OFFSETS[below(draws[1], len(_OFFSETS))]
    x, y = (width - w) // 4 * right, (height - h) // 4 * down
    return resize(clip[:, y : y + h, x : x + w], size, size)


def test_crops(
    clip: np.ndarray,  # (T, H, W, 3)
    size: int,
    crops: int = 3,
) -> np.ndarray:
    """Resizes the shorter side to `size` and cuts squares along the longer one, evenly spaced.

    Args:
        clip: RGB uint8.
        size: Side S of a square.
        crops: How many, C; a single one is the centre.

    Returns:
        RGB (C, T, S, S, 3) uint8.
    """
    if min(size, crops) < 1:
        raise ValueError(f"{size=} and {crops=} must be positive")
    height, width = clip.shape[1:3]
    shorter = min(height, width)
    clip = resize(clip, height * size // shorter, width * size // shorter)
    margin = max(clip.shape[1:3]) - size
    places = [margin // 2] if crops == 1 else [margin * i // (crops - 1) for i in range(crops)]
    if height > width:
        return np.stack([clip[:, place : place + size] for place in places])
    return np.stack([clip[:, :, place : place + size] for place in places])


def test_windows(count: int, frames: int, step: int, clips: int) -> np.ndarray:
    """The frames of evenly spaced windows of a video, of which every step-th frame is used.

    Args:
        count: Frames of the video.
        frames: Frames T of a window; a video that has fewer repeats its last one.
        step: From one to the next.
        clips: How many windows, C; a single one is in the middle.

    Returns:
        (C, T) int64: `read_frames(path, windows.ravel())` has them all, each decoded once.
    """
    if min(count, frames, step, clips) < 1:
        raise ValueError(f"{count=}, {frames=}, {step=} and {clips=} must be positive")
    used = range(0, count, step)
    last = max(len(used) - frames, 0)
    starts = [last // 2] if clips == 1 else [last * i // (clips - 1) for i in range(clips)]
    places = np.array(starts)[:, None] + np.arange(frames)
    return np.minimum(places, len(used) - 1) * step


def resize(
    clip: np.ndarray,  # (T, H, W, 3)
    height: int,
    width: int,
) -> np.ndarray:
    """Bilinear, with the filter widened where the picture becomes smaller, as Pillow does."""
    if clip.shape[1:3] == (height, width):
        return np.ascontiguousarray(clip)
    pixels = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2)
    resized = functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()
