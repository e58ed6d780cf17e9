"""Whatever videos are called and however they are laid out, they are found once and by name."""

import io
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.vimpac.videos import write_video
from vimpac.cli import main
from vimpac.data.sources import SUFFIXES, find_videos
from vimpac.data.store import TokenStore
from vimpac.errors import UsageError, VimpacError
from vimpac.paths import local_path, on_one_line

NAMES = (  # none of them a URL, a protocol, a pattern, an option or a line of its own
    *("clip-10:30.mp4", "http:x.mp4", "pipe:0.mp4", "concat:a|b.mp4", "file:x.mp4", "data:,x.mp4"),
    *("%03d.mp4", "a%20b.mp4", "50%.mp4", "%s.mp4", "*.mp4", "?.mp4", "[1].mp4", "{1,2}.mp4"),
    *("-dash.mp4", "--dash.mp4", "sp ace.mp4", " .mp4", "é.mp4", "e\u0301.mp4", "\u3000影.mp4"),
    *("new\nline.mp4", "\x1b[31m.mp4", "a=b.mp4", "a\\b.mp4", "'\".mp4", "#1.mp4", "$HOME.mp4"),
    *("~.mp4", "@x.mp4", "[bold].mp4", os.fsdecode(b"\xff\xfe.mp4")),
)


def _make(folder: Path, *names: str) -> Path:
    """Empty files."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()
    return folder


def _names(*arguments: object, **more) -> list[str]:
    return [name for name, _ in find_videos([str(argument) for argument in arguments], **more)]


def test_videos_are_found_in_order_with_unique_names(tmp_path):
    _make(tmp_path, "b/2.mp4", "b/1.MKV", "a.avi", "notes.txt", "c/1.MKV", "d.mp4/inside.mp4")
    expected = ["a.avi", "b/1.MKV", "b/2.mp4", "c/1.MKV", "d.mp4/inside.mp4"]
    assert _names(tmp_path) == expected
    with pytest.raises(VimpacError, match=r"b/1\.MKV and .*c/1\.MKV would both be named '1\.MKV'"):
        find_videos([str(tmp_path / "b"), str(tmp_path / "c")])
    with pytest.raises(VimpacError, match="does not exist"):
        find_videos([str(tmp_path / "none.mp4")])


def test_same_file_twice_counts_once(tmp_path):
    _make(tmp_path, "a.mp4")
    (tmp_path / "link").symlink_to(tmp_path)
    a = tmp_path / "a.mp4"
    assert _names(a, a, tmp_path, tmp_path / "link" / "a.mp4") == ["a.mp4"]


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_ending_is_found_in_any_case(tmp_path, suffix):
    _make(tmp_path, f"a{suffix}", f"b{suffix.upper()}")
    assert len(_names(tmp_path)) == 2


@pytest.mark.parametrize("how", ["directory", "files", "relative", "list"])
def test_any_name_is_tokenized_and_kept(tmp_path, monkeypatch, capsys, how):
    video = write_video(tmp_path / "video.mp4", range(0, 1000, 100))
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in NAMES:
        shutil.copyfile(video, folder / name)
    monkeypatch.chdir(folder)
    names = [name for name in NAMES if how != "list" or "\n" not in name]
    (tmp_path / "list").write_bytes(b"\n".join(map(os.fsencode, names)))
    words = {
        "directory": ["."],
        "files": [str(folder / name) for name in names],
        "relative": names,
        "list": ["--list", str(tmp_path / "list")],
    }[how]
    out = tmp_path / "store"
    command = ["tokenize", *words, "--out", str(out), "--size", "32", "--workers", "1"]
    assert main(command) == 0, capsys.readouterr().err
    store = TokenStore(out)
    assert sorted(store.name(i) for i in range(len(store))) == sorted(names)
    assert store.skipped == []
    assert main(["store", "info", str(out)]) == 0
    assert main(command) == 0  # the finished store is recognised


def test_unreadable_names_are_printed_on_one_line_each(tmp_path, capsys):
    write_video(tmp_path / "good.mp4", range(0, 1000, 100))
    bad = ["new\nline.mp4", "\x1b]0;title\x07.mp4", os.fsdecode(b"\xff.mp4"), "u\u2028.mp4"]
    _make(tmp_path, *bad)
    out = str(tmp_path / "store")
    main(["tokenize", str(tmp_path), "--out", out, "--size", "32", "--workers", "1"])
    main(["store", "info", out])
    printed = "".join(capsys.readouterr())
    for name in bad:
        lines = [line for line in printed.splitlines() if on_one_line(name) in line]
        assert len(lines) == 3 and name not in printed


def test_name_that_the_terminal_cannot_show_is_escaped(tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["store", "info", "影"]) == 1
    terminal.flush()
    assert rb"\u5f71 is no token store" in terminal.buffer.getvalue()


def test_links_to_files_and_directories_are_followed_each_directory_once(tmp_path):
    _make(tmp_path / "disk", "b.mp4", "deep/c.mp4")
    data = _make(tmp_path / "data", "a.mp4", "own/d.mp4")
    (data / "train").symlink_to(tmp_path / "disk")
    (data / "train2").symlink_to(tmp_path / "disk")  # the same again
    (data / "a link").symlink_to("own")  # which stands here under its own name
    (data / "own/loop").symlink_to("..")
    (tmp_path / "disk/self").symlink_to(".")
    (data / "ring").symlink_to("ring")
    (data / "e.mp4").symlink_to("a.mp4")
    expected = ["a.mp4", "e.mp4", "own/d.mp4", "train/b.mp4", "train/deep/c.mp4"]
    assert _names(data) == expected
    (tmp_path / "link").symlink_to(data)
    assert _names(tmp_path / "link") == expected


def test_link_that_leads_nowhere_is_skipped_and_the_others_are_not(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    for i in range(20):
        write_video(data / f"{i}.mp4", range(0, 1000, 100))
    (data / "gone.mp4").symlink_to("/nonexistent/gone.mp4")
    (data / "train").symlink_to("/nonexistent/train")
    for how, words in {"tree": [data], "glob": sorted(data.glob("*.mp4"))}.items():
        out = tmp_path / how
        command = ["tokenize", *map(str, words), "--out", str(out), "--size=32", "--workers=1"]
        assert main(command) == 0
        error = capsys.readouterr().err
        assert "skipped gone.mp4: No such file or directory" in error
        assert ("data/train: a link to /nonexistent/train, which" in error) == (how == "tree")
        assert len(TokenStore(out)) == 20
    alone = ["tokenize", str(data / "gone.mp4"), "--out", str(tmp_path / "alone")]
    assert main(alone) == 1
    assert not (tmp_path / "alone").exists()


def test_what_is_passed_over_is_counted_by_ending(tmp_path):
    files = [f"{i}.jpg" for i in range(10)] + ["a.txt", "b.TXT", "._clip.mp4", "README", "clip.mp4"]
    _make(tmp_path, *files)
    os.mkfifo(tmp_path / "pipe.mp4")  # which would be waited for
    said = []
    assert _names(tmp_path, report=said.append) == ["clip.mp4"]
    assert said == [
        f"{tmp_path}: passed over 15 files: 10 .jpg, 2 .txt, 1 hidden, 1 without ending, "
        "1 no regular file"
    ]
    (tmp_path / "clip.mp4").unlink()
    with pytest.raises(VimpacError, match=r"holds no video file \(.*, but 15 files: 10 \.jpg"):
        find_videos([str(tmp_path)])


def test_directory_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    _make(tmp_path, "a.mp4", "lost+found/b.mp4")
    scandir = os.scandir

    def refuse(path):
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    said = []
    assert _names(tmp_path, report=said.append) == ["a.mp4"]
    assert said == [f"passed over {tmp_path}/lost+found: Permission denied"]


def test_list_names_videos_by_their_paths(tmp_path, monkeypatch):
    _make(tmp_path, "a/x.mp4", "b/x.mp4", "no ending", "c/y.mp4", "c/z.txt")
    monkeypatch.chdir(tmp_path)
    lines = ["a/x.mp4 ", "./b/x.mp4", "", "no ending", "c", "gone.mp4", f"{tmp_path}/a/x.mp4"]
    expected = ["a/x.mp4", "b/x.mp4", "no ending", "c/y.mp4", "gone.mp4", f"{tmp_path}/a/x.mp4"]
    for text in ("\n".join(lines), "\r\n".join(lines) + "\r\n", "\ufeff" + "\n".join(lines)):
        Path("list").write_bytes(text.encode())
        assert _names(listed="list") == expected
    Path("list").write_bytes(b"a/x.mp4\0new\nline.mp4\0")  # of find -print0
    assert _names(listed="list") == ["a/x.mp4", "new\nline.mp4"]
    stdin = io.TextIOWrapper(io.BytesIO(b"b/x.mp4\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert _names("a", listed="-") == ["x.mp4", "b/x.mp4"]


@pytest.mark.parametrize("lines", ["", "\n\n", "gone/1.mp4\ngone/2.mp4\n", "a/x.mp4 1\n"])
def test_list_of_nothing_is_refused(tmp_path, monkeypatch, lines):
    _make(tmp_path, "a/x.mp4")
    monkeypatch.chdir(tmp_path)
    Path("list").write_text(lines)
    with pytest.raises(UsageError, match="--list list names nothing that exists"):
        find_videos([], "list")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "no video is given"),
        ([""], 2, "a path is empty"),
        (["--list", "none.txt"], 1, "none.txt: No such file"),
        (["-none.mp4"], 2, "unrecognized arguments: -none.mp4"),
        (["x" * 5000 + ".mp4"], 1, "does not exist"),
        (["/dev/null"], 1, "/dev/null is no regular file"),
    ],
)
def test_wrong_sources_are_one_line(tmp_path, capsys, words, code, message):
    assert main(["tokenize", *words, "--out", str(tmp_path / "store")]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("url", ["s3://bucket/x", "file:///x", "hdfs://a/b", "S3://x", "gs:/x"])
def test_url_is_no_local_path(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="is a URL"):
        local_path(url)
    with pytest.raises(UsageError, match="is a URL"):
        local_path(Path(url))


@pytest.mark.parametrize("name", ["clip-10:30.mp4", "http:x.mp4", "./s3:/x", "/s3:/x", "9:/x", "a"])
def test_path_with_a_colon_is_a_local_path(name):
    assert local_path(name) == Path(name)
