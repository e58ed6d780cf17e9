"""The contrastive loss over two clips per video, and what it needs across ranks.

Every rank computes the loss of its own clips against the clips of all ranks. As the gather is
differentiable, averaging the gradients over ranks (what DDP does) gives exactly the gradient of
one rank holding the whole batch.
"""

from __future__ import annotations

import contextlib
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac.checks import as_number, check_floating, check_whole


def info_nce(
    features: Tensor,  # (2B, d)
    temperature: float = 0.2,
    *,
    gamma: float = 0.2,
    contrastive_batch: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """InfoNCE over both views: gamma * (loss_a + loss_b).

    The two clips of a video are each other's positive; both clips of every other video are
    negatives; a clip is never compared with itself. Chance is 2 * gamma * ln(2 * videos - 1).
    Softmax, normalisation and similarities are in fp32 also under autocast.

    Args:
        features: (2B, d), rows [all first clips; all second clips]; need not be normalised.
        temperature: Divides the cosine similarities, > 0.
        gamma: Scale of the sum, >= 0.
        contrastive_batch: Number of videos that compete with each other; it must divide the
            number of videos over all ranks. None: all of them.
        group: Ranks to gather over; None: the default group, or one rank without torch.distributed.
            Every rank must bring the same number of videos.

    Returns:
        0-d fp32: the loss of this rank's clips.

    Raises:
        TypeError: If an argument has a wrong type, naming it.
        ValueError: If a number is not as above, the number of rows is odd, or contrastive_batch
            does not divide the videos.
    """
    check_floating("features", features, "2B", "d")
    if len(features) % 2:
        raise ValueError(f"features must be (2B, d), got {tuple(features.shape)}")
    if as_number("temperature", temperature) <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if as_number("gamma", gamma) < 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")
    if contrastive_batch is not None:
        check_whole("contrastive_batch", contrastive_batch)
    world, rank = _world(group), _rank(group)
    videos = len(features) // 2
    batch = world * videos if contrastive_batch is None else contrastive_batch
    if videos and (batch < 1 or (world * videos) % batch):
        raise ValueError(
            f"contrastive_batch={batch} must divide the {world * videos} videos of a step "
            f"({videos} on each of {world} ranks): change the videos per rank or the setting"
        )
    with without_autocast(features.device):
        z = F.normalize(features.float(), dim=-1)
        candidates = gather(z, group).view(world, 2, videos, -1).transpose(0, 1)
        similarity = z @ candidates.flatten(0, 2).mT / temperature  # (2B, 2 * world * videos)
    own = torch.arange(videos, device=z.device) + rank * videos  # numbers of this rank's videos
    every = torch.arange(world * videos, device=z.device)
    clip = torch.cat((own, own + world * videos))
    allowed = (own // max(batch, 1))[:, None] == every // max(batch, 1)
    allowed = allowed.repeat(2, 2)
    allowed = allowed & (clip[:, None] != torch.arange(2 * world * videos, device=z.device))
    similarity = similarity.masked_fill(~allowed, -math.inf)
    partner = torch.cat((own + world * videos, own))
    # The mean over 2B rows is (loss_a + loss_b) / 2.
    return 2 * gamma * F.cross_entropy(similarity, partner)


class _Gather(torch.autograd.Function):
    """All ranks' tensors stacked along dim 0; the gradient is summed over ranks."""

    @staticmethod
    def forward(ctx, x, group):  # type: ignore[no-untyped-def]
        ctx.group, ctx.rows = group, len(x)
        parts = [torch.empty_like(x) for _ in range(_world(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        start = _rank(ctx.group) * ctx.rows
        return grad[start : start + ctx.rows], None


class _AllReduce(torch.autograd.Function):
    """The sum over ranks; so is its gradient."""

    @staticmethod
    def forward(ctx, x, group):  # type: ignore[no-untyped-def]
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def gather(x: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenates x (rows, ...) of all ranks along dim 0, differentiably."""
    return x if _world(group) == 1 else _Gather.apply(x, group)


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose training statistics cover all ranks.

    Unlike `nn.SyncBatchNorm` it runs on every device and needs no conversion; every rank must
    bring the same number of rows.
    """

    def forward(
        self,
        x: Tensor,  # (B, C)
    ) -> Tensor:  # (B, C)
        world = _world(None)
        if not self.training or world == 1:
            return super().forward(x)
        rows = x.float()
        mean = _AllReduce.apply(rows.mean(0), None) / world
        var = _AllReduce.apply((rows - mean).square().mean(0), None) / world
        n = world * len(x)
        self._track(mean.detach(), var.detach() * (n / max(n - 1, 1)))
        scale = self.weight * torch.rsqrt(var + self.eps)
        return ((rows - mean) * scale + self.bias).to(x.dtype)

    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast turned off; the meta device knows none."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def _world(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def _rank(group: dist.ProcessGroup | None) -> int:
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0
