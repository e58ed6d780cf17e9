"""A run's directory, into which one run writes at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vimpac.errors import UsageError
from vimpac.lock import Lock, lock
from vimpac.train.distributed import World

LOCK = ".lock"


@contextmanager
def hold_folder(out: Path, world: World) -> Iterator[None]:
    """Makes the directory of a run and keeps other runs out of it.

    Args:
        out: The directory.
        world: The processes of the run.

    Raises:
        UsageError: There is a file in its place, or it cannot be made.
        VimpacError: Another run writes there.
    """
    held = world.on_main(lambda: _take(out))
    try:
        yield
    finally:
        if held is not None:
            held.close()


def _take(out: Path) -> Lock:
    folder = out / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made ({error.strerror}): give another out=") from None
    return lock(out / LOCK, str(out))
