"""One tokenizer for the frames of many videos, as where it computes on a GPU.

Workers only decode: they hold neither weights nor a CUDA context. Batches run across videos and
have one size, and one is computed while the next is filled.
"""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from vimpac.errors import VimpacError
from vimpac.tokenizers import Tokenizer

_RUNNING = 2  # batches at most, so that the next one is there when one is done


class VideoIds:
    """The ids of the frames of one video, which come batch by batch."""

    def __init__(self) -> None:
        self._chunks: list[tuple[int, int]] = []  # (variants, frames) in the order they came
        self._ids: list[np.ndarray] = []  # (some frames, H, W), in the same order
        self._missing = 0  # frames

    @property
    def is_complete(self) -> bool:
        """Whether all frames that were added are encoded."""
        return not self._missing

    def expect(self, variants: int, frames: int) -> None:
        """There will be the ids of so many more frames."""
        self._chunks.append((variants, frames))
        self._missing += variants * frames

    def append(self, ids: np.ndarray) -> None:
        """Takes the ids (some frames, H, W) that come next."""
        self._ids.append(ids)
        self._missing -= len(ids)

    def whole(self) -> np.ndarray:
        """Ids (variants, frames, H, W) of the whole video."""
        flat = np.concatenate(self._ids)
        ends = np.cumsum([variants * frames for variants, frames in self._chunks])
        parts = zip(self._chunks, np.split(flat, ends[:-1]), strict=True)
        return np.concatenate([ids.reshape(*shape, *ids.shape[1:]) for shape, ids in parts], axis=1)


class SharedEncoder:
    """Encodes the frames of several videos at a time.

    Args:
        tokenizer: What encodes.
        batch: Frames at a time.

    Attributes:
        seconds: That the tokenizer has taken.
    """

    def __init__(self, tokenizer: Tokenizer, batch: int) -> None:
        self.seconds = 0.0
        self._tokenizer, self._batch = tokenizer, batch
        self._filling: list[tuple[VideoIds, np.ndarray]] = []  # frames (some, 3, S, S)
        self._running: deque[tuple[list[tuple[VideoIds, int]], Future[np.ndarray]]] = deque()
        self._thread = ThreadPoolExecutor(1)

    def add(
        self,
        video: VideoIds,
        frames: np.ndarray,  # (variants, F, 3, S, S)
    ) -> int:
        """Takes the next frames of a video; waits while enough others are being encoded.

        Args:
            video: What takes their ids.
            frames: RGB (variants, F, 3, S, S) uint8.

        Returns:
            How many bytes their ids have.
        """
        video.expect(*frames.shape[:2])
        self._filling.append((video, frames.reshape(-1, *frames.shape[2:])))
        while sum(len(part) for _, part in self._filling) >= self._batch:
            self._encode_batch()
        self.collect()
        return 4 * math.prod(frames.shape[:2]) * (frames.shape[-1] // self._tokenizer.patch) ** 2

    def collect(self) -> None:
        """Gives the ids that are there to their videos."""
        while self._running and self._running[0][1].done():
            self._collect_one()

    def flush(self) -> None:
        """Encodes all frames that are there, though they fill no batch."""
        if self._filling:
            self._encode_batch()
        while self._running:
            self._collect_one()

    def close(self) -> None:
        """Ends the thread; what has not begun is left."""
        self._thread.shutdown(cancel_futures=True)

    def _encode_batch(self) -> None:
        """Starts to encode the first frames, as many as a batch has."""
        while len(self._running) >= _RUNNING:
            self._collect_one()
        taken, room = [], self._batch
        while room and self._filling:
            video, frames = self._filling.pop(0)
            taken.append((video, frames[:room]))
            if len(frames) > room:
                self._filling.insert(0, (video, frames[room:]))
            room -= len(taken[-1][1])
        batch = np.concatenate([frames for _, frames in taken])
        owners = [(video, len(frames)) for video, frames in taken]
        self._running.append((owners, self._thread.submit(self._encode, batch)))

    def _collect_one(self) -> None:
        owners, future = self._running.popleft()
        ids, at = future.result(), 0
        for video, number in owners:
            video.append(ids[at : at + number])
            at += number

    def _encode(self, frames: np.ndarray) -> np.ndarray:
        begin = time.perf_counter()
        try:
            return self._tokenizer.encode(frames)
        except Exception as error:
            line = str(error).strip().partition("\n")[0]
            raise VimpacError(
                f"the device failed ({line:.200}): run the same command again, when no one else "
                "uses it"
            ) from error
        finally:
            self.seconds += time.perf_counter() - begin
