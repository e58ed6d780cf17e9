"""One process or many: torchrun starts them, this module joins them.

Everything works the same in a single process, where the collectives do nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from vimpac.errors import UsageError


@dataclasses.dataclass(frozen=True)
class World:
    """Where this process stands."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and lines."""
        return self.rank == 0

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def average_(self, tensors: Iterable[Tensor | None]) -> None:
        """Replaces tensors by their means over the processes."""
        if self.size > 1:
            for tensor in tensors:
                if tensor is not None:
                    dist.all_reduce(tensor)
                    tensor /= self.size

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Joins the processes that torchrun started, if it did, and leaves them at the end.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:1".

    Yields:
        This process's place and device.

    Raises:
        UsageError: There is no such device.
    """
    launched = dist.is_torchelastic_launched()
    local = dist.get_node_local_rank(fallback_rank=0)
    chosen = _pick_device(device, local if launched else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if not launched:
        yield World(chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(chosen, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _pick_device(device: str, local: int | None) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device={device}: give auto, cpu or cuda") from None
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device={device}, but PyTorch sees no CUDA device: give device=cpu")
        index = chosen.index if local is None else local
        if (index or 0) >= torch.cuda.device_count():
            raise UsageError(
                f"device cuda:{index} of {torch.cuda.device_count()}: "
                "start at most one process per GPU"
            )
        return torch.device("cuda", index or 0)
    return chosen
