"""Hidden tokens copied from the nearest visible one (Fig. 4 of the paper).

Where tokens are hidden one by one, the next visible one is near and often the same, so that copying
it solves the task; a box has to be filled in. `copied_right` is that claim as a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vimpac.pictures.clip import cover, paint
from vimpac.pictures.masks import hide, shares
from vimpac.pictures.sheet import GAP, LINE, MARGIN, NAMES, Row, Sheet, size_of_rows
from vimpac.tokenizers import Tokenizer
from vimpac.tokens import MASK_TOKEN, PAD_TOKEN

SPACES = {"spatial": True, "spatio-temporal": False}  # whether only the same frame is looked at
_WORDS = 5.0  # inches: of the longest line
_AT_ONCE = 2**18  # distances, which fit the cache
_FAR = torch.iinfo(torch.int64).max
_TRIALS = 256  # clips that tell the share of a number of boxes
_MOST_BOXES = 256


def nearest_visible(
    hidden: Tensor,  # (T, H, W) bool
    visible: Tensor,  # (T, H, W) bool
    *,
    same_frame: bool,
) -> Tensor:  # (hidden tokens,) int64
    """The nearest visible token of every hidden one, by the distance in (t, h, w).

    Args:
        hidden: (T, H, W) bool.
        visible: (T, H, W) bool; what is in neither is passed over.
        same_frame: Whether only tokens of the same frame count.

    Returns:
        Its place in the flattened grid, the lowest of those that are as near; -1 if there is none.
    """
    wanted, there = hidden.nonzero(), visible.nonzero()  # (M, 3), (V, 3), in order
    size = hidden.numel()
    if not len(there):
        return torch.full((len(wanted),), -1, dtype=torch.int64)
    place = visible.flatten().nonzero()[:, 0]  # (V,)
    found = []
    for part in wanted.split(max(1, _AT_ONCE // len(there))):
        t, h, w = (part[:, None, axis] - there[:, axis] for axis in range(3))  # (m, V) each
        distance = (t * t + h * h + w * w) * size + place  # the lowest place of the nearest
        if same_frame:
            distance.masked_fill_(t != 0, _FAR)
        best, at = distance.min(1)
        found.append(place[at].masked_fill(best == _FAR, -1))
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def copy_nearest(
    tokens: Tensor,  # (T, H, W)
    mask: Tensor,  # (T, H, W) bool
    *,
    same_frame: bool,
) -> Tensor:  # (T, H, W)
    """The tokens, each hidden one replaced by the nearest visible one, or MASK if there is none."""
    source = nearest_visible(mask, ~mask & (tokens != PAD_TOKEN), same_frame=same_frame)
    ids = tokens.flatten()[source].masked_fill(source < 0, MASK_TOKEN)
    return tokens.masked_scatter(mask, ids)


def share_right(
    tokens: Tensor,  # (..., T, H, W)
    mask: Tensor,  # (..., T, H, W) bool
    guessed: Tensor,  # (..., T, H, W)
) -> float:
    """The share of hidden tokens whose guess is the true id; NaN if none is hidden."""
    return float((guessed == tokens)[mask].float().mean())


def psnr(
    frames: np.ndarray,  # uint8
    truth: np.ndarray,  # uint8
) -> float:
    """Peak signal-to-noise ratio in dB; infinite if both are the same."""
    error = np.square(frames.astype(np.float64) - truth).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def blocks_for(grid: Sequence[int], ratio: float, seed: int = 0) -> int:
    """The number of boxes whose mean share is nearest to a ratio, up to 256."""
    best, least = 1, float("inf")
    for blocks in range(1, _MOST_BOXES + 1):
        share = float(
            shares(grid, "block", clips=_TRIALS, blocks=blocks, ratio=0, seed=seed).mean()
        )
        if abs(share - ratio) < least:
            best, least = blocks, abs(share - ratio)
        if share > ratio:
            break
    return best


class Copied(NamedTuple):
    """A clip that is filled in by copying.

    Attributes:
        strategy: "block" or "iid".
        title: The strategy with its setting.
        mask: (T, H, W) bool.
        share: Of the clip's tokens that are hidden.
        filled: By `SPACES`: (T, H, W) ids.
        right: By `SPACES`: the share of hidden tokens whose copy is the true id.
        right_of_all: By `SPACES`: the same over several clips.
    """

    strategy: str
    title: str
    mask: Tensor
    share: float
    filled: dict[str, Tensor]
    right: dict[str, float]
    right_of_all: dict[str, float]


def compare_copying(
    tokens: Tensor,  # (T, H, W)
    others: Tensor,  # (N, T, H, W)
    ratio: float,
    *,
    seed: int = 0,
) -> list[Copied]:
    """Hides a clip by boxes, and token by token at the same ratio, and copies into it.

    Args:
        tokens: (T, H, W) ids of the clip that is drawn.
        others: (N, T, H, W) ids of clips over which the shares are also taken.
        ratio: Of hidden tokens, in (0, 1); boxes come as near to it as a whole number of them can.
        seed: Of the masks.

    Returns:
        "block" and "iid"; the ratio of the second is the mean share of the first.
    """
    blocks = blocks_for(tokens.shape, ratio, seed)
    many = shares(tokens.shape, "block", blocks=blocks, ratio=0, seed=seed)
    found = []
    names = {"block": f"block, {blocks} boxes", "iid": "iid, same mean ratio"}
    for strategy, title in names.items():
        how: dict[str, Any] = {"blocks": blocks, "ratio": float(many.mean()), "seed": seed}
        mask = hide(tokens[None], strategy, **how)[0]
        masks = hide(others, strategy, first=1, **how)
        filled, right, right_of_all = {}, {}, {}
        for space, same_frame in SPACES.items():
            filled[space] = copy_nearest(tokens, mask, same_frame=same_frame)
            right[space] = share_right(tokens, mask, filled[space])
            copies = [
                copy_nearest(clip, one, same_frame=same_frame)
                for clip, one in zip(others, masks, strict=True)
            ]
            right_of_all[space] = share_right(others, masks, torch.stack(copies))
        share = float(mask.sum() / (tokens != PAD_TOKEN).sum())
        found.append(Copied(strategy, title, mask, share, filled, right, right_of_all))
    return found


def draw_copying(
    tokens: Tensor,  # (T, H, W), without PAD
    original: np.ndarray | None,  # (T, S, S, 3) uint8
    copied: Sequence[Sequence[Copied]],
    tokenizer: Tokenizer,
    titles: Sequence[str],
    path: Path,
    *,
    clips: int,
) -> None:
    """Draws a clip, and what copying makes of it, block masks on the left, iid on the right.

    Args:
        tokens: (T, H, W) ids of the frames that are not PAD.
        original: Their pixels, if they are known.
        copied: For every ratio, as `compare_copying` gives it.
        tokenizer: Paints them.
        titles: Of the frames.
        path: The PNG file.
        clips: Over how many clips `Copied.right_of_all` is.
    """
    T, painted = len(tokens), paint(tokenizer, tokens)
    first = [] if original is None else [Row("original", original)]
    first.append(Row("its tokens (VQ)", painted))
    top = size_of_rows(len(first), T)[1]
    right, below = size_of_rows(3, T, named=False)
    apart, words = 6 * GAP, 3 * LINE  # between the two sides, above each panel
    left, half = MARGIN + NAMES, max(right, _WORDS)  # where frames begin, what a side takes
    sheet = Sheet(
        left + 2 * half + apart + MARGIN,
        2 * MARGIN + 1.5 * LINE + top + len(copied) * (words + below),
    )
    title = "Hidden tokens are copied from the nearest visible one: of the same frame, or of all"
    sheet.words(MARGIN, MARGIN, title, 12, weight="bold")
    y = MARGIN + 1.5 * LINE
    sheet.rows(MARGIN, y, first, titles)
    sheet.words(left + half + apart, y + LINE, _about(copied, clips), 10, linespacing=1.6)
    y += top
    for pair in copied:
        for side, one in enumerate(pair):
            rows = [Row("masked", cover(painted, one.mask[:T]))]
            rows += [Row(space, paint(tokenizer, ids[:T])) for space, ids in one.filled.items()]
            x = left + side * (half + apart)
            copies = ", ".join(f"{space} {_percent(share)}" for space, share in one.right.items())
            hidden = f"{one.title}: {one.share:.1%} of this clip hidden (chequered)"
            sheet.words(x, y + 0.8 * LINE, f"{hidden}\ncopies right: {copies}", 10)
            sheet.rows(x - (NAMES if not side else 0), y + words, rows, titles, named=not side)
        y += words + below
    sheet.write(path)


def _percent(share: float) -> str:
    """A share of hidden tokens; "-" if none is hidden."""
    return "-" if math.isnan(share) else f"{share:.0%}"


def _about(copied: Sequence[Sequence[Copied]], clips: int) -> str:
    """What copying is worth, in words."""
    lines = [f"Share of hidden tokens whose copy is right, over {clips} clips of the store:"]
    for one in (one for pair in copied for one in pair):
        of_all = one.right_of_all.items()
        shares = ", ".join(f"{space} {_percent(share)}" for space, share in of_all)
        lines.append(f"{one.title}: {shares}")
    return "\n".join(lines)
