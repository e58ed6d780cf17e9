"""The order of the samples: a function of (seed, epoch), whatever the ranks and workers.

Samples are numbered 0, 1, 2, ... through all epochs, in each of which every video has `repeat` of
them, side by side; sample p belongs to epoch p // (num_videos * repeat). Global step s consumes the
samples [s * G, (s + 1) * G); rank r of W takes the r-th of W equal, contiguous parts, so the ranks'
parts in rank order are what one rank reads.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from vimpac.data.random import ORDER, words

_SETTINGS = ("seed", "num_videos", "repeat")  # without which a position means nothing


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
        repeat: Samples of a video in an epoch.

    Attributes:
        epoch_size: Samples of an epoch.
        position: Samples that are consumed.

    Raises:
        ValueError: A count is not positive, or the batch does not divide.
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
    ) -> None:
        if min(num_videos, global_batch, repeat) < 1:
            raise ValueError(f"{num_videos=}, {global_batch=} and {repeat=} must be positive")
        if not 0 <= rank < world_size or global_batch % world_size:
            raise ValueError(f"{global_batch=} does not divide among {world_size=}, {rank=}")
        self.num_videos = num_videos
        self.global_batch = global_batch
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.repeat = repeat
        self.epoch_size = num_videos * repeat
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
                    order = epoch_order(self.num_videos, self.seed, epoch)
                yield position, int(order[position % self.epoch_size // self.repeat])
            start += self.global_batch

    def advance(self, steps: int = 1) -> None:
        """Commits `steps` consumed global batches."""
        self.position += steps * self.global_batch

    def state_dict(self) -> dict[str, int]:
        """The position and what it refers to."""
        settings = {key: getattr(self, key) for key in _SETTINGS}
        return {"position": self.position, **settings}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues from `state_dict()`; the ranks and the batch may differ.

        Args:
            state: From a sampler with the same videos, seed and repetition; of before there was
                one, too.

        Raises:
            ValueError: One of them differs, so the position means nothing.
            TypeError: The position is no whole number.
        """
        state = {"repeat": 1, **state}
        for key in _SETTINGS:
            if state[key] != getattr(self, key):
                now = getattr(self, key)
                raise ValueError(f"its order is that of {key}={state[key]}, not of {key}={now}")
        position = operator.index(state["position"])
        if position < 0:
            raise ValueError(f"position {position} must not be negative")
        self.position = position


def epoch_order(num_videos: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of one epoch, (num_videos,) int64."""
    return np.argsort(words(ORDER, seed, epoch, num_videos), kind="stable")
