"""Kinetics-400, 600 and 700: `train.csv` and `val.csv`, as in "kinetics_train.csv", too.

The columns may be in any order. The videos of test.csv often have no class, so the paper tests on
the validation videos. A video is named as its downloaders do: abCDefGH123_000014_000024.
"""

from __future__ import annotations

import math
from pathlib import Path

from vimpac.data.annotations.files import read_csv
from vimpac.data.annotations.lists import USAGE, is_list
from vimpac.data.annotations.rows import Annotations, Row
from vimpac.errors import UsageError

COLUMNS = ("label", "youtube_id", "time_start", "time_end")
FILES = {
    "train": ("train.csv", "kinetics*train.csv"),
    "test": ("val.csv", "validate.csv", "kinetics*val.csv", "kinetics*validate.csv"),
}


def read_kinetics(folder: Path) -> Annotations:
    """Reads the training videos, and the validation videos as those of test.

    Args:
        folder: Where the files are.

    Returns:
        The videos, and the classes in alphabetical order.

    Raises:
        UsageError: A file is absent or a line wrong.
    """
    rows = []
    for split, patterns in FILES.items():
        files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
        if len(files) != 1:
            found = " and ".join(file.name for file in files) or "none"
            raise UsageError(f"{folder} must hold one file such as {patterns[0]}, it has {found}")
        file = files[0]
        if is_list(file):
            raise UsageError(f"{file} looks like a plain list, not Kinetics: give {USAGE}")
        for place, fields in read_csv(file, COLUMNS):
            name, video, *times = (fields[column] for column in COLUMNS)
            seconds = [_seconds(time) for time in times]
            if not name or not video or None in seconds:
                raise UsageError(
                    f"{file}, {place}: it needs a label, a youtube_id and two times in seconds"
                )
            video = "_".join([video, *(f"{second:06}" for second in seconds)])
            rows.append(Row(video, name, split, file, place))
    return Annotations(rows, sorted({row.class_name for row in rows}))


def _seconds(text: str) -> int | None:
    """Whole seconds of a time, such as "14" or "14.0"; None if it is no such time."""
    try:
        time = float(text)
    except ValueError:
        return None
    return int(time) if math.isfinite(time) and 0 <= time < 1e6 else None
