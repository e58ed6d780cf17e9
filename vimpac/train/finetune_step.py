"""The gradients of one update of a classifier: the mean cross-entropy over the clips of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac.checkpoints.model_dir import Classifier
from vimpac.config import FinetuneConfig
from vimpac.train.cutmix import CutMix
from vimpac.train.distributed import World
from vimpac.train.dropout_seeds import DropoutSeeds
from vimpac.train.parallel import averaging, parallelise

METRICS = ("loss", "accuracy")


class FinetuneStep:
    """Accumulates the gradients of an update, whose videos are one group.

    Args:
        model: On its device.
        config: The run's configuration.
        world: The processes.
        has_padding: Whether a clip can hold PAD.
    """

    groups = 1

    def __init__(
        self, model: Classifier, config: FinetuneConfig, world: World, *, has_padding: bool
    ) -> None:
        self.model, self.config, self.world = model, config, world
        self.group_part, self.micro = config.batch.on_rank(world.size)
        self._has_padding = has_padding
        model.encoder.activation_checkpointing = config.activation_checkpointing
        model.encoder.drop_path = config.drop_path
        self._forward = parallelise(model, config, world, layers=[*model.encoder.layers])
        self._cutmix: CutMix | None = None
        if config.cutmix:
            num_classes = model.classifier.out_features
            self._cutmix = CutMix(
                config.cutmix, num_classes, config.seed, world.device, config.clips.repeat
            )
        self.seed = DropoutSeeds(model.encoder, config.seed, world.device)

    def gradients(
        self,
        groups: Iterable[Sequence[tuple[Tensor, Tensor]]],  # ((micro, T, H, W), (micro,)) each
        first_sample: int | Tensor,  # 0-d int64
    ) -> Tensor:
        """Adds the gradients of one update; see `vimpac.train.system.Step`.

        The accuracy of clips that are mixed is that of guessing what most of a clip shows.
        """
        metrics = torch.zeros(len(METRICS), device=self.world.device)
        (parts,) = groups
        for i, (clips, classes) in enumerate(parts):
            number = first_sample + i * self.micro
            seed, targets = self.seed(number), classes
            if self._cutmix is not None:
                clips, targets = self._cutmix(clips, classes, number)
                classes = targets.argmax(-1)
            with averaging(self._forward, i + 1 == len(parts)):
                logits = self.logits(clips, seed)
                loss = F.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)
                (loss / len(parts)).backward()
            right = (logits.argmax(-1) == classes).float().mean()
            metrics += torch.stack((loss.detach(), right))
        return metrics / len(parts)

    def logits(
        self,
        clips: Tensor,  # (B, T, H, W), on any device
        seed: Tensor | None = None,  # 0-d int64, of the dropout
    ) -> Tensor:  # (B, classes) fp32
        """The logits of clips, in the run's precision."""
        clips = clips.to(self.world.device, non_blocking=True)
        with self.world.autocast(self.config.precision):
            return self._forward(clips, has_padding=self._has_padding, seed=seed)
