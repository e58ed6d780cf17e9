"""Which video of a store an annotation means: their directories and suffixes may differ."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from vimpac.data.annotations.rows import Row
from vimpac.data.sources import SUFFIXES
from vimpac.errors import UsageError

_SHOWN = 3  # names of each side, if they have nothing in common


def match_names(
    names: Sequence[str], rows: Sequence[Row], source: str, *, of: str = "the store"
) -> dict[int, Row]:
    """Finds the row of every video.

    The same name wins; otherwise the path without its suffix counts, and otherwise as much of it
    as both have: `UCF-101/Archery/a.avi` is `Archery/a` and `a.mp4`, but no `Rowing/a`.

    Args:
        names: Of the videos of the store, each another one.
        rows: Of the annotations; those of videos that are not in the store are passed over.
        source: What the annotations are called in messages.
        of: What has the videos, in messages.

    Returns:
        Row by number of the video, in the order of the store, of those that have one.

    Raises:
        UsageError: A row may mean two videos, two rows of one video contradict each other, or no
            row means a video.
    """
    found: dict[int, Row] = {}
    left: Sequence[Row] = rows
    for key in _KEYS:
        numbers = defaultdict(list)
        for number, name in enumerate(names):
            if number not in found:
                numbers[key(name)].append(number)
        rest = []
        for row in left:
            meant = numbers.get(key(row.video), [])
            meant = [number for number in meant if _have_one_end(names[number], row.video)]
            if not meant:
                rest.append(row)
                continue
            if len(meant) > 1:
                first, second = (names[number] for number in meant[:2])
                raise UsageError(
                    f"{row.where}: '{row.video}' may be '{first}' or '{second}' of {of}: "
                    "write it in full"
                )
            problem = row.contradiction(found.setdefault(meant[0], row), names[meant[0]])
            if problem:
                raise problem
        left = rest
    if not found:
        raise UsageError(
            f"{source} names no video of {of}: it has {_show(row.video for row in rows)}, "
            f"{of} {_show(names)}"
        )
    return dict(sorted(found.items()))


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The first row of every name.

    Raises:
        UsageError: Two rows of one name contradict each other.
    """
    found: dict[str, Row] = {}
    for row in rows:
        problem = row.contradiction(found.setdefault(row.video, row))
        if problem:
            raise problem
    return [*found.values()]


def _without_suffix(name: str) -> str:
    """A name without the suffix of a video file: not of clip.2019."""
    stem, suffix = posixpath.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def _last(name: str) -> str:
    return _without_suffix(name.rpartition("/")[2])


def _have_one_end(name: str, other: str) -> bool:
    """Whether the shorter path is the end of the longer one, suffixes apart."""
    parts, others = (_without_suffix(path).split("/") for path in (name, other))
    length = min(len(parts), len(others))
    return parts[-length:] == others[-length:]


_KEYS: tuple[Callable[[str], str], ...] = (str, _without_suffix, _last)


def _show(names: Iterable[str]) -> str:
    shown = [f"'{name}'" for name, _ in zip(names, range(_SHOWN), strict=False)]
    return ", ".join(shown) or "nothing"
