"""Reading a store of tokens or frames: O(1) clips from mapped shards, every frame checked.

The byte layout is in `vimpac.data.store_format`. A store keeps one mapping per shard and no open
file per video; pickling one (for a data-loading worker) carries its path only.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vimpac.data.store_format import INDEX, NAMES, VIDEO_RECORD, StoreMeta, read_meta, shard_name
from vimpac.data.writer import TokenStoreWriter
from vimpac.errors import VimpacError
from vimpac.paths import local_path

__all__ = ["TokenStore", "TokenStoreWriter"]

_MAKE = {
    "tokens": "make one of tokens with `vimpac tokenize`",
    "pixels": "make one of frames with `vimpac frames`",
}
FIX = "copy the file again from its source or make the store again"


class DamagedVideo(VimpacError):
    """A video of a store whose bytes are not those that were written."""


class TokenStore:
    """A finished store, read only.

    Args:
        path: The store's directory.
        kind: What must be stored there, of `store_format.VERSIONS`; None: any of them.

    Attributes:
        meta: The settings all videos share.
        skipped: (name, reason) of every video that could not be tokenised.
        notes: (name, note) of every video that is damaged but was tokenised.

    Raises:
        UsageError: The path is a URL.
        VimpacError: The store is absent, unfinished, of another version or kind, or damaged.
    """

    def __init__(self, path: str | Path, *, kind: str | None = "tokens") -> None:
        self.path = local_path(path)
        values = read_meta(self.path)
        try:
            self.meta = StoreMeta.from_dict(values)
            self.skipped = [(name, reason) for name, reason in values["skipped"]]
            self.notes = [(name, note) for name, note in values.get("notes", [])]
            self._shard_frames = [int(frames) for frames in values["shard_frames"]]
            videos, index_crc32 = int(values["videos"]), int(values["index_crc32"])
            names_crc32 = int(values["names_crc32"])
        except (KeyError, TypeError, ValueError) as error:
            raise VimpacError(f"{self.path}/meta.json is corrupt ({error!r}): {FIX}") from error
        if kind not in (None, self.meta.kind):
            raise VimpacError(f"{self.path} is a store of {self.meta.kind}: {_MAKE[kind]}")
        index = self._read(INDEX, index_crc32)
        if len(index) != videos * VIDEO_RECORD.itemsize:
            raise VimpacError(f"{self.path / INDEX} does not hold {videos} videos: {FIX}")
        self._index = np.frombuffer(index, VIDEO_RECORD)
        self._names = self._read(NAMES, names_crc32)
        self._shards: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(self) -> tuple:
        return functools.partial(TokenStore, kind=None), (self.path,)

    @property
    def frames(self) -> np.ndarray:
        """Number of frames of every video, (videos,) uint32."""
        return self._index["frames"]

    def num_frames(self, i: int) -> int:
        """Number of frames of video `i`."""
        return int(self._video(i)["frames"])

    def name(self, i: int) -> str:
        """Name of video `i`."""
        video = self._video(i)
        start = int(video["name_start"])
        return _text(self._names[start : start + int(video["name_bytes"])])

    def label(self, i: int) -> int:
        """Class of video `i`, or -1."""
        return int(self._video(i)["label"])

    def read(self, i: int, start: int, stop: int, variant: int = 0) -> np.ndarray:
        """Reads the frames [start, stop) of a video and checks their checksums.

        Args:
            i: The video.
            start: First frame.
            stop: One past the last frame, start <= stop <= num_frames(i).
            variant: Which of `meta.variants`.

        Returns:
            Tokens (stop - start, *meta.frame_shape) of `meta.dtype`, a copy.

        Raises:
            IndexError: No such video, frame or variant.
            DamagedVideo: The shard is damaged there.
        """
        video = self._video(i)
        frames = int(video["frames"])
        if not 0 <= start <= stop <= frames:
            raise IndexError(f"frames [{start}, {stop}) of a video of {frames} frames")
        if not 0 <= variant < len(self.meta.variants):
            raise IndexError(f"variant {variant} of {len(self.meta.variants)}")
        first = int(video["first"]) + variant * frames
        records = self._shard(int(video["shard"]))[first + start : first + stop]
        tokens = np.ascontiguousarray(records["tokens"])
        problem = frame_problem(tokens, records["crc32"], self.meta.vocab_size)
        if problem or len(tokens) != stop - start:
            file = self.path / shard_name(int(video["shard"]))
            raise DamagedVideo(f"{file}: {problem or 'too short'} in '{self.name(i)}': {FIX}")
        return tokens

    def verify(self) -> Iterator[str | None]:
        """Reads everything; yields, video by video, None or what is wrong with it."""
        for i in range(len(self)):
            try:
                for variant in range(len(self.meta.variants)):
                    self.read(i, 0, self.num_frames(i), variant)
                yield None
            except VimpacError as error:
                yield str(error)

    def _video(self, i: int) -> np.void:
        if not 0 <= i < len(self):
            raise IndexError(f"video {i} of a store of {len(self)} videos")
        return self._index[i]

    def _shard(self, shard: int) -> np.ndarray:
        """The frame records of a shard, mapped at first use."""
        if shard not in self._shards:
            file = self.path / shard_name(shard)
            record = self.meta.frame_record
            expected = self._shard_frames[shard] * record.itemsize
            size = file.stat().st_size if file.is_file() else -1
            if size != expected:
                found = "is missing" if size < 0 else f"has {size} bytes, not {expected}"
                raise VimpacError(f"{file} {found}: {FIX}")
            self._shards[shard] = np.memmap(file, record, mode="r")
        return self._shards[shard]

    def _read(self, name: str, crc32: int) -> bytes:
        file = self.path / name
        if not file.is_file():
            raise VimpacError(f"{file} is missing: {FIX}")
        data = file.read_bytes()
        if zlib.crc32(data) != crc32:
            raise VimpacError(f"{file} is corrupt (checksum): {FIX}")
        return data


def frame_problem(
    tokens: np.ndarray,  # (frames, *frame_shape)
    crc32: np.ndarray,  # (frames,)
    vocab_size: int,
) -> str:
    """What is wrong with some frames as read from a shard; empty when nothing is."""
    for frame, expected in zip(tokens, crc32, strict=True):
        if zlib.crc32(frame) != expected:
            return "corrupt frame (checksum)"
    if tokens.size and int(tokens.max()) >= vocab_size:
        return f"token id {int(tokens.max())} is not below {vocab_size}"
    return ""


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
