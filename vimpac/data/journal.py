"""What an unfinished token store holds: a line with its settings, then lines about its videos.

A line is an `Entry`; the name of a video that was begun; {"ended": NAME} where work on it came to
an end, which it may long before it is written; or null where the writer was closed in good order,
so that no video is to blame for its end. A line counts once it is whole.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from vimpac.data.store_format import difference
from vimpac.errors import UsageError, VimpacError
from vimpac.files import write_all


class Entry(NamedTuple):
    """One video: its number of frames, or why it was skipped, or a note on it."""

    name: str
    frames: int
    label: int = -1
    skipped: str = ""
    note: str = ""


class Tries:
    """How often work on a video was begun and has not ended, as after the end of its process.

    Attributes:
        tries: The number by the video's name.
    """

    def __init__(self) -> None:
        self.tries = Counter[str]()

    def begin(self, name: str) -> None:
        """Work on a video begins, which may be the end of the process."""
        self.tries[name] += 1

    def end(self, name: str) -> None:
        """The video has done no harm, whether it could be read or not."""
        del self.tries[name]


class Journal(Tries):
    """A journal that is continued, or begun.

    Args:
        path: Its file.
        settings: What all videos share.

    Attributes:
        entries: The videos that are done, in order.
        tries: See `Tries`; of this process and those before it.

    Raises:
        UsageError: It was begun with other settings.
        VimpacError: It is damaged.
    """

    def __init__(self, path: Path, settings: dict) -> None:
        super().__init__()
        self.path = path
        self.entries: list[Entry] = []
        self._starts: list[int] = []  # of the entries' lines, in bytes
        self._file = path.open("ab", buffering=0)
        try:
            self._read(settings)
        except BaseException:
            self._file.close()
            raise

    def begin(self, name: str) -> None:
        """Records that work on a video begins."""
        self._append(name)
        super().begin(name)

    def end(self, name: str) -> None:
        """Records that it has ended, so that the video is not to blame for what comes."""
        self._append({"ended": name})
        super().end(name)

    def add(self, entry: Entry) -> None:
        """Records a video that is done."""
        start = os.fstat(self._file.fileno()).st_size
        self._append(entry)
        self._account(entry, start)

    def keep(self, number: int) -> None:
        """Forgets all but the first entries."""
        if number < len(self.entries):
            os.truncate(self.path, self._starts[number])
            del self.entries[number:], self._starts[number:]

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self.tries and not self._file.closed:
            with suppress(OSError):  # a full disk
                self._append(None)
        self._file.close()

    def _append(self, record: Any) -> None:
        write_all(self._file, json.dumps(record).encode() + b"\n")

    def _account(self, entry: Entry, start: int) -> None:
        self.entries.append(entry)
        self._starts.append(start)
        del self.tries[entry.name]

    def _read(self, settings: dict) -> None:
        lines = self.path.read_bytes().split(b"\n")[:-1]
        if not lines:
            os.truncate(self.path, 0)
            self._append(settings)
            return
        at = len(lines[0]) + 1
        try:
            begun = json.loads(lines[0])
            for line in lines[1:]:
                record = json.loads(line)
                if isinstance(record, str):
                    super().begin(record)
                elif isinstance(record, dict):
                    super().end(record["ended"])
                elif record is None:
                    self.tries.clear()
                else:
                    self._account(Entry(*record), at)
                at += len(line) + 1
        except (ValueError, TypeError, KeyError) as error:
            raise VimpacError(f"{self.path} is damaged: remove {self.path.parent}") from error
        problem = difference(begun, settings)
        if problem:
            raise UsageError(
                f"{self.path.parent} was begun with other settings ({problem}): give the same, or "
                "remove it"
            )
        os.truncate(self.path, at)  # a line that was cut off
