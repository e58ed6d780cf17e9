"""Reading a store of tokens or frames: O(1) clips from mapped shards, every frame checked.

The byte layout is in `vimpac.data.store_format`. A store keeps one mapping per shard and no open
file per video; pickling one (for a data-loading worker) carries its path only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vimpac.data.frame_checksums import FrameChecksums
from vimpac.data.shard_cache import ShardCache
from vimpac.data.store_files import FIX, find_files
from vimpac.data.store_format import INDEX, NAMES, VIDEO_RECORD, StoreMeta, shard_name
from vimpac.data.writer import TokenStoreWriter
from vimpac.errors import VimpacError

__all__ = ["TokenStore", "TokenStoreWriter"]

_MAKE = {
    "tokens": "make one of tokens with `vimpac tokenize`",
    "pixels": "make one of frames with `vimpac frames`",
}
_VIDEO = struct.Struct("<IIQQIi")  # a VIDEO_RECORD, several times as fast as numpy reads one
_WITHOUT_FIELDS = np.dtype((np.void, VIDEO_RECORD.itemsize))  # taken in half the time
_MAPPED = ("_index", "_names", "_shards")  # attributes that are not pickled


class DamagedVideo(VimpacError):
    """A video of a store whose bytes are not those that were written."""


class _Video(NamedTuple):
    """A VIDEO_RECORD."""

    shard: int
    frames: int
    first: int
    name_start: int
    name_bytes: int
    label: int


class TokenStore:
    """A finished store, read only.

    Args:
        path: The store's directory, or its URL in object storage.
        kind: What must be stored there, of `store_format.VERSIONS`; None: any of them.
        cache: Where the files of a store in object storage are kept; needed with a URL.

    Attributes:
        path: The store's directory, or its URL.
        meta: The settings all videos share.
        skipped: (name, reason) of every video that could not be tokenised.
        notes: (name, note) of every video that is damaged but was tokenised.
        missing_parts: Names of the parts that were left out when it was merged.
        names_crc32: The checksum of all names, which tells stores apart.

    Raises:
        UsageError: The path is a URL without a cache.
        VimpacError: The store is absent, unfinished, of another version or kind, or damaged.
    """

    def __init__(
        self, path: str | Path, *, kind: str | None = "tokens", cache: ShardCache | None = None
    ) -> None:
        self.path, self._files = find_files(path, cache)
        values = self._files.meta()
        try:
            self.meta = StoreMeta.from_dict(values)
            self.skipped = [(name, reason) for name, reason in values["skipped"]]
            self.notes = [(name, note) for name, note in values.get("notes", [])]
            self.missing_parts = [str(name) for name in values.get("missing_parts", [])]
            self._shard_frames = np.array(values["shard_frames"], np.int64)
            self._videos, index_crc32 = int(values["videos"]), int(values["index_crc32"])
            self.names_crc32 = int(values["names_crc32"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise VimpacError(f"{self.path}/meta.json is corrupt ({error!r}): {FIX}") from error
        if kind not in (None, self.meta.kind):
            raise VimpacError(f"{self.path} is a store of {self.meta.kind}: {_MAKE[kind]}")
        self._record = self.meta.frame_record
        self._checksums = FrameChecksums(self._record.itemsize)
        self._files.check(INDEX, index_crc32)
        self._files.check(NAMES, self.names_crc32)
        self._map()

    def _map(self) -> None:
        """Maps index and names; shards follow when they are read."""
        self._index = self._files.map(INDEX)
        if len(self._index) != self._videos * VIDEO_RECORD.itemsize:
            raise VimpacError(f"{self.path}/{INDEX} does not hold {self._videos} videos: {FIX}")
        self._names = self._files.map(NAMES)
        self._shards: dict[int, memoryview] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _MAPPED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the files in another process; where the store was opened, they were checked."""
        vars(self).update(state)
        self._map()

    def __len__(self) -> int:
        return self._videos

    @property
    def frames(self) -> np.ndarray:
        """Number of frames of every video, (videos,) uint32."""
        return np.frombuffer(self._index, VIDEO_RECORD)["frames"]

    @property
    def shards(self) -> np.ndarray:
        """Number of the shard of every video, (videos,) uint32."""
        return np.frombuffer(self._index, VIDEO_RECORD)["shard"]

    @property
    def shard_bytes(self) -> list[int]:
        """Bytes of every shard."""
        return (self._shard_frames * self._record.itemsize).tolist()

    @property
    def remote_bytes(self) -> list[int]:
        """The same, of a store with a URL; of others none."""
        return [] if isinstance(self.path, Path) else self.shard_bytes

    def fetch(self, shard: int) -> None:
        """Brings a shard to this machine, if the store has a URL and it is not there."""
        self._files.fetch(shard_name(shard))

    def num_frames(self, i: int) -> int:
        """Number of frames of video `i`."""
        return self._video(i).frames

    def name(self, i: int) -> str:
        """Name of video `i`."""
        video = self._video(i)
        name = self._names[video.name_start : video.name_start + video.name_bytes]
        return bytes(name).decode("utf-8", "surrogateescape")

    def label(self, i: int) -> int:
        """Class of video `i`, or -1."""
        return self._video(i).label

    def read(self, i: int, start: int, stop: int, variant: int = 0) -> np.ndarray:
        """Reads the frames [start, stop) of a video and checks their checksums.

        Args:
            i: The video.
            start: First frame.
            stop: One past the last frame, start <= stop <= num_frames(i).
            variant: Which of `meta.variants`.

        Returns:
            Tokens `(stop - start, *meta.frame_shape)` of `meta.dtype`, a copy.

        Raises:
            IndexError: No such video, frame or variant.
            DamagedVideo: The shard is damaged there.
        """
        video = self._video(i)
        if not 0 <= start <= stop <= video.frames:
            raise IndexError(f"frames [{start}, {stop}) of a video of {video.frames} frames")
        if not 0 <= variant < len(self.meta.variants):
            raise IndexError(f"variant {variant} of {len(self.meta.variants)}")
        first, size = video.first + variant * video.frames, self._record.itemsize
        records = self._shard(video.shard)[(first + start) * size : (first + stop) * size]
        if len(records) != (stop - start) * size:
            raise self._damaged(i, "too short")
        tokens, problem = self._check(records, self.meta.dtype)
        if problem:
            raise self._damaged(i, problem)
        return tokens

    def read_many(
        self,
        videos: Sequence[int] | np.ndarray,  # (B,)
        starts: Sequence[int] | np.ndarray,  # (B,)
        frames: int,
        *,
        stride: int = 1,
        variants: Sequence[int] | np.ndarray | int = 0,  # (B,)
        fill: int,
    ) -> np.ndarray:
        """Reads a clip of each of some videos and checks the checksums of the frames.

        Args:
            videos: The videos; one may be there several times.
            starts: The first frame of each clip, 0 <= start < num_frames(i).
            frames: Frames T of a clip.
            stride: Stored frames from one frame of a clip to the next.
            variants: Which of `meta.variants`, for each clip or for all.
            fill: What stands where a video has no more frames.

        Returns:
            Tokens `(B, T, *meta.frame_shape)`, int32.

        Raises:
            IndexError: No such video, frame or variant.
            DamagedVideo: A shard is damaged there.
        """
        videos, starts = np.asarray(videos, np.int64), np.asarray(starts, np.int64)
        variants = np.asarray(variants, np.int64)
        _check_range(videos, len(self), "video {} of a store of {} videos")
        _check_range(variants, len(self.meta.variants), "variant {} of {}")
        index = np.frombuffer(self._index, _WITHOUT_FIELDS)[videos].view(VIDEO_RECORD)
        lengths = index["frames"].astype(np.int64)
        _check_range(starts, lengths, "frame {} of a video of {} frames")
        counts = np.minimum((lengths - starts - 1) // stride + 1, frames)  # of frames there are
        first = index["first"].astype(np.int64) + variants * lengths + starts
        stop = first + (counts - 1) * stride + 1
        short = stop > self._shard_frames[index["shard"]]
        if short.any():
            raise self._damaged(int(videos[short][0]), "too short")
        size = self._record.itemsize
        places = [index["shard"], first * size, stop * size, frames - counts]
        tokens, problem = self._check(self._join(places, stride * size), np.int32)
        if problem:
            variants = np.broadcast_to(variants, videos.shape)
            for video, start, count, variant in _rows(videos, starts, counts, variants):
                self.read(video, start, start + (count - 1) * stride + 1, variant)
            raise self._damaged(int(videos[0]), problem)
        clips = tokens.reshape(-1, frames, *self.meta.frame_shape)
        if counts.min(initial=frames) < frames:
            clips[np.arange(frames) >= counts[:, None]] = fill
        return clips

    def verify(self) -> Iterator[str | None]:
        """Reads everything; yields, video by video, None or what is wrong with it."""
        for i in range(len(self)):
            try:
                for variant in range(len(self.meta.variants)):
                    self.read(i, 0, self.num_frames(i), variant)
                yield None
            except VimpacError as error:
                yield str(error)

    def _video(self, i: int) -> _Video:
        if not 0 <= i < self._videos:
            raise IndexError(f"video {i} of a store of {self._videos} videos")
        return _Video._make(_VIDEO.unpack_from(self._index, i * _VIDEO.size))

    def _shard(self, shard: int) -> memoryview:
        """The bytes of a shard, mapped at first use; slices of them are cheaper than an array's."""
        if shard not in self._shards:
            size = int(self._shard_frames[shard]) * self._record.itemsize
            self._shards[shard] = self._files.map(shard_name(shard), size)
            while sum(map(len, self._shards.values())) > self._files.mapped_limit:
                del self._shards[next(iter(self._shards))]  # the first that was mapped
        return self._shards[shard]

    def _join(self, places: list[np.ndarray], step: int) -> bytes:
        """The frame records of clips, one after the other.

        Args:
            places: Of each clip its shard, first byte, last one + 1, and number of frames that its
                video does not have, in the place of which there are other intact records.
            step: Bytes from one frame of a clip to the next.
        """
        size, parts = self._record.itemsize, list[bytes | memoryview]()
        for shard, first, stop, missing in _rows(*places):
            records = self._shard(shard)
            if step == size:
                parts.append(records[first:stop])
            else:
                parts += [records[at : at + size] for at in range(first, stop, step)]
            if missing:
                parts.append(missing * self._checksums.intact)
        return b"".join(parts)

    def _check(self, records: bytes | memoryview, dtype: type | np.dtype) -> tuple[np.ndarray, str]:
        """A copy of the tokens of frame records, and what is wrong with them, if anything is."""
        tokens = np.frombuffer(records, self._record)["tokens"].astype(dtype)
        if not self._checksums.are_intact(records, len(tokens)):
            return tokens, "corrupt frame (checksum)"
        highest = int(tokens.view(f"u{tokens.itemsize}").max(initial=0))
        if highest >= self.meta.vocab_size:
            return tokens, f"token id {highest} is not below {self.meta.vocab_size}"
        return tokens, ""

    def _damaged(self, i: int, problem: str) -> DamagedVideo:
        file = f"{self.path}/{shard_name(self._video(i).shard)}"
        return DamagedVideo(f"{file}: {problem} in '{self.name(i)}': {FIX}")


def _check_range(numbers: np.ndarray, limit: int | np.ndarray, message: str) -> None:
    """Raises IndexError for the first number that is not in [0, limit)."""
    outside = numbers.view(np.uint64) >= limit  # as which a negative one is larger than all
    if outside.any():
        bad, limits = (x[outside] for x in np.broadcast_arrays(numbers, limit))
        raise IndexError(message.format(bad[0], limits[0]))


def _rows(*columns: np.ndarray) -> Iterator[tuple[int, ...]]:
    """The rows of some columns in Python's integers, which slice faster than numpy's."""
    return zip(*(column.tolist() for column in columns), strict=True)
