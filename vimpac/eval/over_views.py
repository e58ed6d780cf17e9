"""Applies a model to the views of videos, which are divided among the processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from contextlib import closing

import torch
from torch import Tensor

from vimpac.data.even_clips import EvenClips
from vimpac.train.distributed import World
from vimpac.train.loader import make_loader, read


def over_views(
    function: Callable[[Tensor], Tensor],
    views: EvenClips,
    world: World,
    *,
    batch: int,
    workers: int,
    prefetch: int = 4,
) -> Generator[tuple[int, Tensor]]:
    """Applies a function to every view of this process's videos, each once.

    Every process calls it equally often, as a sharded model needs it; those with fewer views read
    one again.

    Args:
        function: Takes clips (B, T, H, W) and returns (B, ...).
        views: The views; each process takes every `world.size`-th video.
        world: The processes.
        batch: Views at once.
        workers: Processes that read; 0: none.
        prefetch: Batches that each of them keeps ready.

    Yields:
        The place of a video in `views.videos`, in order, and the function's values for its views,
        (views, ...) on the CPU. Over all processes every video is yielded once.
    """
    videos = len(views.videos)
    shares = [range(rank, videos, world.size) for rank in range(world.size)]
    sizes = [sum(len(views.views_of(place)) for place in share) for share in shares]
    mine = itertools.chain.from_iterable(map(views.views_of, shares[world.rank]))
    again = itertools.repeat(0, max(sizes) - sizes[world.rank])
    loader = make_loader(
        views,
        itertools.chain(mine, again),
        batch,
        workers=workers,
        prefetch=prefetch,
        device=world.device,
    )
    places = iter(shares[world.rank])
    place, found = next(places, None), list[Tensor]()
    with closing(read(loader)) as batches:
        for clips in batches:
            found.extend(function(clips).cpu())
            while place is not None and len(found) >= len(views.views_of(place)):
                own = len(views.views_of(place))
                values = torch.stack(found[:own])
                del found[:own]
                yield place, values
                place = next(places, None)
