"""Which clip of its group a text is shown beside as a mismatch, and how that clip comes here.

The choice is a function of (seed, number of the sample), so micro-batches and ranks choose alike.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from vimpac.data.random import MISMATCH, below, words
from vimpac.train.distributed import World


def random_mismatches(seed: int, first: int, group: int, begin: int, count: int) -> list[int]:
    """For each of some samples of a group the place of another one, all alike likely.

    Args:
        seed: Of the run.
        first: Number of the group's first sample.
        group: Samples of the group, at least two.
        begin: Place of the first sample that is asked about.
        count: How many are.

    Returns:
        Places in [0, group).
    """
    return [
        (place + 1 + below(words(MISMATCH, seed, first + place, 1)[0], group - 1)) % group
        for place in range(begin, begin + count)
    ]


def hard_mismatches(
    similarity: Tensor,  # (count, G) of texts to all videos of the group, over the temperature
    seed: int,
    first: int,
    begin: int,
) -> list[int]:
    """As `random_mismatches`, in proportion to exp(similarity); waits for the device."""
    scores = similarity.double().cpu()
    own = torch.arange(begin, begin + len(scores))
    scores[torch.arange(len(scores)), own] = -torch.inf
    shares = scores.softmax(1).cumsum(1).numpy()
    chosen = []
    for place, share in zip(own.tolist(), shares, strict=True):
        draw = int(words(MISMATCH, seed, first + place, 1)[0]) / 2**64
        found = int(np.searchsorted(share, draw * share[-1], side="right"))
        last = len(share) - 1 - (place == len(share) - 1)  # where rounding would go past the end
        chosen.append(min(found, last))
    return chosen


def take_rows(
    rows: Tensor,  # (part, ...)
    wanted: list[int],
    world: World,
) -> Tensor:  # (len(wanted), ...)
    """Rows of the tensor that all ranks' parts make in rank order; each rank wants as many."""
    if world.size == 1:
        return rows[torch.tensor(wanted, device=rows.device)]
    part = len(rows)
    mine = torch.tensor(wanted, dtype=torch.int64, device=world.device)
    everyone = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(everyone, mine)
    send = [their[their // part == world.rank] % part for their in everyone]
    source = mine // part
    order = source.argsort(stable=True)  # rows arrive by rank, in the order in which we want them
    flat = rows.flatten(1)
    received = flat.new_empty((len(wanted), flat.shape[1]))
    dist.all_to_all_single(
        received,
        torch.cat([flat[index] for index in send]),
        [int((source == rank).sum()) for rank in range(world.size)],
        [len(index) for index in send],
    )
    result = torch.empty_like(received)
    result[order] = received
    return result.view(len(wanted), *rows.shape[1:])
