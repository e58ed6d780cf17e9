"""Which file each captioned video is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from vimpac.data.annotations.rows import Row
from vimpac.data.match_names import match_names
from vimpac.errors import UsageError
from vimpac.simvtp.captions.captioned import Captioned

MISSING = ("error", "skip")


@dataclasses.dataclass(frozen=True)
class Matched:
    """Captioned videos and their files.

    Attributes:
        captioned: Those that have a file, in the order of the table.
        files: The number of the file of each.
        notes: What has no counterpart, a line for each side.
    """

    captioned: list[Captioned]
    files: list[int]
    notes: list[str]


def match_videos(
    captioned: Sequence[Captioned],
    names: Sequence[str],
    *,
    source: str,
    missing: str = "error",
    skip: str = "missing=skip",
    every_file: bool = True,
) -> Matched:
    """Finds the file of every captioned video, by the ends of their paths.

    Args:
        captioned: As `read_captions` has them.
        names: Of the video files, as `find_videos` has them.
        source: What the captions are called in messages, such as the path of their file.
        missing: What becomes of a captioned video without a file, and of a file without a caption:
            "error", or "skip", which leaves it out.
        skip: How the user writes that, for the message.
        every_file: Whether a file must have a caption; else those without one are left out.

    Raises:
        UsageError: Something has no counterpart, and `missing` is "error"; a video may be two
            files, or a file two videos; or the captions name none of the files.
        ValueError: `missing` is neither.
    """
    if missing not in MISSING:
        raise ValueError(f"{missing=} must be one of {MISSING}")
    rows = [_Row(video.video, "", "", Path(source), video.place) for video in captioned]
    found = match_names(names, rows, source, of="the video files")
    numbers = {row.video: number for number, row in found.items()}
    without_file = [video.video for video in captioned if video.video not in numbers]
    without_caption = [name for number, name in enumerate(names) if number not in found]
    notes = _note(without_file, len(captioned), f"videos of {source}", "no video file")
    if every_file:
        notes += _note(without_caption, len(names), "video files", f"no caption in {source}")
    if notes and missing == "error":
        raise UsageError(f"{'; '.join(notes)}; {skip} leaves them out")
    kept = [video for video in captioned if video.video in numbers]
    return Matched(kept, [numbers[video.video] for video in kept], notes)


class _Row(Row):
    """A captioned video as `match_names` takes it: no two of them may be one file."""

    __slots__ = ()

    def contradiction(self, other: Row, video: str = "") -> UsageError | None:
        if self.video == other.video:
            return None
        return UsageError(
            f"{self.where}: '{self.video}' and '{other.video}' of {other.place} may both be the "
            f"file '{video}': write them in full"
        )


def _note(missing: list[str], count: int, what: str, lack: str) -> list[str]:
    if not missing:
        return []
    return [f"{len(missing)} of {count} {what} have {lack}, the first is '{missing[0]}'"]
