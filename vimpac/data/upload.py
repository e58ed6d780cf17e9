"""Copies a store to object storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec

from vimpac.data.object_store import file_system, tries
from vimpac.data.store import TokenStore
from vimpac.data.store_files import StoreFiles
from vimpac.data.store_format import INDEX, META, NAMES, shard_name
from vimpac.errors import UsageError


def upload_store(path: Path, url: str, report: Callable[[str], object] = lambda name: None) -> None:
    """Copies a finished store to object storage; meta.json, which makes it a store, comes last.

    What was interrupted is continued: the object meta.json.partial says which store it was.

    Args:
        path: The store.
        url: Where it is to be.
        report: Called with the name of every file before it is copied.

    Raises:
        UsageError: There is a store already, or the beginning of another one, or a web server
            cannot be written to.
        VimpacError: The store is damaged, or the objects cannot be written.
    """
    sizes = TokenStore(path, kind=None).shard_bytes  # which checks index and names
    shards = {shard_name(k): int(size) for k, size in enumerate(sizes) if size}
    for name, size in shards.items():
        StoreFiles(path).map(name, size)  # raises if it is not whole
    if url.startswith(("http://", "https://")):
        raise UsageError(
            f"{url} can only be read: give the URL of object storage, such as s3://..."
        )
    url, files, meta = url.rstrip("/"), file_system(url), (path / META).read_bytes()
    mark = f"{url}/{META}.partial"
    if tries(url, _size, files, f"{url}/{META}") is not None:
        raise UsageError(f"{url} exists: remove it or name another URL")
    if tries(mark, _size, files, mark) is None:
        tries(mark, files.pipe_file, mark, meta)
    elif tries(mark, files.cat_file, mark) != meta:
        raise UsageError(f"{url} holds the beginning of another store: remove it")
    for name in (INDEX, NAMES, *shards):
        target, file = f"{url}/{name}", path / name
        if tries(target, _size, files, target) != file.stat().st_size:
            report(name)
            tries(target, files.put_file, str(file), target)
    tries(url, files.pipe_file, f"{url}/{META}", meta)
    tries(mark, files.rm_file, mark)


def _size(files: fsspec.AbstractFileSystem, url: str) -> int | None:
    """The bytes of an object; None if there is none. `exists` would say so of any error, too."""
    try:
        return files.info(url)["size"]
    except FileNotFoundError:
        return None
