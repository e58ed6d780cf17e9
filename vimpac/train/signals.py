"""How a run ends before its time: by a signal, or by an error that a user can do something about.

SIGTERM and SIGINT end it after the step in hand; where one process runs, a second at once. Many
processes get more than one, from the terminal or SLURM and again from torchrun, which also ends
the slow ones: it kills what still runs after half a minute.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vimpac.checkpoints.training_state import list_checkpoints
from vimpac.errors import VimpacError
from vimpac.train.distributed import lost_contact


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
            os.write(2, b"stopping after this step; a second signal stops at once\n")

    def restore() -> None:
        for one, handler in before.items():
            signal.signal(one, handler)

    before = {one: signal.signal(one, note) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: caught[0]
    finally:
        restore()


def explain(error: RuntimeError, rank: int, done: int, folder: Path) -> str:
    """What a user can do about an error of PyTorch.

    Args:
        error: The error.
        rank: The process that met it.
        done: Updates done.
        folder: The directory of the checkpoints.

    Returns:
        One line, or nothing where it is not known.
    """
    line = str(error).splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"lower batch.micro or set activation_checkpointing=true: {line}"
    if "DataLoader worker" in line:
        return f"a data-loading process died; if memory ran out, lower clips.workers: {line}"
    if not lost_contact(error):
        return ""
    found = list_checkpoints(folder)  # the main process may have died
    last = f"the last checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
    return (
        f"process {rank} lost contact with another one after step {done}, "
        f"which died or hangs; {last}, --resume auto continues ({line})"
    )
