"""linear_cross_entropy of DTensors: sums over each rank's rows, added up over the ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vimpac_kernels.ops.linear_cross_entropy.reference import LinearCrossEntropyOutput
from vimpac_kernels.runtime import sharded

_NAME = "linear_cross_entropy"


def of_dtensors(
    run: Callable[..., Any],
    rows: dict[str, Tensor],
    shared: dict[str, Tensor | None],
    chosen: dict[str, Any],
    reduction: str,
    return_stats: bool,
    **options: Any,
) -> Tensor | LinearCrossEntropyOutput:
    """What the op returns, on every rank; the losses of reduction "none" as the rows are sharded.

    Args:
        run: The op, of plain tensors.
        rows: The input and the target, (B, ...).
        shared: The weight and the bias.
        chosen: Positions and count; None where the input is sharded.
        reduction: As in the op.
        return_stats: As in the op.
        options: The others of the op.

    Raises:
        RuntimeError: If there are positions or a count, which number the rows of all ranks.
    """
    batch = sharded.split(_NAME, rows, shared)
    if batch.is_sharded and any(t is not None for t in chosen.values()):
        raise RuntimeError(
            f"{_NAME}: positions and count number the rows of all ranks, and take no input that is "
            "sharded: use to_local(), and targets that are ignored"
        )
    by_row = reduction == "none"
    own = run(
        **batch.tensors,
        **chosen,
        **options,
        return_stats=True,
        reduction="sum" if reduction == "mean" else reduction,
    )
    num_targets = batch.sum(own.num_targets)
    divisor = num_targets.to_local().clamp(min=1)
    hits = own.accuracy * own.num_targets.clamp(min=1)
    if by_row and batch.is_sharded:
        loss = batch.join_flat(own.loss.view(batch.tensors["target"].shape))
    elif by_row:
        loss = batch.join(own.loss)
    else:
        loss = batch.sum(own.loss / divisor if reduction == "mean" else own.loss)
    result = LinearCrossEntropyOutput(loss, batch.sum(hits / divisor), num_targets)
    return result if return_stats else result.loss
