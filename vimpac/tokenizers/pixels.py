"""No tokenizer at all: the levels of red, green and blue of every pixel, for a store of frames."""

from __future__ import annotations

import numpy as np

from vimpac.tokenizers import check_frames


class PixelTokenizer:
    """Frames to frames, with the colours last."""

    name = "pixels"
    vocab_size = 256
    patch = 1
    digest = ""
    compute = ""

    def encode(
        self,
        frames: np.ndarray,  # (F, 3, S, S)
    ) -> np.ndarray:
        """RGB (F, 3, S, S) uint8 to (F, S, S, 3) uint8."""
        check_frames(frames, self.patch)
        return np.ascontiguousarray(frames.transpose(0, 2, 3, 1))

    def decode(
        self,
        ids: np.ndarray,  # (F, S, S, 3)
    ) -> np.ndarray:
        """The reverse."""
        return np.ascontiguousarray(ids.transpose(0, 3, 1, 2))
