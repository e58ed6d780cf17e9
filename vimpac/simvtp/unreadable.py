"""The videos of a run that could not be read, by name in a file of its directory."""

from __future__ import annotations

import os
from pathlib import Path


class UnreadableVideos:
    """Names them, each once for each process.

    Args:
        out: The run's directory.
    """

    def __init__(self, out: str | Path) -> None:
        self._file = Path(out) / "unreadable.txt"
        self._named: set[str] = set()

    def add(self, name: str, reason: str) -> None:
        """Writes a whole line, so that processes may share the file.

        Args:
            name: Of the video.
            reason: Why it cannot be read.
        """
        if name in self._named:
            return
        self._named.add(name)
        with self._file.open("ab") as file:
            file.write(f"{name}: {reason}\n".encode(errors="surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
