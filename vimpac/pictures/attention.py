"""Where [CLS] looks: its attention along every axis of a layer, as maps over the frames.

In each line of an axis [CLS] attends to the tokens of the line and, as released, to itself; what it
takes is the mean over the lines. A map holds a token's share of that, so that a map and the share
of [CLS] itself sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from vimpac.errors import UsageError
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.layer import Attention, Layer
from vimpac.pictures.opened import check_finite
from vimpac.pictures.sheet import GAP, LINE, MARGIN, Row, Sheet, size_of_rows
from vimpac.tokens import PAD_TOKEN

AXES = {"T": "time", "H": "height", "W": "width", "HW": "height and width", "THW": "all axes"}


class AxisAttention(NamedTuple):
    """What [CLS] takes along an axis, the mean over the heads.

    Attributes:
        axis: A key of `AXES`.
        tokens: (T, H, W), the share of every token.
        itself: The share of [CLS] itself; 0 as in the paper's text, where it is no key.
    """

    axis: str
    tokens: Tensor
    itself: float


@torch.no_grad()
def cls_attention(
    encoder: VideoTokenEncoder,
    tokens: Tensor,  # (T, H, W)
    layer: int | None = None,
) -> list[AxisAttention]:
    """The attention of [CLS] to a clip in a layer, axis by axis, on the CPU.

    Args:
        encoder: In evaluation mode, of the clip's shape.
        tokens: (T, H, W) ids.
        layer: From 1 on; None: the last one.

    Raises:
        UsageError: The encoder has no such layer.
        VimpacError: What it computes is not finite.
    """
    layers = [cast(Layer, one) for one in encoder.layers]
    number = len(layers) if layer is None else layer
    if not 1 <= number <= len(layers):
        raise UsageError(f"layer {number} must lie in [1, {len(layers)}]")
    blocks = [cast(Attention, block) for block in layers[number - 1].attention]
    read = dict[Attention, Tensor]()  # what each block reads

    def keep(block: Any, inputs: tuple[Any, ...]) -> None:
        read[block] = inputs[0]

    hooks = [block.register_forward_pre_hook(keep) for block in blocks]
    try:
        encoder(tokens[None].to(encoder.cls_token.device))
    finally:
        for hook in hooks:
            hook.remove()
    padding = (tokens == PAD_TOKEN)[None].to(encoder.cls_token.device)
    found = []
    for block in blocks:
        _, weights = block.axial(read[block], encoder.grid, padding, need_weights=True)
        for axis, one in zip(block.axial.axes.split("|"), weights, strict=True):
            of_cls = one[0, :, :, -1].cpu()  # (heads, lines, L + 1)
            check_finite(of_cls, "attention weights")
            if block.per_line:  # [CLS] is no key: the others share what it would have
                of_cls = of_cls[..., :-1] / of_cls[..., :-1].sum(-1, keepdim=True)
                of_cls = torch.nn.functional.pad(of_cls.nan_to_num(), (0, 1))
            mean = of_cls.mean((0, 1))[-1]
            shares = of_cls[..., :-1].mean(0) / of_cls.shape[1]  # (lines, L)
            found.append(AxisAttention(axis, _on_grid(shares, axis, encoder.grid), float(mean)))
    return found


def _on_grid(
    shares: Tensor,  # (lines, L)
    axis: str,
    grid: tuple[int, int, int],
) -> Tensor:  # (T, H, W)
    """What stands in lines, at the place of its token."""
    T, H, W = grid
    if axis == "T":
        return shares.view(H, W, T).permute(2, 0, 1)
    if axis == "H":
        return shares.view(T, W, H).transpose(1, 2)
    return shares.reshape(grid)  # "W", "HW" and "THW" are in the order of the tokens


def relative(
    one: AxisAttention,
    real: int,
) -> Tensor:  # (real, H, W)
    """The map in times of what every token would have if all had the same.

    Args:
        one: Of a clip.
        real: Its frames that are not PAD, which come first.
    """
    tokens = one.tokens[:real]
    return tokens / tokens.sum().clamp(min=1e-12) * tokens.numel()


def draw_attention(
    frames: np.ndarray,  # (T, S, S, 3) uint8
    found: Sequence[AxisAttention],
    title: str,
    titles: Sequence[str],
    path: Path,
) -> None:
    """Draws maps over the frames of a clip.

    Args:
        frames: (T, S, S, 3) uint8, of the frames that are not PAD.
        found: As `cls_attention` gives it.
        title: Of the picture.
        titles: Of the frames.
        path: The PNG file.
    """
    rows = [Row("frames", frames)]
    maps = [relative(one, len(frames)).numpy() for one in found]
    most = max(float(one.max()) for one in maps)
    for one, heat in zip(found, maps, strict=True):
        name = f"along {AXES[one.axis]}\n[CLS] itself {one.itself:.0%}"
        rows.append(Row(name, frames, heat))
    width, height = size_of_rows(len(rows), len(frames))
    legend = 1.0
    sheet = Sheet(max(width + legend, 6.5) + 2 * MARGIN, height + 2 * LINE + GAP + 2 * MARGIN)
    sheet.words(MARGIN, MARGIN, title, 11, weight="bold")
    top = MARGIN + 1.6 * LINE
    sheet.rows(MARGIN, top, rows, titles, most_heat=most)
    _draw_scale(sheet, MARGIN + width + 0.15, top + LINE, height - LINE, most)
    sheet.write(path)


def _draw_scale(sheet: Sheet, x: float, y: float, height: float, most: float) -> None:
    """The colours, and what they stand for."""
    axes = sheet.axes(x, y, 0.15, height)
    colours = np.linspace(1, 0, 256)[:, None]
    axes.imshow(colours, cmap="inferno", aspect="auto", extent=(0, 1, 0, most))
    axes.set(xticks=[], ylabel="attention, 1 = the mean of all tokens")
    axes.yaxis.set_label_position("right")
    axes.yaxis.tick_right()
    axes.tick_params(labelsize=8)
