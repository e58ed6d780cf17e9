"""Reads the token databases of the released VIMPAC code (optional package `lmdb`).

One LMDB directory holds one variant of a data set. Key: the video's name in UTF-8. Value: the
bytes of an .npz with `tokens` (frames, H, W) int16 or int32 and, for labelled data, a scalar
`label`. The extraction leaves `args.json` beside the data with, among others, `fps`,
`frame_shorter_size`, `frame_out_size`, `crop_type` (top, center, bottom) and `hflip`.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np

from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.data.variants import Variant
from vimpac.errors import UsageError, VimpacError


class LmdbTokens:
    """One database, read only.

    Args:
        path: Its directory.

    Attributes:
        names: Names of the videos, in the database's order.
        settings: What args.json says; empty without that file.

    Raises:
        VimpacError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "data.mdb").is_file():
            raise VimpacError(f"{path} is no LMDB directory: it has no data.mdb")
        try:
            self._txn = lmdb.open(str(path), readonly=True, lock=False, create=False).begin()
            keys = list(self._txn.cursor().iternext(values=False))
        except lmdb.Error as error:
            raise VimpacError(f"{path} cannot be read ({error}): copy it again") from error
        self.names = [key.decode("utf-8", "surrogateescape") for key in keys]
        self.settings = _read_settings(path / "args.json")

    def read(self, name: str) -> tuple[np.ndarray, int]:
        """Reads one video.

        Args:
            name: One of `names`.

        Returns:
            Tokens (frames, H, W), integer, and the label or -1.

        Raises:
            VimpacError: The video is not there, or its value is not of the released form.
        """
        value = self._txn.get(name.encode("utf-8", "surrogateescape"))
        if value is None:
            raise VimpacError(f"{self.path} has no video '{name}', other variants have")
        try:
            with np.load(io.BytesIO(value), allow_pickle=False) as arrays:
                label = int(arrays["label"]) if "label" in arrays else -1
                tokens = arrays["tokens"]
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise VimpacError(f"{self.path}: value of '{name}' is corrupt ({error})") from error
        if tokens.ndim != 3 or tokens.dtype.kind not in "iu":
            raise VimpacError(f"{self.path}: '{name}' has {tokens.dtype} tokens {tokens.shape}")
        return tokens, label

    @property
    def variant(self) -> str:
        """Name of the variant by args.json, else the directory's name."""
        try:
            shorter, side = self.settings["frame_shorter_size"], self.settings["frame_out_size"]
            crops = {"top": "topleft", "center": "center", "bottom": "bottomright"}
            crop = crops[self.settings["crop_type"]]
            return str(Variant(shorter / side, crop, bool(self.settings["hflip"])))
        except (KeyError, TypeError, ZeroDivisionError):
            return self.path.name


def _read_settings(file: Path) -> dict:
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VimpacError(f"{file} is no JSON ({error}): copy it again, or remove it") from error
    if not isinstance(settings, dict):
        raise VimpacError(f"{file} holds no keys and values: copy it again, or remove it")
    return settings


def convert_lmdb(
    sources: Sequence[Path],
    out: Path,
    *,
    fps: float | None = None,
    tokenizer: str = "dalle",
    vocab_size: int = 8192,
) -> TokenStore:
    """Converts databases, one per variant of the same videos, to a store; resumable.

    Args:
        sources: The LMDB directories.
        out: Where the store is to be.
        fps: Frames per second; None takes it from args.json.
        tokenizer: Name of the tokenizer that made the ids.
        vocab_size: Its number of ids.

    Returns:
        The store.

    Raises:
        UsageError: The fps is no positive number.
        VimpacError: A source is damaged, lacks a video, or says no fps.
    """
    databases = [LmdbTokens(path) for path in sources]
    fps = databases[0].settings.get("fps") if fps is None else fps
    if fps is None:
        raise VimpacError(f"{sources[0]} has no args.json that says the fps: give --fps")
    if not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise UsageError(f"fps={fps} of {sources[0]} is no positive number: give another --fps")
    names = databases[0].names
    if not names:
        raise VimpacError(f"{sources[0]} holds no video")
    height, width = databases[0].read(names[0])[0].shape[1:]
    variants = tuple(database.variant for database in databases)
    meta = StoreMeta(tokenizer, vocab_size, height, width, float(fps), variants)
    with TokenStoreWriter(out, meta) as writer:
        for name in names[len(writer.entries) :]:
            read = [database.read(name) for database in databases]
            frames = {len(tokens) for tokens, _ in read}
            if frames == {0}:
                writer.skip(name, "has no frame")
                continue
            try:
                writer.add(name, np.stack([tokens for tokens, _ in read]), read[0][1])
            except ValueError as error:
                raise VimpacError(f"{sources[0]}: '{name}': {error}") from error
        writer.finish()
    return TokenStore(out)
