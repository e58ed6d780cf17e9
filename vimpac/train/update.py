"""One update, from the tokens of its videos to the parameters: eagerly, or as one CUDA graph.

The graph holds masks, all forward and backward passes, clipping and AdamW. The host copies tokens,
the number of the first clip and the learning rate to where the graph reads them, and starts it:
one launch where the update of a small model takes hundreds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vimpac.train.cuda_graph import Graphed
from vimpac.train.optim import update
from vimpac.train.step import PretrainStep


class Update:
    """Makes the updates of a run, of which `graph: true` records one.

    Args:
        step: The gradients of an update, with the run's configuration.
        optimizer: From `make_optimizer`.
    """

    def __init__(self, step: PretrainStep, optimizer: torch.optim.Optimizer) -> None:
        self._step, self._optimizer = step, optimizer
        self._device = step.world.device
        self._graph = Graphed(self._recorded, self._device) if step.config.graph else None

    def __call__(
        self,
        groups: Iterable[Sequence[Tensor]],  # (micro, 2, T, H, W) each
        first_video: int,
        lr: float,
    ) -> Tensor:
        """Makes one update.

        Args:
            groups: This rank's micro-batches of each group, on any device. Eagerly, a group is
                taken when the one before it is on its way.
            first_video: Number of the first video among all samples of the run.
            lr: The learning rate.

        Returns:
            The mean of `METRICS` over the groups, and the norm of the gradient before clipping,
            (4,) fp32 on the device, which nothing has waited for.
        """
        first_clip, rate = 2 * first_video, torch.full((), lr, device=self._device)
        if self._graph is None:
            there = ([x.to(self._device, non_blocking=True) for x in parts] for parts in groups)
            return self._update(first_clip, rate, there)
        clip = torch.full((), first_clip, dtype=torch.int64, device=self._device)
        return self._graph(clip, rate, *(part for parts in groups for part in parts))

    def _recorded(self, first_clip: Tensor, lr: Tensor, *parts: Tensor) -> Tensor:
        """The update from tensors alone."""
        size = len(parts) // self._step.groups
        groups = [parts[i : i + size] for i in range(0, len(parts), size)]
        return self._update(first_clip, lr, groups)

    def _update(
        self,
        first_clip: int | Tensor,  # 0-d int64
        lr: Tensor,  # 0-d fp32
        groups: Iterable[Sequence[Tensor]],
    ) -> Tensor:
        metrics = self._step.gradients(groups, first_clip)
        norm = update(self._step.model, self._optimizer, self._step.config.optim, lr)
        return torch.cat([metrics, norm[None]])
