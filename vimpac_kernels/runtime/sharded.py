"""Ops of DTensors: batches that are sharded over ranks, parameters that are replicated.

Clips and rows do not depend on each other, so each rank runs the op on its own ones. The gradient
of a parameter is then a sum over ranks: DTensor's Partial, as of DTensor's own products. Calls that
number rows over all ranks raise, as do tensors sharded along another dimension than the first.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vimpac_kernels.runtime.checks import check_tensor

_PLAIN = (Tensor, torch.nn.Parameter, type(None))  # types of almost every argument


def has_dtensors(*values: object) -> bool:
    """Whether one of them is a DTensor. Imports nothing: without its module there is no DTensor."""
    for value in values:  # any() of a generator would take longer than all the checks
        if type(value) not in _PLAIN and _is_dtensor(value):
            return True
    return False


def _is_dtensor(value: object) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


@dataclass(frozen=True)
class Batch:
    """The part of a call's tensors on one rank.

    Attributes:
        tensors: The local tensors by name.
        is_sharded: Whether other ranks have other rows.
    """

    tensors: dict[str, Any]
    is_sharded: bool
    _size: int  # of the first dimension, on all ranks
    _mesh: Any
    _placements: tuple[Any, ...]

    def join(self, local: Any) -> Any:
        """The DTensor, or tuple of them, of results (b, ...) of this rank's rows."""
        if isinstance(local, tuple):
            return tuple(self.join(part) for part in local)
        shape = torch.Size((self._size, *local.shape[1:]) if self.is_sharded else local.shape)
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        options = {"run_check": False, "shape": shape, "stride": stride}
        return _dtensor().from_local(local.contiguous(), self._mesh, self._placements, **options)

    def join_flat(self, local: Tensor) -> Any:
        """`join(local).flatten()`: on every rank, unless there is nothing to flatten.

        A rank's rows of (B, ...) need not be those that Shard(0) would give it of (B * ...,).
        """
        whole = self.join(local)
        if local.dim() == 1:
            return whole
        return whole.redistribute(placements=_replicated(self._placements)).flatten()

    def sum(self, local: Tensor) -> Any:
        """The DTensor of the sum over the ranks of a number of this rank's rows, on all of them."""
        partial = _gradient_placements(self._placements)
        total = _dtensor().from_local(local, self._mesh, partial, run_check=False)
        return total.redistribute(placements=_replicated(self._placements))


def split(
    op: str,
    rows: Mapping[str, Any],
    shared: Mapping[str, Any],
    *,
    dropout_p: float = 0.0,
    seed: object = None,
) -> Batch:
    """Takes this rank's part of every tensor.

    Args:
        op: Name of the op, for messages.
        rows: Tensors by name whose first dimension is the batch, or None.
        shared: Parameters by name, or None.
        dropout_p: Of the call: its random numbers follow the number of a row among all.
        seed: Of the call.

    Raises:
        TypeError: If some of the tensors are DTensors and others are not.
        ValueError: If a tensor is sharded in another way, or on another mesh.
        RuntimeError: If there is dropout that ranks would draw differently from one device.
    """
    given = {name: t for name, t in {**rows, **shared}.items() if t is not None}
    for name, tensor in given.items():
        check_tensor(name, tensor)
        if not isinstance(tensor, _dtensor()):
            raise TypeError(f"{op}: {name} must be a DTensor as others are: use distribute_tensor")
    mesh = next(iter(given.values())).device_mesh
    placements = _batch_placements(op, [t for name, t in given.items() if name in rows])
    is_sharded = any(p.is_shard() for p in placements)
    if dropout_p and (is_sharded or seed is None):
        raise RuntimeError(
            f"{op}: dropout of DTensors needs a seed, and rows that are not sharded: its numbers "
            "follow the number of a row among all. Use to_local() and a seed for each rank"
        )
    local: dict[str, Any] = dict.fromkeys((*rows, *shared))
    for name, tensor in given.items():
        if tensor.device_mesh != mesh:
            raise ValueError(f"{op}: {name} is on {tensor.device_mesh}, others on {mesh}")
        if name in rows:
            local[name] = tensor.redistribute(placements=placements).to_local()
        else:
            local[name] = _parameter(op, name, tensor, placements)
    size = next(iter(given.values())).shape[:1].numel()
    return Batch(local, is_sharded, size, mesh, placements)


def local(name: str, value: Any) -> Any:
    """The tensor of what every rank has, such as a seed; other values as they are."""
    if not has_dtensors(value):
        return value
    if not all(p.is_replicate() for p in value.placements):
        raise ValueError(f"{name} must be replicated, got {value.placements}")
    return value.to_local()


def _batch_placements(op: str, rows: list[Any]) -> tuple[Any, ...]:
    """Shard(0) for each dimension of the mesh that splits one of them; it then splits all."""
    from torch.distributed.tensor import Replicate, Shard

    for tensor in rows:
        for placement in tensor.placements:
            # A strided shard, whose rows are in another order, is equal to Shard(0).
            first = type(placement) is Shard and placement.dim == 0 and rows[0].dim() > 1
            if not (first or placement.is_replicate() or placement.is_partial()):
                raise ValueError(
                    f"{op}: inputs may be sharded along their first dimension, the batch, only, "
                    f"got {placement} of {tuple(tensor.shape)}"
                )
    every = zip(*(tensor.placements for tensor in rows), strict=True)
    return tuple(Shard(0) if any(p.is_shard() for p in own) else Replicate() for own in every)


def _parameter(op: str, name: str, tensor: Any, placements: tuple[Any, ...]) -> Tensor:
    if any(not (p.is_replicate() or p.is_partial()) for p in tensor.placements):
        raise ValueError(
            f"{op}: {name} must be replicated, got {tensor.placements}: use fully_shard to keep "
            "parameters sharded, or redistribute"
        )
    if any(p.is_partial() for p in tensor.placements):
        tensor = tensor.redistribute(placements=_replicated(placements))
    return tensor.to_local(grad_placements=_gradient_placements(placements))


def _dtensor() -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor


def _replicated(placements: tuple[Any, ...]) -> tuple[Any, ...]:
    from torch.distributed.tensor import Replicate

    return (Replicate(),) * len(placements)


def _gradient_placements(placements: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of what sums over the batch: a part on each rank along the dimensions that split it."""
    from torch.distributed.tensor import Partial, Replicate

    return tuple(Partial() if p.is_shard() else Replicate() for p in placements)
