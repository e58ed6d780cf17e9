"""A batch of clips read in one call: what reading clip by clip gives, every frame checked."""

import json
import pickle
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from vimpac.data.frame_checksums import FrameChecksums
from vimpac.data.store import DamagedVideo, TokenStore, TokenStoreWriter
from vimpac.data.store_format import VIDEO_RECORD, StoreMeta
from vimpac.errors import VimpacError

META = StoreMeta("patch", 8192, 2, 3, fps=2.0, variants=("a", "b"))
FRAMES = [4, 1, 7, 3, 9]
PAD = 8193


def _write_index(path: Path, index: np.ndarray, names: bytes) -> None:
    """Gives a store another index and other names, with their checksums."""
    (path / "index.bin").write_bytes(index.tobytes())
    (path / "names.bin").write_bytes(names)
    crcs = {"index_crc32": zlib.crc32(index.tobytes()), "names_crc32": zlib.crc32(names)}
    values = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**values, "videos": len(index), **crcs}))


def _write(path: Path, **kwargs) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 8192, (2, frames, 2, 3)) for frames in FRAMES]
    with TokenStoreWriter(path, META, **kwargs) as writer:
        for i, tokens in enumerate(videos):
            writer.add(f"v{i}", tokens)
        writer.finish()
    return videos


@pytest.mark.parametrize("shard_bytes", [1, 160, 1 << 30])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_gives_every_frame_of_every_clip(tmp_path, shard_bytes, stride):
    tokens = _write(tmp_path / "store", shard_bytes=shard_bytes)
    store = TokenStore(tmp_path / "store")
    keys = [(v, s, k) for v, n in enumerate(FRAMES) for s in range(n) for k in range(2)]
    keys = np.random.default_rng(1).permutation(keys + keys[:5])
    videos, starts, variants = keys.T
    clips = store.read_many(videos, starts, 3, stride=stride, variants=variants, fill=PAD)
    assert clips.shape == (len(keys), 3, 2, 3) and clips.dtype == np.int32
    for clip, (video, start, variant) in zip(clips, keys, strict=True):
        expected = tokens[video][variant, start::stride][:3]
        np.testing.assert_array_equal(clip[: len(expected)], expected)
        assert (clip[len(expected) :] == PAD).all()


def test_one_variant_is_that_of_all(tmp_path):
    tokens = _write(tmp_path / "store")
    clips = TokenStore(tmp_path / "store").read_many([2, 4], [1, 0], 2, variants=1, fill=PAD)
    np.testing.assert_array_equal(clips, [tokens[2][1, 1:3], tokens[4][1, :2]])


def test_no_clip_is_an_empty_batch(tmp_path):
    _write(tmp_path / "store")
    clips = TokenStore(tmp_path / "store").read_many([], [], 5, fill=PAD)
    assert clips.shape == (0, 5, 2, 3)


@pytest.mark.parametrize(
    ("videos", "starts", "variants", "words"),
    [
        ([0, 5], [0, 0], 0, "video 5 of a store of 5 videos"),
        ([0, -1], [0, 0], 0, "video -1 of"),
        ([0, 1], [0, 1], 0, "frame 1 of a video of 1 frames"),
        ([0, 1], [-2, 0], 0, "frame -2 of a video of 4 frames"),
        ([0, 1], [0, 0], [0, 2], "variant 2 of 2"),
        ([0, 1], [0, 0], -1, "variant -1 of 2"),
    ],
)
def test_rejects_what_is_not_there(tmp_path, videos, starts, variants, words):
    _write(tmp_path / "store")
    with pytest.raises(IndexError, match=words):
        TokenStore(tmp_path / "store").read_many(videos, starts, 2, variants=variants, fill=PAD)


def test_flipped_byte_is_found_and_its_video_named(tmp_path):
    _write(tmp_path / "store")
    shard = tmp_path / "store" / "shard-00000.bin"
    good, owners = shard.read_bytes(), np.repeat(np.arange(5), 2 * np.array(FRAMES))
    for i in range(0, len(good), 5):  # at every place of a record
        owner = owners[i // 16]  # two bytes of each of 2 x 3 tokens, and the checksum
        shard.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        store = TokenStore(tmp_path / "store")
        with pytest.raises(DamagedVideo, match=rf"shard-00000\.bin: corrupt frame .*'v{owner}'"):
            for variant in range(2):
                store.read_many(range(5), [0] * 5, 9, variants=variant, fill=PAD)


def test_frame_between_those_of_a_clip_is_not_read(tmp_path):
    tokens = _write(tmp_path / "store")
    shard = tmp_path / "store" / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[META.frame_record.itemsize] ^= 1  # in frame 1 of the first video
    shard.write_bytes(data)
    store = TokenStore(tmp_path / "store")
    clips = store.read_many([0], [0], 2, stride=2, fill=PAD)
    np.testing.assert_array_equal(clips[0], tokens[0][0, :4:2])
    with pytest.raises(DamagedVideo):
        store.read_many([0], [0], 2, fill=PAD)


def test_id_that_the_tokenizer_does_not_have_is_found(tmp_path):
    _write(tmp_path / "store")
    shard = tmp_path / "store" / "shard-00000.bin"
    records = np.frombuffer(shard.read_bytes(), META.frame_record).copy()
    records[-1]["tokens"][0, 0] = 9000
    records[-1]["crc32"] = zlib.crc32(records[-1]["tokens"])
    shard.write_bytes(records.tobytes())
    with pytest.raises(DamagedVideo, match=r"token id 9000 is not below 8192 in 'v4'"):
        TokenStore(tmp_path / "store").read_many([0, 4], [0, 7], 2, variants=1, fill=PAD)


def test_video_that_goes_beyond_its_shard_is_named(tmp_path):
    _write(tmp_path / "store")
    index = np.frombuffer((tmp_path / "store" / "index.bin").read_bytes(), VIDEO_RECORD).copy()
    index["first"][4] += 1
    _write_index(tmp_path / "store", index, (tmp_path / "store" / "names.bin").read_bytes())
    store = TokenStore(tmp_path / "store")
    assert store.read_many([4], [6], 2, variants=1, fill=PAD).shape == (1, 2, 2, 3)
    for read in (
        lambda: store.read_many([0, 4], [0, 6], 3, variants=1, fill=PAD),
        lambda: store.read(4, 6, 9, 1),
    ):
        with pytest.raises(DamagedVideo, match=r"shard-00000\.bin: too short in 'v4'"):
            read()


def test_checksum_of_many_records_finds_what_that_of_each_does():
    rng = np.random.default_rng(0)
    record = META.frame_record
    records = np.zeros(6, record)
    records["tokens"] = rng.integers(0, 8192, (6, 2, 3))
    for one in records:
        one["crc32"] = zlib.crc32(one["tokens"])
    good, checksums = records.tobytes(), FrameChecksums(record.itemsize)
    for count in (6, 0, 1, 5, 2):  # in any order
        part = good[: count * record.itemsize]
        assert checksums.are_intact(part, count)
        assert not checksums.are_intact(part + bytes(record.itemsize), count + 1)  # a hole
    for _ in range(500):
        bad = np.frombuffer(good, np.uint8).copy()
        places = rng.choice(len(bad), rng.integers(1, 5), replace=False)
        bad[places] ^= rng.integers(1, 256, len(places), np.uint8)
        assert not checksums.are_intact(bad.tobytes(), 6)


def test_store_of_another_process_is_not_checked_again(tmp_path):
    tokens = _write(tmp_path / "store")
    data = pickle.dumps(TokenStore(tmp_path / "store"))
    names = tmp_path / "store" / "names.bin"
    names.write_bytes(b"w" + names.read_bytes()[1:])
    with pytest.raises(VimpacError, match=r"names\.bin is corrupt"):
        TokenStore(tmp_path / "store")
    store = pickle.loads(data)
    assert store.name(0) == "w0" and store.num_frames(4) == 9
    np.testing.assert_array_equal(store.read(2, 1, 3), tokens[2][0, 1:3])


def test_index_and_names_are_not_in_the_memory_of_the_process(tmp_path):
    _write(tmp_path / "store")
    videos, name = 50_000, b"a name of one and thirty bytes."
    index = np.zeros(videos, VIDEO_RECORD)
    index["frames"], index["name_bytes"] = 4, len(name)
    index["name_start"] = len(name) * np.arange(videos)
    _write_index(tmp_path / "store", index, name * videos)
    tracemalloc.start()
    store = TokenStore(tmp_path / "store")
    assert store.name(videos - 1) == name.decode() and store.num_frames(7) == 4
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1e6  # the files have 3.1 MB
    assert len(pickle.dumps(store)) < 2000
