"""Which frames of a video a training sees, and which part of them; all pixels stay uint8."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from vimpac.data.random import below, share_of
from vimpac.simvtp.augment import ERASE_DRAWS, augment_draws, erase, rand_augment, random_box
from vimpac.simvtp.frames import CROP_DRAWS, Frames, multi_scale_crop, resize
from vimpac.simvtp.run_config import SpreadClipConfig

RATIOS = (3 / 4, 4 / 3)  # of the sides of a random resized crop


class DrawClip(Protocol):
    """Draws a clip of a video.

    Attributes:
        draws: How many words of `vimpac.data.random` it takes.
    """

    draws: int

    def __call__(self, files: Frames, video: int, words: np.ndarray) -> np.ndarray:
        """RGB (T, S, S, 3) uint8 of a video, on which and on whose words it depends alone."""


class PretrainingClip:
    """Every `step`-th frame from a place that is drawn, and a multi-scale crop.

    Args:
        frames: T.
        size: S.
        step: Frames of the video from one to the next.
    """

    draws = 1 + CROP_DRAWS

    def __init__(self, frames: int, size: int, step: int) -> None:
        self.size, self.step, self.window = size, step, frames * step

    def __call__(self, files: Frames, video: int, words: np.ndarray) -> np.ndarray:
        """See `DrawClip`; a shorter video repeats its last frame."""
        start = below(words[0], max(files.num_frames(video) - self.window, 0) + 1)
        frames = files.read(video, range(start, start + self.window, self.step))
        return multi_scale_crop(frames, self.size, words[1:])


class FinetuningClip:
    """Frames spread evenly over a window, a random resized crop, a mirror, and what hides more.

    Args:
        frames: T.
        size: S.
        config: The rest.
    """

    def __init__(self, frames: int, size: int, config: SpreadClipConfig) -> None:
        self.size, self.config = size, config
        self._places = np.linspace(0, config.window - 1, frames).round().astype(int)
        self.draws = 7 + ERASE_DRAWS + augment_draws(config.augment)

    def __call__(self, files: Frames, video: int, words: np.ndarray) -> np.ndarray:
        """See `DrawClip`; a shorter video repeats its last frame."""
        config = self.config
        start = below(words[0], max(files.num_frames(video) - config.window, 0) + 1)
        clip = files.read(video, (start + self._places).tolist())
        clip = random_resized_crop(clip, self.size, config.scale, words[1:5])
        if share_of(words[5]) < config.flip:
            clip = clip[:, :, ::-1]
        clip = rand_augment(clip, config.strength, words[7 + ERASE_DRAWS :])
        if share_of(words[6]) < config.erase:
            clip = erase(clip, words[7 : 7 + ERASE_DRAWS])
        return np.ascontiguousarray(clip)


def random_resized_crop(
    clip: np.ndarray,  # (T, H, W, 3)
    size: int,
    scale: tuple[float, float],
    words: np.ndarray,  # (4,)
) -> np.ndarray:
    """Cuts a `random_box` out of all frames, and resizes it.

    Returns:
        RGB (T, S, S, 3) uint8.
    """
    height, width = clip.shape[1:3]
    y, x, h, w = random_box(height, width, scale, RATIOS, words)
    return resize(clip[:, y : y + h, x : x + w], size, size)
