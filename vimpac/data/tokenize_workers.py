"""Tokenising videos here or in worker processes; whatever a video does, the others go on.

A worker that dies, or in which a video makes no progress, costs that video one of `MOST_TRIES`; the
writer's journal knows them, too, if this process itself is killed. A video that was under way
then is tried alone, so that the one that is to blame is found.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import popen_spawn_posix
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from pebble import ProcessExpired, ProcessPool

from vimpac.data.video import UnreadableVideo
from vimpac.errors import VimpacError

MOST_TRIES = 3  # of a video that kills its process
HUNG = 75  # exit code of a worker whose video makes no progress


class Outcome(NamedTuple):
    """What became of a video: its tokens and a note on them, or None and the reason."""

    tokens: np.ndarray | None  # (variants, frames, H, W) ids
    text: str


class Work(Protocol):
    """Tokenises a video in a process that is ready for it."""

    def __call__(
        self, path: Path, *, note: Callable[[str], object], alive: Callable[[], object]
    ) -> np.ndarray:
        """Ids (variants, frames, H, W); calls `alive` whenever it has made progress."""


def outcomes(
    videos: Sequence[tuple[str, Path]],
    make_work: Callable[[], Work],
    *,
    workers: int,
    timeout: float,
    tries: Callable[[str], int],
    begin: Callable[[str], object],
) -> Generator[Outcome]:
    """Tokenises videos.

    Args:
        videos: (name, path).
        make_work: Called once in every process.
        workers: Processes; 0 works in this one, which a video can then end.
        timeout: Seconds without progress after which a worker is ended.
        tries: How often a video was begun already.
        begin: Called before every try with the video's name.

    Yields:
        Their outcomes, in order.

    Raises:
        VimpacError: The device failed, or no worker can start.
    """
    processes = _Processes(make_work, workers, timeout) if workers else _ThisProcess(make_work)
    pending: deque[tuple[str, Path, Future[Outcome] | None]] = deque()

    def start(name: str, path: Path) -> Future[Outcome] | None:
        if tries(name) >= MOST_TRIES:
            return None
        begin(name)
        return processes.start(path)

    def finish() -> Outcome:
        name, path, future = pending.popleft()
        reason = "was under way when the process was killed"
        while future is not None:
            try:
                return future.result()
            except (ProcessExpired, MemoryError) as error:
                reason = _why(error, timeout)
            except BrokenProcessPool as error:
                raise VimpacError(
                    "a worker process ended before it had work (out of memory?): run the same "
                    "command again, with fewer --workers"
                ) from error
            future = start(name, path)
        return Outcome(None, f"{reason} ({MOST_TRIES} times)")

    try:
        for name, path in videos:
            alone = tries(name) > 0
            while pending and (alone or len(pending) >= max(1, 2 * workers)):
                yield finish()
            pending.append((name, path, start(name, path)))
            if alone:
                yield finish()
        while pending:
            yield finish()
    finally:
        processes.close()


def _why(error: Exception, timeout: float) -> str:
    if isinstance(error, ProcessExpired) and error.exitcode == HUNG:
        return f"made no progress for {timeout:g} s"
    return "ended its process: out of memory, or a crash of the decoder"


def _outcome(work: Work, path: Path, alive: Callable[[], object] = lambda: None) -> Outcome:
    """The guard around everything that happens to one video."""
    notes: list[str] = []
    try:
        tokens = work(path, note=notes.append, alive=alive)
    except UnreadableVideo as error:
        return Outcome(None, str(error))
    except MemoryError:
        raise  # another try may find more
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        line = str(error).strip().partition("\n")[0]
        raise VimpacError(
            f"the device failed at {path} ({line:.200}): run the same command again, with fewer "
            "--workers"
        ) from error
    except Exception as error:
        return Outcome(None, f"{type(error).__name__}: {' '.join(str(error).split()):.200}")
    return Outcome(tokens, "; ".join(notes))


class _Later(Future[Outcome]):
    """Works in this process when the result is asked for."""

    def __init__(self, work: Work, path: Path) -> None:
        super().__init__()
        self.work, self.path = work, path

    def result(self, timeout: float | None = None) -> Outcome:
        return _outcome(self.work, self.path)


class _ThisProcess:
    def __init__(self, make_work: Callable[[], Work]) -> None:
        self.work = make_work()

    def start(self, path: Path) -> Future[Outcome]:
        return _Later(self.work, path)

    def close(self) -> None:
        pass


class _Popen(popen_spawn_posix.Popen):
    """Starts a process that does not run the user's script again, of which workers need nothing."""

    _alone = threading.Lock()

    def __init__(self, process_obj: Any) -> None:
        with self._alone:
            script = sys.modules["__main__"]
            sys.modules["__main__"] = types.ModuleType("__main__")
            try:
                super().__init__(process_obj)
            finally:
                sys.modules["__main__"] = script


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> _Popen:
        return _Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process


class _Processes:
    """Worker processes; one that ends is replaced."""

    def __init__(self, make_work: Callable[[], Work], workers: int, timeout: float) -> None:
        arguments = (make_work, timeout)
        self.pool = ProcessPool(
            workers, initializer=_start_worker, initargs=arguments, context=_Context()
        )

    def start(self, path: Path) -> Future[Outcome]:
        return self.pool.schedule(_work, (path,))

    def close(self) -> None:
        self.pool.stop()
        self.pool.join()


_worker: Work
_progress: float | None = None  # time of the last, while there is work


def _start_worker(make_work: Callable[[], Work], timeout: float) -> None:
    """Prepares a worker: no Ctrl-C of its own, gone when its parent is or its video hangs."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    threading.Thread(target=_exit_without_progress, args=(timeout,), daemon=True).start()
    torch.set_num_threads(1)
    _worker = make_work()


def _work(path: Path) -> Outcome:
    global _progress
    _made_progress()
    try:
        return _outcome(_worker, path, _made_progress)
    finally:
        _progress = None


def _made_progress() -> None:
    global _progress
    _progress = time.monotonic()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _exit_without_progress(timeout: float) -> None:
    while True:
        time.sleep(min(timeout / 4, 1.0))
        last = _progress
        if last is not None and time.monotonic() - last > timeout:
            os._exit(HUNG)
