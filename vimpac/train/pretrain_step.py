"""The gradients of one update: masked tokens and contrast from one forward pass.

An update of `batch.videos` videos is a number of groups of `batch.contrastive` videos, in which
every clip is told from all others. A rank holds its part of a group in micro-batches. When that
is one micro-batch, one backward pass does both losses. When it is more, the contrastive loss
needs all clips before the first backward pass can begin, so (the cached-gradient method):

1. the encoder runs without gradients over every micro-batch and keeps the [CLS] vectors;
2. the contrastive loss of all of them gives the gradients of its head and d[CLS];
3. each micro-batch runs again, same dropout, and its backward pass starts from the token loss
   and from d[CLS].

The gradients are those of the loss over the whole group, at the memory of one micro-batch.
With `mask.contrast=whole` (Table 12) the contrastive loss reads a pass of its own, over the clips
before they are masked; without a token loss, it is the only one.
On a GPU nothing in here waits for the device: masks are drawn there, two launches ahead of the
pass that reads them on the same stream, and the host never learns how many tokens they hide.
Masks and dropout follow from the number of a clip, which may lie on the device as well: a CUDA
graph of the step is replayed for other clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from vimpac.config import MaskConfig, PretrainConfig
from vimpac.model.masked_rows import choose_masked_rows, cls_rows
from vimpac.model.pretraining import Vimpac, predict_masked
from vimpac.tokens import MASK_TOKEN, NUM_TOKENS, PAD_TOKEN
from vimpac.train.distributed import World
from vimpac.train.dropout_seeds import DropoutSeeds
from vimpac.train.parallel import averaging, parallelise
from vimpac_kernels import MaskedTokens, mask_tokens

METRICS = ("mask_loss", "mask_accuracy", "cl_loss")


class MaskedTokenModel(nn.Module):
    """What is made parallel as one module: everything but the contrastive head.

    Args:
        model: The model, whose encoder and token head become submodules.
        cls_of_whole: Whether [CLS] is that of a second pass, over the clips without masks.
    """

    def __init__(self, model: Vimpac, *, cls_of_whole: bool = False) -> None:
        super().__init__()
        self.encoder, self.token_head = model.encoder, model.token_head
        self._cls_of_whole = cls_of_whole

    def forward(
        self,
        inputs: Tensor,  # (B, T, H, W), masked
        labels: Tensor,  # (B, T, H, W), all ids
        positions: Tensor,  # (B*T*H*W,) int32, masked rows of the hidden states
        count: Tensor,  # 0-d int32
        max_masked: int | None,
        has_padding: bool,
        seed: Tensor,  # 0-d int64, of the dropout
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the token loss, its accuracy and the [CLS] vectors (B, D)."""
        # First, as it then draws from PyTorch's generator what the pass that caches [CLS] drew.
        whole = self._cls(labels, has_padding, seed) if self._cls_of_whole else None
        masked = choose_masked_rows(labels, positions=positions, count=count, max_masked=max_masked)
        tokens, cls = predict_masked(
            self.encoder, self.token_head, inputs, masked, has_padding=has_padding, seed=seed
        )
        cls = cls if whole is None else whole
        # A copy: FSDP2 hooks what it returns, and a view of the hidden states could lose the hook.
        return tokens.loss, tokens.accuracy, cls.clone()

    def encode(
        self,
        inputs: Tensor,  # (B, T, H, W)
        has_padding: bool,
        seed: Tensor | None,  # 0-d int64, of the dropout
    ) -> Tensor:
        """Returns the [CLS] vectors (B, D)."""
        return self._cls(inputs, has_padding, seed)

    def _cls(self, inputs: Tensor, has_padding: bool, seed: Tensor | None) -> Tensor:
        """As `encode`, which FSDP2 wraps: `forward` must not call that."""
        rows = cls_rows(inputs)
        return self.encoder(inputs, has_padding=has_padding, rows=rows, seed=seed)


class PretrainStep:
    """Accumulates the gradients of an update.

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
        self.group_part, self.micro = config.batch.on_rank(world.size)  # videos
        self._weight = model.loss_config.alpha / self.groups  # of a group's contrastive loss
        self._has_padding = has_padding
        model.encoder.activation_checkpointing = config.activation_checkpointing
        self._mask_config, self._cls_of_whole = config.mask, config.mask.contrast == "whole"
        if self._cls_of_whole and not config.loss.mask:  # one pass, which hides nothing
            self._mask_config, self._cls_of_whole = MaskConfig(strategy="iid", ratio=0.0), False
        self._module = MaskedTokenModel(model, cls_of_whole=self._cls_of_whole)
        head = model.contrastive_head
        self._forward = parallelise(
            self._module,
            config,
            world,
            layers=[*model.encoder.layers],
            apart=[] if head is None else [head],
            methods=["encode"],
        )
        self._mask_seed = torch.tensor(config.seed, dtype=torch.int64, device=world.device)
        self.seed = DropoutSeeds(model.encoder, config.seed, world.device)
        # Elsewhere it would wait for the device, and a compiled graph has one size.
        self._read_count = world.device.type == "cpu" and config.compile == "none"

    def gradients(
        self,
        groups: Iterable[Sequence[Tensor]],  # (micro, 2, T, H, W) each
        first_sample: int | Tensor,  # 0-d int64
    ) -> Tensor:
        """Adds the gradients of one update; see `vimpac.train.loop.Step`.

        Args:
            groups: This rank's micro-batches of each group, on the device.
            first_sample: Number of the first video, two clips each, among all of the run.

        Returns:
            The mean of `METRICS` over the groups, (3,) fp32 on the device.
        """
        metrics = torch.zeros(len(METRICS), device=self.world.device)
        for number, parts in enumerate(groups):
            first = 2 * (first_sample + number * self.config.batch.contrastive)
            metrics += self.group(parts, first, is_last=number + 1 == self.groups)
        return metrics / self.groups

    def group(
        self,
        parts: Sequence[Tensor],  # (micro, 2, T, H, W) each
        first_clip: int | Tensor,  # 0-d int64
        *,
        is_last: bool,
    ) -> Tensor:
        """Adds the gradients of one group.

        Args:
            parts: This rank's micro-batches of the group.
            first_clip: Number of the first clip, two to a video; a tensor is read on the device.
            is_last: Whether the update ends here, so that the ranks' gradients are averaged.

        Returns:
            `METRICS`, (3,) fp32 on the device.
        """
        clips = [first_clip + 2 * i * self.micro for i in range(len(parts))]
        tokens = [part.flatten(0, 1) for part in parts]
        masked = [self._mask(part, clip) for part, clip in zip(tokens, clips, strict=True)]
        counts = torch.stack([part.count for part in masked]).float()
        # So that the token loss is the mean over the group's masked tokens, however it is divided.
        shares = counts / self.world.mean(counts.mean()).clamp(min=1e-9)
        head = self.model.contrastive_head
        cached = head is not None and len(parts) > 1
        if cached:
            inputs = tokens if self._cls_of_whole else [part.inputs for part in masked]
            cl_loss, d_cls = self._contrast(inputs, clips)
        metrics = torch.zeros(len(METRICS), device=self.world.device)
        for i, (part, clip) in enumerate(zip(masked, clips, strict=True)):
            own_d_cls = d_cls[i] if cached else None
            with averaging(self._forward, is_last and i + 1 == len(clips)):
                metrics += self._learn(part, tokens[i], shares[i], self.seed(clip), own_d_cls)
        metrics /= len(parts)
        if cached:
            metrics[2] += cl_loss
        if is_last and head is not None and not isinstance(head, FSDPModule):
            self.world.average_(p.grad for p in head.parameters())
        return metrics

    def _mask(self, tokens: Tensor, clip: int | Tensor) -> MaskedTokens:
        """Masks clips (B, T, H, W) as the seed and the number of the clip say."""
        mask = self._mask_config
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

    def features(
        self,
        clips: Tensor,  # (B, T, H, W), on any device
        *,
        has_padding: bool,
    ) -> Tensor:  # (B, D), at least fp32
        """[CLS] of clips that are not masked; in evaluation mode nothing is drawn for it."""
        return self._encode(clips.to(self.world.device, non_blocking=True), None, has_padding)

    @torch.no_grad()
    def _encode(
        self,
        inputs: Tensor,  # (B, T, H, W)
        seed: Tensor | None,  # 0-d int64
        has_padding: bool,
    ) -> Tensor:
        """[CLS] of one micro-batch, (B, D), at least fp32."""
        with self.world.autocast(self.config.precision):
            cls = self._module.encode(inputs, has_padding, seed)
        return cls.to(torch.promote_types(cls.dtype, torch.float32))

    def _contrast(
        self, inputs: Sequence[Tensor], clips: Sequence[int | Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The contrastive loss of all micro-batches, 0-d, and its gradients d[CLS], (B, D) each."""
        parts = [
            self._encode(part, self.seed(clip), self._has_padding)
            for part, clip in zip(inputs, clips, strict=True)
        ]
        cls = torch.cat(parts).requires_grad_()
        loss = self._contrastive_loss(cls)
        (self._weight * loss).backward()
        assert cls.grad is not None
        return loss.detach(), cls.grad.split(len(parts[0]))

    def _learn(
        self,
        masked: MaskedTokens,
        tokens: Tensor,  # (B, T, H, W)
        share: Tensor,  # 0-d, masked tokens in here over those of a mean micro-batch
        seed: Tensor,  # 0-d int64
        d_cls: Tensor | None,  # (B, D); without it the contrastive loss is of this micro-batch
    ) -> Tensor:
        """Adds the gradients of one micro-batch; returns `METRICS`, (3,)."""
        bound = None if self._read_count else max_masked(self._mask_config, tuple(tokens.shape))
        with self.world.autocast(self.config.precision):
            loss, accuracy, cls = self._forward(
                masked.inputs,
                tokens,
                masked.positions,
                masked.count,
                bound,
                self._has_padding,
                seed,
            )
        loss, accuracy, cl_loss = share * loss, share * accuracy, torch.zeros_like(loss)
        parts = self.groups * (self.group_part // self.micro)
        total = self.model.loss_config.mask * loss / parts
        if d_cls is not None:
            total = total + (cls * d_cls).sum()
        elif self.model.contrastive_head is not None:
            cl_loss = self._contrastive_loss(cls)
            total = total + self._weight * cl_loss
        total.backward()
        return torch.stack((loss.detach(), accuracy.detach(), cl_loss.detach()))

    def _contrastive_loss(
        self,
        cls: Tensor,  # (2 * videos, D), the two clips of a video side by side
    ) -> Tensor:
        """The loss of this rank's clips against the group's clips of all ranks."""
        views = cls.unflatten(0, (-1, 2)).transpose(0, 1)  # (2, videos, D)
        with self.world.autocast(self.config.precision):
            return self.model.contrastive_loss(views.flatten(0, 1))


def max_masked(mask: MaskConfig, shape: tuple[int, ...]) -> int:
    """A bound on the masked tokens of clips (B, T, H, W) that the host knows beforehand."""
    clips, *grid = shape
    # Six deviations of the mean over the clips, as a clip's share varies by about 0.1.
    share = expected_ratio(mask, (grid[0], grid[1], grid[2])) + 0.6 * clips**-0.5
    return math.ceil(min(share, 1.0) * math.prod(shape))


def expected_ratio(mask: MaskConfig, grid: tuple[int, int, int]) -> float:
    """The mean share of masked tokens; for blocks, as if every place were equally likely."""
    if mask.strategy != "block":
        return mask.ratio
    T, H, W = grid
    longest = max(1, 2 * T // 3), max(1, H // 2), max(1, W // 2)
    box = math.prod((1 + m) / (2 * size) for m, size in zip(longest, grid, strict=True))
    return 1 - (1 - box) ** mask.blocks
