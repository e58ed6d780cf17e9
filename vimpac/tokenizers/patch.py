"""A fixed 13-bit code of 8x8 patches: id = (luma * 32 + shape) * 16 + chroma.

Luma is the mean in 16 steps; shape is the nearest of 32 zero-mean patterns (flat, edges in 8
directions and 3 contrasts, bars, blobs, a saddle); chroma is the nearest of 16 colours. All
arithmetic is on integers that float32 holds exactly, so the ids are the same on every machine and
for every batch size. It needs no torch, which takes a second and a half to import.
"""

from __future__ import annotations

import numpy as np

from vimpac.tokenizers import check_frames, check_ids

# Y = (77 R + 150 G + 29 B) / 256, the BT.601 weights in 8 bits; the sum is below 2^16.
RED, GREEN, BLUE = 77, 150, 29
CONTRASTS = (12, 32, 72)  # grey levels from an edge's middle to either side


class PatchTokenizer:
    """The built-in tokenizer, which computes on the CPU."""

    name = "patch"
    vocab_size = 8192
    patch = 8
    digest = ""
    compute = ""

    def __init__(self) -> None:
        self._shapes = _shapes()  # (32, 64)
        self._colours = _colours()  # (16, 2)

    def encode(
        self,
        frames: np.ndarray,  # (F, 3, S, S)
    ) -> np.ndarray:
        """Encodes frames.

        Args:
            frames: RGB (F, 3, S, S) uint8, S divisible by 8.

        Returns:
            Ids (F, S / 8, S / 8), int32.
        """
        check_frames(frames, self.patch)
        red, green, blue = frames.astype(np.uint16).swapaxes(0, 1)
        luma = (RED * red + GREEN * green + BLUE * blue) >> 8  # (F, S, S)
        mean = _means(luma)
        colour = np.stack([_means(red), _means(blue)], -1) - mean[..., None]
        shape = _nearest(_patches(luma), self._shapes)
        chroma = _nearest(colour, self._colours)
        return (((mean >> 4) * 32 + shape) * 16 + chroma).astype(np.int32)

    def decode(
        self,
        ids: np.ndarray,  # (F, h, w)
    ) -> np.ndarray:
        """Paints the patches that the ids name.

        Args:
            ids: (F, h, w), integer, in [0, 8192).

        Returns:
            RGB (F, 3, 8 h, 8 w) uint8.
        """
        check_ids(ids, self.vocab_size)
        ids = ids.astype(np.int32)
        level = (ids >> 9) * 16 + 8
        luma = level[..., None].astype(np.float32) + self._shapes[ids >> 4 & 31]  # (F, h, w, 64)
        red, blue = np.moveaxis(self._colours[ids & 15], -1, 0)
        green = -(RED * red + BLUE * blue) / GREEN
        rgb = luma[..., None, :] + np.stack([red, green, blue], -1)[..., None]
        frames, height, width = ids.shape
        rgb = rgb.reshape(frames, height, width, 3, 8, 8).transpose(0, 3, 1, 4, 2, 5)
        rgb = rgb.reshape(frames, 3, 8 * height, 8 * width)
        return rgb.round().clip(0, 255).astype(np.uint8)


def _patches(
    plane: np.ndarray,  # (F, S, S)
) -> np.ndarray:
    """Cuts a plane into patches (F, S / 8, S / 8, 64), float32."""
    frames, height, width = plane.shape
    cut = plane.astype(np.float32).reshape(frames, height // 8, 8, width // 8, 8)
    return cut.swapaxes(2, 3).reshape(frames, height // 8, width // 8, 64)


def _means(
    plane: np.ndarray,  # (F, S, S) uint16 below 2^8
) -> np.ndarray:
    """The mean of every patch, rounded down, (F, S / 8, S / 8) int32."""
    frames, height, width = plane.shape
    rows = plane.reshape(frames, height // 8, 8, width).sum(2, dtype=np.uint16)
    return rows.reshape(frames, height // 8, width // 8, 8).sum(3, dtype=np.int32) >> 6


def _nearest(
    points: np.ndarray,  # (F, h, w, d) of integers
    words: np.ndarray,  # (n, d) float32, integers
) -> np.ndarray:
    """Index of the nearest word: argmin |x - w|^2 = argmax 2 x.w - |w|^2, all below 2^24.

    The product is one of w points at a time, which is too small for NumPy's BLAS to start threads
    for it: there is a process for every CPU already.
    """
    scores = points.astype(np.float32) @ (2 * words.T) - np.square(words).sum(1)
    return scores.argmax(-1)


def _shapes() -> np.ndarray:
    """The 32 patterns, (32, 64) float32 of integers; each sums to zero."""
    y, x = np.mgrid[-7:8:2, -7:8:2]
    axis, diagonal = 4, 6  # half the width of an edge's ramp
    edges = [(x, axis), (x + y, diagonal), (y, axis), (y - x, diagonal)]
    ramps = [np.clip(u, -half, half) / half for u, half in edges]
    words = [np.zeros((8, 8))]
    words += [sign * c * ramp for c in CONTRASTS for ramp in ramps for sign in (1, -1)]
    bars = [np.where(abs(u) < 4, 1, -1) for u in (x, y)]
    blob = np.where(np.maximum(abs(x), abs(y)) < 4, 3, -1)
    words += [sign * 24 * bar for bar in bars for sign in (1, -1)]
    words += [12 * blob, -12 * blob, 24 * np.sign(x) * np.sign(y)]
    return np.rint(np.stack(words)).reshape(32, 64).astype(np.float32)


def _colours() -> np.ndarray:
    """The 16 colours as (R - Y, B - Y), (16, 2) float32 of integers."""
    ring = [(4, 0), (3, -4), (0, -6), (-2, -4), (-4, 0), (-2, 4), (0, 6), (3, 4)]
    faint = [(4 * red, 4 * blue) for red, blue in ring]
    strong = [(14 * red, 14 * blue) for red, blue in ring[:-1]]  # strong magenta is rare
    return np.array([(0, 0), *faint, *strong], dtype=np.float32)
