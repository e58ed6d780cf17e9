"""CUDA graphs: hundreds of kernel launches become one.

A graph repeats its kernels on the same addresses. So a recorded function takes what differs from
call to call as tensors, which are copied to where the graph reads them; everything else that it
touches (parameters, gradients, the optimiser's state) must stay where it is, and it may neither
read a value on the host nor wait for the device. A graph takes the seed of PyTorch's generator
when it is replayed: torch.manual_seed before a call does what it does before an eager one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # eager calls, in which gradients, optimiser state and workspaces are allocated


class Graphed:
    """Calls a function `WARM_UP` times, then records it, and replays it from then on.

    Every call does its work exactly once: recording runs nothing, and no call is thrown away.

    Args:
        function: Takes tensors of the same shapes at each call and returns one tensor.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Returns what the function returns, in memory of the caller's own."""
        if not self._inputs:
            self._inputs = [x.clone() for x in inputs]
        for static, x in zip(self._inputs, inputs, strict=True):
            static.copy_(x)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._warm_up()
        if self._replay is None:
            self._replay = self._record()
        return self._replay().clone()

    def _warm_up(self) -> Tensor:
        """An eager call on the stream that will be recorded; the default one cannot be."""
        current, side = torch.cuda.current_stream(), _side_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = self._function(*self._inputs)
        current.wait_stream(side)
        return result

    def _record(self) -> Callable[[], Tensor]:
        """The call on `_inputs` as a graph; what it returns is overwritten by the next replay."""
        graph = torch.cuda.CUDAGraph()
        # The threads that load and pin data go on using the device meanwhile.
        with torch.cuda.graph(graph, stream=_side_stream(), capture_error_mode="thread_local"):
            result = self._function(*self._inputs)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


@functools.cache
def _side_stream() -> torch.cuda.Stream:
    """One for all graphs, as each stream keeps freed memory and a workspace of cuBLAS to itself."""
    return torch.cuda.Stream()
