"""Files as cameras, editors and servers make them: as many frames as FFmpeg's own, and no notes."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.vimpac.videos import run_ffmpeg
from vimpac.data.frames import frames_at
from vimpac.data.variants import Variant, make_variants

SIDE = 32


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Six seconds with frames that are stored before others that are shown first."""
    path = tmp_path_factory.mktemp("base") / "base.mp4"
    source = ["-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=6"]
    run_ffmpeg(*source, "-c:v", "libx264", "-preset", "veryfast", "-g", "50", "-bf", "3", path)
    return path


def _ours(path: Path) -> tuple[np.ndarray, list[str]]:
    """Pictures (N, S, S, 3) and notes."""
    notes: list[str] = []
    frames = frames_at(path, Fraction(2), note=notes.append)
    pictures = [make_variants(frame, SIDE, [Variant()])[0] for frame in frames]
    return np.stack(pictures).transpose(0, 2, 3, 1), notes


def _theirs(path: Path) -> np.ndarray:
    """The same pictures by FFmpeg's own filters."""
    chain = "setpts=PTS-STARTPTS,fps=2:round=up,crop='min(iw,ih)':'min(iw,ih)'"
    chain += f",scale={SIDE}:{SIDE}:flags=bicubic"
    output = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = run_ffmpeg("-i", path, "-map", "0:v", "-vf", chain, "-fps_mode", "passthrough", *output)
    return np.frombuffer(data, np.uint8).reshape(-1, SIDE, SIDE, 3)


def _check(path: Path) -> None:
    (ours, notes), theirs = _ours(path), _theirs(path)
    assert (len(ours), notes) == (len(theirs), [])
    assert np.abs(ours.astype(int) - theirs).mean((1, 2, 3)).max() < 8


SOUND = ["-f", "lavfi", "-i", "sine=d=9"]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("order", ["0:v 1:a", "1:a 0:v", "1:a 0:v 1:a"])
@pytest.mark.parametrize("frames", [5, 150])
def test_sound_beside_the_video_changes_nothing(base, tmp_path, suffix, order, frames):
    """Every frame counts in a short video: those the decoder holds back until the end, too."""
    path = tmp_path / f"v.{suffix}"
    maps = [word for stream in order.split() for word in ("-map", stream)]
    slow = ["-itsscale", "10"] if frames == 5 else []
    number = ["-frames:v", str(frames)]
    run_ffmpeg(*slow, "-i", base, *SOUND, *maps, "-c:v", "copy", "-c:a", "aac", *number, path)
    _check(path)


@pytest.mark.parametrize("start", [3, 100, 90_000])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "flv", "ts"])
def test_video_may_begin_at_any_time(base, tmp_path, suffix, start):
    path = tmp_path / f"v.{suffix}"
    run_ffmpeg("-i", base, "-c", "copy", "-output_ts_offset", str(start), path)
    _check(path)


@pytest.mark.parametrize("segments", [[1], [2], [3], [2, 3], [1, 2, 3]], ids=str)
@pytest.mark.parametrize("format", ["dash", "hls", "fmp4"])
def test_segments_of_a_stream_are_videos(base, tmp_path, format, segments):
    if format == "dash":
        run_ffmpeg("-i", base, "-c", "copy", "-f", "dash", "-seg_duration", "2", tmp_path / "m.mpd")
        names = ["init-stream0.m4s", *(f"chunk-stream0-{k:05}.m4s" for k in segments)]
    else:
        kind = "fmp4" if format == "fmp4" else "mpegts"
        hls = ["-hls_time", "2", "-hls_list_size", "0", "-hls_segment_type", kind]
        run_ffmpeg("-i", base, "-c", "copy", *hls, tmp_path / "m.m3u8")
        names = [f"m{k - 1}.{'m4s' if format == 'fmp4' else 'ts'}" for k in segments]
        names = ["init.mp4", *names] if format == "fmp4" else names
    path = tmp_path / ("v.ts" if format == "hls" else "v.mp4")
    path.write_bytes(b"".join((tmp_path / name).read_bytes() for name in names))
    _check(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts", "flv"])
@pytest.mark.parametrize(
    "cut",
    ["-ss 1.3", "-ss 3.7", "-t 2.3", "-ss 1.3 -t 2", "-itsoffset -1.3", "-itsoffset -2.5"],
)
def test_trimmed_without_encoding_again(base, tmp_path, suffix, cut):
    """An MP4 file keeps what was cut off, and an edit list says where to begin."""
    run_ffmpeg(*cut.split(), "-i", base, "-c", "copy", tmp_path / f"v.{suffix}")
    _check(tmp_path / f"v.{suffix}")
