"""The gradients of one update of two encoders: contrast over a group of pairs.

As in `vimpac.simvtp.step`, a group that is held in micro-batches runs twice: without gradients for
the features of all, and again for the backward passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vimpac.data.random import DROP_PATH, DROPOUT, share_of, words
from vimpac.simvtp.dual import DualEncoder
from vimpac.simvtp.group_contrast import group_contrast
from vimpac.simvtp.run_config import SimVTPFinetuneConfig
from vimpac.train.distributed import World
from vimpac.train.parallel import averaging, parallelise

METRICS = ("contrastive_loss",)


class DualStep:
    """Accumulates the gradients of an update.

    Args:
        model: On its device.
        config: The run's configuration.
        pad: The id of padding.
        world: The processes.
    """

    def __init__(
        self, model: DualEncoder, config: SimVTPFinetuneConfig, pad: int, world: World
    ) -> None:
        self.model, self.config, self.pad, self.world = model, config, pad, world
        self.groups = config.batch.videos // config.batch.contrastive
        self.group_part, self.micro = config.batch.on_rank(world.size)  # pairs
        halves = model.video, model.text
        for half in halves:
            half.recompute = config.activation_checkpointing
        self._forward = parallelise(
            model,
            config,
            world,
            layers=[layer for half in halves for layer in half.layers],
            kept=[half.layers[-1] for half in halves],  # of the LayerNorm of a mean row
            methods=["embed_video", "embed_text"],
        )
        key = torch.from_numpy(words(DROPOUT, config.seed, 0, 1).view("int64"))
        self._dropout_seed = key[0].to(world.device)

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
            The mean of `METRICS` over the groups, (1,) fp32 on the device.
        """
        total = torch.zeros(1, device=self.world.device)
        for number, parts in enumerate(groups):
            first = int(first_sample) + number * self.config.batch.contrastive
            total += self._group(parts, first, is_last=number + 1 == self.groups)
        return total / self.groups

    def _group(
        self, parts: Sequence[Sequence[Tensor]], first: int, *, is_last: bool
    ) -> Tensor:  # 0-d
        """Adds the gradients of one group, whose first sample on this rank is `first`."""
        samples = [first + i * self.micro for i in range(len(parts))]
        loss, gradients = torch.zeros((), device=self.world.device), None
        if len(parts) > 1:
            with torch.no_grad():
                found = [self._run(*pair) for pair in zip(parts, samples, strict=True)]
            videos, texts = zip(*found, strict=True)
            loss, gradients = self._contrast(torch.cat(videos), torch.cat(texts))
        for i, (part, sample) in enumerate(zip(parts, samples, strict=True)):
            rows = slice(i * self.micro, (i + 1) * self.micro)
            with averaging(self._forward, is_last and i + 1 == len(parts)):
                video, text = self._run(part, sample)
                if gradients is None:
                    loss, gradients = self._contrast(video, text)
                torch.autograd.backward((video, text), [g[rows] for g in gradients])
        return loss

    def _run(self, part: Sequence[Tensor], sample: int) -> tuple[Tensor, Tensor]:
        """The features of a micro-batch, (micro, D) each, at least fp32."""
        video, ids = part[0], part[1]
        with self.world.autocast(self.config.precision):
            seen, read = self._forward(
                video, ids, ids != self.pad, self._dropout_seed + sample, self._scales(sample)
            )
        dtype = torch.promote_types(seen.dtype, torch.float32)
        return seen.to(dtype), read.to(dtype)

    def _scales(self, sample: int) -> Tensor | None:  # (2, layers, 2, micro)
        """1 / keep for samples that a branch reaches, 0 for the others: rarer in lower layers."""
        if not self.config.drop_path:
            return None
        layers = self.model.config.layers
        rows = [
            [share_of(word) for word in words(DROP_PATH, self.config.seed, sample + i, 4 * layers)]
            for i in range(self.micro)
        ]
        drawn = torch.tensor(rows).T.reshape(2, layers, 2, self.micro)
        keep = 1 - self.config.drop_path * torch.arange(layers) / max(layers - 1, 1)
        keep = keep[:, None, None]
        return ((drawn < keep) / keep).to(self.world.device)

    def _contrast(self, video: Tensor, text: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        temperature, weight = self.config.temperature, 1 / self.groups
        return group_contrast(video, text, temperature, weight, self.world)
