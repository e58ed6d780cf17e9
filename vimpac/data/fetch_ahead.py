"""Brings shards to this machine before their clips are wanted."""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress

from torch.utils.data import Sampler

from vimpac.data.joined_store import Store
from vimpac.data.sampler import ResumableSampler, Windows
from vimpac.errors import VimpacError


def fetch_ahead(
    sampler: ResumableSampler, store: Store, windows: Windows | None
) -> Sampler[tuple[int, int]]:
    """The sampler, with its shards fetched ahead where that helps."""
    if windows is None or not store.remote_bytes:
        return sampler
    return FetchAhead(sampler, store, windows)


class FetchAhead(Sampler[tuple[int, int]]):
    """The samples of another sampler, of which it knows a window more than it has yielded.

    A thread fetches the shards of those in turn, while the samples before them are read. What it
    cannot fetch is left to whoever reads it, and says what is wrong.

    Args:
        sampler: Over the videos of `windows`.
        store: The store or stores, some with a URL.
        windows: The shards of the videos.
    """

    def __init__(self, sampler: ResumableSampler, store: Store, windows: Windows) -> None:
        self.sampler, self.store, self.windows = sampler, store, windows
        shards = int(windows.shards.max()) + 1
        size = min(windows.size, shards)
        self.ahead = -(-sampler.epoch_size * size // shards)  # samples of a window

    def __iter__(self) -> Iterator[tuple[int, int]]:
        wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        thread = threading.Thread(target=self._fetch, args=(wanted,), daemon=True)
        thread.start()
        coming, shards = deque[tuple[int, int]](), Counter[int]()
        try:
            for sample in self.sampler:
                shard = int(self.windows.shards[sample[1]])
                if not shards[shard]:
                    wanted.put(shard)
                shards[shard] += 1
                coming.append(sample)
                if len(coming) > self.ahead:
                    first = coming.popleft()
                    shards[int(self.windows.shards[first[1]])] -= 1
                    yield first
        finally:
            wanted.put(None)

    def _fetch(self, wanted: queue.SimpleQueue[int | None]) -> None:
        while (shard := wanted.get()) is not None:
            with suppress(VimpacError, OSError):
                self.store.fetch(shard)
