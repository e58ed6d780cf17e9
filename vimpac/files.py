"""Files and directories that appear whole or not at all, whenever the process dies."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

# How file systems say that fsync does not take a directory.
_NO_DIRECTORIES = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
# And how mounted buckets say that they cannot rename one.
_NO_RENAMES = (errno.ENOSYS, errno.ENOTSUP, errno.EMFILE, errno.ENOTEMPTY)


@contextmanager
def whole_directory(path: Path, *, last: str = "") -> Iterator[Path]:
    """Writes a directory, in the place of one that may be there.

    Args:
        path: The directory.
        last: The name of the file without which the others count for nothing: where directories
            cannot be renamed, it is moved last.

    Yields:
        An empty directory beside it, `.tmp-<name>`. At the end its files are brought to the disk
        and it gets the name; after an error it is removed, and `path` is as it was. Meanwhile the
        old one is `.old-<name>`, which `recover` puts back if the process is killed just then.

    Raises:
        OSError: Writing failed; it names `path`, or a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    temporary = temporary_path(path)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir()
    try:
        yield temporary
        for written in (*temporary.rglob("*"), temporary):
            sync(written)
        if path.exists() and not _rename(path, _aside(path)):
            shutil.rmtree(path)
        if not _rename(temporary, path):
            move_files(temporary, path, last)
        sync(path.parent)
        shutil.rmtree(_aside(path), ignore_errors=True)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:  # of a write
            error.filename = str(path)
        shutil.rmtree(temporary, ignore_errors=True)
        recover(path)
        raise


def recover(path: Path) -> None:
    """Puts back what `whole_directory` had moved aside when its process was killed."""
    aside = _aside(path)
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif aside.is_dir():
        os.replace(aside, path)


def _aside(path: Path) -> Path:
    return path.with_name(f".old-{path.name}")


def _rename(source: Path, target: Path) -> bool:
    """Renames a directory, if the file system does that."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in _NO_RENAMES:
            raise
        return False
    return True


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Writes a file, in the place of one that may be there.

    Args:
        path: The file.

    Yields:
        The name to write to, beside it. At the end the file is brought to the disk and gets its
        name; after an error it is removed, and `path` is as it was.

    Raises:
        OSError: Writing failed; it names `path`.
    """
    temporary = temporary_path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such directory", str(path.parent))
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # of an error, which says more
            temporary.unlink()


def temporary_path(path: Path) -> Path:
    """Where a file or directory is written before it has its name."""
    return path.with_name(f".tmp-{path.name}")


def move_files(source: Path, target: Path, last: str = "") -> None:
    """Moves the files of a directory into another one, which may be there, and removes it.

    Args:
        source: The directory.
        target: Where they go to, on the same file system.
        last: The name of the file without which the others count for nothing.
    """
    target.mkdir(exist_ok=True)
    for file in sorted(source.iterdir(), key=lambda file: file.name == last):
        if file.is_dir():
            move_files(file, target / file.name)
        else:
            os.replace(file, target / file.name)
    sync(target)
    source.rmdir()


def sync(path: Path) -> None:
    """Brings a file, or the entries of a directory, to the disk.

    Raises:
        OSError: The disk is full or fails; not if the file system cannot do it for a directory.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not path.is_dir() or error.errno not in _NO_DIRECTORIES:
            error.filename = str(path)
            raise
    finally:
        os.close(descriptor)


def write_all(file: FileIO, data: bytes) -> None:
    """Writes all of `data`; an error of the operating system names the file."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        error.filename = file.name
        raise
