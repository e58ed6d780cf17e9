"""Frames by their numbers are those of the whole decoded video, wherever decoding begins."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.vimpac.videos import run_ffmpeg, write_moving
from vimpac.data.clip_reader import clip_of, num_frames, read_frames
from vimpac.data.video import UnreadableVideo, VideoReader

FRAMES, GOP = 40, 10
SEEKING = ["mp4:libx264", "mkv:libx264", "mp4:mpeg4", "mkv:mpeg2video", "webm:libvpx-vp9"]
FROM_START = ["avi:mpeg4", "ts:libx264", "webm:libvpx"]
ONE = 1 << 16  # in a display matrix


def _decoded(path: Path) -> np.ndarray:
    """All frames, (T, H, W, 3), by PyAV alone."""
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        rgb = [frame.reformat(format="rgb24", interpolation="BICUBIC") for frame in frames]
        return np.stack([frame.to_ndarray() for frame in rgb])


def _x264(path: Path, parameters: str) -> Path:
    """Writes 96 x 64 pixels that move."""
    source = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25", "-frames:v", str(FRAMES)]
    run_ffmpeg(*source, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params", parameters, path)
    return path


@pytest.fixture(scope="module", params=[*SEEKING, *FROM_START])
def made(request, tmp_path_factory) -> Path:
    suffix, codec = request.param.split(":")
    folder = tmp_path_factory.mktemp("made")
    return write_moving(folder / f"{codec}.{suffix}", codec, frames=FRAMES, gop=GOP, b_frames=2)


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by one for every frame that is decoded."""
    count: list[int] = []
    frames = VideoReader.frames

    def counted(self):
        for frame in frames(self):
            count.append(1)
            yield frame

    monkeypatch.setattr(VideoReader, "frames", counted)
    return count


def test_clips_are_those_of_the_whole_video(made):
    whole = _decoded(made)
    assert num_frames(made) == len(whole) == FRAMES
    for start in range(0, FRAMES, 3):
        numbers = np.minimum(start + 5 * np.arange(3), FRAMES - 1)
        np.testing.assert_array_equal(clip_of(made, start, 3, 5), whole[numbers])


def test_threads_change_nothing(made):
    one, two = (clip_of(made, 17, 4, 3, threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("parameters", ["open-gop=1:bframes=3", "open-gop=0:bframes=0"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_decoding_begins_at_the_key_frame_before(tmp_path, decoded, parameters, suffix):
    options = f"keyint={GOP}:min-keyint={GOP}:scenecut=0:{parameters}"
    path = _x264(tmp_path / f"v.{suffix}", options)
    whole = _decoded(path)
    for start in range(0, FRAMES, 7):
        decoded.clear()
        np.testing.assert_array_equal(clip_of(path, start, 1, 1)[0], whole[start])
        assert len(decoded) <= GOP + 3  # and B frames that are shown before the key frame


def test_seek_that_loses_frames_is_done_without(tmp_path, decoded):
    """Intra refresh has points where a decoder can begin, but whole pictures only later."""
    path = _x264(tmp_path / "v.mp4", f"intra-refresh=1:keyint={GOP}")
    np.testing.assert_array_equal(clip_of(path, 22, 1, 1), _decoded(path)[22:23])
    assert len(decoded) >= 22


def test_numbers_in_any_order_are_decoded_once(tmp_path, decoded):
    path = _x264(tmp_path / "v.mp4", f"keyint={FRAMES}")
    got = read_frames(path, [9, 2, 99, 2])
    np.testing.assert_array_equal(got, _decoded(path)[[9, 2, FRAMES - 1, 2]])
    assert len(decoded) == FRAMES


def test_counting_decodes_only_where_the_packets_do_not_tell(made, decoded, tmp_path):
    path = tmp_path / made.name  # of which nothing is known yet
    path.write_bytes(made.read_bytes())
    assert num_frames(path) == FRAMES
    assert len(decoded) == (FRAMES if f"{path.suffix[1:]}:{path.stem}" in FROM_START else 0)


def test_damage_does_not_shift_the_numbers_of_later_frames(tmp_path):
    path = write_moving(tmp_path / "v.mkv", "libx264", frames=FRAMES, gop=GOP)
    whole = _decoded(path)
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][12]
        place, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    data[place + 8 : place + size] = bytes(size - 8)
    path.write_bytes(data)
    got = read_frames(path, range(FRAMES))
    np.testing.assert_array_equal(got[2 * GOP :], whole[2 * GOP :])
    np.testing.assert_array_equal(got[:10], whole[:10])
    assert (got[12] != whole[12]).any()
    for start in (11, 13, 25):
        np.testing.assert_array_equal(clip_of(path, start, 2, 2), got[[start, start + 2]])


@pytest.mark.parametrize("aspect", [(1, 1), (2, 1)], ids=["square", "wide"])
def test_pixels_are_square_and_pictures_upright(tmp_path, aspect):
    path = tmp_path / "v.mp4"
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, :24] = 200  # left half
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 48, 32, "yuv420p", 4_000_000
        stream.set_display_matrix([0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30])
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    clip = clip_of(path, 1, 2, 1)
    assert clip.shape == (2, 48 * aspect[0], 32, 3)
    rows = clip.mean((0, 2, 3))
    assert min(rows[:20]) > 150 and max(rows[-20:]) < 50


def test_file_that_was_replaced_is_looked_at_again(tmp_path):
    path = write_moving(tmp_path / "v.mp4", "mpeg4", frames=5)
    assert num_frames(path) == 5
    write_moving(path, "mpeg4", frames=7)
    os.utime(path, ns=(0, 0))
    assert num_frames(path) == 7


def test_what_is_no_whole_video_is_refused(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(UnreadableVideo, match="Invalid data"):
        num_frames(text)
    path = write_moving(tmp_path / "v.mkv", "libx264", frames=100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableVideo, match="is cut short: it ends at"):
        clip_of(path, 0, 1, 1)
    with pytest.raises(FileNotFoundError):
        clip_of(tmp_path / "absent.mp4", 0, 1, 1)


def test_arguments_are_checked(tmp_path):
    for numbers in ([], [3, -1]):
        with pytest.raises(ValueError, match="must be frames from 0"):
            read_frames(tmp_path, numbers)
    with pytest.raises(ValueError, match="frames=0 and step=1 must be positive"):
        clip_of(tmp_path, 0, 0, 1)
