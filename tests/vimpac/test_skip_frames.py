"""Leaving out pictures that no sample shows changes no sample, in any codec and container."""

import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.vimpac.videos import frame_numbers, run_ffmpeg, write_video
from vimpac.data import frames
from vimpac.data.frames import frames_at
from vimpac.data.packets import Kind, packet_table
from vimpac.data.video import UnreadableVideo, VideoReader, open_video

RATES = [Fraction(1, 10), Fraction(2), Fraction(5), Fraction(30)]
FRAMES = 75  # three seconds

X264 = "-c:v libx264 -preset veryfast -x264-params"
X265 = "-c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=20:min-keyint=20"
VP9 = "-c:v libvpx-vp9 -deadline good -cpu-used 8 -g 20 -b:v 200k"
# Options of ffmpeg, and the most frames that may be decoded for two samples per second, of 75.
ZOO = {
    "x264.mp4": (f"{X264} keyint=250", 50),
    "x264-gops.mkv": (f"{X264} keyint=20:min-keyint=20:scenecut=0", 40),
    "x264-open.mp4": (f"{X264} keyint=20:min-keyint=20:open-gop=1:b-pyramid=strict", 50),
    "x264-pyramid.mkv": (f"{X264} bframes=8:b-adapt=0:b-pyramid=normal:ref=4", 50),
    "x264-no-b.mp4": (f"{X264} bframes=0:keyint=20:min-keyint=20:scenecut=0", 52),
    "x264-headers.mp4": (f"{X264} keyint=20 -bsf:v dump_extra=freq=all", FRAMES),
    "x264-fields.mp4": (f"{X264} tff=1:bframes=2 -flags +ilme+ildct", 60),
    "x264-refresh.mp4": (f"{X264} intra-refresh=1:keyint=20", 50),
    "x264-varying.mp4": (f"{X264} keyint=30 -vf select='gt(mod(n,9),4)+eq(n,0)' -fps_mode vfr", 30),
    "x264-pictures.mp4": (f"{X264} keyint=1", 7),
    "x264.flv": (f"{X264} keyint=20", FRAMES),
    "x264.ts": (f"{X264} keyint=20", FRAMES),
    "x265.mp4": (f"{X265} -tag:v hvc1", 50),
    "x265-closed.mkv": (f"{X265}:open-gop=0:bframes=4", 45),
    "x265-layers.mp4": (f"{X265}:temporal-layers=3:bframes=4:b-adapt=0", 60),
    "vp9.webm": (VP9, 52),
    "vp9-segments.mp4": (f"{VP9} -aq-mode 3 -deadline realtime -lag-in-frames 0", 52),
    "vp9-resilient.mkv": (f"{VP9} -error-resilient 1", 52),
    "vp8.webm": ("-c:v libvpx -deadline realtime -g 20", FRAMES),
    "av1.mkv": ("-c:v libsvtav1 -preset 12 -g 20 -svtav1-params lp=1", FRAMES),
    "mpeg4.mp4": ("-c:v mpeg4 -g 12", 45),
    "mpeg4-b.mkv": ("-c:v mpeg4 -g 12 -bf 2", 45),
    "mpeg4-b.avi": ("-c:v mpeg4 -g 12 -bf 2", FRAMES),
    "mpeg4-fields.mp4": ("-c:v mpeg4 -bf 2 -flags +ilme+ildct", 50),
    "mpeg2.mkv": ("-c:v mpeg2video -bf 2", 40),
    "mpeg2-closed.mp4": ("-c:v mpeg2video -bf 2 -flags +cgop -g 10 -sc_threshold 1e9", 40),
    "mpeg2.ts": ("-c:v mpeg2video -bf 2", FRAMES),
    "mpeg1.mkv": ("-c:v mpeg1video -bf 2", 40),
    "mjpeg.mkv": ("-c:v mjpeg", FRAMES),
    "prores.mov": ("-c:v prores", 7),
    "ffv1.mkv": ("-c:v ffv1 -g 1", FRAMES),
}


def write_zoo(path: Path, options: str) -> Path:
    """Three seconds of a test picture under changing noise."""
    source = f"testsrc2=size=96x64:rate=25,noise=alls=12:allf=t,trim=end_frame={FRAMES}"
    words = options.split()
    if "-vf" in words:
        source += "," + words.pop(words.index("-vf") + 1)
        words.remove("-vf")
    run_ffmpeg("-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", *words, path)
    return path


@pytest.fixture(scope="module", params=ZOO)
def video(request, tmp_path_factory) -> Path:
    return write_zoo(tmp_path_factory.mktemp("zoo") / request.param, ZOO[request.param][0])


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by one for every frame that is decoded."""
    count: list[int] = []
    every = VideoReader.frames

    def counted(self):
        for frame in every(self):
            count.append(1)
            yield frame

    monkeypatch.setattr(VideoReader, "frames", counted)
    return count


def _on_screen(path: Path, fps: Fraction) -> list[av.VideoFrame]:
    """The definition, by PyAV alone: the last frame that has come by first time + k / fps."""
    with av.open(str(path)) as container:
        whole = [*container.decode(video=0)]
        base = whole[0].time_base
    start, last = whole[0].pts * base, whole[-1]
    end = (last.pts + (last.duration or 1 / (25 * base))) * base
    shown: list[av.VideoFrame] = []
    while (time := start + len(shown) / fps) < end:
        shown.append([frame for frame in whole if frame.pts * base <= time][-1])
    return shown


def _check_samples(path: Path, fps: Fraction) -> None:
    expected, notes = _on_screen(path, fps), []
    got = [*frames_at(path, fps, threads=1, note=notes.append)]
    assert [frame.pts for frame in got] == [frame.pts for frame in expected]
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one.to_ndarray(), other.to_ndarray())
    assert notes == []


@pytest.mark.parametrize("fps", RATES, ids=str)
def test_samples_are_those_of_the_whole_video(video, fps):
    _check_samples(video, fps)


def test_what_no_sample_shows_is_left_out(video, decoded):
    assert len([*frames_at(video, Fraction(2), threads=1)]) in (6, 7)
    assert len(decoded) <= ZOO[video.name][1]


@pytest.mark.parametrize("video", ["x264.mp4", "x265.mp4", "mpeg4-b.mkv"], indirect=True)
def test_threads_of_the_decoder_change_nothing(video, decoded):
    one, three = ([*frames_at(video, Fraction(4), threads=threads)] for threads in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a.to_ndarray(), b.to_ndarray())
    assert len(decoded) < 2 * FRAMES


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_frame_before_the_last_is_shown_until_that_comes(tmp_path, suffix):
    path = write_video(tmp_path / f"v.{suffix}", [0, 100, 200, 300, 400, 1450])
    assert frame_numbers([*frames_at(path, Fraction(2))]) == [0, 4, 4]


def test_frames_that_an_edit_list_hides_are_not_sampled(tmp_path, decoded):
    whole = write_zoo(tmp_path / "whole.mp4", f"{X264} keyint=50")
    path = tmp_path / "v.mp4"
    run_ffmpeg("-ss", "0.6", "-i", whole, "-c", "copy", path)
    with av.open(str(path)) as container:
        hidden = sum(packet.is_discard for packet in container.demux(video=0))
    assert hidden >= 10
    _check_samples(path, Fraction(2))
    assert len(decoded) < FRAMES - hidden


def test_pictures_that_only_a_higher_layer_needs_are_needed(tmp_path):
    """H.265 says of a picture whether its own temporal layer needs it."""
    path = write_zoo(tmp_path / "v.mp4", ZOO["x265-layers.mp4"][0])
    data, changed, highest = bytearray(path.read_bytes()), 0, 0
    for place, size in _packets(path):
        unit = place
        while unit < place + size:
            if data[unit + 4 : unit + 6] == b"\x06\2":  # TSA_R in the second of three layers
                data[unit + 4] = 4  # TSA_N
                changed += 1
            highest += data[unit + 5] & 7 == 3
            unit += 4 + int.from_bytes(data[unit : unit + 4], "big")
    assert changed > 5
    path.write_bytes(data)
    with open_video(path) as (container, stream):
        table = packet_table(VideoReader(container, stream))
    assert table is not None
    assert np.count_nonzero(table.kinds & Kind.UNNEEDED) == highest
    _check_samples(path, Fraction(5))


def _read(path: Path, fps: Fraction) -> tuple[list[tuple[int | None, bytes]], list[str], str]:
    """Samples, notes, and why it is refused."""
    samples, notes, reason = [], [], ""
    try:
        for frame in frames_at(path, fps, threads=1, note=notes.append):
            samples.append((frame.pts, frame.to_ndarray().tobytes()))
    except UnreadableVideo as error:
        reason = str(error)
    return samples, notes, reason


def _packets(path: Path) -> list[tuple[int, int]]:
    with av.open(str(path)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos]


@pytest.mark.parametrize("name", ["x264.mp4", "x264-open.mp4", "mpeg4-b.mkv", "mpeg2-closed.mp4"])
def test_damage_in_what_is_decoded_is_told_as_without_leaving_out(tmp_path, monkeypatch, name):
    """Pictures whose damage is seen only behind those that it harms are among them."""
    path = write_zoo(tmp_path / name, ZOO[name][0])
    whole, packets = path.read_bytes(), _packets(path)
    draw, told = random.Random(0), 0
    for _ in range(12):
        data = bytearray(whole)
        place, size = draw.choice([packet for packet in packets if packet[1] > 500])
        begin = place + draw.randrange(20, size // 2)
        data[begin : place + size] = draw.randbytes(place + size - begin)
        path.write_bytes(data)
        got = _read(path, Fraction(5))
        with monkeypatch.context() as patched:
            patched.setattr(frames, "packet_table", lambda video: None)  # decodes all
            expected = _read(path, Fraction(5))
        assert got[0] == expected[0]
        if got[1:] != expected[1:]:  # only in pictures that were left out
            assert got[1:] == ([], "")
        told += bool(got[1])
    assert told


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("name", ["x264.mp4", "x265-closed.mkv", "vp9.webm"])
def test_cut_files_are_refused_as_without_leaving_out(tmp_path, monkeypatch, name, share):
    path = write_zoo(tmp_path / name, ZOO[name][0])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    got = _read(path, Fraction(2))
    monkeypatch.setattr(frames, "packet_table", lambda video: None)
    assert got == _read(path, Fraction(2))
