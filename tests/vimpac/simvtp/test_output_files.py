"""The files that `vimpac simvtp` writes: never in the place of another one."""

import errno
import os
from pathlib import Path

import pytest

from vimpac.cli import main

WRITERS = (
    ("retrieve", "absent", "--videos", "v", "--data", "c.csv", "--json", "{}/a.json"),
    ("embed", "absent", "--videos", "v", "--out", "{}/a.npz"),
    ("embed", "absent", "--texts", "t.txt", "--out", "{}/a.npz"),
    ("visualise", "absent", "v.mkv", "--caption", "a", "--out", "{}/a.png"),
)


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_file_that_is_there_is_not_replaced(tmp_path, capsys, words, dangling):
    words = [word.format(tmp_path) for word in words]
    file = tmp_path / words[-1]
    file.symlink_to("nowhere") if dangling else file.write_text("captions")
    assert main(["simvtp", *words]) == 2
    assert f"{words[-2]} {file} exists already: remove it or" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [file]
    assert file.is_symlink() if dangling else file.read_text() == "captions"


@pytest.mark.parametrize("name", ["a" * 248, "a" * 300])  # `.tmp-` and a suffix follow
@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_name_that_is_too_long_is_refused_before_the_work(tmp_path, capsys, words, name):
    words = [word.format(tmp_path).replace("a.", f"{name}.") for word in words]
    assert main(["simvtp", *words]) == 2
    error = capsys.readouterr().err
    assert f"{name}." in error and "cannot be written (File name too long): name an" in error
    assert ".tmp-" not in error


@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_directory_that_takes_no_file_is_refused_before_the_work(
    tmp_path, monkeypatch, capsys, words
):
    def open_read_only(path, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", open_read_only)
    words = [word.format(tmp_path) for word in words]
    assert main(["simvtp", *words]) == 2
    assert f"{words[-1]} cannot be written (Read-only file system)" in capsys.readouterr().err


@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_temporary_file_of_another_process_stays(tmp_path, capsys, words):
    words = [word.format(tmp_path) for word in words]
    other = tmp_path / f".tmp-{Path(words[-1]).name}"
    other.write_text("being written")
    assert main(["simvtp", *words]) in (1, 2)
    assert "cannot be written" not in capsys.readouterr().err
    assert other.read_text() == "being written"


def test_numbers_are_printed_though_their_file_cannot_be_written(tmp_path, monkeypatch, capsys):
    from vimpac.simvtp import search

    def fill_the_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(search, "test", lambda args: (["R@1 12 %"], {"r1": 0.12}))
    monkeypatch.setattr("vimpac.files.sync", fill_the_disk)
    words = "retrieve", "absent", "--videos", "v", "--data", "c.csv", "--json"
    assert main(["simvtp", *words, str(tmp_path / "a.json")]) == 1
    said = capsys.readouterr()
    assert said.out == "R@1 12 %\n" and "disk full writing" in said.err
    assert not [*tmp_path.iterdir()]


def test_a_text_whose_length_all_names_would_take_is_refused(tmp_path, capsys):
    texts = tmp_path / "texts.txt"
    texts.write_text("a red disk\n\n" + "a" * 2001 + "\n")
    words = "embed", "absent", "--texts", str(texts), "--out", f"{tmp_path}/a.npz"
    assert main(["simvtp", *words]) == 2
    assert f"{texts}, line 3 has 2,001 characters: shorten it to 2,000" in capsys.readouterr().err
    texts.write_text(" \n")
    assert main(["simvtp", *words]) == 2
    assert f"{texts} has no text" in capsys.readouterr().err
