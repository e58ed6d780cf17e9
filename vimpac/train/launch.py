"""Which process of how many this one is, as the environment of its launcher says.

torchrun, deepspeed and Kubernetes set RANK and WORLD_SIZE, mpirun and srun have names of their own.
In SLURM it is the step that counts: its variables are absent in a batch script and in the shell of
`salloc`, where SLURM_NTASKS only says what `srun` would start.
"""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

import torch.distributed as dist

from vimpac.errors import UsageError

_LAUNCHERS = (  # rank, size, rank on its machine; mpirun may run inside a step of srun
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands among those that were started together.

    Attributes:
        rank: Its number.
        size: How many there are.
        local: Its number on its machine, if the launcher says it.
        by_torchrun: Whether torchrun started them.
    """

    rank: int = 0
    size: int = 1
    local: int | None = None
    by_torchrun: bool = False


class _Row(NamedTuple):
    """What the variables of one launcher say; None where one is absent."""

    names: tuple[str, str, str]
    rank: int | None
    size: int | None
    local: int | None


def find_place() -> Place:
    """Reads the place of this process; WORLD_SIZE, where it is set, has the last word.

    Returns:
        The place; that of a process alone where nothing says that there are more.

    Raises:
        UsageError: There are more, but they cannot find each other.
    """
    rows = [_Row(n, _number(n[0]), _number(n[1]), _number(n[2])) for n in _LAUNCHERS]
    if dist.is_torchelastic_launched():
        return Place(rows[0].rank or 0, rows[0].size or 1, rows[0].local, by_torchrun=True)
    found = [row for row in rows if row.rank or (row.size or 1) > 1]
    if rows[0].size == 1 and not rows[0].rank or not found:
        return Place()
    said = " ".join(f"{n}={os.environ[n]}" for n in found[0].names[:2] if n in os.environ)
    started = f"this is one of several processes ({said})"
    size = rows[0].size or next((row.size for row in found if row.size), None)
    same = [row for row in rows if row.size == size]
    ranks = {row.names[0]: row.rank for row in same if row.rank is not None}
    if size is None or not ranks:
        missing = found[0].names[1 if size is None else 0]
        raise UsageError(f"{started}, but {missing} is not set: start them with torchrun")
    if len({*ranks.values()}) > 1:
        both = " and ".join(f"{name}={rank}" for name, rank in ranks.items())
        raise UsageError(f"{started}, but {both} differ: unset one, or start them with torchrun")
    rank = next(iter(ranks.values()))
    if not 0 <= rank < size:
        raise UsageError(f"{started}, but there is no process {rank} of {size}: use torchrun")
    if not (os.environ.get("MASTER_ADDR") and _number("MASTER_PORT")):
        raise UsageError(
            f"{started}, which do not know where to meet: start them with torchrun (under srun, "
            "one per node), or set MASTER_ADDR and MASTER_PORT, or WORLD_SIZE=1 if each trains "
            "alone"
        )
    return Place(rank, size, next((row.local for row in same if row.local is not None), None))


def _number(name: str) -> int | None:
    """The value of a variable; None where it is absent or empty."""
    text = os.environ.get(name, "")
    try:
        return int(text) if text else None
    except ValueError:
        raise UsageError(f"the environment has {name}={text}, which is no number") from None
