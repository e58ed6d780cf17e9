"""Classifies evenly spaced clips of every video of a split, the videos divided among the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing

import torch
from torch import Tensor

from vimpac.config import FinetuneConfig
from vimpac.data.labelled_clips import EvenClips
from vimpac.data.labels import Split
from vimpac.data.store import TokenStore
from vimpac.train.batches import make_loader, read
from vimpac.train.distributed import World


def over_views(
    function: Callable[[Tensor], Tensor],
    store: TokenStore,
    config: FinetuneConfig,
    split: Split,
    world: World,
) -> Iterator[tuple[list[int], Tensor]]:
    """Applies a function to every view of this rank's videos.

    Every rank calls it equally often, as a sharded model needs it; ranks with fewer videos read
    one again.

    Args:
        function: Takes clips (B, T, H, W) and returns (B, ...).
        store: The videos.
        config: Which clips are read, and how many at once.
        split: The videos' numbers.
        world: The processes.

    Yields:
        Places of videos in the split, of which every one is yielded once over all ranks, and the
        function's values for them, (videos, views, ...) on the CPU.
    """
    views = EvenClips(store, config, split)
    videos = len(views)
    each = math.ceil(videos / world.size)
    mine = [world.rank + world.size * i for i in range(each)]  # some may lie beyond the last
    numbers = [min(place, videos - 1) for place in mine]
    at_once = math.ceil(config.batch.micro / views.views)
    loader = make_loader(views, numbers, at_once, config.clips, world.device)
    with closing(read(loader)) as batches:
        for number, clips in enumerate(batches):
            values = function(clips.flatten(0, 1)).cpu().unflatten(0, (-1, views.views))
            places = mine[number * at_once : (number + 1) * at_once]
            places = [place for place in places if place < videos]
            yield places, values[: len(places)]


@torch.no_grad()
def accuracies(
    logits: Callable[[Tensor], Tensor],
    store: TokenStore,
    config: FinetuneConfig,
    split: Split,
    world: World,
    name: str = "test",
) -> dict[str, float]:
    """The shares of clips and of videos that are classified right.

    A video's probabilities are the means of those of its clips.

    Args:
        logits: Of clips: (B, T, H, W) to (B, classes).
        store: The videos.
        config: Which clips are read.
        split: The videos and their classes.
        world: The processes, all of which get the result.
        name: Of the split.

    Returns:
        "<name>_clip_accuracy" and "<name>_video_accuracy".
    """
    counts = torch.zeros(4, dtype=torch.float64)  # right clips, clips, right videos, videos
    for places, values in over_views(logits, store, config, split, world):
        probabilities = values.softmax(-1)  # (videos, views, classes)
        labels = torch.tensor([split.classes[place] for place in places], dtype=torch.int64)
        clips = probabilities.argmax(-1) == labels[:, None]
        videos = probabilities.mean(1).argmax(-1) == labels
        found = clips.sum(), clips.numel(), videos.sum(), videos.numel()
        counts += torch.tensor([float(count) for count in found], dtype=torch.float64)
    right_clips, clips, right_videos, videos = world.mean(counts).tolist()
    return {
        f"{name}_clip_accuracy": right_clips / clips,
        f"{name}_video_accuracy": right_videos / videos,
    }
