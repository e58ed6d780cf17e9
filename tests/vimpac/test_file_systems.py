"""Where a store may be, and what file systems refuse or have no room for."""

import errno
import fcntl
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.vimpac.runs import SETTINGS, make_store
from tests.vimpac.videos import write_video
from vimpac.cli import main
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.files import whole_directory, whole_file


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(3):
        write_video(folder / f"{i}.mp4", range(0, 1000, 100))
    return folder


def _tokenize(videos: Path, out: object) -> int:
    return main(["tokenize", str(videos), "--out", str(out), "--size", "32", "--workers", "1"])


def _content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("out", ["new/", "./new", "new/../new", "deep/er/new", "empty", "empty/"])
@pytest.mark.parametrize("link", ["", "link/"])
def test_store_is_made_at_any_free_path(videos, tmp_path, monkeypatch, link, out):
    (tmp_path / "disk" / "new").parent.mkdir()
    (tmp_path / "disk" / "empty").mkdir()
    (tmp_path / "link").symlink_to("disk")
    monkeypatch.chdir(tmp_path if link else tmp_path / "disk")
    for _ in range(2):
        assert _tokenize(videos, link + out) == 0
    assert len(TokenStore(link + out)) == 3
    monkeypatch.chdir(link + out)
    for here in (".", "./", f"../{Path(out).name}"):
        assert main(["store", "info", here]) == 0
        assert main(["store", "verify", here]) == 0
        assert _tokenize(videos, here) == 0
    assert not [*tmp_path.rglob("*.partial")]


@pytest.mark.parametrize("target", ["empty", "absent"])
def test_store_is_made_where_a_link_leads(videos, tmp_path, target):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(target)
    assert _tokenize(videos, tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink() and len(TokenStore(tmp_path / target)) == 3


def test_place_that_cannot_be_taken_is_refused_before_any_work(videos, tmp_path, capsys):
    (tmp_path / "file").touch()
    places = {"/": "exists", "/proc": "exists", str(tmp_path / "file"): "exists", "": "is empty"}
    places |= {str(videos): "exists", str(tmp_path / "file" / "x"): "Not a directory"}
    places |= {"s3://bucket/x": "is a URL", "x" * 300: "File name too long"}
    for out, words in places.items():
        assert _tokenize(videos, out) != 0
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_mount_point_is_no_place(videos, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    assert _tokenize(videos, tmp_path / "mine") == 2
    assert "mine is a mount point" in capsys.readouterr().err


def test_store_is_made_in_the_current_directory(videos, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir(mode=0o770)
    number = (tmp_path / "mine").stat().st_ino
    monkeypatch.chdir(tmp_path / "mine")
    for _ in range(2):
        assert _tokenize(videos, ".") == 0
    assert len(TokenStore(".")) == 3
    assert (tmp_path / "mine").stat().st_ino == number  # the shell is still in it
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "videos"]


@pytest.mark.parametrize("moved", range(4))
def test_store_that_was_moved_in_part_is_moved_by_the_same_command(
    videos, tmp_path, monkeypatch, capsys, moved
):
    assert _tokenize(videos, tmp_path / "whole") == 0
    real, calls = os.replace, []

    def replace(source, target):
        assert not os.path.isdir(source)  # which not every file system can rename
        calls.append(source)
        if len(calls) > 3 + moved:  # three files are written before
            raise OSError(errno.EIO, "Input/output error", str(source))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert _tokenize(videos, tmp_path / "store") == 1
    capsys.readouterr()
    assert main(["store", "info", str(tmp_path / "store")]) == 1
    assert "is unfinished: run the command" in capsys.readouterr().err
    assert _tokenize(videos, tmp_path / "store") == 0
    assert _content(tmp_path / "store") == _content(tmp_path / "whole")
    assert not (tmp_path / "store.partial").exists()


@pytest.mark.parametrize("where", ["/", ".", "..", "videos", "file", "none"])
def test_what_is_no_store_is_named(videos, tmp_path, monkeypatch, capsys, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for action in ("info", "verify"):
        assert main(["store", action, where]) == 1
        assert f"{where} is no token store" in capsys.readouterr().err


@contextmanager
def _files_up_to(size: int):
    """No file can be longer, as on a disk that has no more room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [0, 1, 10, 40, 90, 110, 150, 200, 250, 600])
def test_write_that_fails_is_one_line_and_the_command_again_goes_on(videos, tmp_path, capsys, size):
    """A disk is full in the journal, in a shard, in meta.json or not at all."""
    assert _tokenize(videos, tmp_path / "whole") == 0
    expected = _content(tmp_path / "whole")
    capsys.readouterr()
    with _files_up_to(size):
        code = _tokenize(videos, tmp_path / "store")
    assert code == (size < 600)  # the journal, the longest file, has about 400 bytes
    assert (tmp_path / "store").exists() == (code == 0)
    error = capsys.readouterr().err.replace("tokenizing", "")
    assert error.count("vimpac: ") == code and "Traceback" not in error
    assert _tokenize(videos, tmp_path / "store") == 0
    assert _content(tmp_path / "store") == expected


def test_run_that_cannot_write_its_settings_keeps_the_old_ones(tmp_path, capsys):
    store, settings = make_store(tmp_path / "store"), tmp_path / "run" / "config.yaml"
    settings.parent.mkdir()
    settings.write_text("of an earlier run")
    words = [*SETTINGS, f"data={store}", f"out={settings.parent}"]
    with _files_up_to(100):
        assert main(["pretrain", "--config", "tiny", *words]) == 1
    assert f"{settings}: File too large" in capsys.readouterr().err
    assert settings.read_text() == "of an earlier run"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_store_is_made_where_locks_are_refused(videos, tmp_path, monkeypatch, capsys, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    assert _tokenize(videos, tmp_path / "whole") == 0
    monkeypatch.setattr(fcntl, "flock", refuse)
    capsys.readouterr()
    assert _tokenize(videos, tmp_path / "store") == 0
    assert capsys.readouterr().err.count("warning: the file system has no locks") == 1
    assert _content(tmp_path / "store") == _content(tmp_path / "whole")
    assert not [*tmp_path.rglob("*-owner")]
    with TokenStoreWriter(tmp_path / "other", TokenStore(tmp_path / "store").meta):
        assert _tokenize(videos, tmp_path / "other") == 1
    assert "another process is writing" in capsys.readouterr().err.splitlines()[-1]


def test_failure_of_every_sync_keeps_what_was_there(videos, tmp_path, monkeypatch, capsys):
    """A network file system may report a full disk only here."""
    real, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == fail_at:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    codes = []
    for fail_at in range(1, 7):  # shard, index.bin, names.bin, meta.json, both directories
        calls.clear()
        codes.append(_tokenize(videos, tmp_path / str(fail_at)))
        error = capsys.readouterr().err
        assert ("disk full writing" in error) == (codes[-1] == 1)
        fail_at = 0
        assert _tokenize(videos, tmp_path / str(fail_at)) == 0
    assert codes == [1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_directory_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch, videos, code):
    real = os.fsync

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert _tokenize(videos, tmp_path / "store") == 0
    with whole_directory(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("a")
    assert (tmp_path / "folder" / "file").read_text() == "a"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EMFILE, errno.ENOTEMPTY])
@pytest.mark.parametrize("before", [False, True])
def test_directory_that_cannot_be_renamed_is_moved_file_by_file(
    tmp_path, monkeypatch, code, before
):
    """As gcsfuse and goofys say it of a bucket."""
    real = os.replace

    def replace(source, target):
        if os.path.isdir(source):
            raise OSError(code, os.strerror(code), str(source))
        real(source, target)

    if before:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "old").touch()
    monkeypatch.setattr(os, "replace", replace)
    with whole_directory(tmp_path / "folder") as temporary:
        for name in "abc":
            (temporary / name).write_text(name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert _content(tmp_path / "folder") == {"a": b"a", "b": b"b", "c": b"c"}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSPC, errno.EIO])
def test_file_that_cannot_be_synced_is_an_error(tmp_path, monkeypatch, code):
    def fsync(descriptor):
        raise OSError(code, os.strerror(code))

    (tmp_path / "file").write_text("before")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="file"), whole_file(tmp_path / "file") as temporary:
        temporary.write_text("after")
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]
    assert (tmp_path / "file").read_text() == "before"
