"""One video to its tokens, or to frames for the process that encodes: decode, resample, crop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vimpac.data.frames import frames_at
from vimpac.data.tokenize_workers import Work
from vimpac.data.variants import Scalers, make_variants
from vimpac.tokenizers import Tokenizer

if TYPE_CHECKING:
    from vimpac.data.tokenize import TokenizeSettings

BATCH = 32  # frames per call of the tokenizer


def tokenize_video(
    path: Path,
    settings: TokenizeSettings,
    tokenizer: Tokenizer,
    *,
    threads: int = 0,
    note: Callable[[str], object] = lambda text: None,
    alive: Callable[[], object] = lambda: None,
    lap: Callable[[str], object] = lambda stage: None,
) -> np.ndarray:
    """Tokenises one video, holding one batch of its frames at a time.

    Args:
        path: The video.
        settings: How.
        tokenizer: From `settings`.
        threads: Decoder threads; 0 lets the decoder choose.
        note: Called at the end with what is wrong with a video that is used all the same.
        alive: Called whenever there is progress.
        lap: Called after every stage with its name: decode, resize, encode.

    Returns:
        Ids (variants, frames, H, W), int32; of pixels, levels (variants, frames, S, S, 3), uint8.

    Raises:
        UnreadableVideo: See `vimpac.data.frames.frames_at`.
    """
    encoded: list[np.ndarray] = []
    for frames in _batches(path, settings, threads, note, alive, lap):
        ids = tokenizer.encode(frames.reshape(-1, *frames.shape[2:]))
        encoded.append(ids.reshape(*frames.shape[:2], *ids.shape[1:]))
        alive()
        lap("encode")
    return np.concatenate(encoded, axis=1)


def _batches(
    path: Path,
    settings: TokenizeSettings,
    threads: int,
    note: Callable[[str], object],
    alive: Callable[[], object],
    lap: Callable[[str], object],
) -> Iterator[np.ndarray]:
    """The frames of a video, (variants, F, 3, S, S) uint8 at a time."""
    batch, scalers = list[np.ndarray](), Scalers()
    for frame in frames_at(path, settings.fps, threads=threads, note=note, alive=alive):
        lap("decode")
        batch.append(make_variants(frame, settings.size, settings.variants, scalers))
        lap("resize")
        if len(batch) * len(settings.variants) >= BATCH:
            yield np.stack(batch, axis=1)
            batch.clear()
    lap("decode")
    if batch:
        yield np.stack(batch, axis=1)


def make_work(settings: TokenizeSettings, tokenizer: Tokenizer | None) -> Work:
    """Work with this tokenizer, or, in a worker process, with a new one and one decoder thread."""
    made = settings.make_tokenizer() if tokenizer is None else tokenizer
    threads = 1 if tokenizer is None else 0

    def work(path: Path, *, send: Callable[[np.ndarray], object], **told: Any) -> np.ndarray:
        return tokenize_video(path, settings, made, threads=threads, **told)

    return work


def make_decoder(settings: TokenizeSettings) -> Work:
    """Work that decodes, with one thread, and sends the frames."""

    def work(
        path: Path,
        *,
        note: Callable[[str], object],
        alive: Callable[[], object],
        lap: Callable[[str], object],
        send: Callable[[np.ndarray], object],
    ) -> np.ndarray:
        for frames in _batches(path, settings, 1, note, alive, lap):
            send(frames)
            lap("send")
        return np.empty(0, np.int32)

    return work
