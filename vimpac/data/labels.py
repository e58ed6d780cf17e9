"""The classes of the videos of a store: by a CSV file, or by the annotations of a data set."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence

from vimpac.data.annotations.datasets import looks_like, parse_source, read_source
from vimpac.data.annotations.rows import SPLITS, Annotations, Row
from vimpac.data.annotations.table import COLUMNS, read_table
from vimpac.data.joined_store import JoinedStore, Store
from vimpac.data.match_names import match_names
from vimpac.errors import UsageError
from vimpac.paths import local_path


@dataclasses.dataclass(frozen=True)
class Split:
    """Some videos of a store, by their numbers, and the class of each.

    Attributes:
        videos: Their numbers.
        classes: The class of each.
        missing: How many more the labels name for this split, which the store lacks.
    """

    videos: list[int]
    classes: list[int]
    missing: int = 0

    def take(self, positions: Iterable[int]) -> Split:
        """The videos at some positions of this split."""
        chosen = list(positions)
        videos, classes = ([values[i] for i in chosen] for values in (self.videos, self.classes))
        return Split(videos, classes, self.missing)


def read_labels(path: str, store: Store) -> tuple[list[str], dict[str, Split]]:
    """Reads the classes of the videos of a store.

    Args:
        path: A CSV file, or a data set and its annotations, such as ucf101:DIRECTORY:1; videos
            that are not in the store are passed over.
        store: The videos; those that the labels do not name, or whose split has another name than
            `SPLITS`, are in no split.

    Returns:
        The names of the classes, all in their own order if they have one, otherwise those of the
        store sorted; and the videos of train, of test and, if there are any, of val.

    Raises:
        UsageError: There are no such labels, they say two things of a video, a class or a split
            has too few videos, or two stores have a video of one name.
    """
    names = _names(store)
    annotations = _read(path, {*names})
    rows = match_names(names, annotations.rows, path)
    trained = {row.class_name for row in rows.values() if row.split == "train"}
    classes = annotations.classes or sorted(trained)
    numbers = {name: number for number, name in enumerate(classes)}
    named = _count(annotations.rows)
    found = _count(rows.values())
    splits = {split: Split([], [], named[split] - found[split]) for split in SPLITS}
    for video, row in rows.items():
        if row.split not in SPLITS:
            continue
        if not row.class_name:
            raise UsageError(f"{row.where}: '{row.video}' has no class")
        if row.class_name not in trained:
            others = sorted({other.split for other in rows.values()} - {*SPLITS})
            unknown = (
                f", and the split '{others[0]}' is none of {', '.join(SPLITS)}" if others else ""
            )
            raise UsageError(
                f"{row.where}: class '{row.class_name}' of '{row.video}' is in no training video"
                f"{unknown}"
            )
        splits[row.split].videos.append(video)
        splits[row.split].classes.append(numbers[row.class_name])
    for split in ("train", "test"):
        if not splits[split].videos:
            raise _without_split(path, store, split, rows.values())
    return classes, {name: split for name, split in splits.items() if split.videos}


def read_split(path: str, store: Store, split: str, classes: list[str]) -> Split:
    """Reads which videos of a store are in a split, for a classifier that is trained.

    Args:
        path: As in `read_labels`; no other split need be in it.
        store: The videos.
        split: One of `SPLITS`.
        classes: That the classifier tells apart.

    Returns:
        The videos, and their classes by their places in `classes`.

    Raises:
        UsageError: There are no such labels, they have no such video, or one whose class is not
            in `classes`, or two stores have a video of one name.
    """
    names = _names(store)
    annotations = _read(path, {*names})
    rows = match_names(names, annotations.rows, path)
    numbers = {name: number for number, name in enumerate(classes)}
    found = Split([], [], _count(annotations.rows)[split] - _count(rows.values())[split])
    for video, row in rows.items():
        if row.split != split:
            continue
        if row.class_name not in numbers:
            some = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            raise UsageError(
                f"{row.where}: the classifier does not know the class '{row.class_name}' of "
                f"'{row.video}', only {some}"
            )
        found.videos.append(video)
        found.classes.append(numbers[row.class_name])
    if not found.videos:
        raise _without_split(path, store, split, rows.values())
    return found


def read_classes(path: str, store: Store) -> dict[int, str]:
    """Reads the class of every video of a store that labels name, whatever its split.

    Args:
        path: As in `read_labels`.
        store: The videos.

    Returns:
        The name of its class by the number of a video, of those that have one.

    Raises:
        UsageError: There are no such labels, they name no video, or two stores have a video of one
            name.
    """
    names = _names(store)
    rows = match_names(names, _read(path, {*names}).rows, path)
    return {video: row.class_name for video, row in rows.items() if row.class_name}


def keep_videos(splits: dict[str, Split], videos: Sequence[int]) -> dict[str, Split]:
    """The splits without the videos that are left out.

    Raises:
        UsageError: Nothing is left of one.
    """
    kept = {*videos}
    found = {
        name: split.take(i for i, video in enumerate(split.videos) if video in kept)
        for name, split in splits.items()
    }
    for name, split in found.items():
        if not split.videos:
            raise UsageError(f"all videos of the split '{name}' are damaged: copy the store again")
    return found


def missing_warning(path: str, name: str, split: Split) -> Iterator[str]:
    """A line, if the store lacks videos of a split that the labels name.

    Args:
        path: The labels.
        name: Of the split.
        split: Its videos.
    """
    if split.missing:
        yield (
            f"{split.missing} of the {split.missing + len(split.videos)} {name} videos of {path} "
            "are not in the store"
        )


def _names(store: Store) -> list[str]:
    """The names of all videos, which labels must tell apart."""
    repeated = store.repeated_name() if isinstance(store, JoinedStore) else None
    if repeated:
        name, first, second = repeated
        raise UsageError(
            f"'{name}' is a video of {first} and of {second}, and the labels do not say which they "
            "mean: give one of the stores, or tokenise one again from another directory"
        )
    return [store.name(i) for i in range(len(store))]


def _count(rows: Iterable[Row]) -> Counter[str]:
    """Videos of every split, each name once."""
    return Counter(dict((row.video, row.split) for row in rows).values())


def _without_split(path: str, store: Store, split: str, rows: Iterable[Row]) -> UsageError:
    others = ", ".join(sorted({f"'{row.split}'" for row in rows}))
    return UsageError(f"{path}: no video of {store.path} has the split '{split}', only {others}")


def _read(path: str, names: Container[str]) -> Annotations:
    source = parse_source(path)
    if source:
        return read_source(source)
    usage = f"a CSV file with the columns {','.join(COLUMNS)}, or a data set: ucf101:DIRECTORY:1"
    if not path:
        raise UsageError(f"labels= is missing: give {usage}")
    file = local_path(path)
    if not file.is_file():
        dataset = looks_like(file)
        hint = f"labels={dataset}:{path}" if dataset else usage
        raise UsageError(f"labels={path}: no such file; give {hint}")
    return read_table(file, names)
