"""Videos made for the tests."""

import subprocess
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np


def write_video(
    path: Path,
    times: Sequence[int],
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Writes a video whose frame i is the grey level 10 i modulo 250.

    Args:
        path: Where; the suffix chooses the container.
        times: When each frame comes on screen, in milliseconds.
        size: Width and height.
        codec: The encoder.
        options: Of the container.
        metadata: Of the container.

    Returns:
        `path`.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        container.metadata.update(metadata or {})
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


def write_moving(path: Path, codec: str, *, frames: int, gop: int = 25, b_frames: int = 0) -> Path:
    """Writes 160 x 120 pixels of noise that moves, at 25 frames per second.

    Args:
        path: Where; the suffix chooses the container.
        codec: The encoder.
        frames: How many.
        gop: Frames from one key frame to the next.
        b_frames: Frames in a row that may be stored after one that is shown later.

    Returns:
        `path`.
    """
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.bit_rate, stream.gop_size = 400_000, gop
        stream.codec_context.max_b_frames = b_frames
        for i in range(frames):
            y, x = i // 4 % 60, i // 2 % 80
            image = noise[y : y + 30, x : x + 40].repeat(4, 0).repeat(4, 1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return path


def frame_numbers(frames: Sequence[av.VideoFrame]) -> list[int]:
    """Which frames of `write_video` these are."""
    return [round(float(frame.to_ndarray(format="rgb24").mean()) / 10) for frame in frames]


def run_ffmpeg(*words: str | Path) -> bytes:
    """Runs the command ffmpeg.

    Args:
        words: Its arguments.

    Returns:
        What it writes to its standard output.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
