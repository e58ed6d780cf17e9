"""Plain lists, as VideoMAE, SlowFast, mmaction2, V-JEPA and the released VIMPAC take them.

A line is the path of a video and the number of its class, from 0, with a space, a comma or a
semicolon between them.
"""

from __future__ import annotations

from pathlib import Path

from vimpac.data.annotations.files import read_lines, whole_number
from vimpac.data.annotations.rows import Annotations, Row, order_classes
from vimpac.errors import UsageError
from vimpac.paths import local_path

USAGE = "list:train.csv,test.csv or list:train.csv,test.csv,classes.txt"
_MOST_CLASSES = 100_000


def read_lists(where: str) -> Annotations:
    """Reads the list of the training videos and that of the test videos.

    Args:
        where: The two files, with a comma between them, and perhaps a third one, whose lines are
            the names of the classes. Without it a class is named by its number.

    Raises:
        UsageError: A file is absent or a line wrong.
    """
    files = where.split(",")
    if len(files) not in (2, 3):
        raise UsageError(f"list:{where} must be {USAGE}")
    train, test, *index = map(local_path, files)
    found = [("train", *line) for line in _read(train)] + [("test", *line) for line in _read(test)]
    if index:
        lines = enumerate(read_lines(index[0]))
        classes = order_classes(((name, i, place) for i, (place, name) in lines), index[0])
    else:
        classes = [str(label) for label in range(1 + max(label for *_, label in found))]
    rows = []
    for split, file, place, video, label in found:
        if label >= len(classes):
            raise UsageError(f"{file}, {place}: {index[0]} has no line for the class {label}")
        rows.append(Row(video, classes[label], split, file, place))
    return Annotations(rows, classes)


def is_list(file: Path) -> bool:
    """Whether the first line of a file is one of a list."""
    _, line = next(read_lines(file), ("", ""))
    return _parse(line) is not None


def _read(file: Path) -> list[tuple[Path, str, str, int]]:
    """(file, place, video, label) of every line."""
    lines = []
    for place, line in read_lines(file):
        parsed = _parse(line)
        if parsed is None:
            looks = "; it looks like Kinetics: give kinetics400:DIRECTORY" * ("youtube_id" in line)
            raise UsageError(f"{file}, {place}: '{line[:80]}' is no path and class number{looks}")
        lines.append((file, place, *parsed))
    if not lines:
        raise UsageError(f"{file} is empty")
    return lines


def _parse(line: str) -> tuple[str, int] | None:
    """The path and the class; None if the line is something else."""
    before = line.rstrip("0123456789")
    video, label = before.rstrip(" \t,;"), whole_number(line[len(before) :])
    if not video or video == before or label is None or label >= _MOST_CLASSES:
        return None
    if len(video) > 1 and video[0] == video[-1] == '"':
        video = video[1:-1].replace('""', '"')
    return video, label
