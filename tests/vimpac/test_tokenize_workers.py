"""Whatever a video does to the process that reads it, it is listed and the others go on."""

import errno
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import av
import numpy as np
import pytest

from tests.vimpac.videos import write_video
from vimpac.data.journal import Tries
from vimpac.data.store import TokenStore
from vimpac.data.store_format import StoreMeta
from vimpac.data.tokenize import TokenizeSettings, tokenize_videos
from vimpac.data.tokenize_workers import MOST_TRIES, outcomes
from vimpac.data.video import UnreadableVideo
from vimpac.data.workers import Workers
from vimpac.data.writer import TokenStoreWriter
from vimpac.errors import VimpacError

ROOT = Path(__file__).parents[2]


def _send_half(connection, data, *_):
    """Ends this process in the middle of a message."""
    os.write(connection.fileno(), bytes(data[: len(data) // 2]))
    os.kill(os.getpid(), signal.SIGKILL)


def _work(path, *, note, alive, lap, send):
    """Does what the name of the video says."""
    kind = path.name.partition("-")[0]
    tries = path.with_suffix(".tries")
    with tries.open("a") as file:
        file.write("x")
    if kind == "crash" or (kind == "flaky" and tries.stat().st_size == 1):
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "half" and tries.stat().st_size == 1:
        Connection._send = _send_half
    if kind == "hang":
        time.sleep(600)
    if kind == "slow":
        for _ in range(12):
            time.sleep(0.25)
            alive()
    if kind == "last":
        _wait_until(lambda: _begun(path.parent) > 20)
    if kind == "refused":
        raise UnreadableVideo("is no video")
    if kind == "error":
        raise ValueError("two\nlines")
    if kind == "memory":
        raise MemoryError
    if kind == "files" and tries.stat().st_size == 1:
        raise av.error.OSError(errno.EMFILE, "Too many open files")
    if kind == "threads":
        raise av.error.BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    if kind == "device":
        import torch  # here, so that the workers of the other tests start at once

        raise torch.OutOfMemoryError("CUDA out of memory")
    note(f"note of {path.name}")
    lap("work")
    return np.full((1, 1, 2, 2), len(path.name))


def _begun(folder: Path) -> int:
    """How many videos have been begun."""
    return len([*folder.glob("*.tries")])


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _make_work():
    return _work


def _megabyte(path, alive, send):
    """A result of so many bytes; of the first video, how many were begun meanwhile."""
    path.with_suffix(".tries").touch()
    if path.name != "first":
        return bytes(1 << 20)
    _wait_until(lambda: _begun(path.parent) > 3)
    time.sleep(0.5)
    return _begun(path.parent)


def _make_megabytes():
    return _megabyte


class _Journal(Tries):
    """What the writer would know."""

    def __init__(self, tries: dict[str, int] | None = None) -> None:
        super().__init__()
        self.tries.update(tries or {})
        self.begun: list[str] = []

    def begin(self, name: str) -> None:
        super().begin(name)
        self.begun.append(name)


def _outcomes(folder, names, journal, *, workers, timeout=60.0, make_work=_make_work):
    return outcomes(
        [(name, folder / name) for name in names],
        make_work,
        workers=workers,
        timeout=timeout,
        record=journal,
    )


def _run(folder, names, *, workers, timeout=60.0):
    journal = _Journal()
    found = _outcomes(folder, names, journal, workers=workers, timeout=timeout)
    return dict(zip(names, found, strict=True)), journal


NAMES = ["a", "refused-1", "b", "error-1", "memory-1", "files-1", "threads-1", "c"]


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_a_video_are_its_reason(tmp_path, workers):
    found, _ = _run(tmp_path, NAMES, workers=workers)
    assert [name for name in NAMES if found[name].tokens is not None] == ["a", "b", "files-1", "c"]
    assert [found[name].text for name in "abc"] == [f"note of {name}" for name in "abc"]
    assert found["refused-1"].text == "is no video"
    assert found["error-1"].text == "ValueError: two lines"
    for name in ("memory-1", "threads-1"):
        assert found[name].text.startswith("needs more memory, threads or open files")
    assert (tmp_path / "memory-1.tries").stat().st_size == MOST_TRIES


def test_video_that_ends_its_process_or_hangs_is_listed_after_three_tries(tmp_path):
    names = ["crash-1", "flaky-1", "hang-1", "slow-1", "a"]
    found, journal = _run(tmp_path, names, workers=2, timeout=2.0)
    assert found["crash-1"][:2] == (
        None,
        "ended its process: out of memory, or a crash of the decoder (3 times)",
    )
    assert found["hang-1"][:2] == (None, "made no progress for 2 s (3 times)")
    assert found["slow-1"].tokens is not None  # two seconds in all, but it goes on
    assert found["flaky-1"].tokens is not None and found["a"].tokens is not None
    assert Counter(journal.begun) == {"crash-1": 3, "flaky-1": 2, "hang-1": 3, "slow-1": 1, "a": 1}


def test_video_under_way_in_killed_runs_is_tried_alone_and_then_listed(tmp_path):
    journal = _Journal({"b": 1, "c": MOST_TRIES})
    events = journal.begun
    found = {}
    for name, outcome in zip(
        "abcde", _outcomes(tmp_path, "abcde", journal, workers=2), strict=True
    ):
        events.append(f"{name} done")
        found[name] = outcome
    assert events[:4] == ["a", "a done", "b", "b done"]  # with nothing else under way
    assert found["c"][:2] == (None, "was under way when the process was killed (3 times)")
    assert not (tmp_path / "c.tries").exists()
    assert [name for name in "abde" if found[name].tokens is None] == []


def test_long_video_does_not_hold_the_others_up(tmp_path):
    """Twenty others are begun before the first ends, and the order stays."""
    names = ["last-1", *map(str, range(40))]
    found = [outcome.text for outcome in _outcomes(tmp_path, names, _Journal(), workers=2)]
    assert found == [f"note of {name}" for name in names]


def test_results_that_wait_are_bounded_by_their_bytes(tmp_path):
    workers = Workers(_make_megabytes, 2, 60.0, most_waiting=3 << 20)
    try:
        results = [workers.start(tmp_path / name) for name in ("first", *"abcdef")]
        assert results[0]() == 4  # itself, and three that are a megabyte each
        assert [len(result()) for result in results[1:]] == [1 << 20] * 6
    finally:
        workers.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_full_disk_ends_the_run_where_a_video_is_begun(tmp_path, workers):
    class Full(_Journal):
        def begin(self, name: str) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        list(_outcomes(tmp_path, ["a", "b"], Full(), workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_device_that_fails_ends_the_run(tmp_path, workers):
    """It is not the video's fault, and the journal lets the run go on."""
    with pytest.raises(VimpacError, match=r"the device failed at .*device-1 \(CUDA out of memory"):
        _run(tmp_path, ["a", "device-1"], workers=workers)


META, TOKENS = StoreMeta("patch", 16, 2, 2, 1.0), np.zeros((1, 1, 2, 2), np.int64)


def _killed_while_writing(path, *, done):
    """A process that is killed while it works on "b"."""

    def write():
        writer = TokenStoreWriter(path, META)
        for name in done:
            writer.journal.begin(name)
            writer.add(name, TOKENS, note=f"of {name}")
        writer.journal.begin("b")
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_journal_counts_tries_of_killed_processes_only(tmp_path):
    path = tmp_path / "store"
    _killed_while_writing(path, done=["a"])
    _killed_while_writing(path, done=[])
    with TokenStoreWriter(path, META) as writer:
        assert [entry.note for entry in writer.entries] == ["of a"]
        assert dict(writer.journal.tries) == {"b": 2}
    with TokenStoreWriter(path, META) as writer:
        assert not writer.journal.tries  # closed in good order
        writer.journal.begin("b")
        writer.add("b", TOKENS)
        writer.finish()
    assert TokenStore(path).notes == [("a", "of a")]


def test_video_that_ended_but_is_not_written_is_no_suspect(tmp_path):
    """Only the first was under way when the process was killed; the others wait for it."""
    path, names = tmp_path / "store", ["hang-1", "a", "refused-1", *"bcde"]

    def write():
        writer = TokenStoreWriter(path, META)
        next(_outcomes(tmp_path, names, writer.journal, workers=2))

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    journal = tmp_path / "store.partial" / "journal.jsonl"
    _wait_until(lambda: journal.is_file() and journal.read_text().count("ended") == 6)
    process.kill()
    process.join()
    with TokenStoreWriter(path, META) as writer:
        assert not writer.entries
        assert dict(writer.journal.tries) == {"hang-1": 1}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_command_and_blames_no_video(tmp_path, how):
    videos = tmp_path / "videos"
    videos.mkdir()
    for i, length in enumerate((1000, 60_000)):
        write_video(videos / f"{i}.mp4", range(0, length, 100))
    out = tmp_path / "store"
    command = [sys.executable, "-m", "vimpac", "tokenize", str(videos), "--out", str(out)]
    command += ["--fps", "30", "--size", "64", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    journal = tmp_path / "store.partial" / "journal.jsonl"
    while process.poll() is None and not (journal.is_file() and '["0.mp4"' in journal.read_text()):
        time.sleep(0.01)  # until the first is done and the second under way
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in error and "Traceback" not in error
    assert journal.read_text().endswith("null\n")
    settings = TokenizeSettings(size=64, fps=30)
    store = tokenize_videos([(f"{i}.mp4", videos / f"{i}.mp4") for i in range(2)], out, settings)
    assert len(store) == 2


def test_orphaned_workers_leave(tmp_path):
    """A worker whose parent was killed does not stay behind."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys, time, multiprocessing as m\n"
        "from vimpac.data.worker_process import prepare\n"
        "def idle(conn):\n"
        "    prepare(60.0); conn.send(os.getpid()); time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    a, b = m.Pipe()\n"
        "    m.get_context('spawn').Process(target=idle, args=(b,)).start()\n"
        "    print(a.recv(), flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env)
    worker = int(run.stdout)
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists() or "Z" in _state(worker):
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its parent")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_that_ends_while_it_sends_its_result_costs_one_try(tmp_path, workers):
    names = ["a", "half-1", "b", "c", "d"]
    found, journal = _run(tmp_path, names, workers=workers)
    assert all(outcome.tokens is not None for outcome in found.values())
    assert Counter(journal.begun)["half-1"] == 2


def test_worker_that_ends_without_work_costs_nothing(tmp_path):
    """As where the memory of a machine is full and the system ends any process."""
    journal = _Journal()
    found = _outcomes(tmp_path, "abc", journal, workers=1)
    next(found)
    time.sleep(1.0)  # the second is done, and the third has not been given
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join()
    assert [outcome.tokens is not None for outcome in found] == [True, True]
    assert journal.begun == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("make_work", "message"),
    [
        (functools.partial(int, "no"), r"a worker process cannot start \(ValueError: invalid lit"),
        (functools.partial(os._exit, 1), "worker processes end before they have work"),
    ],
    ids=["error", "end"],
)
def test_worker_that_cannot_start_is_one_line(tmp_path, make_work, message):
    with pytest.raises(VimpacError, match=message):
        list(_outcomes(tmp_path, ["a"], _Journal(), workers=1, make_work=make_work))
