"""Stores are joined without reading a token, and a store that grows is never half of one."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vimpac.cli import main
from vimpac.data.merge import add_to_store, merge_stores
from vimpac.data.parts import make_plan
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError, VimpacError
from vimpac.lock import lock

META = StoreMeta("patch", 8192, 2, 3, fps=2.0, variants=("a", "b"))
Video = tuple[str, np.ndarray]


def _videos(count: int) -> list[Video]:
    rng = np.random.default_rng(0)
    names = ["dir/vidéo", os.fsdecode(b"\xff\xfe"), "x y"]
    return [
        (f"{names[i % 3]}{i}.mp4", rng.integers(0, 8192, (2, int(rng.integers(1, 9)), 2, 3)))
        for i in range(count)
    ]


def _write(path: Path, videos: list[Video], meta: StoreMeta = META, skipped: str = "") -> Path:
    with TokenStoreWriter(path, meta, shard_bytes=200) as writer:  # several shards
        for name, tokens in videos:
            writer.add(name, tokens, label=len(name), note=f"note on {name}")
        if skipped:
            writer.skip(skipped, "a reason")
        writer.finish(may_be_empty=True)
    return path


def _check(path: Path, videos: list[Video]) -> None:
    store = TokenStore(path)
    assert [store.name(i) for i in range(len(store))] == [name for name, _ in videos]
    assert store.notes == [(name, f"note on {name}") for name, _ in videos]
    for i, (name, tokens) in enumerate(videos):
        assert store.label(i) == len(name)
        for variant in range(2):
            read = store.read(i, 0, store.num_frames(i), variant)
            np.testing.assert_array_equal(read, tokens[variant])


def _content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_stores_are_joined_by_links(tmp_path):
    videos = _videos(12)
    sources = [
        _write(tmp_path / "a", videos[:5]),
        _write(tmp_path / "none", [], skipped="bad.mp4"),
        _write(tmp_path / "b", videos[5:]),
    ]
    before = [_content(source) for source in sources]
    merge_stores(sources, tmp_path / "s")
    _check(tmp_path / "s", videos)
    assert TokenStore(tmp_path / "s").skipped == [("bad.mp4", "a reason")]
    assert [_content(source) for source in sources] == before
    files = {file.stat().st_ino for source in sources for file in source.glob("shard-*")}
    assert {file.stat().st_ino for file in (tmp_path / "s").glob("shard-*")} <= files
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "none", "s"]


def test_shards_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    def refuse(*names: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    videos = _videos(6)
    merge_stores(
        [_write(tmp_path / "a", videos[:2]), _write(tmp_path / "b", videos[2:])], tmp_path / "s"
    )
    _check(tmp_path / "s", videos)


def test_what_cannot_be_joined_is_refused(tmp_path):
    videos = _videos(4)
    first = _write(tmp_path / "a", videos[:2])
    fps = _write(tmp_path / "fps", videos[2:], dataclasses.replace(META, fps=4.0))
    again = _write(tmp_path / "again", videos[1:3])
    out = tmp_path / "s"
    for others, words in (
        ([fps], "fps does not fit .*a .fps is 4.0, not 2.0.: only stores of the same settings"),
        ([again], f"'{videos[1][0]}' is in .*/a and in .*/again: give one"),
        ([first], "is in .*/a and in .*/a: give one"),
    ):
        with pytest.raises(UsageError, match=words):
            merge_stores([first, *others], out)
    with pytest.raises(VimpacError, match="no video"):
        merge_stores([_write(tmp_path / "none", [], skipped="x")], out)
    (again / "shard-00000.bin").write_bytes(b"")
    with pytest.raises(VimpacError, match=r"again/shard-00000\.bin is damaged: make"):
        merge_stores([again], out)
    assert not out.exists() and not [*tmp_path.glob(".*")]
    merge_stores([first], out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    second = _write(tmp_path / "second", videos[2:])
    for taken in (out, first, tmp_path / "full"):
        with pytest.raises(UsageError, match="exists: remove it or name another output"):
            merge_stores([second], taken)


def test_same_merge_again_changes_nothing(tmp_path):
    videos = _videos(4)
    stores = [_write(tmp_path / "a", videos[:2]), _write(tmp_path / "b", videos[2:])]
    out = tmp_path / "s"
    merge_stores(stores, out)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert len(merge_stores(stores, out)) == 4
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    with pytest.raises(UsageError, match="exists: remove it or name another output"):
        merge_stores(stores[::-1], out)


def test_what_is_no_store_is_not_merged(tmp_path):
    videos = _videos(2)
    first = _write(tmp_path / "a", videos)
    with pytest.raises(VimpacError, match="is no token store"):
        merge_stores([tmp_path / "absent"], tmp_path / "t")
    with TokenStoreWriter(tmp_path / "u", META) as writer:
        writer.add(*videos[0])
    with pytest.raises(UsageError, match=r"u is unfinished: remove .*u\.partial"):
        merge_stores([first], tmp_path / "u")
    assert (tmp_path / "u.partial" / "journal.jsonl").is_file()


def test_missing_parts_are_named_and_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parts = tmp_path / "s.parts"
    videos = _videos(3)
    names = [f"{part}.mp4" for part in range(9)]
    for part, (name, _) in zip((1, 4, 0), videos, strict=True):
        names[part] = name
    make_plan(tmp_path / "s", 9, {}, lambda: [(name, tmp_path / name) for name in names])
    last = videos.pop()
    for part, video in zip((1, 4), videos, strict=True):
        _write(parts / f"part-{part:05d}", [video])
    (parts / "part-00002.partial").mkdir()
    for given in (["s.parts"], ["s.parts/part-00001", "s.parts/part-00002.partial"]):
        assert main(["store", "merge", *given, "--out=s"]) == 1
        error = capsys.readouterr().err
        assert "missing or unfinished: s.parts/part-00000, s.parts/part-00002, s" in error
        assert "and 2 more: run" in error or "and 3 more: run" in error
    assert main(["store", "merge", "s.parts", "--out=s", "--allow-missing"]) == 0
    assert capsys.readouterr().err.count("is left out") == 7
    _check(tmp_path / "s", videos)
    assert main(["store", "info", "s"]) == 0
    assert "missing    part-00008" in capsys.readouterr().out
    _write(parts / "part-00000", [last])
    assert main(["store", "add", "s", "s.parts/part-00000"]) == 0
    assert "s: 3 videos" in capsys.readouterr().out
    assert main(["store", "merge", "s.parts", "s", "--out=t", "--allow-missing"]) == 2


def test_videos_are_appended(tmp_path):
    videos = _videos(9)
    path = _write(tmp_path / "s", videos[:3], skipped=videos[4][0])
    reader = TokenStore(path)
    add_to_store(path, [_write(tmp_path / "b", videos[3:6]), _write(tmp_path / "c", videos[6:])])
    _check(path, videos)
    assert TokenStore(path).skipped == []  # it was read the second time
    np.testing.assert_array_equal(reader.read(0, 0, 1), videos[0][1][0, :1])
    before = _content(path)
    with pytest.raises(UsageError, match="is in"):
        add_to_store(path, [tmp_path / "b"])
    assert _content(path) == before


@pytest.mark.parametrize("moment", ["aside", "named"])
def test_store_outlives_a_process_that_is_killed_while_it_grows(tmp_path, monkeypatch, moment):
    """Stops at either rename, as SIGKILL would: nothing that cleans up runs any more."""
    videos = _videos(6)
    path = _write(tmp_path / "s", videos[:3])
    other = _write(tmp_path / "b", videos[3:])
    source = f"""
import os, sys
from pathlib import Path
from vimpac.data.merge import add_to_store
replace = os.replace
def stop(a, b):
    replace(a, b)
    if Path(b).name == {".old-s" if moment == "aside" else "s"!r}:
        os._exit(9)
os.replace = stop
add_to_store(Path({str(path)!r}), [Path({str(other)!r})])
"""

    assert subprocess.run([sys.executable, "-c", source]).returncode == 9
    if moment == "aside":
        assert not path.exists()
        add_to_store(path, [other])
    else:
        with pytest.raises(UsageError, match="is in"):
            add_to_store(path, [other])
    _check(path, videos)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b", "s"]


def test_merge_that_is_killed_where_nothing_renames_directories(tmp_path):
    """Where directories cannot be renamed, files move one by one: meta.json is the last."""
    videos = _videos(6)
    parts = [_write(tmp_path / "a", videos[:3]), _write(tmp_path / "b", videos[3:])]
    moves = len([*(parts[0].iterdir()), *parts[1].glob("shard-*")])
    source = f"""
import errno, os, sys
from pathlib import Path
from vimpac.cli import main
replace, left = os.replace, int(sys.argv[1])
def move(a, b):
    global left
    if Path(a).is_dir():
        raise OSError(errno.ENOSYS, "no renames")
    left -= 1
    if left < 0:
        os._exit(9)
    replace(a, b)
os.replace = move
sys.exit(main(["store", "merge", {str(parts[0])!r}, {str(parts[1])!r}, "--out=" + sys.argv[2]]))
"""
    for left in (1, moves - 1, moves + 1):
        out = tmp_path / str(left)
        command = [sys.executable, "-c", source, str(left), str(out)]
        assert subprocess.run(command).returncode == 9
        assert not (out / "meta.json").exists()
        assert main(["store", "merge", *map(str, parts), f"--out={out}"]) == 0
        _check(out, videos)
        assert not Path(f"{out}.partial").exists()


def test_two_processes_do_not_grow_a_store_at_once(tmp_path):
    path = _write(tmp_path / "s", _videos(2))
    held = lock(tmp_path / ".lock-s", "it")
    with pytest.raises(VimpacError, match="another process is writing"):
        add_to_store(path, [_write(tmp_path / "b", _videos(4)[2:])])
    held.close()
