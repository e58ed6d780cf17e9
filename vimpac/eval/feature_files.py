"""Files of features, which are written video by video: .npz, .safetensors or .parquet.

    .npz           names (N,) text, features (N, D) fp32
    .safetensors   names (bytes,) uint8, features (N, D) fp32
    .parquet       columns name and features, a row per video

With the features of every view, `features` is (N, views, D), the clips of the first crop first.
Beside it stands `clips` (N, views, 2) int32: a view's first frame, and its crop by its place in
`variants`, the store's names of them (in a .safetensors file JSON in its metadata). A Parquet file
then has a row per view, and the columns start and crop (by name).

No file needs pickle. A file's name may be no UTF-8: in .npz its bytes stand as `os.fsdecode` has
them, `bytes(names).split(b"\\0")` are those of .safetensors, and the column of a Parquet file is of
bytes if one of them is no text.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vimpac.errors import UsageError
from vimpac.files import temporary_path, whole_file
from vimpac.lock import lock

ROW_GROUP = 1024  # rows of a Parquet file that are held in memory


@dataclasses.dataclass(frozen=True)
class FeatureTable:
    """What stands beside the features of videos.

    Attributes:
        videos: How many, N.
        name: Of the video at a place.
        width: Of a feature, D.
        views: Features of a video; None if it has one, of all of them.
        clips: (views, 2) int32 of the video at a place: first frame, and number of the variant.
        variants: Names of the store's variants.
    """

    videos: int
    name: Callable[[int], str]
    width: int
    views: int | None
    clips: Callable[[int], np.ndarray]
    variants: Sequence[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all features."""
        views = () if self.views is None else (self.views,)
        return (self.videos, *views, self.width)

    @property
    def names(self) -> Iterator[str]:
        """Of all videos, in order."""
        return map(self.name, range(self.videos))


def check_out(path: Path) -> None:
    """Checks that a file can be written.

    Raises:
        UsageError: It or no directory for it exists, or it is not said what it is to be.
        ModuleNotFoundError: Its kind needs a package that is not installed.
    """
    if path.suffix not in _WRITERS:
        raise UsageError(f"--out {path} must end in one of {', '.join(_WRITERS)}")
    if os.path.lexists(path):
        raise UsageError(f"--out {path} exists: remove it or name another file")
    if not path.parent.is_dir():
        raise UsageError(f"--out {path}: there is no directory {path.parent}: make it first")
    if path.suffix == ".parquet":
        importlib.import_module("pyarrow")  # before the work of hours


def write_features(path: Path, table: FeatureTable, features: Iterable[np.ndarray]) -> None:
    """Writes a file, which appears whole or not at all.

    Args:
        path: The file, whose suffix says what it is.
        table: What stands beside the features.
        features: The (D,) or (views, D) fp32 of every video, in order.

    Raises:
        UsageError: As `check_out`.
        VimpacError: Another process is writing it.
    """
    check_out(path)
    held = lock(temporary_path(path), str(path))  # it may take hours
    try:
        with whole_file(path) as temporary:
            _WRITERS[path.suffix](temporary, table, features)
    finally:
        held.close()


def _write_npz(path: Path, table: FeatureTable, features: Iterable[np.ndarray]) -> None:
    longest = max(map(len, table.names), default=1)
    with zipfile.ZipFile(path, "w") as archive:  # not compressed, as numpy.savez has it
        add = functools.partial(_add_array, archive)
        add("names", np.dtype(f"<U{longest}"), (table.videos,), table.names)
        add("features", np.dtype("<f4"), table.shape, features)
        if table.views is not None:
            clips = map(table.clips, range(table.videos))
            add("clips", np.dtype("<i4"), (table.videos, table.views, 2), clips)
            kind = np.array(table.variants).dtype
            add("variants", kind, (len(table.variants),), table.variants)


def _add_array(
    archive: zipfile.ZipFile,
    name: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    rows: Iterable[Any],
) -> None:
    """Adds an array that is written row by row."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for row in rows:
            file.write(np.asarray(row, dtype).tobytes())


def _write_safetensors(path: Path, table: FeatureTable, features: Iterable[np.ndarray]) -> None:
    names = sum(len(_encoded(name)) + 1 for name in table.names) - 1
    tensors: list[tuple[str, str, tuple[int, ...], int]] = [("features", "F32", table.shape, 4)]
    if table.views is not None:
        tensors.append(("clips", "I32", (table.videos, table.views, 2), 4))
    tensors.append(("names", "U8", (names,), 1))
    header: dict[str, Any] = {"__metadata__": {"variants": json.dumps([*table.variants])}}
    begin = 0
    for name, dtype, shape, size in tensors:
        end = begin + size * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for row in features:
            file.write(np.asarray(row, "<f4").tobytes())
        if table.views is not None:
            for place in range(table.videos):
                file.write(table.clips(place).astype("<i4").tobytes())
        for place, name in enumerate(table.names):
            file.write((b"\0" if place else b"") + _encoded(name))


def _write_parquet(path: Path, table: FeatureTable, features: Iterable[np.ndarray]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    text = pa.string() if all(map(_is_text, table.names)) else pa.binary()
    per_clip = {"start": pa.int32(), "crop": pa.string()} if table.views is not None else {}
    feature = pa.list_(pa.float32(), table.width)
    schema = pa.schema({"name": text, **per_clip, "features": feature})
    rows: list[tuple[Any, ...]] = []
    with parquet.ParquetWriter(path, schema, use_dictionary=False) as writer:

        def write() -> None:
            columns = [
                pa.array(column, kind)
                for column, kind in zip(zip(*rows, strict=True), schema.types, strict=True)
            ]
            writer.write_table(pa.table(columns, schema=schema))
            rows.clear()

        for place, row in enumerate(features):
            name = _encoded(table.name(place))
            if table.views is None:
                rows.append((name, row))
            else:
                clips = zip(table.clips(place).tolist(), row, strict=True)
                rows += [(name, start, table.variants[crop], view) for (start, crop), view in clips]
            if len(rows) >= ROW_GROUP:
                write()
        if rows:
            write()


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


_WRITERS = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
}
