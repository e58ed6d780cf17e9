"""What `vimpac.train.loop` asks of a system that it trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vimpac.checkpoints.protocol import Description
from vimpac.checkpoints.training_state import Checkpoint
from vimpac.data.sampler import ResumableSampler


class Step(Protocol):
    """Accumulates the gradients of an update.

    An update is `groups` groups of samples. A process holds `group_part` samples of each, in
    micro-batches of `micro`.
    """

    groups: int
    group_part: int
    micro: int

    def gradients(self, groups: Iterable[Sequence[Any]], first_sample: int | Tensor) -> Tensor:
        """Adds the gradients of one update.

        Args:
            groups: This process's micro-batches of each group, on the device.
            first_sample: Number of its first sample among all of the run; a tensor is read on the
                device.

        Returns:
            The means of the system's `metrics`, (metrics,) fp32 on the device.
        """


class System(Protocol):
    """A model, the data that it learns from, and how.

    Attributes:
        metrics: Names of what an update returns.
        steps: Updates of the whole run.
        evaluate_every: Updates from one evaluation to the next; 0: none but at the end.
        sampler: The order of the samples; a group of an update is one global batch of it.
        loader: Micro-batches in that order.
    """

    metrics: Sequence[str]
    steps: int
    evaluate_every: int
    sampler: ResumableSampler
    loader: DataLoader

    @property
    def model(self) -> nn.Module:
        """All parameters and buffers of a checkpoint."""

    def describe(self) -> Description:
        """What a checkpoint says of the model."""

    def restore(self, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer | None) -> None:
        """Loads the model; the optimiser, if it is given, holds the checkpoint's state already.

        Raises:
            RuntimeError: The checkpoint is of another model.
            ValueError: So it is.
        """

    def make_step(self) -> Step:
        """Compiles the model and distributes it; called once, when its parameters are loaded."""

    def headline(self) -> str:
        """What is trained, in a line."""

    def warnings(self) -> Iterator[str]:
        """What the run may do but is hardly meant to, a line each."""

    def total_loss(self, means: dict[str, float]) -> float:
        """The loss that is minimised, from the means of `metrics`."""

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Numbers for the log, every `evaluate_every` steps and at the end; every rank calls it."""
