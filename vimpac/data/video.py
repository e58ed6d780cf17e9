"""Video files to frames at even times, by PyAV; the input's frame rate may vary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
from av.error import FFmpegError

from vimpac.errors import VimpacError

Frame = TypeVar("Frame")


class UnreadableVideo(VimpacError):
    """A video that cannot be decoded to its end; the message is the reason alone."""


def frames_at(path: Path, fps: Fraction, *, threads: int = 0) -> Iterator[av.VideoFrame]:
    """Decodes a video and samples it by time.

    Args:
        path: The video.
        fps: Output frames per second of video time.
        threads: Decoder threads; 0 lets the decoder choose.

    Yields:
        For k = 0, 1, ... the frame that is on screen k / fps seconds after the first frame.

    Raises:
        UnreadableVideo: It is no video, has no frame, is damaged or truncated.
    """
    try:
        with av.open(f"file:{path}") as container:
            if not container.streams.video:
                raise UnreadableVideo("has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            yield from resample(_timed(container, stream), fps)
    except FFmpegError as error:
        raise UnreadableVideo(error.strerror or type(error).__name__) from error


def resample(timed: Iterable[tuple[Fraction, Frame | None]], fps: Fraction) -> Iterator[Frame]:
    """Samples frames at even times.

    Args:
        timed: (time, frame) with rising times; last (end of the last frame, None).
        fps: Output frames per second.

    Yields:
        For k = 0, 1, ... the last frame whose time is at most `first time + k / fps`.
    """
    shown: Frame | None = None
    start, count = Fraction(0), 0
    for time, frame in timed:
        if shown is None:
            start = time
        else:
            while start + count / fps < time:
                yield shown
                count += 1
        shown = frame


def _timed(
    container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[tuple[Fraction, av.VideoFrame | None]]:
    """Frames with their times in seconds, then the end; raises if the end comes too early."""
    base = stream.time_base or Fraction(1, 1000)
    step = 1 / stream.average_rate if stream.average_rate else Fraction(1, 25)
    last: Fraction | None = None
    length = step
    for frame in container.decode(stream):
        if frame.pts is not None:
            time = frame.pts * (frame.time_base or base)
        else:
            time = Fraction(0) if last is None else last + step
        if last is not None and time <= last:
            continue  # a stale or repeated timestamp: never on screen
        length = frame.duration * base if frame.duration else step
        last = time
        yield time, frame
    if last is None:
        raise UnreadableVideo("has no frame")
    end = last + length
    if stream.duration is not None:
        declared = ((stream.start_time or 0) + stream.duration) * base
        # Edit lists and rounded durations differ by a few frames; a cut file by far more.
        if declared - end > max(Fraction(1, 2), 5 * step, stream.duration * base / 50):
            raise UnreadableVideo(
                f"is truncated: frames end at {float(end):.2f} s of {float(declared):.2f} s"
            )
    yield end, None
