"""Damaged, cut and foreign files: the reason is told, what is usable is used, nothing hangs."""

import errno
import random
import socket
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.vimpac.videos import frame_numbers, write_moving, write_video
from vimpac.data import video
from vimpac.data.frames import frames_at
from vimpac.data.video import UnreadableVideo

# Containers with a codec of theirs; the first group states the duration in a header.
STATED = ["mp4:libx264", "mov:mpeg4", "mkv:libx264", "mkv:mpeg4", "webm:libvpx", "avi:mpeg4"]
STATED += ["flv:flv"]
GUESSED = ["ts:libx264", "ts:mpeg2video", "mpg:mpeg1video"]


@pytest.fixture(scope="module", params=[*STATED, *GUESSED])
def made(request, tmp_path_factory) -> Path:
    """Eight seconds of moving noise."""
    suffix, codec = request.param.split(":")
    folder = tmp_path_factory.mktemp("made")
    return write_moving(folder / f"{codec}.{suffix}", codec, frames=200)


def _read(path: Path) -> tuple[int, list[str]]:
    notes: list[str] = []
    return sum(1 for _ in frames_at(path, Fraction(2), note=notes.append)), notes


def test_whole_video_has_no_notes(made):
    assert _read(made) == (16, [])


def test_video_cut_in_half_is_refused_if_its_header_states_more(made, tmp_path):
    data = made.read_bytes()
    (tmp_path / made.name).write_bytes(data[: len(data) // 2])
    if made.suffix in (".ts", ".mpg"):  # half a stream is a whole stream
        assert 8 <= _read(tmp_path / made.name)[0] <= 9
        return
    with pytest.raises(UnreadableVideo, match="is cut short: it|Invalid data found"):
        _read(tmp_path / made.name)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.8])
def test_video_cut_behind_its_index_is_refused(tmp_path, share):
    path = write_video(tmp_path / "v.mp4", range(0, 4000, 40), options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UnreadableVideo, match="cut short|Invalid data|no whole picture|no video"):
        _read(path)


def _flip_in_packets(path: Path, count: int) -> bytes:
    """A file, of which a byte is flipped in the middle of so many packets.

    Not anywhere: encoders write other bytes on other processors, and a flipped time moves frames.
    """
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos]
    data, draw = bytearray(path.read_bytes()), random.Random(0)
    for pos, size in draw.sample(packets[len(packets) // 4 : len(packets) * 9 // 10], count):
        data[pos + size // 2] ^= draw.randrange(1, 256)
    return bytes(data)


def test_flipped_bytes_are_counted_and_their_share_decides(made, tmp_path, monkeypatch):
    if made.suffix == ".webm":
        pytest.skip("VP8 and VP9 have no redundancy by which a decoder could tell")
    (tmp_path / made.name).write_bytes(_flip_in_packets(made, 20))
    frames, notes = _read(tmp_path / made.name)
    assert frames == 16
    assert len(notes) == 1 and notes[0].endswith("of 200 pictures are damaged")
    damaged = int(notes[0].split()[0])
    assert 1 <= damaged <= 20
    monkeypatch.setattr(video, "MOST_DAMAGED", 0.0)
    with pytest.raises(UnreadableVideo, match=f"{damaged} of its 200 pictures are damaged"):
        _read(tmp_path / made.name)


def test_video_that_is_damaged_all_over_is_refused(made, tmp_path):
    if made.suffix == ".webm":
        pytest.skip("VP8 and VP9 have no redundancy by which a decoder could tell")
    data = bytearray(made.read_bytes())
    for i in range(len(data) // 5, len(data) * 9 // 10, 150):
        data[i] ^= 0x55
    (tmp_path / made.name).write_bytes(data)
    with pytest.raises(UnreadableVideo):
        _read(tmp_path / made.name)


@pytest.mark.parametrize("name", ["libx264.ts", "mpeg1video.mpg"])
def test_stream_that_begins_between_key_frames_begins_at_a_good_picture(tmp_path, name):
    """A recording that was cut without regard to key frames, as those of television are."""
    codec, _, suffix = name.partition(".")
    data = write_moving(tmp_path / f"whole.{suffix}", codec, frames=200, gop=50).read_bytes()
    packets = [data[i : i + 188] for i in range(0, len(data), 188)]
    (tmp_path / name).write_bytes(b"".join(packets[:2] + packets[len(packets) // 8 :]))
    frames, notes = _read(tmp_path / name)
    assert frames >= 12
    assert not any("are damaged" in note for note in notes)
    if suffix == "mpg":  # its decoder shows what it makes of the first packet
        assert any("damaged pictures left out at its beginning" in note for note in notes)


def test_joined_recordings_are_both_there(tmp_path):
    """cat a.ts b.ts: the clock starts again, which is told."""
    parts = [write_video(tmp_path / f"{name}.ts", range(0, 4000, 40)) for name in "ab"]
    (tmp_path / "c.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, notes = _read(tmp_path / "c.ts")
    assert frames == 16
    assert "jumps of its clock: 1" in notes


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_timestamps_that_run_away_add_one_frame(tmp_path, suffix):
    hours = 3_600_000
    times = [*range(0, 2000, 100), *range(9 * hours, 9 * hours + 2000, 100)]
    frames, notes = _read(write_video(tmp_path / f"v.{suffix}", times))
    assert frames == 8
    assert notes == ["jumps of its clock: 1"]


@pytest.mark.parametrize(("suffix", "frames"), [("mkv", 64), ("webm", 64), ("nut", 64), ("ts", 4)])
def test_still_picture_of_a_recording_lasts(tmp_path, suffix, frames):
    """A recorder of a screen writes no frame while nothing moves, and into a pipe no duration."""
    times = [*range(0, 1000, 100), *range(31_000, 32_000, 100)]
    codec = "libvpx" if suffix == "webm" else "mpeg4"
    path = write_video(tmp_path / f"v.{suffix}", times, codec=codec, options={"live": "1"})
    got, notes = _read(path)
    assert (got, notes) == (frames, [] if frames == 64 else ["jumps of its clock: 1"])


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
@pytest.mark.parametrize("suffix", ["avi", "mkv", "mp4", "ts"])
def test_reordered_frames_come_in_order(tmp_path, suffix, codec):
    path = write_moving(tmp_path / f"v.{suffix}", codec, frames=100, b_frames=3)
    frames, notes = _read(path)
    assert (frames, notes) == (8, [])


def test_empty_and_foreign_files_are_refused(tmp_path):
    for content in (b"", b"\0", b"no video at all\n" * 100, bytes(10_000)):
        (tmp_path / "v.mp4").write_bytes(content)
        with pytest.raises(UnreadableVideo):
            _read(tmp_path / "v.mp4")
    with pytest.raises(UnreadableVideo, match="Is a directory"):
        _read(tmp_path)
    with pytest.raises(UnreadableVideo, match="No such file"):
        _read(tmp_path / "none.mp4")


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE])
def test_scarce_memory_or_files_are_not_the_fault_of_the_video(tmp_path, monkeypatch, number):
    def fail(*args, **options):
        raise av.error.OSError(number, "scarce")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(OSError, match="scarce"):
        _read(tmp_path / "v.mp4")


def test_unknown_codec_is_refused(tmp_path):
    path = write_video(tmp_path / "v.avi", range(0, 2000, 40))
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"QQQQ"))
    with pytest.raises(UnreadableVideo, match="its codec is not known"):
        _read(path)


def test_metadata_need_not_be_utf8(tmp_path):
    path = tmp_path / "v.avi"
    write_video(path, range(0, 2000, 40), metadata={"title": "CafXX clip"})
    data = path.read_bytes()
    assert b"CafXX clip" in data
    path.write_bytes(data.replace(b"CafXX clip", b"Caf\xe9\xff clip"))
    assert _read(path) == (4, [])


def test_header_that_states_a_huge_picture_costs_no_memory(tmp_path):
    path = tmp_path / "v.avi"
    write_video(path, range(0, 400, 40), codec="rawvideo")
    data = bytearray(path.read_bytes())
    at = data.index(b"strf") + 8  # BITMAPINFOHEADER: size, width, height
    data[at + 4 : at + 12] = (60_000).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(UnreadableVideo):
        _read(path)


@pytest.mark.parametrize("size", [(16, 1440), (1440, 16)])
def test_picture_too_narrow_for_a_crop_is_refused(tmp_path, size):
    with pytest.raises(UnreadableVideo, match="too narrow"):
        _read(write_video(tmp_path / "v.mkv", range(0, 400, 40), size=size))


@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_playlist_opens_no_other_file_and_no_connection(tmp_path, kind):
    """A file may have any name and any content, so a playlist may come as a video."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        texts = {
            "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
            "concat": f"ffconcat version 1.0\nfile '{url}'\n",
        }
        for name in ("v.mp4", "v.m3u8", "v.ffconcat"):
            (tmp_path / name).write_text(texts[kind])
            with pytest.raises(UnreadableVideo):
                _read(tmp_path / name)
        with pytest.raises(TimeoutError):
            server.accept()


def test_progress_is_told_while_decoding(tmp_path):
    path = write_video(tmp_path / "v.mkv", range(0, 2000, 40))
    signs: list[int] = []
    numbers = frame_numbers(list(frames_at(path, Fraction(2), alive=lambda: signs.append(1))))
    assert len(numbers) == 4
    assert len(signs) >= 50


def test_sound_without_picture_is_said(tmp_path):
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(UnreadableVideo, match="has no video stream, only sound"):
        _read(tmp_path / "a.wav")


@pytest.mark.parametrize("order", ["sound first", "video first"])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "asf", "flv", "nut"])
def test_video_beside_longer_sound_is_whole(tmp_path, suffix, order):
    """The header's duration is that of the sound, and the decoder's last frames are there."""
    path = tmp_path / f"v.{suffix}"
    with av.open(str(path), "w") as container:
        kinds = ["pcm_s16le", "libx264"] if order == "sound first" else ["libx264", "pcm_s16le"]
        streams = {
            kind: container.add_stream(kind, rate=8000 if "pcm" in kind else 25) for kind in kinds
        }
        picture, sound = streams["libx264"], streams["pcm_s16le"]
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        if suffix in ("avi", "asf"):  # they have no presentation times
            picture.codec_context.max_b_frames = 0
        for i in range(25):
            image = np.full((48, 64, 3), 10 * i, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(picture.encode())
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
            frame.sample_rate = 8000
            container.mux(sound.encode(frame))
    notes: list[str] = []
    frames = list(frames_at(path, Fraction(25), note=notes.append))
    assert (frame_numbers(frames), notes) == (list(range(25)), [])
