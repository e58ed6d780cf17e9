"""Paths as users write them, and names as they are printed."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from vimpac.errors import UsageError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/(/?)")  # a Path has lost the second slash


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, such as s3://bucket/x or file:///x."""
    match = _SCHEME.match(str(path))
    return match is not None and (match[1] != "" or not os.path.lexists(path))


def local_path(path: str | os.PathLike[str]) -> Path:
    """A path of this machine, on which every command works.

    Args:
        path: As the user wrote it.

    Returns:
        The same as a `Path`.

    Raises:
        UsageError: It is a URL, which would become a directory such as `s3:`, or it is empty,
            which would become the current directory.
    """
    if is_url(path):
        raise UsageError(f"{path} is a URL: give a path on this machine (copy or mount it first)")
    if not str(path).strip():
        raise UsageError("a path is empty: give . for the current directory")
    return Path(path)


def path_or_url(text: str) -> Path | str:
    """A path of this machine, or a URL as it stands, which a `Path` would change."""
    return text if is_url(text) else local_path(text)


def split_paths(text: str) -> list[str]:
    """The paths between the commas of a text; it is one path if something has that name."""
    return [text] if os.path.lexists(text) else text.split(",")


def on_one_line(text: str) -> str:
    """A text whose control characters and undecodable bytes are escaped, for messages.

    A file's name may hold any byte but / and NUL.
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        else char
        for char in text
    )
