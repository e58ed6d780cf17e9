"""Some frames of a video file by their numbers, decoded from the key frame before the first one.

The packets of MP4 and Matroska say when their frames are shown, so reading them without decoding
tells how many frames there are, which number each has, and where a decoder can begin. If anything
is not as they say, and in all other formats, the video is decoded from its start.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from vimpac.data.packets import packet_table
from vimpac.data.variants import scale, upright
from vimpac.data.video import UnreadableVideo, VideoReader, open_video, with_square_pixels

_MOST_INDICES = 4096  # that are kept

Numbered = tuple[int, av.VideoFrame]


@dataclasses.dataclass(frozen=True)
class FrameIndex:
    """The frames of a video, in the order of display.

    Attributes:
        count: How many.
        times: (count,) int64, when each is shown, in units of the stream; None: only counting the
            decoded frames tells which is which.
        keys: The numbers of the key frames, ascending.
    """

    count: int
    times: np.ndarray | None = None
    keys: tuple[int, ...] = ()


def num_frames(path: Path) -> int:
    """How many frames a video has; decodes it only if its packets do not tell.

    Raises:
        UnreadableVideo: It is no video, has no frame, is cut short, or too damaged.
        OSError: There is no such file.
    """
    return frame_index(path).count


def clip_of(path: Path, start: int, frames: int, step: int, *, threads: int = 1) -> np.ndarray:
    """Reads the frames start, start + step, ...; see `read_frames`.

    Args:
        path: The video, a local file.
        start: The first frame, from 0.
        frames: How many.
        step: From one to the next.
        threads: Decoder threads; 0 lets the decoder choose.

    Returns:
        RGB (frames, H, W, 3) uint8.
    """
    if min(frames, step) < 1:
        raise ValueError(f"{frames=} and {step=} must be positive")
    return read_frames(path, range(start, start + frames * step, step), threads=threads)


def read_frames(path: Path, numbers: Sequence[int], *, threads: int = 1) -> np.ndarray:
    """Reads some frames of a video, the same ones as decoding all of it and choosing from them.

    Frames are counted as they are shown. The place of one that is damaged beyond decoding is that
    of its time if the container stores times, and the frame before it is shown there.

    Args:
        path: The video, a local file.
        numbers: Of the frames, N from 0 in any order; past the end it is the last one.
        threads: Decoder threads; 0 lets the decoder choose.

    Returns:
        RGB (N, H, W, 3) uint8 with square pixels, turned and mirrored as the video says, and all of
        the size of the first one in time.

    Raises:
        UnreadableVideo: It is no video, has no frame, is cut short, or too damaged.
        FFmpegError: With an errno of `vimpac.data.video.SCARCE`.
        OSError: There is no such file.
        ValueError: There are no numbers, or one is negative.
    """
    if len(numbers) == 0 or min(numbers) < 0:
        raise ValueError(f"numbers={[*numbers]} must be frames from 0")
    index = frame_index(path)
    wanted, places = np.unique(np.minimum(numbers, index.count - 1), return_inverse=True)
    key = bisect_right(index.keys, int(wanted[0])) - 1
    try:
        images = _read(path, index, wanted.tolist(), max(key, 0), threads)
    except (_Inexact, UnreadableVideo):
        if key < 1:
            raise
        images = _read(path, index, wanted.tolist(), 0, threads)
    return np.stack([images[place] for place in places])


def frame_index(path: Path) -> FrameIndex:
    """The frames of a video; the last ones that were asked for are kept."""
    status = os.stat(path)
    return _frame_index(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(_MOST_INDICES)
def _frame_index(path: Path, size: int, changed: int) -> FrameIndex:
    with open_video(path) as (container, stream):
        video = VideoReader(container, stream)
        index = _index_of(video)
        if index is not None:
            return index
    with open_video(path) as (container, stream):
        video = VideoReader(container, stream)
        count = sum(1 for _ in video.frames())
        video.check_damage()
        video.check_length()
        return FrameIndex(count)


def _index_of(video: VideoReader) -> FrameIndex | None:
    """The index as the packets have it; None if they do not tell all of it.

    Raises:
        UnreadableVideo: The video is cut short.
    """
    table = packet_table(video)
    if table is None or table.hidden.all():
        return None
    times, keys = table.stamps[~table.hidden], table.keys[~table.hidden]
    if not keys[0]:
        return None
    shown = np.sort(times[times >= times[0]])
    return FrameIndex(
        len(shown), shown, tuple(np.searchsorted(shown, np.sort(times[keys])).tolist())
    )


class _Inexact(Exception):
    """What comes after a seek is not what the index says."""


def _read(
    path: Path, index: FrameIndex, wanted: list[int], key: int, threads: int
) -> list[np.ndarray]:
    """Decodes from a key frame on.

    Args:
        path: The video.
        index: Of its frames.
        wanted: Their numbers, ascending, each once.
        key: The place of the key frame in the index; 0 is the start of the video.
        threads: Of the decoder.

    Returns:
        The images.

    Raises:
        _Inexact: `key` is not 0, and anything is damaged or differs from what the index says.
    """
    with open_video(path, threads) as (container, stream):
        video = VideoReader(container, stream)
        frames = _numbered(video, index)
        if key and index.times is not None:
            container.seek(int(index.times[index.keys[key]]), stream=stream)
            frames = _without_gaps(frames, index.keys[key])
        picked = _pick(frames, wanted)
        if key and (video.damaged or video.lost):
            raise _Inexact
        video.check_damage()
        return _images(picked, stream.sample_aspect_ratio)


def _numbered(video: VideoReader, index: FrameIndex) -> Iterator[Numbered]:
    """The frames that come."""
    for count, frame in enumerate(video.frames()):
        number = count
        if index.times is not None and frame.pts is not None:
            number = int(np.searchsorted(index.times, frame.pts, side="right")) - 1
        yield number, frame


def _without_gaps(frames: Iterable[Numbered], key: int) -> Iterator[Numbered]:
    """The frames from a key frame on.

    Raises:
        _Inexact: One is missing or comes twice, or they end.
    """
    expected = key
    for number, frame in frames:
        if number < key:  # shown before it, but stored behind it: it may need what is before
            continue
        if number != expected:
            raise _Inexact
        yield number, frame
        expected += 1
    raise _Inexact


def _pick(frames: Iterable[Numbered], wanted: list[int]) -> list[av.VideoFrame]:
    """The frame on screen at each wanted number; none if there are no frames."""
    picked: list[av.VideoFrame] = []
    shown = None
    for number, frame in frames:
        while len(picked) < len(wanted) and wanted[len(picked)] < number:
            picked.append(shown or frame)
        shown = frame
        if number >= wanted[-1]:
            break
    return picked + [shown] * (len(wanted) - len(picked)) if shown else []


def _images(frames: list[av.VideoFrame], aspect: Fraction | None) -> list[np.ndarray]:
    """RGB (H, W, 3) uint8 of each frame, all of the size of the first."""
    squarer, scaler = VideoReformatter(), VideoReformatter()
    square = [with_square_pixels(frame, aspect, squarer) for frame in frames]
    size = square[0].width, square[0].height
    made = [scale(scaler, frame, *size, "rgb24") for frame in square]
    return [upright(image.to_ndarray(), frame) for image, frame in zip(made, frames, strict=True)]
