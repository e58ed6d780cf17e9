"""The token store gives back what was written, or says which file is damaged."""

import dataclasses
import errno
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from vimpac.cli import main
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta, partial_path
from vimpac.data.writer import is_complete
from vimpac.errors import UsageError, VimpacError

META = StoreMeta("patch", 8192, 2, 3, fps=2.0, variants=("a", "b"))
FRAMES = [4, 1, 7, 3, 5]


def _videos(seed: int = 0) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        (f"dir/vidéo{i}.mp4", rng.integers(0, 8192, (2, n, 2, 3))) for i, n in enumerate(FRAMES)
    ]


def _write(path: Path, videos=None, **kwargs) -> list[tuple[str, np.ndarray]]:
    videos = videos or _videos()
    with TokenStoreWriter(path, META, **kwargs) as writer:
        for name, tokens in videos[len(writer.entries) :]:
            writer.add(name, tokens, label=len(name))
        writer.finish()
    return videos


def _content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("shard_bytes", [1, 160, 1 << 30])
def test_reads_what_was_written(tmp_path, shard_bytes):
    videos = _write(tmp_path / "store", shard_bytes=shard_bytes)
    store = pickle.loads(pickle.dumps(TokenStore(tmp_path / "store")))
    assert store.meta == META
    assert [store.name(i) for i in range(len(store))] == [name for name, _ in videos]
    assert store.frames.tolist() == FRAMES
    for i, (name, tokens) in enumerate(videos):
        assert store.label(i) == len(name)
        for variant in range(2):
            got = store.read(i, 1, FRAMES[i], variant)
            assert got.dtype == np.uint16
            np.testing.assert_array_equal(got, tokens[variant, 1:])
    assert list(store.verify()) == [None] * len(videos)


def test_wide_vocabulary_is_stored_as_uint32(tmp_path):
    meta = StoreMeta("wide", 1 << 17, 1, 1, fps=1.0, variants=("a",))
    with TokenStoreWriter(tmp_path / "store", meta) as writer:
        writer.add("v", np.array([[[[131071]]]]))
        writer.finish()
    assert TokenStore(tmp_path / "store").read(0, 0, 1).item() == 131071


@pytest.mark.parametrize(
    ("args", "words"),
    [((5, 0, 1), "video 5 of"), ((1, 0, 2), "a video of 1 frames"), ((0, 0, 1, 2), "variant 2")],
)
def test_rejects_what_is_not_there(tmp_path, args, words):
    _write(tmp_path / "store")
    with pytest.raises(IndexError, match=words):
        TokenStore(tmp_path / "store").read(*args)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (np.full((2, 1, 2, 3), 8192), r"token id 8192 is not in \[0, 8192\)"),
        (np.full((2, 1, 2, 3), -1), "token id -1"),
        (np.zeros((2, 0, 2, 3), int), "no frames"),
        (np.zeros((1, 1, 2, 3), int), "variants 2"),
    ],
)
def test_writer_rejects_bad_tokens(tmp_path, tokens, words):
    with TokenStoreWriter(tmp_path / "store", META) as writer:
        with pytest.raises(ValueError, match=words):
            writer.add("v", tokens)
        assert writer.entries == []


def test_every_flipped_byte_of_a_shard_is_found(tmp_path):
    _write(tmp_path / "store", [("v", np.ones((2, 1, 2, 3), int))])
    shard = tmp_path / "store" / "shard-00000.bin"
    good = shard.read_bytes()
    for i in range(len(good)):
        shard.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        store = TokenStore(tmp_path / "store")
        with pytest.raises(VimpacError, match=r"shard-00000\.bin: corrupt frame .*'v'.*copy"):
            store.read(0, 0, 1, variant=i // (len(good) // 2))


@pytest.mark.parametrize("name", ["meta.json", "index.bin", "names.bin", "shard-00000.bin"])
@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_damaged_file_is_named(tmp_path, name, damage):
    _write(tmp_path / "store")
    file = tmp_path / "store" / name
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        data[3] ^= 0x80
        file.write_bytes(data if damage == "flipped" else data[:-1])
        if (name, damage) == ("meta.json", "short"):
            file.write_bytes(data[:-9])
    words = r"is no token store" if (name, damage) == ("meta.json", "missing") else name
    with pytest.raises(VimpacError, match=words):
        problems = list(TokenStore(tmp_path / "store").verify())
        raise VimpacError(str(problems[0]))


@pytest.mark.parametrize("cut", range(0, 700, 23))
def test_resumes_from_any_moment_with_the_same_bytes(tmp_path, cut):
    """Whatever was written, the last `cut` bytes of the journal and the shard may be lost."""
    reference, path = tmp_path / "reference", tmp_path / "store"
    _write(reference, shard_bytes=100)
    with TokenStoreWriter(path, META, shard_bytes=100) as writer:
        for name, tokens in _videos()[: 1 + cut % 5]:
            writer.add(name, tokens, label=len(name))
    journal = partial_path(path) / "journal.jsonl"
    os.truncate(journal, max(0, journal.stat().st_size - cut // 2))
    last = sorted(partial_path(path).glob("shard-*.bin"))[-1]
    if cut % 2:  # power loss: the journal is ahead of the shard
        os.truncate(last, max(0, last.stat().st_size - cut // 4))
    _write(path, shard_bytes=100)
    assert _content(path) == _content(reference)
    assert not partial_path(path).exists()


def test_unfinished_store_says_so(tmp_path):
    with TokenStoreWriter(tmp_path / "store", META) as writer:
        writer.add(*_videos()[0])
    with pytest.raises(VimpacError, match="unfinished: run the command"):
        TokenStore(tmp_path / "store")


def test_kill_before_the_last_rename_is_repaired(tmp_path):
    _write(tmp_path / "store")
    os.rename(tmp_path / "store", partial_path(tmp_path / "store"))
    assert is_complete(tmp_path / "store")
    assert len(TokenStore(tmp_path / "store")) == len(FRAMES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(fps=4.0), "fps is 2.0, not 4.0"),
        (dict(height=8), "height is 2, not 8"),
        (dict(tokenizer="dalle"), "tokenizer is 'patch', not 'dalle'"),
        (dict(digest="ab"), "digest is '', not 'ab'"),
        (dict(variants=("a",)), "variants is ['a', 'b'], not ['a']"),
        (dict(compute="float16 on cuda"), "compute is '', not 'float16 on cuda'"),
    ],
)
def test_setting_that_differs_from_the_unfinished_store_is_named(tmp_path, change, said):
    with TokenStoreWriter(tmp_path / "store", META):
        pass
    with pytest.raises(UsageError, match=re.escape(said)):
        TokenStoreWriter(tmp_path / "store", dataclasses.replace(META, **change))


def test_precision_of_the_tokenizer_is_noted_unless_it_is_float32(tmp_path, capsys):
    low = dataclasses.replace(META, compute="float16 on cuda")
    with TokenStoreWriter(tmp_path / "low", low) as writer:
        writer.add(*_videos()[0])
    with pytest.raises(UsageError, match="compute is 'float16 on cuda', not ''"):
        TokenStoreWriter(tmp_path / "low", META)
    with TokenStoreWriter(tmp_path / "low", low) as writer:
        writer.finish()
    assert TokenStore(tmp_path / "low").meta == low
    assert main(["store", "info", str(tmp_path / "low")]) == 0
    assert "patch, 8192 ids, float16 on cuda\n" in capsys.readouterr().out
    _write(tmp_path / "exact")
    assert "compute" not in json.loads((tmp_path / "exact" / "meta.json").read_text())


def test_finished_store_is_not_overwritten(tmp_path):
    _write(tmp_path / "store")
    with pytest.raises(UsageError, match="exists"):
        TokenStoreWriter(tmp_path / "store", META)


def test_two_writers_exclude_each_other(tmp_path):
    with TokenStoreWriter(tmp_path / "store", META):
        with pytest.raises(VimpacError, match="another process"):
            TokenStoreWriter(tmp_path / "store", META)


def test_skipped_videos_are_recorded(tmp_path):
    with TokenStoreWriter(tmp_path / "store", META, shard_bytes=1) as writer:
        for name, tokens in _videos()[:2]:
            writer.skip(name + ".bad", "truncated")
            writer.add(name, tokens)
        writer.skip("last", "empty")
        writer.finish()
    store = TokenStore(tmp_path / "store")
    assert store.skipped[-1] == ("last", "empty")
    assert len(store.skipped) == 3
    assert list(store.verify()) == [None, None]


def test_store_without_videos_is_not_made(tmp_path):
    with TokenStoreWriter(tmp_path / "store", META) as writer:
        writer.skip("v", "bad")
        with pytest.raises(VimpacError, match="no video"):
            writer.finish()
    assert not (tmp_path / "store").exists()


def test_full_disk_keeps_the_videos_before(tmp_path):
    """A shard on the kernel's always-full device: the write fails with ENOSPC."""
    path, videos = tmp_path / "store", _videos()
    with TokenStoreWriter(path, META, shard_bytes=1) as writer:
        writer.add(*videos[0])
        (partial_path(path) / "shard-00001.bin").symlink_to("/dev/full")
        with pytest.raises(OSError, match="shard-00001") as error:
            writer.add(*videos[1])
        assert error.value.errno == errno.ENOSPC
    (partial_path(path) / "shard-00001.bin").unlink()
    with TokenStoreWriter(path, META, shard_bytes=1) as writer:
        assert [entry.name for entry in writer.entries] == [videos[0][0]]
        writer.add(*videos[1])
        writer.finish()
    assert list(TokenStore(path).verify()) == [None, None]


def test_newer_version_is_refused(tmp_path):
    _write(tmp_path / "store")
    file = tmp_path / "store" / "meta.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 2}))
    with pytest.raises(VimpacError, match="version 2"):
        TokenStore(tmp_path / "store")
