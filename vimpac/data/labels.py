"""The classes of the videos of a store: a CSV file with the columns video, class and split."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vimpac.data.store import TokenStore
from vimpac.errors import UsageError
from vimpac.paths import local_path

COLUMNS, SPLITS = ("video", "class", "split"), ("train", "val", "test")
_QUOTE = "is a quote there that is not closed?"
_OTHER_NAMES = {"validation": "val"}


@dataclasses.dataclass(frozen=True)
class Split:
    """Some videos of a store, by their numbers, and the class of each."""

    videos: list[int]
    classes: list[int]

    def take(self, positions: Iterable[int]) -> Split:
        """The videos at some positions of this split."""
        chosen = list(positions)
        return Split([self.videos[i] for i in chosen], [self.classes[i] for i in chosen])


class _Line(NamedTuple):
    number: int
    label: str
    split: str


def read_labels(path: str, store: TokenStore) -> tuple[list[str], dict[str, Split]]:
    """Reads the classes of the videos of a store.

    Args:
        path: The file; lines of videos that are not in the store are passed over.
        store: The videos; those without a line, or whose split has another name than `SPLITS`,
            are in no split.

    Returns:
        The names of the classes, sorted, and the videos of train, of test and, if there are any,
        of val.

    Raises:
        UsageError: There is no such file, it is no such table, says two things of a video, or a
            class or a split has too few.
    """
    numbers = {store.name(i): i for i in range(len(store))}
    lines = _read(path, numbers)
    splits = {split: Split([], []) for split in SPLITS}
    classes = sorted({line.label for line in lines.values() if line.split == "train"})
    for name, line in sorted(lines.items(), key=lambda item: numbers[item[0]]):
        if line.split not in SPLITS:
            continue
        if not line.label:
            raise UsageError(f"{path}, line {line.number}: '{name}' has no class")
        if line.label not in classes:
            raise UsageError(
                f"{path}, line {line.number}: class '{line.label}' of '{name}' is in no training "
                "video"
            )
        splits[line.split].videos.append(numbers[name])
        splits[line.split].classes.append(classes.index(line.label))
    for split in ("train", "test"):
        if not splits[split].videos:
            others = ", ".join(sorted({f"'{line.split}'" for line in lines.values()}))
            raise UsageError(
                f"{path}: no video of {store.path} has the split '{split}', only {others}"
            )
    return classes, {name: split for name, split in splits.items() if split.videos}


def read_split(path: str, store: TokenStore, split: str, classes: list[str]) -> Split:
    """Reads which videos of a store are in a split, for a classifier that is trained.

    Args:
        path: As in `read_labels`; no other split need be in it.
        store: The videos.
        split: One of `SPLITS`.
        classes: That the classifier tells apart.

    Returns:
        The videos, and their classes by their places in `classes`.

    Raises:
        UsageError: The table is wrong, has no such video, or a class that is not in `classes`.
    """
    numbers = {store.name(i): i for i in range(len(store))}
    places = {name: place for place, name in enumerate(classes)}
    lines = _read(path, numbers)
    found = Split([], [])
    for name, line in sorted(lines.items(), key=lambda item: numbers[item[0]]):
        if line.split != split:
            continue
        if line.label not in places:
            raise UsageError(
                f"{path}, line {line.number}: the classifier does not know the class "
                f"'{line.label}' of '{name}', only {', '.join(classes[:5])}"
                + (", ..." if len(classes) > 5 else "")
            )
        found.videos.append(numbers[name])
        found.classes.append(places[line.label])
    if not found.videos:
        others = ", ".join(sorted({f"'{line.split}'" for line in lines.values()}))
        raise UsageError(f"{path}: no video of {store.path} has the split '{split}', only {others}")
    return found


def _read(path: str, names: dict[str, int]) -> dict[str, _Line]:
    """The line of every video of the store that has one."""
    text, first = _text(path), ""
    lines: dict[str, _Line] = {}
    for number, (name, label, split) in _rows(path, text, names):
        first = first or name
        if name not in names:
            continue
        line = _Line(number, label, _OTHER_NAMES.get(split.lower(), split.lower()))
        other = lines.setdefault(name, line)
        if other[1:] != line[1:]:
            raise UsageError(
                f"{path}, line {number}: '{name}' is of {line.split} and class '{label}', in line "
                f"{other.number} of {other.split} and class '{other.label}'"
            )
    if not lines:
        held = next(iter(names), "")
        raise UsageError(
            f"{path} names no video of the store: it has '{first}', the store '{held}'"
        )
    return lines


def _text(path: str) -> str:
    columns = ",".join(COLUMNS)
    if not path:
        raise UsageError(f"labels= is missing: give a CSV file with the columns {columns}")
    file: Path = local_path(path)
    if not file.is_file():
        raise UsageError(f"labels={path}: no such file; its columns are {columns}")
    try:
        text = file.read_text(encoding="utf-8-sig")  # Excel begins it with a mark
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: save it as 'CSV UTF-8' ({error})") from None
    if "\0" in text:
        raise UsageError(f"{path} holds NUL bytes: save it as 'CSV UTF-8'")
    return text


def _rows(path: str, text: str, names: dict[str, int]) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, fields in the order of `COLUMNS`) of every line but the first."""
    header, delimiter = _header(path, text)
    places = [header.index(column) for column in COLUMNS]
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    end = 0
    try:
        for fields in reader:
            begin, end = end + 1, reader.line_num
            if begin == 1 or not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise UsageError(
                    f"{path}, line {begin}: {len(fields)} fields, not {len(header)}; a field with "
                    f"'{delimiter}' in it needs quotes"
                )
            row = [fields[place] for place in places]
            row = [field if field in names else field.strip() for field in row]
            if any("\n" in field and field not in names for field in row):
                raise UsageError(f"{path}, line {begin}: {_QUOTE} (a field goes on to line {end})")
            yield begin, row
    except csv.Error as error:
        raise UsageError(f"{path}, line {end + 1}: {_QUOTE} ({error})") from None


def _header(path: str, text: str) -> tuple[list[str], str]:
    """The columns' names, and what separates them: as Excel has it, it depends on the country."""
    line = text.partition("\n")[:1]
    for delimiter in ",;\t":
        header = [name.strip().lower() for name in next(csv.reader(line, delimiter=delimiter))]
        if set(COLUMNS) <= set(header):
            twice = [name for name in COLUMNS if header.count(name) > 1]
            if twice:
                raise UsageError(f"{path} has two columns '{twice[0]}'")
            return header, delimiter
    raise UsageError(f"{path} must begin with the line {','.join(COLUMNS)}")
