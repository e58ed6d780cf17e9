"""The inside of a worker process: it works until the other side ends, or its task hangs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

from vimpac.errors import VimpacError

HUNG = 75  # exit code of a worker whose task makes no progress

# (argument, alive, send) -> result: it calls `alive` whenever it has made progress, and sends parts
# of its result if it likes.
Work = Callable[[Any, Callable[[], object], Callable[[Any], object]], Any]


class Part(NamedTuple):
    """What a task sends before its end."""

    content: Any


_progress: float | None = None  # time of the last, while there is a task


def serve(connection: Connection, make_work: Callable[[], Work], timeout: float) -> None:
    """Works until the connection ends.

    Args:
        connection: Tasks come from it, and parts and results go to it.
        make_work: Called once.
        timeout: Seconds without progress after which the process ends itself.
    """
    prepare(timeout)
    with suppress(EOFError, OSError):  # of the connection
        try:
            work = make_work()
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
            connection.send(VimpacError(f"a worker process cannot start ({reason})"))
            return
        if "torch" in sys.modules:  # else the work does not need it, and it is slow to import
            sys.modules["torch"].set_num_threads(1)
        connection.send(None)
        while True:
            argument = connection.recv()
            try:
                connection.send(_watched(work, argument, connection))
            except (MemoryError, VimpacError) as error:
                connection.send(error)


def _watched(work: Work, argument: Any, connection: Connection) -> Any:
    """The result of a task during which progress is expected, except while a part is sent."""
    global _progress

    def send(content: Any) -> None:
        global _progress
        _progress = None  # the other side may let it wait
        connection.send(Part(content))
        _made_progress()

    _made_progress()
    try:
        return work(argument, _made_progress, send)
    finally:
        _progress = None


def prepare(timeout: float) -> None:
    """Prepares a worker: no Ctrl-C of its own, gone when its parent is or its task hangs.

    Args:
        timeout: Seconds without progress after which the task hangs.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    threading.Thread(target=_exit_without_progress, args=(timeout,), daemon=True).start()


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
