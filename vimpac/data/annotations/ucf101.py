"""UCF101: `trainlist01.txt`, `testlist01.txt`, and so on to 03, and `classInd.txt`.

The class is the directory of a video: the files of HandstandPushups are named HandStandPushups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from vimpac.data.annotations.files import read_lines, whole_number
from vimpac.data.annotations.rows import Annotations, Row, order_classes
from vimpac.errors import UsageError

_LINE = re.compile(r"(?P<video>(?P<class>[^/\s]+)/\S+)(\s+(?P<number>\d+))?")  # none in testlist


def read_ucf101(folder: Path, split: int) -> Annotations:
    """Reads one of the three splits.

    Args:
        folder: Where the files are.
        split: 1, 2 or 3.

    Raises:
        UsageError: A file is absent or a line wrong.
    """
    index = folder / "classInd.txt"
    classes = order_classes(_classes(index), index, first=1)
    numbers = {name: str(number) for number, name in enumerate(classes, start=1)}
    rows = []
    for name in ("train", "test"):
        file = folder / f"{name}list{split:02}.txt"
        for place, line in read_lines(file):
            match = _LINE.fullmatch(line)
            if not match:
                raise UsageError(f"{file}, {place}: '{line}' is not 'CLASS/VIDEO.avi NUMBER'")
            label = match["class"]
            if label not in numbers:
                raise UsageError(f"{file}, {place}: class '{label}' is not in {index}")
            if match["number"] not in (None, numbers[label]):
                raise UsageError(
                    f"{file}, {place}: class '{label}' is {match['number']}, in {index} "
                    f"{numbers[label]}"
                )
            rows.append(Row(match["video"], label, name, file, place))
    return Annotations(rows, classes)


def _classes(index: Path) -> Iterator[tuple[str, int, str]]:
    """(class, number, place) of every line."""
    for place, line in read_lines(index):
        number, _, name = line.partition(" ")
        label = whole_number(number)
        if label is None or not name.strip():
            raise UsageError(f"{index}, {place}: '{line}' is not 'NUMBER CLASS'")
        yield name.strip(), label, place
