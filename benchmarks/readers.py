"""What bench_read.py compares: stores of the same videos in several formats, and their readers.

A reader takes a folder, and gives a batch of clips by the numbers of videos and their first frames.
Videos are short, so that a million fit on a disk; formats that read a whole video for each clip
would lose more with longer ones.

    python benchmarks/readers.py NAME FOLDER

prints as JSON what opening a store and reading one clip takes of memory, in MiB, and of seconds.
"""

from __future__ import annotations

import io
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vimpac.data.clips import ClipDataset
from vimpac.data.sampler import ResumableSampler
from vimpac.data.store import TokenStore
from vimpac.data.store_format import INDEX, META, NAMES, VIDEO_RECORD, StoreMeta, shard_name

FRAMES, CLIP, SIDE = 6, 5, 16  # of a video, of a clip, tokens per side
MAPS = 4096  # token maps that differ
STORE_META = StoreMeta("patch", 8192, SIDE, SIDE, 2.0)
SHARD_VIDEOS = (1 << 30) // (FRAMES * STORE_META.frame_record.itemsize)  # of a shard of 1 GiB


class Reader(Protocol):
    """A store that is open."""

    def __call__(self, videos: Sequence[int], starts: Sequence[int]) -> np.ndarray:
        """Clips (B, CLIP, SIDE, SIDE)."""


def videos_of(count: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, tokens (FRAMES, SIDE, SIDE)) of so many videos."""
    maps = np.random.default_rng(0).integers(0, 8192, (MAPS + FRAMES, SIDE, SIDE), np.uint16)
    for video in range(count):
        first = 7 * video % MAPS
        yield f"folder/video{video:07d}.mp4", maps[first : first + FRAMES]


def write_store(folder: Path, count: int) -> None:
    """The store as `TokenStoreWriter` writes it, without the journal of every video."""
    index, names, record = np.zeros(count, VIDEO_RECORD), bytearray(), STORE_META.frame_record
    shard_frames = [0] * -(-count // SHARD_VIDEOS)
    crcs: dict[int, int] = {}
    for video, (name, tokens) in enumerate(videos_of(count)):
        shard, place = divmod(video, SHARD_VIDEOS)
        if place == 0:
            stream = (folder / shard_name(shard)).open("wb")
        records = np.empty(FRAMES, record)
        records["tokens"] = tokens
        first = 7 * video % MAPS
        for t in range(FRAMES):
            if first + t not in crcs:
                crcs[first + t] = zlib.crc32(tokens[t])
            records["crc32"][t] = crcs[first + t]
        stream.write(records.tobytes())
        if place == SHARD_VIDEOS - 1 or video == count - 1:
            stream.close()
        index[video] = (shard, FRAMES, place * FRAMES, len(names), len(name), -1)
        names += name.encode()
        shard_frames[shard] += FRAMES
    (folder / INDEX).write_bytes(index.tobytes())
    (folder / NAMES).write_bytes(names)
    values = {"shard_frames": shard_frames, "videos": count, "skipped": [], "notes": []}
    crc32s = {"index_crc32": zlib.crc32(index), "names_crc32": zlib.crc32(names)}
    (folder / META).write_text(json.dumps({**STORE_META.to_dict(), **values, **crc32s}))


def write_lmdb(folder: Path, count: int) -> None:
    """LMDB of npz, as released: see vimpac/data/lmdb_store.py."""
    import lmdb

    with lmdb.open(str(folder), map_size=1 << 36, sync=False) as database:
        with database.begin(write=True) as transaction:
            for name, tokens in videos_of(count):
                stream = io.BytesIO()
                np.savez(stream, tokens=tokens.astype(np.int16))
                transaction.put(name.encode(), stream.getvalue(), append=True)


def write_mds(folder: Path, count: int) -> None:
    """MosaicML Streaming's format, uncompressed."""
    from streaming import MDSWriter

    columns = {"name": "str", "tokens": f"ndarray:uint16:{FRAMES},{SIDE},{SIDE}"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for name, tokens in videos_of(count):
            writer.write({"name": name, "tokens": tokens})


def write_webdataset(folder: Path, count: int) -> None:
    """A tar of .npy files."""
    from webdataset import TarWriter

    with TarWriter(str(folder / "videos.tar")) as writer:
        for name, tokens in videos_of(count):
            writer.write({"__key__": name.removesuffix(".mp4"), "tokens.npy": tokens})


def _filled(clip_of: Callable[[int, int], np.ndarray]) -> Reader:
    """A reader that puts clip after clip into an array."""

    def read(videos: Sequence[int], starts: Sequence[int]) -> np.ndarray:
        clips = np.empty((len(videos), CLIP, SIDE, SIDE), np.uint16)
        for clip, video, start in zip(clips, videos, starts, strict=True):
            clip[:] = clip_of(video, start)
        return clips

    return read


def _open_memmap(folder: Path, *, as_array: bool) -> Reader:
    """The shards, mapped, with nothing around them: no index, no check."""
    record = STORE_META.frame_record
    mapped = [np.memmap(file, record, "r") for file in sorted(folder.glob("shard-*"))]
    shards = [(np.asarray(shard) if as_array else shard)["tokens"] for shard in mapped]

    def clip_of(video: int, start: int) -> np.ndarray:
        shard, place = divmod(video, SHARD_VIDEOS)
        first = place * FRAMES + start
        return shards[shard][first : first + CLIP]

    return _filled(clip_of)


def _open_read(folder: Path) -> Reader:
    store = TokenStore(folder)
    return _filled(lambda video, start: store.read(video, start, start + CLIP))


def _open_read_many(folder: Path) -> Reader:
    store = TokenStore(folder)
    return lambda videos, starts: store.read_many(videos, starts, CLIP, fill=-1)


def _open_training(folder: Path) -> Reader:
    """With all that a process of a training holds of the videos; draws the starts itself."""
    store = TokenStore(folder)
    data = ClipDataset(store, num_frames=CLIP)
    samples = iter(ResumableSampler(len(store), global_batch=1))
    next(samples)

    def read(videos: Sequence[int], starts: Sequence[int]) -> np.ndarray:
        return data.batch([*enumerate(videos)])[:, 0].numpy()

    # Kept with the function, so that the order of an epoch counts in its memory.
    read.holds = samples  # type: ignore[attr-defined]  # mypy knows no attributes of functions
    return read


def _open_lmdb(folder: Path) -> Reader:
    import lmdb

    transaction = lmdb.open(str(folder), readonly=True, lock=False).begin()
    names = [*transaction.cursor().iternext(values=False)]

    def clip_of(video: int, start: int) -> np.ndarray:
        with np.load(io.BytesIO(transaction.get(names[video]))) as arrays:
            return arrays["tokens"][start : start + CLIP]

    return _filled(clip_of)


def _open_mds(folder: Path) -> Reader:
    from streaming import StreamingDataset

    data = StreamingDataset(local=str(folder), batch_size=1, shuffle=False)
    return _filled(lambda video, start: data[video]["tokens"][start : start + CLIP])


def _open_webdataset(folder: Path) -> Reader:
    """Video after video, whichever are asked for."""
    import webdataset

    def samples() -> Iterator[dict[str, Any]]:
        while True:
            yield from webdataset.WebDataset(
                str(folder / "videos.tar"), shardshuffle=False
            ).decode()

    endless = samples()
    return _filled(lambda video, start: next(endless)["tokens.npy"][start : start + CLIP])


WRITERS = {
    "store": write_store,
    "lmdb": write_lmdb,
    "mds": write_mds,
    "webdataset": write_webdataset,
}
IN_ORDER = "webdataset, in order"
TRAINING = "ClipDataset and sampler"
READERS: dict[str, tuple[str, Callable[[Path], Reader]]] = {  # the format and how it is opened
    "np.memmap": ("store", lambda folder: _open_memmap(folder, as_array=False)),
    "np.memmap, np.asarray": ("store", lambda folder: _open_memmap(folder, as_array=True)),
    "TokenStore.read": ("store", _open_read),
    "TokenStore.read_many": ("store", _open_read_many),
    TRAINING: ("store", _open_training),
    "LMDB of npz, as released": ("lmdb", _open_lmdb),
    "MDS": ("mds", _open_mds),
    IN_ORDER: ("webdataset", _open_webdataset),
}


def memory_of_opening(name: str, folder: Path) -> dict[str, float]:
    """What `python benchmarks/readers.py` prints.

    Returns:
        MiB beyond those before it: "private", which no other process shares; "anonymous", those of
        them that are no page of a file; "peak", the most while it was opened, of both kinds and
        shared pages. "seconds" of CPU.
    """
    format_, open_ = READERS[name]
    open_(folder / "few")([0], [0])  # what is imported and made once
    before = _memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    begin = time.process_time()
    reader = open_(folder / "all")
    seconds = time.process_time() - begin
    reader([0], [0])
    after = _memory()
    taken = {key: (after[key] - before[key]) / 1024 for key in ("private", "anonymous")}
    return {**taken, "peak": (after["peak"] - before["now"]) / 1024, "seconds": seconds}


def _memory() -> dict[str, int]:
    """KiB of this process, as Linux counts them."""
    text = Path("/proc/self/smaps_rollup").read_text() + Path("/proc/self/status").read_text()
    kib = {key: int(number) for key, number in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return {
        "private": private,
        "anonymous": kib["Private_Dirty"],
        "peak": kib["VmHWM"],
        "now": kib["VmRSS"],
    }


if __name__ == "__main__":
    print(json.dumps(memory_of_opening(sys.argv[1], Path(sys.argv[2]))))
