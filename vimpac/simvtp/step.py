"""The gradients of one update: contrast over a group of pairs, held in memory by micro-batches.

A group is `batch.contrastive` pairs, over all ranks: every text is told from all other videos of
it, and shown beside one of them as a mismatch. When a group does not fit at once, its gradients
are computed in three passes, as if it did:

1. videos and texts run alone, without gradients, over every micro-batch, and their means are kept;
2. the contrastive loss of all of them gives the gradients of the means;
3. each micro-batch runs again, with all passes and the same dropout, and its backward pass starts
   from the other losses and from those gradients.

Which tubelets and words are masked follows from the number of a sample, on the device, and so does
the mismatch. With vtm.negatives=hard it follows from the means: step 1 is always taken then, and
the host waits for the similarities.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimpac.simvtp.group_contrast import gather_rows, group_contrast
from vimpac.simvtp.masking import Masker, Prepared
from vimpac.simvtp.mismatches import hard_mismatches, random_mismatches, take_rows
from vimpac.simvtp.model import SimVTP
from vimpac.simvtp.objective import MaskedWords
from vimpac.simvtp.run_config import SimVTPConfig
from vimpac.simvtp.text import SpecialTokens
from vimpac.train.distributed import World
from vimpac.train.parallel import averaging, parallelise

METRICS = (
    "pixel_loss",
    "word_loss",
    "word_accuracy",
    "contrastive_loss",
    "match_loss",
    "match_accuracy",
)


class PairModel(nn.Module):
    """What is made parallel as one module: all of the model, from pixels and ids."""

    def __init__(self, model: SimVTP) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        video: Tensor,  # (B, T, S, S, 3) uint8
        visible: Tensor,  # (B, V) int32
        other: tuple[Tensor, Tensor] | None,  # the same of the mismatches
        masked: Tensor,  # (B, M) int32
        masked_ids: Tensor,  # (B, L)
        attention: Tensor,  # (B, L) bool
        masked_words: MaskedWords,
        whole_ids: Tensor | None,  # (B, L)
        seed: Tensor,  # 0-d int64
    ) -> tuple[Any, ...]:
        """The fields of `Passes` but the predicted pixels."""
        embed = self.model.encoder.tubelets
        others = None if other is None else embed(*other)
        found = self.model.passes(
            video,
            embed(video, visible),
            others,
            visible,
            masked,
            masked_ids,
            attention,
            masked_words,
            whole_ids,
            seed,
        )
        return (
            found.pixel_loss,
            found.word_loss,
            found.word_accuracy,
            found.match_loss,
            found.match_accuracy,
            found.video,
            found.text,
        )

    def features(
        self, video: Tensor, visible: Tensor, ids: Tensor, attention: Tensor, seed: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `SimVTP.features`, from pixels."""
        tubelets = self.model.encoder.tubelets(video, visible)
        return self.model.features(tubelets, ids, attention, seed)

    def embed_video(self, video: Tensor) -> Tensor:
        """As `SimVTP.embed_video`."""
        return self.model.embed_video(video)

    def embed_text(self, ids: Tensor, attention: Tensor) -> Tensor:
        """As `SimVTP.embed_text`."""
        return self.model.embed_text(ids, attention)


class PairStep:
    """Accumulates the gradients of an update.

    Args:
        model: On its device.
        config: The run's configuration.
        special: Ids that are no words.
        world: The processes.

    Attributes:
        embedder: Computes the features of videos and of texts.
    """

    def __init__(
        self, model: SimVTP, config: SimVTPConfig, special: SpecialTokens, world: World
    ) -> None:
        self.model, self.config, self.world = model, config, world
        self.groups = config.batch.videos // config.batch.contrastive
        self.group_part, self.micro = config.batch.on_rank(world.size)  # pairs
        halves = model.encoder.transformer, model.decoder.transformer
        for half in halves:
            half.recompute = config.activation_checkpointing
        self.embedder = PairModel(model)
        self._forward = parallelise(
            self.embedder,
            config,
            world,
            layers=[layer for half in halves for layer in half.layers],
            kept=[model.encoder.transformer.layers[-1]],  # of the LayerNorm of a mean row
            methods=["features", "embed_video", "embed_text"],
        )
        self.mask = Masker(config, special, world.device)

    def gradients(
        self,
        groups: Iterable[Sequence[Sequence[Tensor]]],  # videos, ids and more of each micro-batch
        first_sample: int | Tensor,
    ) -> Tensor:
        """Adds the gradients of one update; see `vimpac.train.system.Step`.

        Args:
            groups: This rank's micro-batches of each group: (video (micro, T, S, S, 3) uint8, ids
                (micro, L), ...).
            first_sample: Number of this rank's first pair among all of the run.

        Returns:
            The means of `METRICS` over the groups, (6,) fp32 on the device.
        """
        metrics = torch.zeros(len(METRICS), device=self.world.device)
        first = int(first_sample) - self.world.rank * self.group_part
        for number, parts in enumerate(groups):
            sample = first + number * self.config.batch.contrastive
            metrics += self.group(parts, sample, is_last=number + 1 == self.groups)
        return metrics / self.groups

    def group(
        self,
        parts: Sequence[Sequence[Tensor]],
        first: int,
        *,
        is_last: bool,
    ) -> Tensor:
        """Adds the gradients of one group.

        Args:
            parts: This rank's micro-batches of the group.
            first: Number of the group's first pair, on any rank.
            is_last: Whether the update ends here, so that the ranks' gradients are averaged.

        Returns:
            `METRICS`, (6,) fp32 on the device.
        """
        begin = self.world.rank * self.group_part
        samples = [first + begin + i * self.micro for i in range(len(parts))]
        ready = [
            self.mask(part[0], part[1], sample) for part, sample in zip(parts, samples, strict=True)
        ]
        counts = torch.stack([part.words.count for part in ready]).float()
        # So that the word loss is the mean over the group's masked words, however it is divided.
        shares = counts / self.world.mean(counts.mean()).clamp(min=1e-9)
        contrast, gradients, means = torch.zeros((), device=self.world.device), None, None
        loss, hard = self.config.loss, self.config.vtm.negatives == "hard"
        if loss.contrast and (len(parts) > 1 or hard):
            means = self._means(ready)
            contrast, gradients = self._contrast(*means)
        others = self._others(ready, first, begin, means if hard else None)
        metrics = torch.zeros(len(METRICS), device=self.world.device)
        for i, (part, other) in enumerate(zip(ready, others, strict=True)):
            rows = slice(i * self.micro, (i + 1) * self.micro)
            own = None if gradients is None else tuple(g[rows] for g in gradients)
            with averaging(self._forward, is_last and i + 1 == len(ready)):
                metrics += self._learn(part, other, shares[i], own)
        metrics /= len(ready)
        if gradients is not None:
            metrics[3] += contrast
        return metrics

    @torch.no_grad()
    def _means(self, ready: Sequence[Prepared]) -> tuple[Tensor, Tensor]:
        """Of all of this rank's videos and texts, (part, D) each."""
        with self.world.autocast(self.config.precision):
            found = [
                self.embedder.features(p.video, p.visible, p.contrast_ids, p.attention, p.seed)
                for p in ready
            ]
        videos, texts = zip(*found, strict=True)
        return torch.cat(videos), torch.cat(texts)

    def _contrast(self, video: Tensor, text: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The contrastive loss of the group, and what its backward begins with on this rank."""
        loss = self.config.loss
        return group_contrast(
            video, text, loss.temperature, loss.contrast / self.groups, self.world
        )

    def _others(
        self,
        ready: Sequence[Prepared],
        first: int,
        begin: int,
        means: tuple[Tensor, Tensor] | None,
    ) -> list[tuple[Tensor, Tensor] | None]:
        """Pixels and visible tubelets of the mismatches of each micro-batch."""
        if not self.config.loss.match:
            return [None] * len(ready)
        seed, group = self.config.seed, self.config.batch.contrastive
        if means is None:
            wanted = random_mismatches(seed, first, group, begin, self.group_part)
        else:
            video, text = gather_rows(means[0], self.world), means[1]
            scores = F.normalize(text, dim=-1) @ F.normalize(video, dim=-1).T
            wanted = hard_mismatches(scores / self.config.loss.temperature, seed, first, begin)
        videos = take_rows(torch.cat([part.video for part in ready]), wanted, self.world)
        visible = take_rows(torch.cat([part.visible for part in ready]), wanted, self.world)
        return [*zip(videos.split(self.micro), visible.split(self.micro), strict=True)]

    def _learn(
        self,
        part: Prepared,
        other: tuple[Tensor, Tensor] | None,
        share: Tensor,  # 0-d, masked words in here over those of a mean micro-batch
        gradients: tuple[Tensor, ...] | None,  # of the means, if they are known already
    ) -> Tensor:
        """Adds the gradients of one micro-batch; returns `METRICS`, (6,)."""
        with self.world.autocast(self.config.precision):
            pixels, word, accuracy, match, right, video, text = self._forward(
                part.video,
                part.visible,
                other,
                part.masked,
                part.masked_ids,
                part.attention,
                part.words,
                part.whole_ids,
                part.seed,
            )
        loss, contrast = self.config.loss, torch.zeros_like(pixels)
        word, accuracy = share * word, share * accuracy
        total = loss.pixels * pixels + loss.words * word + loss.match * match
        total = total / (self.groups * (self.group_part // self.micro))
        if loss.contrast:
            if gradients is None:
                contrast, gradients = self._contrast(video, text)
            total = total + (video * gradients[0]).sum() + (text * gradients[1]).sum()
        total.backward()
        return torch.stack([x.detach() for x in (pixels, word, accuracy, contrast, match, right)])
