"""A cache of shards on this machine, which processes share and which never outgrows its limit.

A folder of it belongs to one content of one store. When a shard needs room, those that have not
been opened for longest are removed. Whoever has them mapped reads on, as Linux keeps the bytes of a
file until it is closed.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vimpac.errors import VimpacError

_SHARDS, _ROOM = "*/shard-*.bin", "*/.room-*"


@dataclass(frozen=True)
class ShardCache:
    """Where the files of stores in object storage are kept.

    Attributes:
        folder: A directory on a local disk, which is made when it is needed.
        limit: Bytes of all shards in it.
    """

    folder: Path
    limit: int

    @contextmanager
    def room(self, folder: Path, name: str, size: int) -> Iterator[None]:
        """Keeps room for a shard while it comes.

        Args:
            folder: Of its store; the caller holds `locked(lock_file(folder, name))`.
            name: Of the shard.
            size: Its bytes, at most `limit`.
        """
        reserved = folder / f".room-{name}"
        while not self._reserve(reserved, size):
            time.sleep(0.1)  # until another download is done, whose shard may have to go again
        try:
            yield
        finally:
            reserved.unlink(missing_ok=True)

    def _reserve(self, reserved: Path, size: int) -> bool:
        """Removes old shards and makes the file that keeps the room, unless there is too little."""
        with locked(self.folder / ".lock"):
            total, shards = size, []
            for file in self.folder.glob(_SHARDS):
                with suppress(OSError):  # another process has just removed it
                    status = file.stat()
                    shards.append((status.st_mtime_ns, status.st_size, file))
                    total += status.st_size
            for room in self.folder.glob(_ROOM):
                with suppress(OSError):
                    total += _still_reserved(room)
            for _, count, file in sorted(shards):
                if total > self.limit:
                    file.unlink(missing_ok=True)
                    total -= count
            if total > self.limit:
                return False
            with reserved.open("wb") as made:
                made.truncate(size)  # takes no place on the disk
            return True


def lock_file(folder: Path, name: str) -> Path:
    """Whose lock a process holds while it brings a file to the cache."""
    return folder / f".lock-{name}"


def _still_reserved(room: Path) -> int:
    """The bytes for which room is kept; 0 if the process that did so was killed."""
    with lock_file(room.parent, room.name.removeprefix(".room-")).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return room.stat().st_size
        room.unlink(missing_ok=True)
        return 0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for a lock, which the operating system drops when its process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise VimpacError(
                f"the cache {path.parent} is on a file system without locks ({error.strerror}): "
                "choose one on a local disk"
            ) from error
        yield
