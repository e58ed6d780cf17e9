"""The gradients of one update: masked tokens and contrast from one forward pass.

An update of `batch.videos` videos is a number of groups of `batch.contrastive` videos, in which
every clip is told from all others. A rank holds its part of a group in micro-batches. When that
is one micro-batch, one backward pass does both losses. When it is more, the contrastive loss
needs all clips before the first backward pass can begin, so (the cached-gradient method):

1. the encoder runs without gradients over every micro-batch and keeps the [CLS] vectors;
2. the contrastive loss of all of them gives their gradients d[CLS];
3. each micro-batch runs again, same dropout, and its backward pass starts from the token loss
   and from d[CLS]; the contrastive head's own part rides on the last of them.

The gradients are those of the loss over the whole group, at the memory of one micro-batch.
On a GPU nothing in here waits for the device.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vimpac.data.random import words
from vimpac.model import Vimpac
from vimpac.objective import info_nce
from vimpac.presets import MASK_TOKEN, NUM_TOKENS, PAD_TOKEN
from vimpac.train.config import MaskConfig, PretrainConfig
from vimpac.train.distributed import World
from vimpac_kernels import MaskedTokens, mask_tokens

DROPOUT = 3  # stream of `vimpac.data.random` beside its ORDER and CLIPS

METRICS = ("mask_loss", "mask_accuracy", "cl_loss")


class MaskedTokenModel(nn.Module):
    """What DistributedDataParallel wraps: the encoder and the token loss.

    Args:
        model: The model; its contrastive head is a part, but runs outside of `forward`.
    """

    def __init__(self, model: Vimpac) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        inputs: Tensor,  # (B, T, H, W), masked
        labels: Tensor,  # (B, T, H, W), all ids
        positions: Tensor,  # (B*T*H*W,) int32, masked rows of the hidden states
        count: Tensor,  # 0-d int32
        max_masked: int | None,
        has_padding: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the token loss, its accuracy and the [CLS] vectors (B, D)."""
        hidden = self.model.encoder(inputs, has_padding=has_padding)
        tokens = self.model.token_head(
            hidden, labels, positions=positions, count=count, max_masked=max_masked
        )
        return tokens.loss, tokens.accuracy, hidden[:, 0]


class PretrainStep:
    """Accumulates the gradients of groups.

    Args:
        model: On its device.
        config: The run's configuration.
        world: The processes.
        has_padding: Whether a clip can hold PAD.
    """

    def __init__(
        self, model: Vimpac, config: PretrainConfig, world: World, *, has_padding: bool = True
    ) -> None:
        self.model, self.config, self.world = model, config, world
        self.groups = config.batch.videos // config.batch.contrastive
        self.group_part = config.batch.contrastive // world.size  # videos of a group on a rank
        self.micro = min(config.batch.micro, self.group_part)
        self._has_padding = has_padding
        model.encoder.activation_checkpointing = config.activation_checkpointing
        self._forward: Any = MaskedTokenModel(model)
        if config.compile != "none":
            self._forward = _compile(self._forward, config.compile)
        if world.size > 1:
            self._forward = DistributedDataParallel(self._forward, broadcast_buffers=False)
        # A tensor, so that a captured CUDA graph reads it at replay.
        self._mask_seed = torch.tensor(config.seed, dtype=torch.int64, device=world.device)

    def group(
        self,
        parts: list[Tensor],  # (micro, 2, T, H, W) each
        first_video: int,
        *,
        is_last: bool,
    ) -> Tensor:
        """Adds the gradients of one group.

        Args:
            parts: This rank's micro-batches of the group.
            first_video: Number of the first video among all samples of the run.
            is_last: Whether the update ends here, so that the ranks' gradients are averaged.

        Returns:
            `METRICS`, (3,) fp32 on the device.
        """
        clips = [2 * (first_video + i * self.micro) for i in range(len(parts))]
        tokens = [part.flatten(0, 1) for part in parts]
        masked = [self._mask(part, clip) for part, clip in zip(tokens, clips, strict=True)]
        contrast = self.model.contrastive_head is not None
        cached = contrast and len(parts) > 1
        cl_loss = torch.zeros((), device=self.world.device)
        if cached:
            cls = self._cached_cls([part.inputs for part in masked], clips)
            cl_loss = self._contrastive_loss(cls)
            (gradient,) = torch.autograd.grad(cl_loss, cls, retain_graph=True)
            d_cls = gradient.split(2 * self.micro)
        weight = self.config.loss.alpha / self.groups
        sums = torch.zeros(2, device=self.world.device)
        for i, clip in enumerate(clips):
            end = i + 1 == len(clips)
            with self._averaging(is_last and end):
                self._seed_dropout(clip)
                loss, accuracy, cls = self._predict(masked[i], tokens[i])
                total = loss / (self.groups * len(clips))
                if cached:
                    total = total + weight * (cls * d_cls[i]).sum()
                elif contrast:
                    cl_loss = self._contrastive_loss(cls)
                if end:
                    total = total + weight * cl_loss
                total.backward()
            sums += torch.stack((loss.detach(), accuracy.detach()))
        return torch.cat((sums / len(clips), cl_loss.detach()[None]))

    def _mask(self, tokens: Tensor, clip: int) -> MaskedTokens:
        """Masks clips (B, T, H, W) as the seed and the number of the clip say."""
        mask = self.config.mask
        return mask_tokens(
            tokens,
            mask_token=MASK_TOKEN,
            strategy=mask.strategy,
            num_blocks=mask.blocks,
            ratio=mask.ratio,
            pad_token=PAD_TOKEN,
            noise=mask.noise,
            noise_unit=mask.noise_unit,
            vocab_size=NUM_TOKENS,
            seed=self._mask_seed,
            clip_offset=clip,
            row_offset=1,
        )

    def _predict(
        self,
        masked: MaskedTokens,
        tokens: Tensor,  # (B, T, H, W)
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The token loss, its accuracy and the [CLS] vectors (B, D) of one micro-batch."""
        bound = None
        if tokens.device.type != "cpu":  # elsewhere reading the count would wait for the device
            clips, T, H, W = tokens.shape
            # Six deviations of the mean over the clips, as a clip's share varies by about 0.1.
            share = expected_ratio(self.config.mask, (T, H, W)) + 0.6 * clips**-0.5
            bound = math.ceil(min(share, 1.0) * tokens.numel())
        with self._autocast():
            return self._forward(
                masked.inputs, tokens, masked.positions, masked.count, bound, self._has_padding
            )

    @torch.no_grad()
    def _cached_cls(self, inputs: list[Tensor], clips: list[int]) -> Tensor:
        """[CLS] of all micro-batches, (clips, D), at least fp32, a leaf that takes gradients."""
        cls = []
        for part, clip in zip(inputs, clips, strict=True):
            self._seed_dropout(clip)
            with self._autocast():
                hidden = self.model.encoder(part, has_padding=self._has_padding)
            cls.append(hidden[:, 0].to(torch.promote_types(hidden.dtype, torch.float32)))
        return torch.cat(cls).requires_grad_()

    def _contrastive_loss(
        self,
        cls: Tensor,  # (2 * videos, D), the two clips of a video side by side
    ) -> Tensor:
        """The loss of this rank's clips against the group's clips of all ranks."""
        with self._autocast():
            features = self.model.contrastive_head(cls)  # type: ignore[misc]
        views = features.unflatten(0, (-1, 2)).transpose(0, 1)  # (2, videos, d)
        return info_nce(views.flatten(0, 1), self.config.loss.temperature)

    def _seed_dropout(self, clip: int) -> None:
        """Makes dropout a function of (seed, clip): the same after a resume and on any rank."""
        torch.manual_seed(int(words(DROPOUT, self.config.seed, clip, 1)[0]))

    def _autocast(self) -> AbstractContextManager:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=enabled)

    def _averaging(self, average: bool) -> AbstractContextManager:
        """Whether this backward pass averages the gradients over the ranks."""
        return nullcontext() if average or self.world.size == 1 else self._forward.no_sync()


def _compile(module: nn.Module, mode: str) -> Any:
    """Compiles a module whose dropout stays that of eager PyTorch.

    The pass that caches [CLS] runs eagerly; with the compiler's own random numbers the pass that
    is differentiated would drop other elements, and d[CLS] would be of another function.
    """
    options = {**torch._inductor.list_mode_options(mode), "fallback_random": True}
    return torch.compile(module, fullgraph=True, dynamic=False, options=options)


def expected_ratio(mask: MaskConfig, grid: tuple[int, int, int]) -> float:
    """The mean share of masked tokens; for blocks, as if every place were equally likely."""
    if mask.strategy != "block":
        return mask.ratio
    T, H, W = grid
    longest = max(1, 2 * T // 3), max(1, H // 2), max(1, W // 2)
    box = math.prod((1 + m) / (2 * size) for m, size in zip(longest, grid, strict=True))
    return 1 - (1 - box) ** mask.blocks
