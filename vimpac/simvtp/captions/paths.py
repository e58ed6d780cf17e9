"""The JSON of the SimVTP release: an object of the paths of videos and their captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vimpac.errors import UsageError
from vimpac.simvtp.captions.captioned import Captioned, Entry, collect
from vimpac.simvtp.captions.tables import FORMATS


def read_paths(file: Path, content: Any) -> list[Captioned]:
    """Reads the captions of an object.

    Args:
        file: The JSON file.
        content: What it holds.

    Raises:
        UsageError: It is no such object, or a video has no caption or the same one twice.
    """
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds a list, which is no table of captions: give {FORMATS}")
    return collect(_entries(file, content), file)


def _entries(file: Path, content: dict[str, Any]) -> Iterator[Entry]:
    for number, (video, value) in enumerate(content.items(), start=1):
        place = f"entry {number}"
        captions = value if isinstance(value, list) else [value]
        if not all(isinstance(caption, str) for caption in captions):
            raise UsageError(
                f"{file}, {place}: '{video[:80]}' has no text as its caption, nor a list of texts: "
                f"give {FORMATS}"
            )
        if not captions:
            raise UsageError(f"{file}, {place}: '{video}' has no caption")
        for i, caption in enumerate(captions, start=1):
            yield Entry(video, caption, "", place if caption is value else f"{place}, caption {i}")
