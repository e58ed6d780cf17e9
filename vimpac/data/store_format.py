"""The store of tokens, or of frames, on disk: names, records and settings.

A store is a directory; all numbers are little-endian. With H x W the token map, V the number
of variants and `dtype` the token's type (uint16, or uint32 above 65,536 ids):

    meta.json        StoreMeta as JSON, then "shard_frames" (frame records per shard file),
                     "videos", "skipped" ([[name, reason], ...]), "notes" ([[name, note], ...],
                     since version 0.2), "index_crc32", "names_crc32"
    index.bin        one 32-byte record per video:
                     u4 shard | u4 frames | u8 first | u8 name_start | u4 name_bytes | i4 label
    names.bin        the videos' names in UTF-8, one after the other, no separator
    shard-00000.bin  frame records: tokens (H, W) of `dtype`, row-major | u4 crc32 of those bytes

Frame t of variant v of a video is record `first + v * frames + t` of its shard, so a clip is
one contiguous read of a memory-mapped file, and each frame carries its own checksum, so every
read is checked. A video never spans two shards. Labels are -1 where there is none.

A store of frames has version 2 and "kind": "pixels". Its tokens are the levels (H, W, 3) of red,
green and blue, one byte each; all else is the same. "compute" is there where the tokenizer did not
compute in float32.

While it is written a store lives in `<path>.partial` together with journal.jsonl (see
`vimpac.data.writer`). Finishing writes index.bin, names.bin and meta.json, removes the journal and
moves the files to `<path>`, meta.json last, so a directory with meta.json is a whole store.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np

from vimpac.errors import UsageError, VimpacError

VERSIONS = {"tokens": 1, "pixels": 2}  # of the layout, by what is stored
_LATE = ("kind", "compute")  # settings that are not named where they say nothing new
META, INDEX, NAMES, JOURNAL = "meta.json", "index.bin", "names.bin", "journal.jsonl"

VIDEO_RECORD = np.dtype(
    [
        ("shard", "<u4"),
        ("frames", "<u4"),
        ("first", "<u8"),
        ("name_start", "<u8"),
        ("name_bytes", "<u4"),
        ("label", "<i4"),
    ]
)


@dataclasses.dataclass(frozen=True)
class StoreMeta:
    """What every video of a store has in common.

    Attributes:
        tokenizer: The tokenizer's name.
        vocab_size: Ids are in [0, vocab_size).
        height: Rows of the token map.
        width: Columns of the token map.
        fps: Frames per second of video time.
        variants: A name for each resize/crop/flip variant of a video.
        digest: SHA-256 of the tokenizer's weights; empty when it has none.
        kind: What is stored, of `VERSIONS`.
        compute: Dtype and device of the tokenizer, such as "float16 on cuda"; empty for float32.
    """

    tokenizer: str
    vocab_size: int
    height: int
    width: int
    fps: float
    variants: tuple[str, ...] = ("1x-center",)
    digest: str = ""
    kind: str = "tokens"
    compute: str = ""

    def __post_init__(self) -> None:
        numbers = (self.vocab_size, self.height, self.width, self.fps)
        if not all(0 < number < math.inf for number in numbers) or not self.variants:
            raise ValueError(f"sizes, fps and the number of variants must be positive: {self}")
        if self.kind not in VERSIONS:
            raise ValueError(f"kind='{self.kind}' must be one of {', '.join(VERSIONS)}")

    @property
    def dtype(self) -> np.dtype:
        """The type of a token, or a level, on disk."""
        if self.kind == "pixels":
            return np.dtype("u1")
        return np.dtype("<u2" if self.vocab_size <= 1 << 16 else "<u4")

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of the tokens of a frame (H, W), or of its levels (H, W, 3)."""
        return (self.height, self.width, *[3] * (self.kind == "pixels"))

    @property
    def frame_record(self) -> np.dtype:
        """One frame on disk: its tokens and their checksum."""
        return np.dtype([("tokens", self.dtype, self.frame_shape), ("crc32", "<u4")])

    def to_dict(self) -> dict:
        """The settings as JSON has them, those that came later only if they say something."""
        values = {**dataclasses.asdict(self), "variants": list(self.variants)}
        kind, compute = values.pop("kind"), values.pop("compute")
        values["version"] = VERSIONS[kind]
        if kind != "tokens":
            values["kind"] = kind
        if compute:
            values["compute"] = compute
        return values

    @classmethod
    def from_dict(cls, values: dict) -> StoreMeta:
        """The settings from `to_dict()`; keys of the store itself are ignored."""
        names = [field.name for field in dataclasses.fields(cls)]
        known = {name: values[name] for name in names if name in values or name not in _LATE}
        return cls(**{**known, "variants": tuple(values["variants"])})


def difference(was: dict, now: dict) -> str | None:
    """The first setting in which two stores differ, such as "fps is 2.0, not 4.0"."""
    for name in dict.fromkeys((*now, *_LATE)):
        there, wanted = was.get(name, ""), now.get(name, "")
        if there != wanted:
            return f"{name} is {there!r}, not {wanted!r}"
    return None


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.bin"


def partial_path(path: Path) -> Path:
    """Where the store at `path` lives until it is finished: beside it, on the same disk."""
    real = path.resolve()  # of `.`, of a link
    return real.parent / f"{real.name}.partial"


def check_free(path: Path) -> None:
    """Raises UsageError, before any work, unless a finished store can be moved to `path`."""
    if not path.exists():
        return
    if not path.is_dir() or any(path.iterdir()):
        raise UsageError(f"{path} exists: remove it or name another output")
    if os.path.ismount(path):  # the unfinished store would be on the disk of its parent
        raise UsageError(
            f"{path} is a mount point: name a directory inside, such as {path / 'store'}"
        )


def read_meta(path: Path) -> dict:
    """Reads and checks meta.json.

    Args:
        path: The store's directory.

    Returns:
        The parsed file.

    Raises:
        VimpacError: There is no finished store, or not one of this version.
    """
    file = path / META
    if not file.is_file():
        if partial_path(path).is_dir() or (path / JOURNAL).is_file():
            raise VimpacError(f"{path} is unfinished: run the command that makes it again")
        raise VimpacError(f"{path} is no token store: make one with `vimpac tokenize`")
    return parse_meta(file.read_bytes(), str(file))


def parse_meta(text: bytes, file: str) -> dict:
    """The content of a meta.json, checked.

    Args:
        text: The file's bytes.
        file: What it is called in messages.

    Raises:
        VimpacError: It is corrupt, or not of this version.
    """
    try:
        values = json.loads(text)
        version, kind = values["version"], str(values.get("kind", "tokens"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VimpacError(f"{file} is corrupt ({error}): copy the store again") from error
    known = VERSIONS.get(kind)
    if known is None:
        raise VimpacError(f"{file} is of the kind '{kind}', which this program does not know")
    if version != known:
        raise VimpacError(f"{file} has version {version}, this program reads version {known}")
    return values
