"""CutMix on tokens: a box of a clip, and that share of its label, come from another clip.

The other clip is one of the next video of the micro-batch. Which clips get a box, and where, is a
function of the seed and of the number of the clip, drawn on the device, for which nothing waits.

Source: Yun et al., "CutMix", 2019.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac.data.random import CUTMIX, words
from vimpac.tokens import MASK_TOKEN, PAD_TOKEN
from vimpac_kernels import mask_tokens


class CutMix:
    """Mixes the clips of a micro-batch and their labels.

    Args:
        probability: That a clip gets a box. Its sides are uniform, from one token to all.
        num_classes: Number of classes.
        seed: Of the run.
        device: Where the clips are.
        repeat: Clips of a video, which stand side by side.
    """

    def __init__(
        self,
        probability: float,
        num_classes: int,
        seed: int,
        device: torch.device,
        repeat: int = 1,
    ) -> None:
        self._repeat = repeat
        self._probability, self._num_classes = probability, num_classes
        keys = torch.from_numpy(words(CUTMIX, seed, 0, 2).view("int64")).to(device)
        self._of_choice, self._of_boxes = keys.unbind()

    def __call__(
        self,
        clips: Tensor,  # (B, T, H, W) integer
        classes: Tensor,  # (B,) int64
        first_clip: int | Tensor,  # 0-d int64
    ) -> tuple[Tensor, Tensor]:
        """Mixes.

        Padding stays what and where it is: a box has no token where either clip is padded.

        Args:
            clips: (B, T, H, W) ids, on the device.
            classes: (B,) their classes.
            first_clip: Number of the first clip among all of the run.

        Returns:
            The clips, (B, T, H, W), and the weights of the classes, (B, num_classes) fp32: for the
            other clip's class its share of the tokens, without padding, for the clip's own the
            rest.
        """
        others = clips.roll(-self._repeat, 0)
        chosen = mask_tokens(
            clips[:, :1, :1, :1],
            mask_token=MASK_TOKEN,
            strategy="iid",
            ratio=self._probability,
            seed=self._of_choice,
            clip_offset=first_clip,
        ).mask
        box = mask_tokens(
            clips,
            mask_token=MASK_TOKEN,
            num_blocks=1,
            max_block=(clips.shape[1], clips.shape[2], clips.shape[3]),
            pad_token=PAD_TOKEN,
            seed=self._of_boxes,
            clip_offset=first_clip,
        ).mask
        pasted = chosen & box & (others != PAD_TOKEN)
        share = pasted.flatten(1).sum(1) / (clips != PAD_TOKEN).flatten(1).sum(1)
        own = F.one_hot(classes, self._num_classes)
        other = own.roll(-self._repeat, 0)
        weights = own * (1 - share[:, None]) + other * share[:, None]
        return torch.where(pasted, others, clips), weights
