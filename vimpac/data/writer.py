"""Writing a token store: killed at any moment, the same calls again end in the same bytes.

`vimpac.data.store_format` says what is where. A video counts once its journal line is whole; what a
shard holds beyond the journaled videos is cut off on resume. Power loss may leave a journal
ahead of its shard, so the open shard's checksums are read again before it is continued.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from contextlib import suppress
from io import FileIO
from pathlib import Path

import numpy as np

from vimpac.data.journal import Entry, Journal
from vimpac.data.store_format import (
    INDEX,
    JOURNAL,
    META,
    NAMES,
    VIDEO_RECORD,
    StoreMeta,
    check_free,
    partial_path,
    shard_name,
)
from vimpac.errors import VimpacError
from vimpac.files import move_files, sync, whole_file, write_all
from vimpac.lock import lock
from vimpac.paths import local_path


class TokenStoreWriter:
    """Writes a new store at `path`, or continues the unfinished one there.

    The caller adds or skips videos in a fixed order; `entries` are those already done::

        with TokenStoreWriter(path, meta) as writer:
            for name in names[len(writer.entries):]:
                writer.add(name, tokens)
            writer.finish()

    Args:
        path: Where the finished store is to be.
        meta: What all videos share.
        shard_bytes: A shard is closed once it has at least this many bytes.

    Attributes:
        journal: What is written so far.

    Raises:
        UsageError: `path` exists, or was begun with other settings.
        VimpacError: Another process writes the same store.
    """

    def __init__(self, path: str | Path, meta: StoreMeta, *, shard_bytes: int = 1 << 30) -> None:
        self.path = local_path(path)
        self.meta = meta
        self._shard_limit = max(1, shard_bytes // meta.frame_record.itemsize)
        self._partial = partial_path(self.path)
        check_free(self.path)
        self._partial.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self._partial / JOURNAL, str(self.path))
        self._shard_file: FileIO | None = None
        self._shard_frames = [0]
        try:
            settings = {**meta.to_dict(), "shard_frames": self._shard_limit}
            self.journal = Journal(self._partial / JOURNAL, settings)
        except BaseException:
            self._lock.close()
            raise
        try:
            for entry in self.entries:
                self._account(entry)
            self._check_open_shard()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TokenStoreWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def entries(self) -> list[Entry]:
        """The videos that are done, in order."""
        return self.journal.entries

    def close(self) -> None:
        """Closes the files; an unfinished store stays for a later writer to continue."""
        if self._shard_file is not None:
            self._shard_file.close()
        self.journal.close()
        self._lock.close()

    def add(self, name: str, tokens: np.ndarray, label: int = -1, note: str = "") -> None:
        """Appends a video.

        Args:
            name: Its name.
            tokens: Ids (variants, frames, H, W), integer, in [0, vocab_size); of a store of frames
                levels (variants, frames, H, W, 3).
            label: Its class, or -1.
            note: What is wrong with it, although it is used.

        Raises:
            ValueError: A wrong shape or an id out of range.
            OSError: Nothing could be written (disk full); the videos before are kept.
        """
        meta = self.meta
        if (tokens.shape[:1], tokens.shape[2:]) != ((len(meta.variants),), meta.frame_shape):
            colours = ", 3" * (meta.kind == "pixels")
            raise ValueError(
                f"'{name}': tokens {tokens.shape} are not (variants {len(meta.variants)}, frames, "
                f"H {meta.height}, W {meta.width}{colours})"
            )
        if tokens.shape[1] == 0:
            raise ValueError(f"'{name}' has no frames")
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= meta.vocab_size:
            bad = low if low < 0 else high
            raise ValueError(f"'{name}': token id {bad} is not in [0, {meta.vocab_size})")
        records = frame_records(tokens.reshape(-1, *meta.frame_shape), meta)
        shard = self._open_shard()
        write_all(shard, records)
        self._log(Entry(name, tokens.shape[1], label, note=note))

    def skip(self, name: str, reason: str) -> None:
        """Records a video that cannot be tokenised, and why."""
        self._log(Entry(name, 0, skipped=reason or "unknown reason"))

    def finish(self, *, may_be_empty: bool = False) -> None:
        """Completes the store and moves it to its path.

        Args:
            may_be_empty: Whether a store without videos is finished like any other.

        Raises:
            VimpacError: It has no video; what was written is removed.
            OSError: Nothing could be written.
        """
        if not may_be_empty and all(entry.skipped for entry in self.entries):
            self.close()
            shutil.rmtree(self._partial)  # else the same command would not try them again
            raise VimpacError(f"{self.path} would hold no video: no input could be read")
        index, names = self._index()
        values = {
            **self.meta.to_dict(),
            "shard_frames": self._shard_frames,
            "videos": len(index),
            "skipped": [[entry.name, entry.skipped] for entry in self.entries if entry.skipped],
            "notes": [[entry.name, entry.note] for entry in self.entries if entry.note],
            "index_crc32": zlib.crc32(index.tobytes()),
            "names_crc32": zlib.crc32(names),
        }
        if self._shard_file is not None:
            sync(Path(self._shard_file.name))
        replace_file(self._partial / INDEX, index.tobytes())
        replace_file(self._partial / NAMES, names)
        replace_file(self._partial / META, json.dumps(values, indent=1).encode() + b"\n")
        self.close()
        (self._partial / JOURNAL).unlink()
        _complete(self.path)

    def _log(self, entry: Entry) -> None:
        """Journals a video whose frames, if any, are in the shard's file."""
        self.journal.add(entry)
        self._account(entry)

    def _account(self, entry: Entry) -> None:
        if entry.frames and self._is_full():
            self._shard_frames.append(0)
        self._shard_frames[-1] += entry.frames * len(self.meta.variants)

    def _is_full(self) -> bool:
        return self._shard_frames[-1] >= self._shard_limit

    def _open_shard(self) -> FileIO:
        """The file that the next video goes to."""
        if self._is_full() and self._shard_file is not None:
            sync(Path(self._shard_file.name))
            self._shard_file.close()
            self._shard_file = None
        if self._shard_file is None:
            number = len(self._shard_frames) - (not self._is_full())
            self._shard_file = (self._partial / shard_name(number)).open("ab", buffering=0)
        return self._shard_file

    def _check_open_shard(self) -> None:
        """Cuts the last shard to its journaled, intact videos and removes later shards."""
        meta, number = self.meta, len(self._shard_frames) - 1
        shards = [self._partial / shard_name(k) for k in range(number + 1)]
        for file, frames in zip(shards[:-1], self._shard_frames[:-1], strict=True):
            if not file.is_file() or file.stat().st_size != frames * meta.frame_record.itemsize:
                raise VimpacError(f"{file} is damaged: remove {self._partial} and start again")
        last = shards[-1]
        last.touch()
        size = last.stat().st_size // meta.frame_record.itemsize
        records = np.zeros(0, meta.frame_record)
        if size:  # an empty file cannot be mapped
            records = np.memmap(last, meta.frame_record, "r", shape=(size,))
        intact = 0
        while intact < len(records) and intact < self._shard_frames[-1]:
            if zlib.crc32(records[intact]["tokens"]) != records[intact]["crc32"]:
                break
            intact += 1
        kept = len(self.entries)
        while self._shard_frames[-1] > intact:
            kept -= 1
            self._shard_frames[-1] -= self.entries[kept].frames * len(meta.variants)
        self.journal.keep(kept)
        expected = self._shard_frames[-1] * meta.frame_record.itemsize
        if last.stat().st_size != expected:
            os.truncate(last, expected)
        for file in self._partial.glob("shard-*.bin"):
            if file not in shards:
                file.unlink()

    def _index(self) -> tuple[np.ndarray, bytes]:
        """The index records and the names they point into."""
        kept = [entry for entry in self.entries if not entry.skipped]
        rows, names, shard, first = [], bytearray(), 0, 0
        for entry in kept:
            if first >= self._shard_limit:
                shard, first = shard + 1, 0
            name = entry.name.encode("utf-8", "surrogateescape")
            rows.append((shard, entry.frames, first, len(names), len(name), entry.label))
            names += name
            first += entry.frames * len(self.meta.variants)
        return np.array(rows, VIDEO_RECORD), bytes(names)


def is_complete(path: Path) -> bool:
    """Whether a store is at `path`; one that was killed while it was moved there is moved now."""
    partial = partial_path(path)
    if (partial / META).is_file() and not (partial / JOURNAL).exists():
        _complete(path)
    complete = (path / META).is_file()
    if complete:
        with suppress(OSError):  # of a folder that is not empty, or that is not there
            partial.rmdir()
    return complete


def _complete(path: Path) -> None:
    """Moves a store that is whole to its path: meta.json, which makes it a store, comes last.

    Not every file system renames directories, and none renames one onto the current directory.
    """
    partial = partial_path(path)
    sync(partial)
    move_files(partial, path.resolve(), last=META)


def frame_records(
    tokens: np.ndarray,  # (frames, *frame_shape)
    meta: StoreMeta,
) -> bytes:
    """The frame records of some frames as a shard holds them."""
    records = np.empty(len(tokens), meta.frame_record)
    records["tokens"] = tokens
    for record in records:
        record["crc32"] = zlib.crc32(record["tokens"])
    return records.tobytes()


def replace_file(file: Path, data: bytes) -> None:
    """Writes a whole file."""
    with whole_file(file) as temporary, temporary.open("wb", buffering=0) as stream:
        write_all(stream, data)
