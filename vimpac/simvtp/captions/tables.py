"""Tables of captions: our own, WebVid's, and that of MSR-VTT's test videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from vimpac.data.annotations.files import headers, read_csv, read_text
from vimpac.errors import UsageError
from vimpac.simvtp.captions.captioned import Captioned, Entry, collect, split_name


@dataclasses.dataclass(frozen=True)
class _Table:
    """A format.

    Attributes:
        header: Its first line, as messages show it.
        columns: Those that are read.
        parse: (video, caption, split) of the fields of a line.
        optional: Columns that are read if they are there.
    """

    header: str
    columns: tuple[str, ...]
    parse: Callable[[dict[str, str]], tuple[str, str, str]]
    optional: tuple[str, ...] = ()


def _webvid(row: dict[str, str]) -> tuple[str, str, str]:
    folder = row["page_dir"] and f"{row['page_dir']}/"
    return row["videoid"] and f"{folder}{row['videoid']}.mp4", row["name"], ""


_TABLES = (
    _Table(
        "video,caption[,split]",
        ("video", "caption"),
        lambda row: (row["video"], row["caption"], row.get("split", "")),
        ("split",),
    ),
    _Table("videoid,contentUrl,duration,page_dir,name", ("videoid", "page_dir", "name"), _webvid),
    _Table(
        "key,vid_key,video_id,sentence",
        ("video_id", "sentence"),
        lambda row: (row["video_id"], row["sentence"], "test"),
    ),
)
FORMATS = (
    f"CSV that begins with {' or '.join(table.header for table in _TABLES)}, or JSON: "
    '{"path.mp4": "caption", ...}, or MSR-VTT\'s with "annotations" or "videos" and "sentences"'
)


def read_table(file: Path, split: str) -> list[Captioned]:
    """Reads a table of one of the formats.

    Args:
        file: The table.
        split: Empty, or "column": those of the table.

    Raises:
        UsageError: It is no such table, or has no such split.
    """
    header = read_header(file)
    table = next((table for table in _TABLES if {*table.columns} <= {*header}), None)
    if table is None:
        raise UsageError(
            f"{file} begins with '{','.join(header)[:80]}', which is no table of captions: it must "
            f"be {FORMATS}"
        )
    has_splits = bool({*table.optional} & {*header})
    if split not in ("", "column") or (split and not has_splits):
        hint = "has its own in the column 'split'" if has_splits else "has no column 'split'"
        raise UsageError(f"split={split}: {file} {hint}; leave split= out")
    return collect(_entries(file, table), file)


def read_header(file: Path) -> list[str]:
    """The names of a table's columns, in lower case; commas, semicolons or tabs separate them."""
    return max((names for _, names in headers(file, read_text(file))), key=len)


def _entries(file: Path, table: _Table) -> Iterator[Entry]:
    for place, row in read_csv(file, table.columns, table.optional):
        video, caption, split = table.parse(row)
        yield Entry(video, caption, split_name(split, f"{file}, {place}"), place)
