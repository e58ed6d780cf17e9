"""A store of frames: the pixels of the videos, and no other program takes it for tokens."""

import json
import pickle
from fractions import Fraction

import numpy as np
import pytest

from tests.vimpac.videos import write_moving
from vimpac.cli import main
from vimpac.data.frames import frames_at
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import META, StoreMeta
from vimpac.data.variants import Variant, make_variants
from vimpac.data.video import UnreadableVideo
from vimpac.errors import VimpacError
from vimpac.simvtp.frames import StoredFrames, VideoFiles, open_frames

SIZE, COUNT = 32, 6


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with two videos and the store of their frames."""
    folder = tmp_path_factory.mktemp("frames")
    (folder / "videos").mkdir()
    for name, frames in (("a.mp4", 50), ("b.mp4", 25)):
        write_moving(folder / "videos" / name, "mpeg4", frames=frames)
    words = ["frames", str(folder / "videos"), "--out", str(folder / "store"), "--workers", "0"]
    assert main([*words, "--fps", "3", "--size", str(SIZE)]) == 0
    return folder


def test_store_holds_the_frames_at_even_times(made):
    frames = StoredFrames(made / "store")
    assert frames.names == ["a.mp4", "b.mp4"]
    assert [frames.num_frames(i) for i in range(len(frames))] == [COUNT, COUNT // 2]
    video = frames_at(made / "videos" / "a.mp4", Fraction(3))
    want = np.stack([make_variants(frame, SIZE, [Variant()])[0] for frame in video])
    np.testing.assert_array_equal(frames.read(0, range(COUNT)), want.transpose(0, 2, 3, 1))


def test_frames_come_in_the_order_asked_for_and_the_last_repeats(made):
    frames = pickle.loads(pickle.dumps(StoredFrames(made / "store")))  # as a loader's worker has it
    whole = frames.read(0, range(COUNT))
    got = frames.read(0, [4, 1, 99, 1])
    assert (got.shape, got.dtype) == ((4, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(got, whole[[4, 1, COUNT - 1, 1]])
    for numbers in ([], [-1]):
        with pytest.raises(ValueError, match="must be frames from 0"):
            frames.read(0, numbers)


def test_a_frame_takes_its_pixels_and_a_checksum(made):
    records = sum(StoredFrames(made / "store").store.frames)
    size = (made / "store" / "shard-00000.bin").stat().st_size
    assert size == records * (3 * SIZE * SIZE + 4)


def test_path_of_a_store_or_of_videos_is_told_apart(made):
    assert isinstance(open_frames(str(made / "store")), StoredFrames)
    videos = open_frames(str(made / "videos"))
    assert isinstance(videos, VideoFiles)
    assert videos.read(0, [0, 7]).shape == (2, 120, 160, 3)


def test_store_of_another_kind_is_refused(made, tmp_path):
    with pytest.raises(
        VimpacError, match="is a store of pixels: make one of tokens with `vimpac t"
    ):
        TokenStore(made / "store")
    with TokenStoreWriter(tmp_path / "tokens", StoreMeta("patch", 8192, 1, 1, 2.0)) as writer:
        writer.add("a", np.zeros((1, 1, 1, 1), int))
        writer.finish()
    with pytest.raises(
        VimpacError, match="is a store of tokens: make one of frames with `vimpac f"
    ):
        StoredFrames(tmp_path / "tokens")


def test_store_of_tokens_is_what_it_was(made):
    """Version 1, without a kind, so that older programs read it and unfinished ones go on."""
    assert StoreMeta("patch", 8192, 1, 1, 2.0).to_dict() == {
        **{"tokenizer": "patch", "vocab_size": 8192, "height": 1, "width": 1, "fps": 2.0},
        **{"variants": ["1x-center"], "digest": "", "version": 1},
    }
    values = json.loads((made / "store" / META).read_text())
    assert (values["version"], values["kind"]) == (2, "pixels")


def test_unknown_kind_is_refused(made, tmp_path):
    values = json.loads((made / "store" / META).read_text())
    (tmp_path / META).write_text(json.dumps({**values, "kind": "sounds"}))
    with pytest.raises(
        VimpacError, match="is of the kind 'sounds', which this program does not kno"
    ):
        TokenStore(tmp_path, kind=None)


def test_levels_of_another_shape_are_not_written(tmp_path):
    meta = StoreMeta("pixels", 256, 4, 4, 2.0, kind="pixels")
    with TokenStoreWriter(tmp_path / "store", meta) as writer:
        with pytest.raises(ValueError, match=r"are not \(variants 1, frames, H 4, W 4, 3\)"):
            writer.add("a", np.zeros((1, 2, 4, 4), np.uint8))


def test_store_commands_serve_frames(made, capsys):
    assert main(["store", "info", str(made / "store")]) == 0
    assert "frame      32 x 32 pixels, uint8" in capsys.readouterr().out
    assert main(["store", "verify", str(made / "store")]) == 0
    assert "2 of 2 videos are intact" in capsys.readouterr().out


def test_video_with_a_damaged_frame_is_unreadable(made, tmp_path):
    for file in (made / "store").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = tmp_path / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    frames = StoredFrames(tmp_path)
    with pytest.raises(UnreadableVideo, match="corrupt frame"):
        frames.read(0, [0])
    assert frames.read(0, [1]).shape == (1, SIZE, SIZE, 3)
