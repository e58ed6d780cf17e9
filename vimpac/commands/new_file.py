"""A file that a command is about to write."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vimpac.errors import UsageError
from vimpac.files import temporary_path


def check_new(option: str, file: Path, suffix: str = "") -> None:
    """Raises UsageError for a file that is there, or could not be written after all the work."""
    if suffix and file.suffix != suffix:
        raise UsageError(f"{option} {file} must end in {suffix}")
    if not os.path.isdir(file.parent):
        raise UsageError(f"{option} {file} needs the directory {file.parent}: name another file")
    if os.path.lexists(file):
        raise UsageError(f"{option} {file} exists already: remove it or name another file")
    temporary = temporary_path(file)
    try:
        with suppress(FileExistsError):  # it is being written, or a process was killed meanwhile
            temporary.open("xb").close()
            temporary.unlink()
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UsageError(f"{option} {file} {reason}: name another file") from None
