"""Stores joined into one: their shards are linked under new numbers, and no token is read.

A merged store is as good as one that was made in one go: the same videos in the same order, and
only the shards are divided in another way, since the last one of each part stays as short as it is.
Where files cannot be linked, as from one disk to another, they are copied.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from vimpac.data.parts import read_plan
from vimpac.data.store import TokenStore
from vimpac.data.store_format import (
    INDEX,
    JOURNAL,
    META,
    NAMES,
    VIDEO_RECORD,
    check_free,
    difference,
    partial_path,
    read_meta,
    shard_name,
)
from vimpac.data.writer import is_complete
from vimpac.errors import UsageError, VimpacError
from vimpac.files import recover, whole_directory
from vimpac.lock import lock

_SHOWN = 5  # missing parts that are named


def find_parts(
    paths: Sequence[Path], *, allow_missing: bool = False
) -> tuple[list[Path], list[Path]]:
    """The stores that are to be merged.

    Args:
        paths: Stores; a folder of parts stands for all parts of its plan.
        allow_missing: Whether parts of a plan may be missing or unfinished.

    Returns:
        The finished stores, in the given order, and the parts that are not among them.

    Raises:
        VimpacError: Parts are missing, one is of another plan, or nothing is left.
    """
    stores, folders = list[Path](), dict[Path, None]()
    for path in paths:
        plan = read_plan(path)
        folders[path if plan else path.parent] = None
        stores += [path] if plan is None else [plan.store(part) for part in range(len(plan))]
    missing = list[Path]()
    for folder in folders:
        plan = read_plan(folder)
        expected = [plan.store(part) for part in range(len(plan))] if plan else []
        given = {store.name for store in stores if store.parent == folder and is_complete(store)}
        for part, store in enumerate(expected):
            if plan and store.name in given:
                _check_part(store, [name for name, _ in plan.videos(part)])
        absent = {store.name for store in expected if store.name not in given}
        unfinished = absent | {partial_path(folder / name).name for name in absent}
        stores = [s for s in stores if s.parent != folder or s.name not in unfinished]
        missing += [store for store in expected if store.name in absent]
    if missing and not allow_missing:
        first = ", ".join(map(str, missing[:_SHOWN]))
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise VimpacError(
            f"missing or unfinished: {first}{more}: run the commands that make them again, or "
            "leave them out with --allow-missing"
        )
    if not stores:
        raise VimpacError("no part is finished, so there is nothing to merge")
    return stores, missing


def _check_part(path: Path, planned: Sequence[str]) -> None:
    """Raises VimpacError unless a part has the videos that are planned for it."""
    store = TokenStore(path, kind=None)
    held = [*map(store.name, range(len(store))), *(name for name, _ in store.skipped)]
    if sorted(held) != sorted(planned):
        other = min({*held} ^ {*planned}, default=path.name)
        raise VimpacError(
            f"{path} is not the part that was planned ('{other}' is in one of the two only): "
            "remove it and run the command of this part again"
        )


def merge_stores(sources: Sequence[Path], out: Path, *, missing: Sequence[Path] = ()) -> TokenStore:
    """Joins stores into a new one.

    Args:
        sources: Finished stores of the same settings, in the order of the new one.
        out: Where the new store is to be.
        missing: Parts that are left out; the new store records their names.

    Returns:
        The new store, or the one at `out` if it was made of the same. A video that one source
        skipped and another one has counts as read.

    Raises:
        UsageError: `out` is something else, the stores differ in a setting, or two have a video of
            one name.
        VimpacError: A store is damaged, none has a video, or another process makes `out`.
    """
    absent = [part.name for part in missing]
    with _alone(out):
        if is_complete(out):
            files, _ = _joined(sources, absent)
            if (out / META).read_bytes() != files[META]:
                raise UsageError(f"{out} exists: remove it or name another output")
            return TokenStore(out, kind=None)
        partial = partial_path(out)
        check_free(out)
        if (partial / JOURNAL).exists():
            raise UsageError(f"{out} is unfinished: remove {partial}, or name another output")
        with whole_directory(partial, last=META) as folder:
            _join(sources, folder, absent)
        is_complete(out)  # moves it
        return TokenStore(out, kind=None)


def add_to_store(path: Path, sources: Sequence[Path]) -> TokenStore:
    """Appends the videos of other stores to a finished store.

    Readers that have it open go on with what they opened.

    Args:
        path: The store.
        sources: Others of the same settings.

    Returns:
        The longer store.

    Raises:
        UsageError: See `merge_stores`.
        VimpacError: See `merge_stores`.
    """
    path = path.resolve()
    with _alone(path):
        recover(path)
        missing = TokenStore(path, kind=None).missing_parts
        with whole_directory(path) as folder:
            _join([path, *sources], folder, missing)
    return TokenStore(path, kind=None)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keeps other processes from making the same store."""
    real = out.resolve()
    real.parent.mkdir(parents=True, exist_ok=True)
    file = real.parent / f".lock-{real.name}"
    held = lock(file, str(out))
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        held.close()


def _join(sources: Sequence[Path], folder: Path, missing: Sequence[str]) -> None:
    """Writes the files of the joined store into an empty folder."""
    files, shards = _joined(sources, missing)
    for number, (shard, size) in enumerate(shards):
        _link(shard, size, folder / shard_name(number))
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _joined(
    sources: Sequence[Path], missing: Sequence[str]
) -> tuple[dict[str, bytes], list[tuple[Path, int]]]:
    """The small files of the joined store, and its shards with their bytes."""
    index, names, shards = list[np.ndarray](), bytearray(), list[tuple[Path, int]]()
    shard_frames, notes, skipped = list[int](), list[tuple[str, str]](), dict[str, str]()
    stores = [TokenStore(source, kind=None) for source in sources]  # which checks them
    _check(stores)
    for source, store in zip(sources, stores, strict=True):
        frames = read_meta(source)["shard_frames"]
        numbers = np.cumsum([len(shard_frames), *map(bool, frames)])  # an empty shard has none
        records = np.fromfile(source / INDEX, VIDEO_RECORD)
        records["shard"] = numbers[records["shard"]]
        records["name_start"] += len(names)
        index.append(records)
        names += (source / NAMES).read_bytes()
        for shard in np.flatnonzero(frames):
            size = frames[shard] * store.meta.frame_record.itemsize
            shards.append((source / shard_name(int(shard)), size))
            shard_frames.append(frames[shard])
        notes += store.notes
        skipped |= dict(store.skipped)
    for store in stores:
        for i in range(len(store)):
            skipped.pop(store.name(i), None)
    videos = np.concatenate(index)
    if not len(videos):
        raise VimpacError("the store would hold no video: none of its sources has one")
    values = {
        **stores[0].meta.to_dict(),
        "shard_frames": shard_frames,
        "videos": len(videos),
        "skipped": [*map(list, skipped.items())],
        "notes": [*map(list, notes)],
        "index_crc32": zlib.crc32(videos.tobytes()),
        "names_crc32": zlib.crc32(names),
    }
    if missing:
        values["missing_parts"] = [*missing]
    meta = json.dumps(values, indent=1) + "\n"
    return {INDEX: videos.tobytes(), NAMES: bytes(names), META: meta.encode()}, shards


def _check(stores: Sequence[TokenStore]) -> None:
    """Raises UsageError unless the stores have the same settings and no video twice."""
    first, found = stores[0], dict[str, TokenStore]()
    for store in stores:
        problem = difference(store.meta.to_dict(), first.meta.to_dict())
        if problem:
            raise UsageError(
                f"{store.path} does not fit {first.path} ({problem}): only stores of the same "
                "settings can be joined"
            )
        for name in map(store.name, range(len(store))):
            other = found.setdefault(name, store)
            if other is not store:
                raise UsageError(f"'{name}' is in {other.path} and in {store.path}: give one")


def _link(shard: Path, size: int, target: Path) -> None:
    """Gives a shard of so many bytes another name, or copies it."""
    if not shard.is_file() or shard.stat().st_size != size:
        raise VimpacError(f"{shard} is damaged: make {shard.parent} again")
    try:
        os.link(shard, target)
    except OSError:
        shutil.copyfile(shard, target)
