"""Stores in object storage, by fsspec: s3://, gs://, http(s)://, hf://, memory:// and others.

Files are read whole, into a cache on this machine that all processes share: a shard of 1 GiB is one
request, where its clips would be hundreds of thousands. Credentials are fsspec's own.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from vimpac.data.shard_cache import ShardCache, lock_file, locked
from vimpac.data.store_files import StoreFiles
from vimpac.data.store_format import META, StoreMeta, parse_meta, shard_name
from vimpac.errors import UsageError, VimpacError
from vimpac.files import temporary_path

TRIES = 5
FIRST_WAIT = 0.5  # seconds, doubled after every try
# What tells two contents of an object apart, by the names that fsspec's file systems have for it.
_IDENTITIES = (
    *("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "blob_id"),
    *("Last-Modified", "LastModified", "last_modified", "mtime", "created"),
)
_REFUSALS = (400, 401, 403, 405, 409, 411, 413, 501)  # HTTP statuses that waiting does not change
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

Result = TypeVar("Result")


class ObjectFiles(StoreFiles):
    """The files of a store in object storage, as `StoreFiles`.

    Args:
        url: Of the store.
        cache: Where its files are kept.

    Raises:
        UsageError: The protocol is unknown, or the cache is smaller than a shard.
        VimpacError: There is no finished store, or it cannot be read.
    """

    def __init__(self, url: str, cache: ShardCache) -> None:
        self.url, self.cache = url.rstrip("/"), cache
        address = f"{self.url}/{META}"
        text = tries(address, file_system(address).cat_file, address)
        self._meta = parse_meta(text, address)
        key = hashlib.sha256(b"\0".join((self.url.encode(), text))).hexdigest()[:32]
        super().__init__(cache.folder / key)  # of another content, another folder
        self.mapped_limit = cache.limit
        self._sizes = self._shard_sizes()
        largest = max(self._sizes.values(), default=0)
        if largest > cache.limit:
            raise UsageError(
                f"a cache of {cache.limit / 1e9:.3g} GB is too small for {url}, which has a shard "
                f"of {largest / 1e9:.3g} GB: raise cache_gb"
            )

    def meta(self) -> dict:
        """What `meta.json` says."""
        return self._meta

    def map(self, name: str, size: int | None = None) -> memoryview:
        """As `StoreFiles.map`; brings the file to the cache, if it is not there."""
        while True:
            with suppress(FileNotFoundError):  # it had to make room at this very moment
                return super().map(name, size)

    def fetch(self, name: str) -> Path:
        """Brings a file to the cache, unless it is there.

        Args:
            name: The file's name.

        Returns:
            Where it is. It may have to make room for another one at any time.

        Raises:
            VimpacError: It cannot be read, has another size, or is not what it was at first.
        """
        file, size = self.path / name, self._sizes.get(name)
        with locked(lock_file(self.path, name)):
            if not file.is_file():
                room = nullcontext() if size is None else self.cache.room(self.path, name, size)
                with room:
                    self._download(file, size)
            os.utime(file)
        return file

    def _shard_sizes(self) -> dict[str, int]:
        try:
            size = StoreMeta.from_dict(self._meta).frame_record.itemsize
            frames = [int(frames) for frames in self._meta["shard_frames"]]
        except (KeyError, TypeError, ValueError):
            return {}  # whoever opens the store says what is wrong
        return {shard_name(shard): count * size for shard, count in enumerate(frames)}

    def _download(self, file: Path, size: int | None) -> None:
        address, temporary = f"{self.url}/{file.name}", temporary_path(file)

        def download() -> None:
            files = file_system(address)
            info = files.info(address)
            self._check_identity(file.name, info)
            stated = info.get("size")
            if None not in (size, stated) and stated != size:
                raise VimpacError(f"{address} has {stated} bytes, not {size}: upload it again")
            files.get_file(address, str(temporary))
            got = temporary.stat().st_size
            if got != (stated if size is None else size):
                raise OSError(errno.EIO, f"it ended after {got} bytes")

        try:
            tries(address, download)
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)

    def _check_identity(self, name: str, info: dict[str, Any]) -> None:
        """Raises VimpacError if an object is another one than when it was first read."""
        identity = next((f"{key} {info[key]}" for key in _IDENTITIES if info.get(key)), "unknown")
        seen = self.path / f"{name}.identity"
        before = seen.read_text(encoding="utf-8") if seen.is_file() else identity
        if before != identity:
            raise VimpacError(
                f"{self.url}/{name} has changed since it was first read ({before}, now "
                f"{identity}): if the store was made anew, remove {self.path} and start again"
            )
        seen.write_text(identity, encoding="utf-8")


def file_system(url: str) -> fsspec.AbstractFileSystem:
    """The file system of a URL; fsspec keeps one for each process.

    Raises:
        UsageError: The protocol is unknown, or the URL is no folder's.
        VimpacError: It needs another package, or does not answer.
    """
    # Object storage has no directories. On a disk they are made like those of a local store.
    options = {"auto_mkdir": True} if url.startswith(("file://", "local://")) else {}
    if url.partition(":")[0] in ("http", "https") and set(url) & {"?", "#"}:
        raise UsageError(
            f"{url}: a store is a folder, whose files are found by their names behind its URL, so "
            "this cannot have a ? or #"
        )
    try:
        return fsspec.core.url_to_fs(url, **options)[0]
    except ImportError as error:
        raise VimpacError(f"{url} needs another package ({error})") from error
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from error
    except Exception as error:  # every file system has kinds of its own
        raise VimpacError(f"{url} cannot be opened: {_reason(error)}") from error


def tries(url: str, call: Callable[..., Result], *arguments: Any) -> Result:
    """Calls something that may fail for a moment, with growing waits in between.

    Args:
        url: What it is about.
        call: What is called.
        arguments: Its arguments.

    Returns:
        Its result.

    Raises:
        VimpacError: It failed `TRIES` times, or for a reason that waiting does not change.
        OSError: This machine's disk is full or cannot be written.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return call(*arguments)
        except FileNotFoundError as error:
            raise VimpacError(f"{url} does not exist: check the URL") from error
        except PermissionError as error:
            raise VimpacError(f"{url} is not permitted: check your credentials") from error
        except (VimpacError, TypeError, AttributeError, NotImplementedError):
            raise
        except Exception as error:  # every file system has kinds of its own
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise
            if attempt == TRIES or getattr(error, "status", None) in _REFUSALS:
                times = f", tried {attempt} times" if attempt > 1 else ""
                raise VimpacError(
                    f"{url} cannot be read or written: {_reason(error)}{times}"
                ) from error
        time.sleep(FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
    raise AssertionError


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split()) or "no reason was given"
    return f"{type(error).__name__} ({reason:.200})"
