"""The exponential moving average of a model's weights, which is tested in their place.

After update n, from 0, average = d * average + (1 - d) * weights, beginning with the weights that
the run begins with, where d = min(decay, (1 + n) / (10 + n)). So it looks back over about
1 / (1 - decay) updates, and in a shorter run over a good part of it. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vimpac.train.parallel import share_like, whole


class AveragedWeights:
    """The average of all floating parameters and buffers; of others it holds the last value.

    Args:
        model: What is averaged, distributed already; each process averages its shards.
        decay: In [0, 1).
        start: The whole average to go on with; None: the weights as they are.
    """

    def __init__(
        self, model: nn.Module, decay: float, start: Mapping[str, Tensor] | None = None
    ) -> None:
        self._model, self._decay = model, decay
        self._average = {name: x.clone() for name, x in model.state_dict().items()}
        for name, value in (start or {}).items():
            self._average[name] = share_like(self._average[name], value)

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Takes in the weights that an update has made.

        Args:
            number: Of the update in the run, from 0.
        """
        decay = min(self._decay, (1 + number) / (10 + number))
        pairs = self._pairs()
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        if floating:
            averages, weights = zip(*floating, strict=True)
            torch._foreach_lerp_(averages, weights, 1 - decay)
        for average, weight in pairs:
            if not average.is_floating_point():
                average.copy_(weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the average for weights inside, and its own ones afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def whole(self) -> dict[str, Tensor]:
        """The average in whole tensors; every process must call it."""
        return whole(self._average)

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in self._pairs():  # one by one: it takes the memory of one of them
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The average and the weight of every name, this process's part of them."""
        weights = self._model.state_dict()
        return [(_local(x), _local(weights[name])) for name, x in self._average.items()]


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x
