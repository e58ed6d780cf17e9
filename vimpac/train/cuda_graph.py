"""A CUDA graph: hundreds of kernel launches become one.

A graph repeats its kernels on the same addresses. So a recorded function takes what differs from
call to call as tensors, which are copied to where the graph reads them; what else outlives a call
(parameters, the optimiser's state) must stay where it is, and it may neither read a value on the
host nor wait for the device.

Nor may anything be loaded while it is recorded: the code of a kernel, which the driver and Triton
load at its first launch, or the workspace of a product, which cuBLAS has for each thread and
stream. The calls before make the same launches on the same stream, from the same threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

# Eager calls. The first allocates the optimiser's state, which is not what is recorded.
WARM_UP = 3


class Graphed:
    """Calls a function `WARM_UP` times, then records it, and replays it from then on.

    Every call does its work exactly once: recording runs nothing, and no call is thrown away.

    Args:
        function: Takes tensors of the same shapes at each call and returns one tensor.
        device: Where the function reads its tensors.
    """

    def __init__(self, function: Callable[..., Tensor], device: torch.device) -> None:
        self._function, self._device = function, device
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Returns what the function returns, in memory of the caller's own.

        Args:
            inputs: On any device; nothing waits for those in pinned memory.

        Raises:
            ValueError: If a shape or dtype is not that of the first call.
        """
        if not self._inputs:
            self._inputs = [torch.empty_like(x, device=self._device) for x in inputs]
        kinds = [[(tuple(x.shape), x.dtype) for x in some] for some in (inputs, self._inputs)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"a graph of tensors {kinds[1]} cannot take {kinds[0]}")
        for static, x in zip(self._inputs, inputs, strict=True):
            static.copy_(x, non_blocking=True)
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._warm_up()
        if self._replay is None:
            self._replay = self._record()
        return self._replay().clone()

    @functools.cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)

    def _warm_up(self) -> Tensor:
        """An eager call on the stream that will be recorded; the default one cannot be."""
        current, side = torch.cuda.current_stream(), self._stream
        side.wait_stream(current)
        with torch.cuda.stream(side):
            result = self._function(*self._inputs)
        current.wait_stream(side)
        return result

    def _record(self) -> Callable[[], Tensor]:
        """The call on `_inputs` as a graph; what it returns is overwritten by the next replay."""
        graph = torch.cuda.CUDAGraph()
        # The threads that load and pin data go on using the device meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = self._function(*self._inputs)

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
