"""Videos made for the tests."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_video(
    path: Path,
    times: Sequence[int],
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a video whose frame i is the grey level 10 i modulo 250.

    Args:
        path: Where; the suffix chooses the container.
        times: When each frame comes on screen, in milliseconds.
        size: Width and height.
        codec: The encoder.
        options: Of the container.

    Returns:
        `path`.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=1000)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.max_b_frames = 0
        for i, time in enumerate(times):
            image = np.full((size[1], size[0], 3), 10 * i % 250, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frame_numbers(frames: Sequence[av.VideoFrame]) -> list[int]:
    """Which frames of `write_video` these are."""
    return [round(float(frame.to_ndarray(format="rgb24").mean()) / 10) for frame in frames]
