"""What every table of captions says: the captions of each video, and the split that it is in."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vimpac.data.annotations.rows import SPLITS
from vimpac.errors import UsageError

_NO_TEXT = re.compile(r"[\0\r\n\ud800-\udfff]")  # JSON may hold them
_OTHER_NAMES = {"training": "train", "validation": "val", "validate": "val", "testing": "test"}


@dataclasses.dataclass(frozen=True, slots=True)
class Captioned:
    """A video as a table of captions names it.

    Attributes:
        video: Its name, which may have directories and a suffix.
        captions: At least one; each is a line of text.
        split: "train", "val" or "test"; empty if it is in none.
        place: Where its first caption stands in the file, such as "line 3".
    """

    video: str
    captions: tuple[str, ...]
    split: str = ""
    place: str = dataclasses.field(default="", compare=False)


class Entry(NamedTuple):
    """One caption in a file."""

    video: str
    caption: str
    split: str
    place: str


def collect(entries: Iterable[Entry], file: Path, *, repeats: bool = False) -> list[Captioned]:
    """Puts the captions of each video together, in the order of the file.

    Args:
        entries: Captions; spaces in a row, also line breaks, become one.
        file: Where they stand.
        repeats: Whether a video may have the same caption twice, as in MSR-VTT.

    Raises:
        UsageError: A video or a caption is empty or no text, comes twice, or is in two splits; or
            there are no captions.
    """
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        where = f"{file}, {entry.place}"
        entry = entry._replace(caption=" ".join(entry.caption.split()))
        if not entry.video:
            raise UsageError(f"{where} names no video")
        if not entry.caption:
            raise UsageError(f"{where}: the caption of '{entry.video}' is empty")
        if _NO_TEXT.search(entry.video) or _NO_TEXT.search(entry.caption):
            raise UsageError(f"{where} has characters that are no text: {entry[:2]!a:.200}")
        others = found.setdefault(entry.video, [])
        for other in others:
            if other.split != entry.split:
                raise UsageError(
                    f"{where}: '{entry.video}' is in the split '{entry.split}', in {other.place} "
                    f"in '{other.split}'"
                )
            if other.caption == entry.caption and not repeats:
                raise UsageError(
                    f"{where}: '{entry.video}' has this caption already, in {other.place}: "
                    f"'{entry.caption}'"
                )
        others.append(entry)
    if not found:
        raise UsageError(f"{file} has no captions")
    return [
        Captioned(video, tuple(x.caption for x in its), its[0].split, its[0].place)
        for video, its in found.items()
    ]


def split_name(text: str, where: str) -> str:
    """The name of a split as it is used here, such as "val" for "Validation"; empty stays.

    Raises:
        UsageError: It is none.
    """
    name = _OTHER_NAMES.get(text.lower(), text.lower())
    if name and name not in SPLITS:
        raise UsageError(f"{where}: the split '{text}' must be {', '.join(SPLITS)} or empty")
    return name
