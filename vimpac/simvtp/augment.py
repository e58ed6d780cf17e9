"""RandAugment and random erasing of whole clips: every frame of a clip is changed alike.

RandAugment (arXiv 1909.13719) applies a few of fifteen operations, whose strength is a number from
0 to 10. What each does at a strength, and that an operation is left out half of the time, is as in
the strings "rand-m7-n4-mstd0.5-inc1" that recipes of video models are written in. Random erasing
is arXiv 1708.04896.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vimpac.data.random import below, share_of

ERASE_DRAWS = 6  # words that `erase` takes
_DRAWS = 4  # words of one operation of RandAugment
_DEVIATION = 0.5  # of the strength
_STRONGEST = 10.0
_FILL = (124, 116, 104)  # the mean of ImageNet
_AREAS = (0.02, 1 / 3)  # of a picture that is erased
_RATIOS = (0.3, 1 / 0.3)  # of the sides of what is erased


def augment_draws(operations: int) -> int:
    """How many words `rand_augment` takes."""
    return _DRAWS * operations


def rand_augment(
    clip: np.ndarray,  # (T, H, W, 3) uint8
    strength: float,
    words: np.ndarray,
) -> np.ndarray:  # (T, H, W, 3) uint8
    """Changes a clip by as many operations as the words are for.

    Args:
        clip: RGB.
        strength: The mean of the strength of an operation, in [0, 10].
        words: `augment_draws(operations)` random words.
    """
    spread = statistics.NormalDist(strength, _DEVIATION)
    chosen: list[tuple[Callable, float, bool]] = []
    for apply, which, how, sign in words.reshape(-1, _DRAWS):
        if share_of(apply) < 0.5:
            drawn = spread.inv_cdf(max(share_of(how), 2.0**-53))
            level = min(max(drawn, 0.0), _STRONGEST) / _STRONGEST
            operation = OPERATIONS[below(which, len(OPERATIONS))]
            chosen.append((operation, level, share_of(sign) < 0.5))
    if not chosen:
        return clip
    frames = []
    for frame in clip:
        picture = Image.fromarray(frame)
        for operation, level, negative in chosen:
            picture = operation(picture, level, negative)
        frames.append(np.asarray(picture))
    return np.stack(frames)


def random_box(
    height: int,
    width: int,
    areas: tuple[float, float],
    ratios: tuple[float, float],
    words: np.ndarray,  # (4,)
) -> tuple[int, int, int, int]:  # y, x, height, width
    """A part of a picture.

    Its area is uniform in `areas`, a share of the picture's, the ratio of width to height
    log-uniform in `ratios`, the place uniform. A side that is longer than the picture's is cut to
    it, where torchvision draws again.
    """
    area = height * width * (areas[0] + share_of(words[0]) * (areas[1] - areas[0]))
    low, high = (math.log(ratio) for ratio in ratios)
    ratio = math.exp(low + share_of(words[1]) * (high - low))
    w = min(max(1, round(math.sqrt(area * ratio))), width)
    h = min(max(1, round(math.sqrt(area / ratio))), height)
    return below(words[2], height - h + 1), below(words[3], width - w + 1), h, w


def erase(
    clip: np.ndarray,  # (T, H, W, 3) uint8
    words: np.ndarray,  # (ERASE_DRAWS,)
) -> np.ndarray:  # (T, H, W, 3) uint8
    """Covers the same rectangle of all frames with noise, new in each.

    Its area is uniform between 2 % and a third of the picture's, the ratio of its sides log-uniform
    between 0.3 and 3.3, its place uniform. The noise is uniform in [0, 255].
    """
    frames, height, width = clip.shape[:3]
    y, x, h, w = random_box(height, width, _AREAS, _RATIOS, words[:4])
    raw = np.random.Philox(key=words[4:6]).random_raw(-(-frames * h * w * 3 // 8))
    erased = clip.copy()
    noise = raw.view(np.uint8)[: frames * h * w * 3]
    erased[:, y : y + h, x : x + w] = noise.reshape(frames, h, w, 3)
    return erased


def _signed(level: float, negative: bool) -> float:
    return -level if negative else level


def _auto_contrast(picture: Image.Image, level: float, negative: bool) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, level: float, negative: bool) -> Image.Image:
    return ImageOps.equalize(picture)


def _invert(picture: Image.Image, level: float, negative: bool) -> Image.Image:
    return ImageOps.invert(picture)


def _rotate(picture: Image.Image, level: float, negative: bool) -> Image.Image:
    angle = 30 * _signed(level, negative)
    return picture.rotate(angle, Image.Resampling.BILINEAR, fillcolor=_FILL)


def _posterize(picture: Image.Image, level: float, negative: bool) -> Image.Image:
    bits = 4 - int(4 * level)
    return ImageOps.posterize(picture, bits) if bits else Image.new("RGB", picture.size)


def _solarize(picture: Image.Image, level: float, negative: bool) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(256 * level))


def _solarize_add(picture: Image.Image, level: float, negative: bool) -> Image.Image:
    added = int(110 * level)
    return picture.point([min(255, x + added) if x < 128 else x for x in range(256)] * 3)


def _enhance(kind: Callable) -> Callable:
    def apply(picture: Image.Image, level: float, negative: bool) -> Image.Image:
        return kind(picture).enhance(max(0.1, 1 + 0.9 * _signed(level, negative)))

    return apply


def _affine(matrix: Callable[[float, int, int], Sequence[float]]) -> Callable:
    """An operation that moves pixels: output (x, y) is input (a x + b y + c, d x + e y + f)."""

    def apply(picture: Image.Image, level: float, negative: bool) -> Image.Image:
        six = matrix(_signed(level, negative), *picture.size)
        affine, bilinear = Image.Transform.AFFINE, Image.Resampling.BILINEAR
        return picture.transform(picture.size, affine, six, bilinear, fillcolor=_FILL)

    return apply


OPERATIONS: tuple[Callable[[Image.Image, float, bool], Image.Image], ...] = (
    _auto_contrast,
    _equalize,
    _invert,
    _rotate,
    _posterize,
    _solarize,
    _solarize_add,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    _affine(lambda level, w, h: (1, 0.3 * level, 0, 0, 1, 0)),  # shear
    _affine(lambda level, w, h: (1, 0, 0, 0.3 * level, 1, 0)),
    _affine(lambda level, w, h: (1, 0, 0.45 * level * w, 0, 1, 0)),  # translate
    _affine(lambda level, w, h: (1, 0, 0, 0, 1, 0.45 * level * h)),
)
