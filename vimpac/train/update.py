"""One update, from the samples to the parameters: eagerly, or as one CUDA graph.

The graph holds masks, all forward and backward passes, clipping and AdamW. The host copies tokens,
the number of the first sample and the learning rate to where the graph reads them, and starts it:
one launch where the update of a small model takes hundreds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vimpac.train.cuda_graph import Graphed
from vimpac.train.distributed import World
from vimpac.train.optim import update
from vimpac.train_config import OptimConfig

if TYPE_CHECKING:
    from vimpac.train.system import Step


class Update:
    """Makes the updates of a run.

    Args:
        step: The gradients of an update.
        model: What they are of.
        optimizer: From `make_optimizer`.
        optim: Its settings.
        world: The processes.
        graph: Whether to record one update and replay it; micro-batches are tensors then.
    """

    def __init__(
        self,
        step: Step,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        optim: OptimConfig,
        world: World,
        graph: bool = False,
    ) -> None:
        self._step, self._model, self._optimizer, self._optim = step, model, optimizer, optim
        self._device = world.device
        self._graph = Graphed(self._recorded, self._device) if graph else None

    def __call__(self, groups: Iterable[Sequence[Any]], first_sample: int, lr: float) -> Tensor:
        """Makes one update.

        Args:
            groups: This process's micro-batches of each group, on any device. Eagerly, a group is
                taken when the one before it is on its way.
            first_sample: Number of its first sample among all of the run.
            lr: The learning rate.

        Returns:
            The means of the step's metrics, and the norm of the gradient before clipping,
            (metrics + 1,) fp32 on the device, which nothing has waited for.
        """
        rate = torch.full((), lr, device=self._device)
        if self._graph is None:
            there = ([self._move(part) for part in parts] for parts in groups)
            return self._update(first_sample, rate, there)
        sample = torch.full((), first_sample, dtype=torch.int64, device=self._device)
        return self._graph(sample, rate, *(part for parts in groups for part in parts))

    def _move(self, part: Any) -> Any:
        return tree_map(lambda x: x.to(self._device, non_blocking=True), part)

    def _recorded(self, first_sample: Tensor, lr: Tensor, *parts: Tensor) -> Tensor:
        """The update from tensors alone."""
        size = len(parts) // self._step.groups
        groups = [parts[i : i + size] for i in range(0, len(parts), size)]
        return self._update(first_sample, lr, groups)

    def _update(
        self,
        first_sample: int | Tensor,  # 0-d int64
        lr: Tensor,  # 0-d fp32
        groups: Iterable[Sequence[Any]],
    ) -> Tensor:
        metrics = self._step.gradients(groups, first_sample)
        norm = update(self._model, self._optimizer, self._optim, lr)
        return torch.cat([metrics, norm[None]])
