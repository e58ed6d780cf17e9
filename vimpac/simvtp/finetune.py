"""Fine-tunes a pre-trained SimVTP to search videos by text.

vimpac simvtp finetune CHECKPOINT --config msrvtt data=MSRVTT split=1k-A videos=videos/ out=runs/a
vimpac simvtp retrieve runs/a/checkpoints/step-... --data MSRVTT --split 1k-A --videos videos/
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from vimpac.checkpoints.training_state import Checkpoint
from vimpac.data.sampler import ResumableSampler
from vimpac.errors import UsageError
from vimpac.simvtp.clips import FinetuningClip
from vimpac.simvtp.description import SimVTPDescription, read_simvtp, read_words
from vimpac.simvtp.dual import DualEncoder
from vimpac.simvtp.dual_step import METRICS, DualStep
from vimpac.simvtp.pairs import (
    CaptionedVideos,
    PairDataset,
    caption_warnings,
    open_parts,
    pick_part,
)
from vimpac.simvtp.recall_test import RecallTest, require_test
from vimpac.simvtp.run_config import SimVTPFinetuneConfig
from vimpac.train.distributed import World, join_world
from vimpac.train.loader import make_loader
from vimpac.train.loop import Loop, Result
from vimpac.train.optim import with_lr
from vimpac.train.resume import choose_checkpoint


def finetune(
    config: SimVTPFinetuneConfig,
    start: str | Path,
    *,
    resume: str = "none",
    stop: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> Result:
    """Runs a fine-tuning from its beginning or from a checkpoint to its end.

    Args:
        config: The run.
        start: The pre-trained model's directory.
        resume: "none", "auto" (the newest checkpoint, if any) or a checkpoint's directory.
        stop: Asked after every step; true ends the run early, with a checkpoint.
        quiet: Print nothing.

    Returns:
        Where the results are.

    Raises:
        UsageError: The configuration does not fit the data, the machine or the checkpoint.
        Interrupted: SIGTERM or SIGINT came; a checkpoint was written after the step in hand.
        VimpacError: The loss is not finite, a file is damaged, or another process was lost.
    """
    config.check()
    parts = open_parts(config.data, config.videos, split=config.split, missing=config.missing)
    with join_world(config.device, config.run.timeout) as world:
        config.check(world.size, world.device.type)
        path = choose_checkpoint(resume, Path(config.out), world)
        system = DualFinetuning(with_lr(config, 0), parts, Path(start), world)
        return Loop(system, system.config, world, path).run(stop, quiet)


class DualFinetuning:
    """Two encoders and captioned videos, as `vimpac.train.system.System`.

    Args:
        config: The run.
        parts: The videos, as `open_parts` has them.
        start: The pre-trained model's directory.
        world: The processes.

    Raises:
        UsageError: The directory holds no pre-trained model with words.
    """

    metrics: Sequence[str] = METRICS

    def __init__(
        self,
        config: SimVTPFinetuneConfig,
        parts: Mapping[str, CaptionedVideos],
        start: Path,
        world: World,
    ) -> None:
        self.pairs = pairs = pick_part(parts, "train", config.data)
        require_test(config.run, parts, config.data)
        self.config, self.world = config, world
        pretrained, self._from = read_simvtp(start)
        self.words = read_words(self._from, start)
        text = dataclasses.replace(
            pretrained.text_config,
            length=config.text.length,
            dropout=config.text.dropout,
            pool=config.text.pool or pretrained.text_config.pool,
        )
        network = pretrained.config
        if text.length > network.text_positions:
            raise UsageError(
                f"text.length={text.length} is more than the {network.text_positions} positions of "
                "the model: lower it"
            )
        torch.manual_seed(config.seed)
        model = DualEncoder.of(pretrained, fresh_norm=config.fresh_norm)
        model.text_config, model.words.dropout = text, text.dropout
        model.loss_config = dataclasses.replace(model.loss_config, temperature=config.temperature)
        self.model = model.to(world.device)
        batch = config.batch
        self.sampler = ResumableSampler(
            len(pairs),
            global_batch=batch.contrastive,
            rank=world.rank,
            world_size=world.size,
            seed=config.seed,
        )
        epoch_steps = len(pairs) / batch.videos
        self.steps = config.optim.steps or math.ceil(config.optim.epochs * epoch_steps)
        self.evaluate_every = config.run.evaluate_steps(epoch_steps)
        clips, (_, micro) = config.clips, batch.on_rank(world.size)
        self._test = RecallTest(
            parts,
            self.words,
            network,
            step=self._from.frame_step or 1,
            length=text.length,
            batch=micro,
            workers=clips.workers,
            out=config.out,
            precision=config.precision,
            world=world,
        )
        self.loader = make_loader(
            PairDataset(
                pairs,
                self.words,
                FinetuningClip(network.frames, network.size, clips),
                length=text.length,
                seed=config.seed,
                out=config.out,
            ),
            self.sampler,
            micro,
            workers=clips.workers,
            prefetch=clips.prefetch,
            device=world.device,
        )

    def describe(self) -> SimVTPDescription:
        """See `System`."""
        return SimVTPDescription.of(
            self.model, frame_step=self._from.frame_step, words=self._from.words
        )

    def restore(self, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer | None) -> None:
        """See `System`."""
        was = checkpoint.description
        if not isinstance(was, SimVTPDescription) or was.kind != "simvtp_dual":
            raise ValueError(f"it holds a {was.kind}, no fine-tuned model of SimVTP")
        if was.config != self.model.config:
            raise ValueError("its network has other sizes")
        if was.text.pool != self.model.text_config.pool:
            raise ValueError(f"its text.pool is {was.text.pool}, not {self.model.text_config.pool}")
        self.model.load_state_dict(checkpoint.tensors)

    def make_step(self) -> DualStep:
        """See `System`."""
        return DualStep(self.model, self.config, self.words.special.pad, self.world)

    def headline(self) -> str:
        """See `System`."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return (
            f"SimVTP {self.model.config.name}, two encoders, {parameters:,} parameters, "
            f"{len(self.pairs)} videos, {len(self.pairs.captions)} captions"
        )

    def warnings(self) -> Iterator[str]:
        """See `System`."""
        yield from self.pairs.notes
        yield from self._test.warnings()
        unknown, captions = self.words.special.unk, self.pairs.captions
        lacking = sum(unknown in ids for ids in self.words.word_ids(captions))
        if lacking:
            yield f"{lacking} of {len(captions)} captions have words that the model does not know"
        yield from caption_warnings(self.words, captions, self.config.text.length)
        if len(self.pairs) < self.config.batch.contrastive:
            yield (
                f"batch.contrastive={self.config.batch.contrastive} of {len(self.pairs)} videos "
                "tells a video from itself: lower it, or give more videos"
            )

    def total_loss(self, means: dict[str, float]) -> float:
        """See `System`."""
        return means["contrastive_loss"]

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """How well the captions of val, and at the end of test, find their videos."""
        return self._test(self.model, self.model, final=final)
