"""Several token stores, read as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vimpac.data.store import TokenStore
from vimpac.data.store_format import difference
from vimpac.errors import UsageError


class JoinedStore:
    """The videos of several stores, those of the first one first, as a `TokenStore`.

    Args:
        stores: The stores, each another one.

    Attributes:
        stores: They.
        first: The number that the first video of each store has here.
        path: Their paths, for messages.
        meta: The settings that all videos share.
        frames: Number of frames of every video, (videos,) uint32.
        shards: Number of the shard of every video, counted through all stores, (videos,) int64.
        remote_bytes: As of a `TokenStore`, one after the other.
        skipped: As of a `TokenStore`, one after the other.
        notes: So are these.

    Raises:
        UsageError: One is given twice, or differs from the first in a setting.
    """

    def __init__(self, stores: Sequence[TokenStore]) -> None:
        self.stores = [*stores]
        self.path = ",".join(str(store.path) for store in stores)
        self.meta = stores[0].meta
        seen = {_real(stores[0])}
        for store in stores[1:]:
            differs = difference(store.meta.to_dict(), self.meta.to_dict())
            if differs:
                raise UsageError(
                    f"{store.path} cannot be joined to {stores[0].path}: its {differs}: tokenise "
                    "both alike"
                )
            if _real(store) in seen:
                raise UsageError(f"{store.path} is given twice: data_weights says how often")
            seen.add(_real(store))
        self.first = np.cumsum([0, *map(len, stores)])[:-1]
        self.frames = np.concatenate([store.frames for store in stores])
        self._first_shard = np.cumsum([0, *(len(store.shard_bytes) for store in stores)])[:-1]
        self.shards = np.concatenate(
            [store.shards + first for store, first in zip(stores, self._first_shard, strict=True)]
        )
        self.remote_bytes = [size for store in stores for size in store.remote_bytes]
        self.skipped = [skipped for store in stores for skipped in store.skipped]
        self.notes = [note for store in stores for note in store.notes]

    def __len__(self) -> int:
        return len(self.frames)

    def __reduce__(self) -> tuple:
        return JoinedStore, (self.stores,)

    def fetch(self, shard: int) -> None:
        """Brings a shard to this machine: see `TokenStore.fetch`."""
        k = int(np.searchsorted(self._first_shard, shard, "right")) - 1
        self.stores[k].fetch(shard - int(self._first_shard[k]))

    def num_frames(self, i: int) -> int:
        """Number of frames of video `i`."""
        store, own = self._find(i)
        return store.num_frames(own)

    def name(self, i: int) -> str:
        """Name of video `i`, which one of another store may have, too."""
        store, own = self._find(i)
        return store.name(own)

    def label(self, i: int) -> int:
        """Class of video `i`, or -1."""
        store, own = self._find(i)
        return store.label(own)

    def read(self, i: int, start: int, stop: int, variant: int = 0) -> np.ndarray:
        """Reads frames of a video: see `TokenStore.read`."""
        store, own = self._find(i)
        return store.read(own, start, stop, variant)

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
        """Reads a clip of each of some videos: see `TokenStore.read_many`."""
        numbers, begin = np.asarray(videos, np.int64), np.asarray(starts, np.int64)
        chosen = np.broadcast_to(np.asarray(variants, np.int64), numbers.shape)
        for i in (numbers.min(initial=0), numbers.max(initial=0)):
            self._find(int(i))
        clips = np.empty((len(numbers), frames, *self.meta.frame_shape), np.int32)
        owners = self.store_of(numbers)
        for k in np.unique(owners).tolist():
            here = owners == k
            own = numbers[here] - self.first[k]
            clips[here] = self.stores[k].read_many(
                own, begin[here], frames, stride=stride, variants=chosen[here], fill=fill
            )
        return clips

    def verify(self) -> Iterator[str | None]:
        """Reads everything: see `TokenStore.verify`."""
        for store in self.stores:
            yield from store.verify()

    def store_of(self, videos: np.ndarray) -> np.ndarray:
        """Which of the stores each of some videos is in."""
        return np.searchsorted(self.first, videos, "right") - 1

    def repeated_name(self) -> tuple[str, str, str] | None:
        """A name that videos of two stores have, and the paths of these stores; None: no name."""
        owners: dict[str, TokenStore] = {}
        for store in self.stores:
            for i in range(len(store)):
                name = store.name(i)
                other = owners.setdefault(name, store)
                if other is not store:
                    return name, str(other.path), str(store.path)
        return None

    def _find(self, i: int) -> tuple[TokenStore, int]:
        """The store of a video and its number there."""
        if not 0 <= i < len(self):
            raise IndexError(f"video {i} of stores of {len(self)} videos")
        k = int(self.store_of(np.asarray(i)))
        return self.stores[k], int(i - self.first[k])


def _real(store: TokenStore) -> str:
    """Where a store is, links followed."""
    return store.path.rstrip("/") if isinstance(store.path, str) else str(store.path.resolve())


Store = TokenStore | JoinedStore
