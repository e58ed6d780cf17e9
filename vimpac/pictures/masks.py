"""Which tokens the strategies hide (Fig. 2 of the paper), and how many (its Table 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vimpac.pictures.clip import cover
from vimpac.pictures.sheet import GAP, LINE, MARGIN, Row, Sheet, size_of_rows
from vimpac.tokens import MASK_TOKEN, PAD_TOKEN
from vimpac_kernels import mask_tokens

_WORDS = 3.8  # inches: of the title
CLIPS = 4096  # over which shares are averaged
TABLE_2 = {  # mean masked share in %: (T, side of the map): by the number of blocks
    (5, 16): {4: 11.9, 5: 14.5, 6: 17.0, 7: 19.4, 8: 21.7},
    (5, 32): {4: 10.6, 5: 13.1, 6: 15.2, 7: 17.5, 8: 19.5},
    (10, 16): {4: 10.4, 5: 12.8, 6: 15.0, 7: 17.1, 8: 19.2},
    (10, 32): {4: 9.3, 5: 11.4, 6: 13.4, 7: 15.4, 8: 17.2},
}


class Masks(NamedTuple):
    """What a strategy hides.

    Attributes:
        name: Of the strategy, with its setting.
        mask: (T, H, W) bool, of the clip that is drawn.
        share: Of that clip's tokens.
        mean: Of the tokens of many clips.
        most: A clip of a hundred has a larger share.
        table_2: What the paper's Table 2 has for the mean; None: it has no such row.
    """

    name: str
    mask: Tensor
    share: float
    mean: float
    most: float
    table_2: float | None


def hide(
    tokens: Tensor,  # (B, T, H, W)
    strategy: str,
    *,
    blocks: int = 5,
    ratio: float = 0.15,
    seed: int = 0,
    first: int = 0,
) -> Tensor:  # (B, T, H, W) bool
    """What a strategy hides of clips: see `vimpac_kernels.mask_tokens`.

    Args:
        tokens: (B, T, H, W) ids; PAD is not hidden.
        strategy: "block", "iid" or "tube".
        blocks: Boxes per clip, of "block".
        ratio: Share of tokens, of the others.
        seed: Of the masks.
        first: Number of the first clip, on which its mask depends.
    """
    return mask_tokens(
        tokens,
        mask_token=MASK_TOKEN,
        strategy=strategy,
        num_blocks=blocks,
        ratio=ratio,
        pad_token=PAD_TOKEN,
        seed=seed,
        clip_offset=first,
    ).mask


def shares(
    grid: Sequence[int], strategy: str, *, clips: int = CLIPS, blocks: int, ratio: float, seed: int
) -> Tensor:  # (clips,)
    """The masked shares of clips of a grid (T, H, W)."""
    found, size = list[Tensor](), max(1, 2**22 // int(np.prod(grid)))  # clips at once
    for first in range(0, clips, size):
        tokens = torch.zeros(min(size, clips - first), *grid, dtype=torch.int32)
        mask = hide(tokens, strategy, blocks=blocks, ratio=ratio, seed=seed, first=first)
        found.append(mask.flatten(1).float().mean(1))
    return torch.cat(found)


def compare_masks(
    tokens: Tensor,  # (T, H, W)
    *,
    blocks: int = 5,
    ratio: float | None = None,
    seed: int = 0,
    clips: int = CLIPS,
) -> list[Masks]:
    """What each of the strategies hides of a clip, and of many.

    Args:
        tokens: (T, H, W) ids.
        blocks: Boxes per clip.
        ratio: Share of "iid" and "tube"; None: the mean share of the boxes.
        seed: Of the masks.
        clips: How many make the mean.

    Returns:
        "block", "iid" and "tube".
    """
    T, H, W = tokens.shape
    found = []
    for strategy in ("block", "iid", "tube"):
        many: dict[str, Any] = {"blocks": blocks, "ratio": ratio or 0.0, "seed": seed}
        over = shares((T, H, W), strategy, clips=clips, **many)
        if ratio is None:
            ratio = float(over.mean())
        mask = hide(tokens[None], strategy, **many)[0]
        is_block = strategy == "block"
        of_table = TABLE_2.get((T, H), {}).get(blocks) if is_block and H == W else None
        found.append(
            Masks(
                f"block, {blocks} boxes" if is_block else f"{strategy}, ratio {ratio:.3f}",
                mask,
                float(mask.sum() / (tokens != PAD_TOKEN).sum()),
                float(over.mean()),
                float(over.quantile(0.99)),
                None if of_table is None else of_table / 100,
            )
        )
    return found


def draw_masks(
    frames: np.ndarray,  # (T, S, S, 3) uint8
    masks: Sequence[Masks],
    titles: Sequence[str],
    path: Path,
) -> None:
    """Draws masks over the frames of a clip.

    Args:
        frames: (T, S, S, 3) uint8, of the frames that are not PAD.
        masks: As `compare_masks` gives them.
        titles: Of the frames.
        path: The PNG file.
    """
    rows = [Row("frames", frames)]
    for one in masks:
        mean = f"mean of many {one.mean:.1%}"
        if one.table_2 is not None:
            mean += f"\n(Table 2: {one.table_2:.1%})"
        name = f"{one.name}\nthis clip {one.share:.1%}\n{mean}"
        rows.append(Row(name, cover(frames, one.mask[: len(frames)])))
    width, height = size_of_rows(len(rows), len(frames))
    sheet = Sheet(max(width, _WORDS) + 2 * MARGIN, height + 2 * LINE + GAP + 2 * MARGIN)
    sheet.words(MARGIN, MARGIN, "What the strategies hide (chequered)", 12, weight="bold")
    sheet.rows(MARGIN, MARGIN + 1.5 * LINE, rows, titles)
    sheet.write(path)
