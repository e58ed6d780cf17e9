"""How good the features of a pre-training are while it goes on: the test of `vimpac knn`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor

from vimpac.checkpoints.description import DataFacts
from vimpac.config import PretrainConfig
from vimpac.data.even_clips import EvenClips
from vimpac.data.joined_store import Store
from vimpac.data.labels import keep_videos, read_labels
from vimpac.errors import UsageError
from vimpac.eval.applied import find_stride
from vimpac.eval.knn import K, judge_by_neighbours
from vimpac.train.batches import damage_warning, damaged_videos, open_store
from vimpac.train.distributed import World

CLIPS = 2  # of a video; one crop
CENTER = "1x-center"


class Features(Protocol):
    """What computes [CLS] of clips."""

    def __call__(self, clips: Tensor, *, has_padding: bool) -> Tensor:
        """(B, T, H, W) to (B, D)."""


class NeighbourTest:
    """The videos of a k-NN test: those of val, if there are any, or of test, are judged.

    Args:
        config: The run.
        store: Its videos, where no others are to be tested.
        world: The processes, which divide the videos.

    Raises:
        UsageError: Store, labels and run do not fit together.
    """

    def __init__(self, config: PretrainConfig, store: Store, world: World) -> None:
        self.config, self.world = config, world
        self.store = store
        if config.run.knn_data:
            self.store = open_store(config.run.knn_data, cache=config.shard_cache)
        was = DataFacts.of(store.meta, config.clips.frame_stride)
        now = DataFacts.of(self.store.meta, 1)
        key = f"run.knn_data={config.run.knn_data}"
        if (was.tokenizer, was.digest) != (now.tokenizer, now.digest):
            raise UsageError(f"{key} holds tokens of {now.tokens}, data= those of {was.tokens}")
        if was.map != now.map:
            raise UsageError(f"{key} has token maps {now.map}, data= {was.map}: give one size")
        self._stride = find_stride(f"{key}: the model", was, self.store.meta.fps)
        classes, splits = read_labels(config.run.knn_labels, self.store)
        self.damaged = damaged_videos(self.store, config.clips)
        judged = "val" if "val" in splits else "test"
        whole = sorted({*range(len(self.store))} - {*self.damaged})
        self.splits = keep_videos({name: splits[name] for name in ("train", judged)}, whole)
        self.classes = len(classes)
        names = self.store.meta.variants
        self._crop = names.index(CENTER) if CENTER in names else 0
        self._has_padding = int(self.store.frames.min()) < self._views([]).span

    def warnings(self) -> Iterator[str]:
        """What the test may do but is hardly meant to, a line each."""
        train = len(self.splits["train"].videos)
        if train < K:
            yield f"k of the k-NN test is {train}: all training videos vote"
        if self.config.run.knn_data:  # else the run says so
            yield from damage_warning(self.store, self.damaged)

    def __call__(self, features: Features, width: int) -> dict[str, float]:
        """Tests features.

        Args:
            features: Of clips, in evaluation mode; every process calls it equally often.
            width: D.

        Returns:
            "knn_accuracy", for the log.
        """
        clips, (_, micro) = self.config.clips, self.config.batch.on_rank(self.world.size)
        found = judge_by_neighbours(
            functools.partial(features, has_padding=self._has_padding),
            self._views,
            self.splits,
            self.world,
            width=width,
            classes=self.classes,
            batch=2 * micro,  # two clips of a video, as in training
            workers=clips.workers,
            prefetch=clips.prefetch,
        )
        (hits,) = found.values()
        return {"knn_accuracy": hits.top1 / hits.videos}

    def _views(self, videos: Sequence[int]) -> EvenClips:
        return EvenClips(
            self.store,
            videos,
            frames=self.config.clips.frames,
            stride=self._stride,
            clips=[CLIPS],
            variants=[self._crop],
        )
