"""The classes of the videos of a store: a CSV file with the columns video, class and split."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path

from vimpac.data.store import TokenStore
from vimpac.errors import UsageError

COLUMNS, SPLITS = ("video", "class", "split"), ("train", "test")


@dataclasses.dataclass(frozen=True)
class Split:
    """Some videos of a store, by their numbers, and the class of each."""

    videos: list[int]
    classes: list[int]


def read_labels(path: str, store: TokenStore) -> tuple[list[str], dict[str, Split]]:
    """Reads the class of every video of a store.

    Args:
        path: The file; lines of videos that are not in the store are passed over.
        store: The videos.

    Returns:
        The names of the classes, sorted, and the videos of each of `SPLITS`.

    Raises:
        UsageError: There is no such file, it is no such table, a video has no line or two, or a
            class or a split has too few.
    """
    lines = _read(path)
    names = [store.name(i) for i in range(len(store))]
    missing = [name for name in names if name not in lines]
    if missing:
        raise UsageError(f"{path}: no line for '{missing[0]}' ({len(missing)} videos have none)")
    classes = sorted({lines[name][0] for name in names if lines[name][1] == "train"})
    splits = {split: Split([], []) for split in SPLITS}
    for video, (label, split) in enumerate(lines[name] for name in names):
        if label not in classes:
            raise UsageError(f"{path}: class '{label}' of '{names[video]}' is in no training video")
        splits[split].videos.append(video)
        splits[split].classes.append(classes.index(label))
    for split, content in splits.items():
        if not content.videos:
            raise UsageError(f"{path}: no video of {store.path} has the split '{split}'")
    return classes, splits


def _read(path: str) -> dict[str, tuple[str, str]]:
    """(class, split) of every video in the file."""
    columns = ",".join(COLUMNS)
    if not path:
        raise UsageError(f"labels= is missing: give a CSV file with the columns {columns}")
    if not Path(path).is_file():
        raise UsageError(f"labels={path}: no such file; its columns are {columns}")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # Excel begins it with a mark
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: save it as 'CSV UTF-8' ({error})") from None
    reader = csv.DictReader(io.StringIO(text))
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        raise UsageError(f"{path} must begin with the line {columns}")
    lines: dict[str, tuple[str, str]] = {}
    for line in reader:
        video, label, split = (line[column] for column in COLUMNS)
        if split not in SPLITS or video in lines:
            wrong = f"a second '{video}'" if video in lines else f"no split '{split}'"
            raise UsageError(f"{path}, line {reader.line_num}: {wrong}")
        lines[video] = (label, split)
    return lines
