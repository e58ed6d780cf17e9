"""HMDB51: a file `CLASS_test_split1.txt` for every class and each of three splits.

A line is the name of a video and a code: 1 to train, 2 to test, 0 for neither in this split.
"""

from __future__ import annotations

from pathlib import Path

from vimpac.data.annotations.files import read_lines
from vimpac.data.annotations.rows import Annotations, Row
from vimpac.errors import UsageError

_SPLITS = {"0": "", "1": "train", "2": "test"}


def read_hmdb51(folder: Path, split: int) -> Annotations:
    """Reads one of the three splits.

    Args:
        folder: Where the files are.
        split: 1, 2 or 3.

    Returns:
        The videos as CLASS/NAME.avi, and the classes in alphabetical order.

    Raises:
        UsageError: There are no files of this split or a line is wrong.
    """
    ending = f"_test_split{split}.txt"
    files = sorted(file for file in folder.glob(f"*{ending}") if not file.name.startswith("."))
    if not files:
        raise UsageError(f"{folder} holds no file *{ending}")
    rows, classes = [], []
    for file in files:
        classes.append(file.name.removesuffix(ending))
        for place, line in read_lines(file):
            video, _, code = line.rpartition(" ")
            if not video.strip() or code not in _SPLITS:
                raise UsageError(f"{file}, {place}: '{line}' is not 'VIDEO.avi CODE', a code 0-2")
            name = f"{classes[-1]}/{video.strip()}"
            rows.append(Row(name, classes[-1], _SPLITS[code], file, place))
    return Annotations(rows, classes)
