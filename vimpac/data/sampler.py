"""The order of the samples: a function of (seed, epoch), whatever the ranks and workers.

Samples are numbered 0, 1, 2, ... through all epochs, in each of which every video is drawn once or,
with `shares`, as often as its share says. A video that is drawn has `repeat` samples, side by side.
Global step s consumes the samples [s * G, (s + 1) * G); rank r of W takes the r-th of W equal,
contiguous parts, so the ranks' parts in rank order are what one rank reads.
"""

from __future__ import annotations

import dataclasses
import operator
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from vimpac.data.random import ORDER, ROUNDS, WINDOWS, words

_SETTINGS = {  # without which a position means nothing, and how an error names them
    "seed": "seed={}",
    "num_videos": "{} videos",
    "repeat": "clips.repeat={}",
    "shares": "the stores and weights {}",
    "windows": "clips.window={}",
}


@dataclasses.dataclass(frozen=True)
class Share:
    """Videos that are drawn equally often.

    They are drawn in rounds, each a permutation of them all. An epoch takes the next `draws` videos
    of these rounds, so that a weight of 0.5 gives every video once in two epochs.

    Attributes:
        name: What they are; a position holds for the same names only.
        videos: Their numbers, (videos,) int64.
        weight: Rounds of an epoch.
    """

    name: str
    videos: np.ndarray
    weight: float = 1.0

    @property
    def draws(self) -> int:
        """Videos that an epoch draws, a repeated one counted again."""
        return round(self.weight * len(self.videos))


@dataclasses.dataclass(frozen=True)
class Windows:
    """Shards some of which are read at a time, for videos that are far away.

    Attributes:
        shards: Of every video, (videos,) from 0.
        size: Shards whose videos are mixed.
    """

    shards: np.ndarray
    size: int

    def __str__(self) -> str:
        shards = np.ascontiguousarray(self.shards, "<u4")
        return f"{self.size} of the shards {zlib.crc32(shards.tobytes()):08x}"

    def gather(self, order: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """Sorts the videos of an epoch, which are in random order, by the windows of their shards.

        The shards are permuted and cut into windows; within one the videos stay in their order.
        """
        keys = words(WINDOWS, seed, epoch, int(self.shards.max()) + 1)
        window = np.argsort(np.argsort(keys, kind="stable"), kind="stable") // self.size
        return order[np.argsort(window[self.shards[order]], kind="stable")]


class ResumableSampler(Sampler[tuple[int, int]]):
    """Yields (sample number, video) without end, from the committed position on.

    Iterating does not move the position, since a DataLoader draws ahead of the training: call
    `advance()` after every consumed global batch, and `state_dict()` is what is to be resumed.

    Args:
        num_videos: Videos in the store.
        global_batch: Samples per global step, all ranks together; divisible by `world_size`.
        rank: This process.
        world_size: Number of processes.
        seed: Seed of the order.
        repeat: Samples of a video each time that it is drawn.
        shares: Videos by how often they are drawn, all of them; empty: each once in an epoch.
        windows: The shards of the videos, if these are read shard by shard.
        source: What names the videos, kept in the state.

    Attributes:
        epoch_size: Samples of an epoch.
        position: Samples that are consumed.

    Raises:
        ValueError: A count is not positive, the batch does not divide, or a share that has videos
            draws none.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        repeat: int = 1,
        shares: Sequence[Share] = (),
        windows: Windows | None = None,
        source: dict[str, str] | None = None,
    ) -> None:
        if min(num_videos, global_batch, repeat) < 1:
            raise ValueError(f"{num_videos=}, {global_batch=} and {repeat=} must be positive")
        if not 0 <= rank < world_size or global_batch % world_size:
            raise ValueError(f"{global_batch=} does not divide among {world_size=}, {rank=}")
        for share in shares:
            if len(share.videos) and not share.draws:
                raise ValueError(f"{share.name} with the weight {share.weight:g} draws no video")
        self.num_videos = num_videos
        self.global_batch = global_batch
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.repeat = repeat
        self.shares = [f"{share.weight:g} x {share.name}" for share in shares]
        weighted = any(share.weight != 1 for share in shares)
        self._shares = [*shares] if weighted else []
        drawn = sum(share.draws for share in shares) if weighted else num_videos
        self.epoch_size = drawn * repeat
        self._windows = windows
        self.windows = None if windows is None else str(windows)
        self.source = source or {}
        self.position = 0

    @property
    def epoch(self) -> int:
        """The epoch of the next sample."""
        return self.position // self.epoch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        part = self.global_batch // self.world_size
        epoch, order = -1, np.empty(0, np.int64)
        start = self.position + self.rank * part
        while True:
            for position in range(start, start + part):
                if position // self.epoch_size != epoch:
                    epoch = position // self.epoch_size
                    order = self._order(epoch)
                    if self._windows is not None:
                        order = self._windows.gather(order, self.seed, epoch)
                yield position, int(order[position % self.epoch_size // self.repeat])
            start += self.global_batch

    def advance(self, steps: int = 1) -> None:
        """Commits `steps` consumed global batches."""
        self.position += steps * self.global_batch

    def state_dict(self) -> dict[str, Any]:
        """The position and what it refers to."""
        settings = {key: getattr(self, key) for key in _SETTINGS}
        return {"position": self.position, "source": self.source, **settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict()`; the ranks and the batch may differ.

        Args:
            state: From a sampler with the same videos, seed, repetition, shares and windows; of
                before there were the latter three, too.

        Raises:
            ValueError: One of them differs, so the position means nothing.
            TypeError: The position is no whole number.
        """
        state = {"repeat": 1, "shares": [], "windows": None, **state}
        for key, name in _SETTINGS.items():
            if state[key] != getattr(self, key):
                before, now = map(_as_text, (state[key], getattr(self, key)))
                raise ValueError(f"it was made with {name.format(before)}, not {now}")
        position = operator.index(state["position"])
        if position < 0:
            raise ValueError(f"position {position} must not be negative")
        self.position = position

    def _order(self, epoch: int) -> np.ndarray:
        """The videos of an epoch."""
        if not self._shares:
            return epoch_order(self.num_videos, self.seed, epoch)
        first, drawn = 0, []
        for share in self._shares:
            drawn.append(self._draw(share, first, epoch))
            first += len(share.videos)
        videos = np.concatenate(drawn)
        return videos[epoch_order(len(videos), self.seed, epoch)]

    def _draw(self, share: Share, first: int, epoch: int) -> np.ndarray:
        """The videos of a share that an epoch draws; so many videos are in those before."""
        size = len(share.videos)
        if not size:
            return share.videos
        begin, end = (share.draws * number for number in (epoch, epoch + 1))
        rounds = range(begin // size, -(-end // size))
        keys = [words(ROUNDS, self.seed, number, first + size)[first:] for number in rounds]
        order = np.concatenate([np.argsort(key, kind="stable") for key in keys])
        begin -= rounds.start * size
        return share.videos[order[begin : begin + share.draws]]


def epoch_order(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch, (num_videos,) int64."""
    return np.argsort(words(ORDER, seed, epoch, num_videos), kind="stable")


def _as_text(value: object) -> str:
    """A value of `_SETTINGS`, as an error prints it."""
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)
