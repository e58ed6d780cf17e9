"""The files that `vimpac simvtp` writes: never in the place of another one."""

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
