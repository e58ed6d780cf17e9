"""The checksums of the files of a model directory, which tell a flipped bit from a whole file.

    checksums.json    {"model.safetensors": "0a1b2c3d", ...}, CRC-32 of the bytes

CRC-32 finds accidents, not forgeries, and reads 4 GB/s where SHA-256 reads 1.7: a checkpoint of
gigabytes is checked in about the time that its file takes to be read. Directories without the file
are of before it was written.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from vimpac.errors import VimpacError

CHECKSUMS = "checksums.json"
_CHUNK = 1 << 24


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files that are in a directory, those of others in it apart."""
    sums = {file.name: _crc32(file) for file in sorted(folder.iterdir()) if file.is_file()}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def has_checksums(folder: Path) -> bool:
    """Whether a directory is of a version that writes them."""
    return (folder / CHECKSUMS).is_file()


def check_file(file: Path) -> None:
    """Raises VimpacError if a file has not the bytes that were written, as far as that is known."""
    folder = file.parent
    if not has_checksums(folder):
        return
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        expected = sums.get(file.name)
    except (ValueError, AttributeError, RecursionError) as error:
        raise damaged(folder, f"{CHECKSUMS}: {error}") from None
    if expected is not None and expected != _crc32(file):
        raise damaged(folder, f"{file.name} has another checksum than in {CHECKSUMS}")


def damaged(path: Path, reason: object) -> VimpacError:
    """The error for a file or a directory that cannot be read."""
    line = " ".join(str(reason).split())
    return VimpacError(f"{path} is damaged ({line:.300}): use an earlier checkpoint or a copy")


def _crc32(file: Path) -> str:
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
