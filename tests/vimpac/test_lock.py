"""Only one process writes, whether the file system has locks or not."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from vimpac.errors import VimpacError
from vimpac.eval.feature_files import FeatureTable, write_features
from vimpac.lock import lock

REFUSALS = [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP]
HOLD = """
import sys
from pathlib import Path
{before}
from vimpac.lock import lock
held = lock(Path(sys.argv[1]), "it")
print("held", flush=True)
sys.stdin.read()
"""
NO_LOCKS = """
import errno, fcntl
def refuse(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = refuse
"""


def _refuse_locks(monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


def _holder(path, before=""):
    """A process that holds the lock until its standard input ends."""
    code = HOLD.format(before=before)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(params=["locks", "no locks"])
def before(request, monkeypatch):
    """What another process runs first, on a file system with locks and on one without."""
    if request.param == "locks":
        return ""
    _refuse_locks(monkeypatch, errno.ENOSYS)
    return NO_LOCKS


def test_second_process_is_told_what_is_being_written(tmp_path, before):
    with _holder(tmp_path / "lock", before) as other:
        with pytest.raises(VimpacError, match="another process is writing the run: wait for it"):
            lock(tmp_path / "lock", "the run")
        other.stdin.close()


def test_one_that_was_killed_holds_nothing(tmp_path, before):
    with _holder(tmp_path / "lock", before) as other:
        other.kill()
    lock(tmp_path / "lock", "it").close()


def test_one_process_cannot_hold_it_twice(tmp_path, before):
    held = lock(tmp_path / "lock", "it")
    with pytest.raises(VimpacError, match="another process"):
        lock(tmp_path / "lock", "it")
    held.close()
    held.close()
    lock(tmp_path / "lock", "it").close()


def test_forked_processes_do_not_keep_it(tmp_path):
    held = lock(tmp_path / "lock", "it")
    child = os.fork()
    if child == 0:
        signal.pause()
    held.close()
    try:
        lock(tmp_path / "lock", "it").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("number", REFUSALS)
def test_file_system_without_locks_is_one_warning(tmp_path, monkeypatch, capsys, number):
    _refuse_locks(monkeypatch, number)
    held = lock(tmp_path / "lock", "it")
    assert capsys.readouterr().err.count("warning: the file system has no locks") == 1
    owner = tmp_path / "lock-owner"
    assert owner.read_text().splitlines()[:2] == [socket.gethostname(), str(os.getpid())]
    held.close()
    assert not owner.exists()


def test_number_of_a_process_that_is_used_again_is_no_owner(tmp_path, monkeypatch):
    """A container starts its processes with the same numbers."""
    _refuse_locks(monkeypatch, errno.ENOSYS)
    (tmp_path / "lock-owner").write_text(f"{socket.gethostname()}\n{os.getpid()}\n1\nthen\n")
    lock(tmp_path / "lock", "it").close()


@pytest.mark.parametrize("text", ["elsewhere\n1\n2\nthen\n", "", "half a li"])
def test_owner_that_nobody_can_ask_is_left_to_the_user(tmp_path, monkeypatch, text):
    _refuse_locks(monkeypatch, errno.ENOSYS)
    (tmp_path / "lock-owner").write_text(text)
    with pytest.raises(VimpacError, match=r"another process.*if it is gone, remove \S+lock-owner"):
        lock(tmp_path / "lock", "it")


def test_file_that_its_last_owner_removes_is_no_lock(tmp_path, monkeypatch):
    """The first owner unlinks the file just when the second has opened it."""
    path = tmp_path / "lock"
    first, flock = [lock(path, "it")], fcntl.flock

    def unlink_before(file, operation) -> None:
        if first:
            path.unlink()
            monkeypatch.setattr(fcntl, "flock", flock)
            first.pop().close()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", unlink_before)
    second = lock(path, "it")
    with pytest.raises(VimpacError, match="another process is writing it"):
        lock(path, "it")
    second.close()


def test_other_errors_name_the_file(tmp_path, monkeypatch):
    _refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="lock"):
        lock(tmp_path / "lock", "it")


def test_second_writer_is_refused_and_the_first_one_goes_on(tmp_path):
    table = FeatureTable(2, str, 3, None, lambda place: np.zeros((1, 2)), ["x"])
    out = tmp_path / "f.npz"

    def rows():
        yield np.full(3, 1, np.float32)
        with pytest.raises(VimpacError, match=f"another process is writing {out}: wait for it"):
            write_features(out, table, iter(np.zeros((2, 3), np.float32)))
        yield np.full(3, 2, np.float32)

    write_features(out, table, rows())
    with np.load(out) as arrays:
        assert arrays["features"].tolist() == [[1, 1, 1], [2, 2, 2]]
    assert [*tmp_path.iterdir()] == [out]
