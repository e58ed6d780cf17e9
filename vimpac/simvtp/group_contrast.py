"""The contrastive loss of a group whose rows are on several ranks and in several micro-batches."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from vimpac.simvtp.objective import contrastive_loss
from vimpac.train.distributed import World


def group_contrast(
    video: Tensor,  # (part, D), of this rank
    text: Tensor,  # (part, D)
    temperature: float,
    weight: float,
    world: World,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The loss of the whole group, and what the backward passes of this rank's rows begin with.

    Every rank computes all of it: the rows are small.

    Args:
        video: Means of videos, not normalised.
        text: Those of their texts.
        temperature: Divides the cosines.
        weight: Of the loss in what is minimised.
        world: The processes, which hold as many rows each and average their gradients.

    Returns:
        The loss, 0-d, and the gradients of `video` and `text`.
    """
    all_video, all_text = (gather_rows(x.detach(), world).requires_grad_() for x in (video, text))
    loss = contrastive_loss(all_text, all_video, temperature)
    # The ranks' gradients are averaged, and these are parts of one sum.
    gradients = torch.autograd.grad(weight * world.size * loss, (all_video, all_text))
    begin = world.rank * len(video)
    own_video, own_text = (g[begin : begin + len(video)] for g in gradients)
    return loss.detach(), (own_video, own_text)


def gather_rows(
    rows: Tensor,  # (part, D)
    world: World,
) -> Tensor:  # (group, D)
    """The rows of all ranks, in their order, without a gradient."""
    if world.size == 1:
        return rows.clone()
    parts = [torch.empty_like(rows) for _ in range(world.size)]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
