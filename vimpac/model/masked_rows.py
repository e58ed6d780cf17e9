"""Which rows of the hidden states are read: [CLS] by the classifiers, masked tokens by their head.

A row is numbered in the flattened (B * (1 + T*H*W), D) states. After its last attention the encoder
computes no other row, and the host need not know how many tokens are masked.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vimpac.checks import check_integers, check_tensor, check_whole, may_look

IGNORE_INDEX = -100
ROWS_STEP = 128


class MaskedRows(NamedTuple):
    """Where tokens are predicted, and which; the slots from `num_live` on are dead."""

    rows: Tensor  # (capacity,) int64
    target: Tensor  # (capacity,) int64, -100 in dead slots
    num_live: Tensor  # 0-d int32


def take_rows(
    x: Tensor,  # (B, S, D)
    rows: Tensor,  # (R,) integer
) -> Tensor:  # (R, D)
    """Rows of the flattened (B * S, D) tensor; a row may be taken more than once."""
    return x.flatten(0, 1).index_select(0, rows)


def cls_rows(
    tokens: Tensor,  # (B, T, H, W)
) -> Tensor:  # (B,) int64
    """The rows of [CLS]."""
    return torch.arange(len(tokens), device=tokens.device) * (1 + tokens.shape[1:].numel())


def choose_masked_rows(
    labels: Tensor,  # (B, T, H, W) integer
    *,
    positions: Tensor | None = None,  # (capacity,) int32
    count: Tensor | None = None,  # 0-d int32
    max_masked: int | None = None,
) -> MaskedRows:
    """The rows of masked tokens, in order, and what is to be predicted there.

    Nothing waits for the device, so the number of masked tokens is unknown to the host: the rows
    are `max_masked`, of which `count` are live; masked tokens beyond that number are left out.

    Args:
        labels: (B, T, H, W) token ids. Without `positions`, -100 where nothing is masked.
        positions: (capacity,) int32 rows that are masked, from `mask_tokens(..., row_offset=1)`;
            then labels may be all ids.
        count: 0-d int32 on the device: how many positions count.
        max_masked: Bound on the number of masked tokens. None: on the CPU, where reading the
            count is free, the number itself, rounded up to 128; elsewhere every token.

    Returns:
        Rows, targets and the number of live slots.

    Raises:
        IndexError: On the CPU, if a position that counts is no row of a token, or count is outside
            [0, capacity].
        TypeError: If an argument has a wrong type, naming it.
        ValueError: If labels are not (B, T, H, W), or only one of positions and count is given.
    """
    check_integers("labels", labels)
    if max_masked is not None:
        check_whole("max_masked", max_masked, least=0)
    if labels.dim() != 4:
        raise ValueError(f"labels must be (B, T, H, W), got {tuple(labels.shape)}")
    if (positions is None) != (count is None):
        raise ValueError("positions and count come together")
    per_clip = 1 + labels.shape[1:].numel()
    labels = labels.flatten()
    if positions is None or count is None:
        positions, count = _labelled_rows(labels, per_clip)
    else:
        _check_positions(positions, count, len(labels) // max(per_clip - 1, 1), per_clip)
    capacity = positions.numel()
    if max_masked is not None:
        capacity = min(capacity, max_masked)
    elif may_look(labels):
        # In steps: malloc keeps the memory of every size it has met, and counts differ always.
        capacity = min(capacity, -(-int(count) // ROWS_STEP) * ROWS_STEP)
    slot = torch.arange(capacity, dtype=torch.int32, device=labels.device)
    live = slot < count
    # A dead slot reads the row of its own number: with distinct rows the scatter in backward
    # has no hot address, and adding a zero keeps it deterministic.
    rows = torch.where(live, positions[:capacity], slot).long()
    target = labels[rows - rows // per_clip - 1].long()
    return MaskedRows(rows, target.masked_fill(~live, IGNORE_INDEX), count.clamp(max=capacity))


def _check_positions(positions: Tensor, count: Tensor, clips: int, per_clip: int) -> None:
    for name, tensor, dim in (("positions", positions, 1), ("count", count, 0)):
        check_tensor(name, tensor)
        if tensor.dtype != torch.int32 or tensor.dim() != dim:
            got = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{name} must be {dim}-d int32, got {got}")
    if not (may_look(positions) and may_look(count)):
        return
    if not 0 <= int(count) <= len(positions):
        raise IndexError(f"count {int(count)} is outside [0, {len(positions)}]")
    live = positions[: int(count)]
    wrong = live[(live < 0) | (live >= clips * per_clip) | (live % per_clip == 0)]
    if wrong.numel():
        raise IndexError(
            f"position {int(wrong[0])} is not the row of a token in {clips} clips of {per_clip} "
            "rows, [CLS] first"
        )


def _labelled_rows(
    labels: Tensor,  # (B*T*H*W,)
    per_clip: int,
) -> tuple[Tensor, Tensor]:  # (B*T*H*W,) int32, 0-d int32
    """The rows that have a label, and their number."""
    masked = labels != IGNORE_INDEX
    token = torch.arange(labels.numel(), dtype=torch.int32, device=labels.device)
    slot = torch.where(masked, masked.cumsum(0) - 1, labels.numel())
    positions = token.new_full((labels.numel() + 1,), -1)
    positions = positions.scatter(0, slot, token + token // max(per_clip - 1, 1) + 1)
    return positions[:-1], masked.sum(dtype=torch.int32)
