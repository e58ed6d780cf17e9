"""The files of a finished store: all that a reader knows of where they lie."""

from __future__ import annotations

import math
import mmap
import zlib
from pathlib import Path

from vimpac.data.shard_cache import ShardCache
from vimpac.data.store_format import read_meta
from vimpac.errors import UsageError, VimpacError
from vimpac.paths import is_url, local_path

FIX = "copy the file again from its source or make the store again"
_PART = 1 << 18  # bytes that are read at once


class StoreFiles:
    """The directory of a store on this machine.

    Args:
        path: The directory.

    Attributes:
        mapped_limit: Bytes of the shards that a reader keeps mapped.
    """

    mapped_limit = math.inf

    def __init__(self, path: Path) -> None:
        self.path = path

    def meta(self) -> dict:
        """What `meta.json` says: see `vimpac.data.store_format.read_meta`."""
        return read_meta(self.path)

    def fetch(self, name: str) -> Path:
        """Where a file is on this machine.

        Raises:
            VimpacError: It is missing.
        """
        file = self.path / name
        if not file.is_file():
            raise VimpacError(f"{file} is missing: {FIX}")
        return file

    def check(self, name: str, crc32: int) -> None:
        """Raises VimpacError unless a file has a checksum.

        It is read in parts: mapped, all of its pages would count as this process's memory.
        """
        file, found = self.fetch(name), 0
        with file.open("rb", buffering=0) as stream:
            while data := stream.read(_PART):
                found = zlib.crc32(data, found)
        if found != crc32:
            raise VimpacError(f"{file} is corrupt (checksum): {FIX}")

    def map(self, name: str, size: int | None = None) -> memoryview:
        """Maps a file, so that all processes share its pages.

        Args:
            name: The file's name.
            size: Bytes that it must have; None: any number.

        Returns:
            Its bytes, read only.

        Raises:
            VimpacError: It is missing or of another size.
        """
        file = self.fetch(name)
        found = file.stat().st_size
        if size not in (None, found):
            raise VimpacError(f"{file} has {found} bytes, not {size}: {FIX}")
        if not found:  # an empty file cannot be mapped
            return memoryview(b"")
        with file.open("rb") as stream:
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def find_files(path: str | Path, cache: ShardCache | None) -> tuple[Path | str, StoreFiles]:
    """The files of a store.

    Args:
        path: The store's directory, or its URL in object storage.
        cache: Where the files of a store with a URL are kept.

    Returns:
        The path or the URL, and the files.

    Raises:
        UsageError: There is a URL but no cache.
    """
    if not is_url(path):
        local = local_path(path)
        return local, StoreFiles(local)
    if cache is None:
        raise UsageError(f"{path} is a URL: give cache=ShardCache(DIRECTORY, BYTES), too")
    from vimpac.data.object_store import ObjectFiles

    return str(path), ObjectFiles(str(path), cache)
