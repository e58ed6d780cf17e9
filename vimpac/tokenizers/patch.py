"""A fixed 13-bit code of 8x8 patches: id = (luma * 32 + shape) * 16 + chroma.

Luma is the mean in 16 steps; shape is the nearest of 32 zero-mean patterns (flat, edges in 8
directions and 3 contrasts, bars, blobs, a saddle); chroma is the nearest of 16 colours. All
arithmetic is on integers that float32 holds exactly, so the ids are the same on every machine,
device and batch size.
"""

from __future__ import annotations

import numpy as np
import torch

from vimpac.tokenizers import check_frames, check_ids

# Y = (77 R + 150 G + 29 B) / 256, the BT.601 weights in 8 bits.
RED, GREEN, BLUE = 77, 150, 29
CONTRASTS = (12, 32, 72)  # grey levels from an edge's middle to either side


class PatchTokenizer:
    """The built-in tokenizer.

    Args:
        device: Where it computes.
    """

    name = "patch"
    vocab_size = 8192
    patch = 8
    digest = ""

    def __init__(self, *, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._shapes = torch.from_numpy(_shapes()).to(self.device)  # (32, 64)
        self._colours = torch.from_numpy(_colours()).to(self.device)  # (16, 2)

    @torch.no_grad()
    def encode(
        self,
        frames: torch.Tensor,  # (F, 3, S, S)
    ) -> torch.Tensor:
        """Encodes frames.

        Args:
            frames: RGB (F, 3, S, S) uint8, S divisible by 8.

        Returns:
            Ids (F, S / 8, S / 8), int64, on the CPU.
        """
        check_frames(frames, self.patch)
        red, green, blue = frames.to(self.device, torch.int32).unbind(1)
        luma = (RED * red + GREEN * green + BLUE * blue) >> 8  # (F, S, S)
        patches = _patches(luma)  # (F, h, w, 64)
        mean = patches.sum(-1) >> 6
        colour = torch.stack([_patches(c).sum(-1) >> 6 for c in (red, blue)], -1) - mean[..., None]
        shape = _nearest(patches, self._shapes)
        chroma = _nearest(colour, self._colours)
        return (((mean >> 4) * 32 + shape) * 16 + chroma).long().cpu()

    @torch.no_grad()
    def decode(
        self,
        ids: torch.Tensor,  # (F, h, w)
    ) -> torch.Tensor:
        """Paints the patches that the ids name.

        Args:
            ids: (F, h, w), integer, in [0, 8192).

        Returns:
            RGB (F, 3, 8 h, 8 w) uint8, on the CPU.
        """
        check_ids(ids, self.vocab_size)
        ids = ids.to(self.device).long()
        level = (ids >> 9) * 16 + 8
        luma = level[..., None] + self._shapes[ids >> 4 & 31]  # (F, h, w, 64)
        red, blue = self._colours[ids & 15].unbind(-1)
        green = -(RED * red + BLUE * blue) / GREEN
        rgb = luma[..., None, :] + torch.stack([red, green, blue], -1)[..., None]
        frames, height, width = ids.shape
        rgb = rgb.view(frames, height, width, 3, 8, 8).permute(0, 3, 1, 4, 2, 5)
        rgb = rgb.reshape(frames, 3, 8 * height, 8 * width)
        return rgb.round().clamp(0, 255).to(torch.uint8).cpu()


def _patches(
    plane: torch.Tensor,  # (F, S, S)
) -> torch.Tensor:
    """Cuts a plane into patches (F, S / 8, S / 8, 64)."""
    return plane.unfold(1, 8, 8).unfold(2, 8, 8).flatten(3)


def _nearest(
    points: torch.Tensor,  # (..., d) int32
    words: torch.Tensor,  # (n, d) float32, integers
) -> torch.Tensor:
    """Index of the nearest word: argmin |x - w|^2 = argmax 2 x.w - |w|^2, all below 2^24."""
    scores = 2 * points.float() @ words.T - words.square().sum(1)
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
