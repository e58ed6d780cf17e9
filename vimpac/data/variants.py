"""Resize, crop and flip: the variants of a frame that are tokenised (paper, Sec. B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

from vimpac.errors import UsageError

CROPS = {"topleft": 0, "center": 1, "bottomright": 2}  # halves of the margin to cut off before
SCALES = ("1x", "1.25x")

Scalers = dict[float, VideoReformatter]  # by scale; each keeps its tables from frame to frame


@dataclass(frozen=True)
class Variant:
    """One view: the shorter side is resized to `scale` * S, then an S x S crop is cut.

    Attributes:
        scale: Shorter side over S, at least 1.
        crop: One of `CROPS`.
        flip: Whether it is mirrored left to right.
    """

    scale: float = 1.0
    crop: str = "center"
    flip: bool = False

    def __str__(self) -> str:
        return f"{self.scale:g}x-{self.crop}" + ("-flip" if self.flip else "")


def parse_variants(text: str) -> tuple[Variant, ...]:
    """Reads a list of variants.

    Args:
        text: `pretrain` (one centre crop), `finetune` (the paper's 12), `finetune-noflip` (its 6
            for data where left and right differ), or names such as `1.25x-topleft-flip`,
            separated by commas.

    Returns:
        The variants.

    Raises:
        UsageError: A name is not of that form, or given twice.
    """
    presets = {
        "pretrain": (Variant(),),
        "finetune": _product((False, True)),
        "finetune-noflip": _product((False,)),
    }
    if text in presets:
        return presets[text]
    variants = tuple(_parse(name) for name in text.split(","))
    if len(set(variants)) < len(variants):
        raise UsageError(f"--variants {text}: one is given twice")
    return variants


def _product(flips: tuple[bool, ...]) -> tuple[Variant, ...]:
    scales = [float(scale[:-1]) for scale in SCALES]
    return tuple(Variant(s, c, f) for s in scales for c in CROPS for f in flips)


def _parse(name: str) -> Variant:
    scale, _, rest = name.partition("-")
    crop, _, flip = rest.partition("-")
    try:
        if scale.endswith("x") and 1 <= float(scale[:-1]) <= 16 and crop in CROPS:
            if flip in ("", "flip"):
                return Variant(float(scale[:-1]), crop, bool(flip))
    except ValueError:
        pass
    raise UsageError(
        f"unknown variant '{name}': pretrain, finetune, finetune-noflip, or SCALEx-CROP[-flip] "
        f"with a crop of {', '.join(CROPS)}"
    )


def make_variants(
    frame: av.VideoFrame,
    size: int,
    variants: Sequence[Variant],
    scalers: Scalers | None = None,
) -> np.ndarray:
    """Makes the variants of one frame.

    Args:
        frame: A decoded frame with square pixels; it is turned and mirrored as its display matrix
            says.
        size: Side S of a variant in pixels.
        variants: Which ones.
        scalers: A dictionary, empty before the first frame of a video: what the frames share.

    Returns:
        RGB (variants, 3, S, S) uint8.
    """
    scalers = {} if scalers is None else scalers
    resized: dict[float, np.ndarray] = {}
    out = np.empty((len(variants), 3, size, size), np.uint8)
    for made, variant in zip(out, variants, strict=True):
        if variant.scale not in resized:
            scaler = scalers.setdefault(variant.scale, VideoReformatter())
            resized[variant.scale] = _resize(frame, round(variant.scale * size), scaler)
        image = resized[variant.scale]
        y, x = (CROPS[variant.crop] * (side - size) // 2 for side in image.shape[:2])
        crop = image[y : y + size, x : x + size]
        made[:] = (crop[:, ::-1] if variant.flip else crop).transpose(2, 0, 1)
    return out


def _resize(frame: av.VideoFrame, shorter: int, scaler: VideoReformatter) -> np.ndarray:
    """RGB (H, W, 3) uint8 with the aspect ratio kept and the shorter side as given; bicubic."""
    short = min(frame.width, frame.height)
    width, height = (side * shorter // short for side in (frame.width, frame.height))
    image = scale(scaler, frame, width, height, "rgb24")
    return upright(image.to_ndarray(), frame)


def scale(
    scaler: VideoReformatter, frame: av.VideoFrame, width: int, height: int, format: str | None
) -> av.VideoFrame:
    """The frame at another size, bicubic; threads would cost more than they gain.

    Args:
        scaler: Keeps its tables for the next frame.
        frame: The frame.
        width: The new one.
        height: The new one.
        format: Of the pixels; None: that of the frame.
    """
    return scaler.reformat(frame, width, height, format, interpolation="BICUBIC", threads=1)


def _other_type(cls: type[Type], value: int) -> Type:
    """A type of side data that PyAV has no name for, as EXIF or the views of a stereo video."""
    member = object.__new__(cls)
    member._name_ = f"OTHER_{value}"
    member._value_ = value  # type: ignore[assignment]  # declared as a member
    return member


# Otherwise one such type hides all side data of a frame.
Type._missing_ = classmethod(_other_type)  # type: ignore[assignment]  # declared as a method


def upright(
    image: np.ndarray,  # (H, W, 3)
    frame: av.VideoFrame,
) -> np.ndarray:
    """The image, turned and mirrored as the frame's display matrix says, to the nearest 90 degrees.

    The matrix (a, b, _, c, d, ...) brings a pixel (x, y) to (a x + c y, b x + d y).
    """
    side_data: Any = frame.side_data  # declared without this key
    try:
        matrix = bytes(side_data["DISPLAYMATRIX"])
    except KeyError:
        return image
    a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).tolist()
    if abs(b) > abs(a):  # columns become rows
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
