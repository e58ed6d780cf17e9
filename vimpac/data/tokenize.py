"""Videos to a token store: decode, resample, crop and encode in worker processes.

Results are consumed in the order of the videos, whatever the workers' speed, and the writer
journals each, so a killed run continues and ends in the same bytes as one that was not.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch

from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.data.variants import Variant, make_variants
from vimpac.data.video import UnreadableVideo, frames_at
from vimpac.data.writer import is_complete
from vimpac.errors import UsageError, VimpacError
from vimpac.tokenizers import Tokenizer, get_tokenizer

BATCH = 32  # frames per call of the tokenizer

Video = tuple[str, Path]  # its name in the store, its file
Result = tuple[np.ndarray | None, str]  # tokens, or why there are none


@dataclasses.dataclass(frozen=True)
class TokenizeSettings:
    """How videos become tokens.

    Attributes:
        fps: Frames per second of video time.
        size: Side of the square variants in pixels, divisible by the tokenizer's patch.
        variants: What is made of every frame.
        tokenizer: Name of the tokenizer.
        weights: Its weights, or None.
        device: Where it computes.
    """

    fps: Fraction = Fraction(2)
    size: int = 128
    variants: tuple[Variant, ...] = (Variant(),)
    tokenizer: str = "patch"
    weights: Path | None = None
    device: str = "cpu"

    def make_tokenizer(self) -> Tokenizer:
        """Makes the tokenizer, checking the size against its patch."""
        tokenizer = get_tokenizer(self.tokenizer, weights=self.weights, device=self.device)
        if self.size < 1 or self.size % tokenizer.patch or self.fps <= 0:
            raise UsageError(
                f"the size must be a multiple of {tokenizer.patch} and fps positive, "
                f"not size {self.size} and fps {float(self.fps):g}"
            )
        return tokenizer

    def meta(self, tokenizer: Tokenizer) -> StoreMeta:
        """What a store made so says of itself."""
        side = self.size // tokenizer.patch
        return StoreMeta(
            tokenizer=tokenizer.name,
            vocab_size=tokenizer.vocab_size,
            height=side,
            width=side,
            fps=float(self.fps),
            variants=tuple(map(str, self.variants)),
            digest=tokenizer.digest,
        )


def tokenize_video(
    path: Path, settings: TokenizeSettings, tokenizer: Tokenizer, *, threads: int = 0
) -> np.ndarray:
    """Tokenises one video, holding one batch of its frames at a time.

    Args:
        path: The video.
        settings: How.
        tokenizer: From `settings`.
        threads: Decoder threads; 0 lets the decoder choose.

    Returns:
        Ids (variants, frames, H, W), int64.

    Raises:
        UnreadableVideo: It cannot be decoded to its end.
    """
    encoded: list[np.ndarray] = []
    batch: list[np.ndarray] = []

    def encode() -> None:
        frames = torch.from_numpy(np.stack(batch, axis=1))  # (variants, F, 3, S, S)
        ids = tokenizer.encode(frames.flatten(0, 1))
        encoded.append(ids.view(*frames.shape[:2], *ids.shape[1:]).numpy())
        batch.clear()

    for frame in frames_at(path, settings.fps, threads=threads):
        batch.append(make_variants(frame, settings.size, settings.variants))
        if len(batch) * len(settings.variants) >= BATCH:
            encode()
    if batch:
        encode()
    return np.concatenate(encoded, axis=1)


def tokenize_videos(
    videos: Sequence[Video],
    out: Path,
    settings: TokenizeSettings,
    *,
    workers: int = 1,
    report: Callable[[int, str], None] = lambda done, problem: None,
) -> TokenStore:
    """Makes a store of videos, or continues the unfinished one at `out`.

    Args:
        videos: (name, path) in the order of the store.
        out: Where the store is to be.
        settings: How.
        workers: Processes; 1 works in this one.
        report: Called with the number of videos done and a problem or "" after every video.

    Returns:
        The finished store; its `skipped` are the videos that could not be read.

    Raises:
        UsageError: `out` holds something else, or was begun otherwise.
        VimpacError: No video could be read, or a worker died.
    """
    tokenizer = settings.make_tokenizer()
    meta, names = settings.meta(tokenizer), [name for name, _ in videos]
    if is_complete(out):
        store = TokenStore(out)
        held = [store.name(i) for i in range(len(store))] + [name for name, _ in store.skipped]
        if store.meta != meta or sorted(held) != sorted(names):
            raise UsageError(f"{out} is a store of other videos or settings: name another output")
        report(len(names), "")
        return store
    with TokenStoreWriter(out, meta) as writer:
        begun = [entry.name for entry in writer.entries]
        if names[: len(begun)] != begun:
            raise UsageError(
                f"{out}.partial was begun with other videos: give the same, or remove it"
            )
        report(len(begun), "")
        rest = videos[len(begun) :]
        results = (
            _here(rest, settings, tokenizer) if workers <= 1 else _pool(rest, settings, workers)
        )
        for name, (tokens, reason) in zip(names[len(begun) :], results, strict=True):
            if tokens is None:
                writer.skip(name, reason)
            else:
                writer.add(name, tokens)
            report(len(writer.entries), f"{name}: {reason}" if reason else "")
        writer.finish()
    return TokenStore(out)


def _result(path: Path, settings: TokenizeSettings, tokenizer: Tokenizer, threads: int) -> Result:
    try:
        return tokenize_video(path, settings, tokenizer, threads=threads), ""
    except UnreadableVideo as error:
        return None, str(error)


def _here(
    videos: Sequence[Video], settings: TokenizeSettings, tokenizer: Tokenizer
) -> Iterator[Result]:
    for _, path in videos:
        yield _result(path, settings, tokenizer, 0)


def _pool(videos: Sequence[Video], settings: TokenizeSettings, workers: int) -> Iterator[Result]:
    """Results in order, with at most two videos per worker under way."""
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start_worker, (settings,)
    )
    pending: deque[Future[Result]] = deque()
    done = 0
    try:
        for _, path in videos:
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
                done += 1
            pending.append(pool.submit(_work, path))
        while pending:
            yield pending.popleft().result()
            done += 1
    except BrokenProcessPool as error:
        suspects = ", ".join(f"'{name}'" for name, _ in videos[done : done + 2 * workers])
        raise VimpacError(
            "a worker process died (out of memory, or a crash of the decoder) on one of "
            f"{suspects}: run the same command again, with fewer --workers or without that video"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: tuple[TokenizeSettings, Tokenizer]


def _start_worker(settings: TokenizeSettings) -> None:
    """Prepares a worker process: one thread, no Ctrl-C of its own, gone when its parent is."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker = settings, settings.make_tokenizer()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(path: Path) -> Result:
    settings, tokenizer = _worker
    return _result(path, settings, tokenizer, 1)
