"""The picture is the one that a player shows, by FFmpeg's own output of the same file."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.vimpac.videos import run_ffmpeg
from vimpac.data.frames import frames_at
from vimpac.data.variants import Variant, make_variants
from vimpac.data.video import UnreadableVideo, best_stream

ONE = 1 << 16  # in a display matrix
QUARTERS = np.zeros((48, 64, 3), np.uint8)
QUARTERS[:24, :32] = 255, 0, 0
QUARTERS[:24, 32:] = 0, 255, 0
QUARTERS[24:, :32] = 0, 0, 255
QUARTERS[24:, 32:] = 200, 200, 200


def _write(
    path: Path,
    image: np.ndarray,  # (H, W, 3)
    *,
    matrix: list[int] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """Writes a few frames of one picture, losslessly but for the colour's resolution."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return path


def _first(path: Path) -> av.VideoFrame:
    return next(iter(frames_at(path, Fraction(2))))


def _ffmpeg(path: Path, *filters: str, size: int) -> np.ndarray:
    """The first picture of a video, (size, size, 3), as the command ffmpeg shows it."""
    chain = ",".join([*filters, f"scale={size}:{size}:flags=bicubic"])
    output = ["-frames:v", "1", "-vf", chain, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = run_ffmpeg("-i", path, *output)
    return np.frombuffer(data, np.uint8).reshape(size, size, 3)


@pytest.mark.parametrize("name", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(
    "turn",
    [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)]
    + [(0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)],
    ids=["as-is", "mirror", "flip", "180", "transpose", "90", "270", "transverse"],
)
def test_display_matrix_turns_and_mirrors(tmp_path, name, turn):
    a, b, c, d = (ONE * x for x in turn)
    path = _write(tmp_path / f"v.{name}", QUARTERS, matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    _check_corners(path)


def _check_corners(path: Path) -> None:
    """Each quarter is where FFmpeg shows it."""
    ours = make_variants(_first(path), 32, [Variant()])[0].transpose(1, 2, 0)
    theirs = _ffmpeg(path, "crop='min(iw,ih)':'min(iw,ih)'", size=32)
    corners = np.ix_([4, 27], [4, 27])
    assert np.abs(ours[corners].astype(int) - theirs[corners]).max() < 12


def test_turn_by_another_angle_is_to_the_nearest_right_one(tmp_path):
    matrix = [int(ONE * x) for x in (np.cos(1.4), np.sin(1.4), 0, -np.sin(1.4), np.cos(1.4), 0)]
    path = _write(tmp_path / "v.mp4", QUARTERS, matrix=[*matrix, 0, 0, 1 << 30])
    right = [0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30]
    exact = _write(tmp_path / "w.mp4", QUARTERS, matrix=right)
    got, want = (make_variants(_first(file), 32, [Variant()]) for file in (path, exact))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("turn", ["0", "90", "180"])
def test_side_data_of_other_types_hides_no_display_matrix(tmp_path, turn):
    """FFmpeg's TIFF pictures have EXIF data, which PyAV does not know."""
    run_ffmpeg("-i", _write(tmp_path / "v.mp4", QUARTERS), "-c:v", "tiff", tmp_path / "v.mov")
    path = tmp_path / "w.mov"
    run_ffmpeg("-display_rotation", turn, "-i", tmp_path / "v.mov", "-c", "copy", path)
    _check_corners(path)


@pytest.mark.parametrize("name", ["mp4", "mkv", "avi", "ts"])
@pytest.mark.parametrize("aspect", ["2", "1/2", "64/45", "12/11", "1"])
def test_disc_stays_a_disc_whatever_the_shape_of_a_pixel(tmp_path, name, aspect):
    width, height = 96, 96
    y, x = np.mgrid[:height, :width] - 47.5
    disc = np.hypot(float(Fraction(aspect)) * x, y) < 40 * min(1, float(Fraction(aspect)))
    image = disc[..., None] * np.full(3, 255, np.uint8)
    path = _write(tmp_path / f"v.{name}", image.astype(np.uint8), aspect=Fraction(aspect))
    view = make_variants(_first(path), 64, [Variant()])[0].mean(0) > 128
    rows, columns = (int(np.ptp(np.nonzero(view.any(axis))[0])) + 1 for axis in (1, 0))
    square = "scale='trunc(iw*max(sar,1)+.5)':'trunc(ih/min(sar,1)+.5)'"
    shown = _ffmpeg(path, square, "crop='min(iw,ih)':'min(iw,ih)'", size=64).mean(2) > 128
    assert abs(rows - columns) <= 1
    assert (view != shown).mean() < 0.01


def _grey(width: int) -> tuple[str, ...]:
    """An input of ffmpeg: a second of a picture as grey as it is wide."""
    source = f"color=c=0x{width:02x}{width:02x}{width:02x}:s={width}x32:r=25:d=1"
    return "-f", "lavfi", "-i", source


@pytest.mark.parametrize(
    ("widths", "options", "shown"),
    [
        ((32, 160), ["-disposition:v:0", "0", "-disposition:v:1", "default"], 160),
        ((32, 160), ["-disposition:v:0", "default", "-disposition:v:1", "0"], 32),
        ((32, 160, 96), ["-disposition:v", "0"], 160),
    ],
    ids=["default-last", "default-first", "largest"],
)
def test_default_stream_or_else_the_largest_is_shown(tmp_path, widths, options, shown):
    path = tmp_path / "v.mkv"
    inputs = [word for width in widths for word in _grey(width)]
    maps = [word for i in range(len(widths)) for word in ("-map", str(i))]
    run_ffmpeg(*inputs, *maps, "-c:v", "mpeg4", *options, path)
    assert _first(path).width == shown
    assert abs(int(_ffmpeg(path, size=16).mean()) - shown) < 8


@pytest.fixture
def cover(tmp_path) -> Path:
    """A picture that is larger than the videos."""
    run_ffmpeg(*_grey(200), "-frames:v", "1", tmp_path / "cover.png")
    return tmp_path / "cover.png"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["after", "before"])
def test_cover_art_is_not_the_video(tmp_path, cover, order):
    maps = [word for i in order for word in ("-map", str(i))]
    picture = f"-disposition:v:{order.index(1)}"
    codecs = [f"-c:v:{order.index(0)}", "mpeg4", f"-c:v:{order.index(1)}", "copy"]
    path = tmp_path / "v.mp4"
    run_ffmpeg(*_grey(64), "-i", cover, *maps, *codecs, picture, "attached_pic", path)
    assert _first(path).width == 64
    assert abs(int(_ffmpeg(path, size=16).mean()) - 64) < 8


@pytest.mark.parametrize("name", ["a.m4a", "a.mp3", "a.mkv"])
def test_sound_with_a_cover_has_no_video(tmp_path, cover, name):
    path = tmp_path / name
    sound = ["-f", "lavfi", "-i", "sine=d=1"]
    if path.suffix == ".mkv":
        attached = ["-attach", cover, "-metadata:s:t", "mimetype=image/png"]
        run_ffmpeg(*sound, *attached, path)
    else:
        attached = ["-map", "0", "-map", "1", "-c:v", "copy", "-disposition:v", "attached_pic"]
        run_ffmpeg(*sound, "-i", cover, *attached, path)
    with pytest.raises(UnreadableVideo, match="has no video stream, only a still picture"):
        _first(path)


def test_thumbnails_of_chapters_are_not_the_video():
    stream = SimpleNamespace(codec_context=1, width=64, height=32, disposition=Disposition(0))
    thumbnails = Disposition.timed_thumbnails | Disposition.default
    other = SimpleNamespace(codec_context=1, width=160, height=32, disposition=thumbnails)
    streams = SimpleNamespace(video=[other, stream], audio=[])
    assert best_stream(SimpleNamespace(streams=streams)) is stream
