"""Videos in parts, each of which is made into a store of its own, on any machine at any time.

    STORE.parts/.plan/plan.json     what was listed, and where the videos of each part begin
    STORE.parts/.plan/videos.jsonl  [name, path] of every video, one on each line
    STORE.parts/part-00017          the store of a part; part-00017.partial while it is unfinished

The first process that works on any part makes the plan. The others read it, so all agree on the
parts, whatever becomes of the files meanwhile, and none of them looks at the videos of other parts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path

from vimpac.data.sources import Video
from vimpac.data.store_format import check_free, difference
from vimpac.errors import UsageError, VimpacError
from vimpac.files import whole_directory
from vimpac.lock import InUse, lock

MOST_PARTS = 100_000  # whose names have five digits, so that they sort by number
_PLAN, _VIDEOS = "plan.json", "videos.jsonl"
_LONGEST_WAIT = 3600.0  # seconds for another process that makes the plan


@dataclasses.dataclass(frozen=True)
class Plan:
    """How videos are divided.

    Attributes:
        folder: STORE.parts.
        starts: Where the lines of each part begin in videos.jsonl, in bytes, and where they end.
        sizes: Videos of each part.
    """

    folder: Path
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def store(self, part: int) -> Path:
        """Where the store of a part is, or is to be."""
        return self.folder / f"part-{part:05d}"

    def videos(self, part: int) -> list[Video]:
        """The (name, path) of a part, in the order of the store.

        Raises:
            VimpacError: The plan is damaged.
        """
        start, stop = self.starts[part : part + 2]
        try:
            with _plan_folder(self.folder).joinpath(_VIDEOS).open("rb") as file:
                file.seek(start)
                lines = file.read(stop - start).splitlines()
            videos = [(name, Path(path)) for name, path in map(json.loads, lines)]
        except (FileNotFoundError, ValueError, TypeError) as error:
            raise _damaged(self.folder) from error
        if len(videos) != self.sizes[part]:
            raise _damaged(self.folder)
        return videos


def parts_folder(out: Path) -> Path:
    """Where the parts of the store at `out` are: beside it, on the same disk."""
    real = out.resolve()
    return real.parent / f"{real.name}.parts"


def _plan_folder(folder: Path) -> Path:
    return folder / ".plan"  # hidden, so that STORE.parts/* are the stores alone


def make_plan(
    out: Path,
    parts: int,
    source: dict[str, object],
    find: Callable[[], Sequence[Video]],
) -> Plan:
    """Makes the plan of a store, or reads the one that is there.

    Args:
        out: Where the store is to be.
        parts: How many.
        source: What was listed: the same for all processes that work on the store.
        find: Lists the videos; called if there is no plan yet.

    Returns:
        The plan. The parts are contiguous, each has a video, and their files have about the same
        size in all.

    Raises:
        UsageError: `out` exists, there are more parts than videos, or the plan is of another
            number of parts or other videos.
        VimpacError: The plan is damaged, or another process takes too long to make it.
    """
    check_free(out)
    folder, made = parts_folder(out), {"parts": parts, **source}
    plan = read_plan(folder) or _plan_alone(folder, made, find)
    if len(plan) != parts:
        raise UsageError(
            f"{folder} was begun in {len(plan)} parts, not {parts}: give --part I/{len(plan)}, or "
            f"--parts {len(plan)} with --dask"
        )
    if difference(_read(folder), made):
        raise UsageError(
            f"{folder} was begun with other videos, or the list has changed: give the same, or "
            "another --out"
        )
    return plan


def read_plan(folder: Path) -> Plan | None:
    """The plan of a folder of parts; None if it has none.

    Raises:
        VimpacError: It is damaged.
    """
    try:
        values = _read(folder)
        starts, sizes = (tuple(map(int, values[key])) for key in ("starts", "sizes"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder) from error
    growing = starts[:1] == (0,) and all(start < stop for start, stop in pairwise(starts))
    if not growing or len(starts) != len(sizes) + 1 or min(sizes, default=0) < 1:
        raise _damaged(folder)
    return Plan(folder, starts, sizes)


def _damaged(folder: Path) -> VimpacError:
    return VimpacError(f"{_plan_folder(folder)} is damaged: remove {folder}")


def _read(folder: Path) -> dict:
    return json.loads((_plan_folder(folder) / _PLAN).read_text(encoding="utf-8"))


def _plan_alone(folder: Path, made: dict, find: Callable[[], Sequence[Video]]) -> Plan:
    """Makes the plan, unless another process is about to: then waits for it."""
    lock_file = folder / ".lock"
    give_up = time.monotonic() + _LONGEST_WAIT
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(lock_file, f"the plan of {folder}")
            break
        except FileNotFoundError:  # another process, which found no videos, has removed it
            continue
        except InUse:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)
    try:
        if read_plan(folder) is None:
            _write(folder, made, find())
    except BaseException:
        with suppress(OSError):  # of a folder that is not empty
            lock_file.unlink()
            folder.rmdir()
        raise
    finally:
        held.close()
    plan = read_plan(folder)
    assert plan is not None
    return plan


def _write(folder: Path, made: dict, videos: Sequence[Video]) -> None:
    parts = made["parts"]
    if parts > len(videos):
        raise UsageError(f"{parts} parts of {len(videos)} videos: give at most one for each")
    firsts = divide([_bytes(path) for _, path in videos], parts)
    lines = [json.dumps([name, os.path.abspath(path)]).encode() + b"\n" for name, path in videos]
    ends = [0, *accumulate(map(len, lines))]
    values = {
        **made,
        "starts": [ends[first] for first in firsts],
        "sizes": [stop - start for start, stop in pairwise(firsts)],
    }
    with whole_directory(_plan_folder(folder)) as temporary:
        (temporary / _VIDEOS).write_bytes(b"".join(lines))
        (temporary / _PLAN).write_text(json.dumps(values), encoding="utf-8")


def _bytes(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # it is found unreadable in its turn


def divide(weights: Sequence[int], parts: int) -> list[int]:
    """Cuts a sequence into contiguous parts of about equal weight, none of them empty.

    Args:
        weights: Of the elements, not negative; at least `parts` of them.
        parts: How many.

    Returns:
        The first element of each part and the number of all: parts + 1 numbers. The k-th cut is
        where the sum of the weights is nearest to k / parts of all.
    """
    sums = [0, *accumulate(weight + 1 for weight in weights)]  # + 1: equal parts of empty files
    cuts = [0]
    for part in range(1, parts):
        wanted = sums[-1] * part / parts
        at = bisect_left(sums, wanted)
        at -= at > 0 and wanted - sums[at - 1] < sums[at] - wanted
        last = len(weights) - (parts - part)  # leaves one element for each part that follows
        cuts.append(min(max(at, cuts[-1] + 1), last))
    return [*cuts, len(weights)]
