"""One process or many: torchrun or another launcher starts them, this module joins them.

Everything works the same in a single process, where the collectives do nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vimpac.errors import UsageError, VimpacError
from vimpac.train.launch import Place, find_place

T = TypeVar("T")


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

    def autocast(self, precision: str) -> AbstractContextManager:
        """Autocast to bf16 on the device, for the precision "bf16"."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in its place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        return self.sum(values) / self.size

    def average_(self, tensors: Iterable[Tensor | None]) -> None:
        """Replaces tensors by their means over the processes."""
        if self.size > 1:
            for tensor in tensors:
                if tensor is not None:
                    dist.all_reduce(tensor)
                    tensor /= self.size

    def largest(self, value: int) -> int:
        """The largest of the processes' values; hosts wait for each other, devices do not."""
        if self.size == 1:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def on_main(self, function: Callable[[], T]) -> T | None:
        """Calls a function on the main process, whose error ends all of them.

        Returns:
            What it returns, on the main process; None on the others, which have waited for it.

        Raises:
            Exception: What the function raised; on the other processes VimpacError.
        """
        result, problem = None, None
        if self.is_main:
            try:
                result = function()
            except Exception as error:  # the others would wait for it
                problem = error
        if self.largest(problem is not None):
            raise problem or VimpacError("process 0 stopped: see what it says")
        return result


@contextmanager
def join_world(device: str, timeout: float = 300.0) -> Iterator[World]:
    """Joins the processes that were started with this one, if any, and leaves them at the end.

    Drop whatever DDP wraps before the end. Its reducer holds the process group, and would destroy
    it with Python's lock held, for which a thread of Gloo's may wait while it is waited for.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:1".
        timeout: Seconds after which a process that others wait for is taken for dead.

    Yields:
        This process's place and device.

    Raises:
        UsageError: There is no such device, or the processes cannot find each other.
        VimpacError: Not all of them came, one was lost, or memory ran out.
    """
    place = find_place()
    chosen = pick_device(device, place)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if place.size == 1 and not place.by_torchrun:
        with explained(place.rank):
            yield World(chosen)
        return
    # With a GPU, small tensors of the hosts still travel by gloo, past the queue of the device.
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    wait = datetime.timedelta(seconds=timeout)
    try:
        dist.init_process_group(backend, timeout=wait, rank=place.rank, world_size=place.size)
    except (RuntimeError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise VimpacError(
            f"process {place.rank} of {place.size} did not find the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: {line}"
        ) from error
    with explained(place.rank):
        yield World(chosen, dist.get_rank(), dist.get_world_size())
    # Not after an error: leaving waits for the others, one of which may be the cause.
    gc.collect()  # FSDP's hooks are cycles, which would hold the process group
    dist.destroy_process_group()


@contextmanager
def explained(rank: int = 0) -> Iterator[None]:
    """Makes one line of the errors of PyTorch about which a user can do something.

    Args:
        rank: Of this process.

    Raises:
        VimpacError: Memory ran out, or another process was lost.
    """
    try:
        yield
    except RuntimeError as error:
        line = str(error).partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in line:
            reason = "memory ran out, lower the batch"
        elif "DataLoader worker" in line:
            reason = "a data-loading process died; if memory ran out, lower workers"
        elif lost_contact(error):
            reason = f"process {rank} lost contact with another one, which died or hangs"
        else:
            raise
        raise VimpacError(f"{reason}: {line}") from error


def is_main_process() -> bool:
    """Whether this process is alone, or the first of those that were started together."""
    return find_place().rank == 0


def lost_contact(error: RuntimeError) -> bool:
    """Whether an error of a collective says that another process is gone."""
    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def pick_device(device: str, place: Place) -> torch.device:
    """The device of a process.

    Args:
        device: As in `join_world`.
        place: Of the process.

    Raises:
        UsageError: There is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        known = chosen.type in ("cpu", "cuda")
    except RuntimeError:
        known = False
    if not known:
        raise UsageError(f"device={device}: give auto, cpu or cuda")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device={device}, but PyTorch sees no CUDA device: give device=cpu")
        devices, index = torch.cuda.device_count(), chosen.index or 0
        if place.size > 1 or place.by_torchrun:
            index = place.rank % devices if place.local is None else place.local
            if devices == 1 and not place.by_torchrun:  # srun may show each task its own one
                index = 0
        if index >= devices:
            raise UsageError(f"device cuda:{index} of {devices}: start at most one process per GPU")
        return torch.device("cuda", index)
    return chosen
