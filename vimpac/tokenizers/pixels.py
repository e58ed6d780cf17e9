"""No tokenizer at all: the levels of red, green and blue of every pixel, for a store of frames."""

from __future__ import annotations

import torch

from vimpac.tokenizers import check_frames


class PixelTokenizer:
    """Frames to frames, with the colours last."""

    name = "pixels"
    vocab_size = 256
    patch = 1
    digest = ""

    def encode(
        self,
        frames: torch.Tensor,  # (F, 3, S, S)
    ) -> torch.Tensor:
        """RGB (F, 3, S, S) uint8 to (F, S, S, 3) uint8, on the CPU."""
        check_frames(frames, self.patch)
        return frames.cpu().permute(0, 2, 3, 1).contiguous()

    def decode(
        self,
        ids: torch.Tensor,  # (F, S, S, 3)
    ) -> torch.Tensor:
        """The reverse."""
        return ids.cpu().permute(0, 3, 1, 2).contiguous()
