"""SIGTERM and SIGINT end a run after the step in hand; where one process runs, a second at once.

Many processes get more than one, from the terminal or SLURM and again from torchrun, which also
ends the slow ones: it kills what still runs after half a minute.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vimpac.errors import VimpacError


class Interrupted(VimpacError):
    """A signal ended the run, which can be continued; the exit code is that of the signal."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {message}")
        self.exit_code = 128 + number


@contextmanager
def catch_signals(*, only_first: bool) -> Iterator[Callable[[], int]]:
    """Notes SIGTERM and SIGINT instead of dying of them.

    Args:
        only_first: Whether a second one does what it would do otherwise.

    Yields:
        A function that returns the number of the signal that came, or 0. Outside of the main
        thread, where Python handles no signals, always 0.
    """
    caught = [0]
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def note(number: int, _: object) -> None:
        caught[0] = number
        if only_first:
            restore()

    def restore() -> None:
        for one, handler in before.items():
            signal.signal(one, handler)

    before = {one: signal.signal(one, note) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: caught[0]
    finally:
        restore()
