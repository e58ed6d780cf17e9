"""One writer at a time: a lock that the operating system drops when its process dies.

Some file systems refuse `flock` (Lustre without `-o flock`, some FUSE and NFS mounts). There a file
beside the lock names its owner. It outlives a process that was killed: on the same host the next
one sees that the owner is gone, on another host the user must say so by removing the file.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import socket
import sys
import time
from io import FileIO
from pathlib import Path

from vimpac.errors import VimpacError

_HELD = (errno.EAGAIN, errno.EACCES)  # by another process; the second where NFS emulates flock
_REFUSED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


class InUse(VimpacError):
    """Another process holds a lock."""


@dataclasses.dataclass
class Lock:
    """A lock that this process holds until `close`."""

    _file: FileIO | None  # with the lock of the operating system
    _owner: Path | None  # that names this process; None where `flock` works

    def close(self) -> None:
        """Lets the next process in; a second call does nothing."""
        if self._owner is not None:
            self._owner.unlink(missing_ok=True)
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # processes forked since have the file open too
            self._file.close()
        self._file = self._owner = None


def lock(path: Path, what: str) -> Lock:
    """Takes a lock without waiting for it.

    Args:
        path: A file for the lock alone, which is made and stays; its directory exists.
        what: What only one process may write, for the message.

    Returns:
        The lock; `close` it.

    Raises:
        InUse: Another process holds it.
        OSError: The file cannot be made.
    """
    file = FileIO(path, "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(file, path):
            return Lock(file, None)
        file.close()
        return lock(path, what)
    except OSError as error:
        file.close()
        if error.errno in _HELD:
            raise InUse(f"another process is writing {what}: wait for it") from None
        if error.errno not in _REFUSED:
            error.filename = str(path)
            raise
        reason = error.strerror
    owner = path.with_name(f"{path.name}-owner")
    _own(owner, what)
    print(
        f"vimpac: warning: the file system has no locks ({reason}), so {owner} names the process "
        f"that writes {what}",
        file=sys.stderr,
    )
    return Lock(None, owner)


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether a path still leads to a file; its last owner may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _own(owner: Path, what: str) -> None:
    """Makes the file that names this process, in the place of one whose process is gone."""
    for _ in range(2):
        try:
            with owner.open("x", encoding="utf-8") as file:
                when = time.strftime("%Y-%m-%d %H:%M:%S")
                mine = socket.gethostname(), os.getpid(), _start(os.getpid()), when
                file.write("\n".join(map(str, mine)) + "\n")
            return
        except FileExistsError:
            lines = owner.read_text(encoding="utf-8").splitlines()
        host, process, start, when = lines if len(lines) == 4 else ("?", "?", "?", "?")
        if host != socket.gethostname() or _start(process) == start:
            break
        owner.unlink(missing_ok=True)
    raise InUse(
        f"another process is writing {what}: wait for it (process {process} on {host} since "
        f"{when}; if it is gone, remove {owner})"
    )


def _start(process: int | str) -> str:
    """When a process began, in ticks since the machine did: its number may be used again."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    except OSError:
        return "gone"
    return after_name.split()[19]
