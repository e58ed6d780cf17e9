"""Pre-trains SimVTP on captioned videos.

    vimpac simvtp pretrain --config tiny data=captions.csv videos=videos/ out=runs/tiny
    vimpac simvtp pretrain --config tiny data=captions.csv videos=videos/ out=runs/tiny --resume auto
    torchrun --nproc-per-node 8 -m vimpac simvtp pretrain --config base data=webvid.csv ...

The order of the videos is a function of (seed, epoch); clips, captions, masks, mismatches and
dropout of (seed, sample).
"""  # noqa: E501 a command is one line

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from vimpac.checkpoints.training_state import Checkpoint
from vimpac.data.sampler import ResumableSampler
from vimpac.simvtp.clips import PretrainingClip
from vimpac.simvtp.description import SimVTPDescription
from vimpac.simvtp.initial import fill_from
from vimpac.simvtp.model import SimVTP
from vimpac.simvtp.pairs import (
    CaptionedVideos,
    PairDataset,
    caption_warnings,
    open_parts,
    open_words,
    pick_part,
)
from vimpac.simvtp.recall_test import RecallTest, require_test
from vimpac.simvtp.run_config import SimVTPConfig
from vimpac.simvtp.step import METRICS, PairStep
from vimpac.train.distributed import World, join_world
from vimpac.train.loader import make_loader
from vimpac.train.loop import Loop, Result
from vimpac.train.optim import with_lr
from vimpac.train.resume import choose_checkpoint


def pretrain(
    config: SimVTPConfig,
    *,
    resume: str = "none",
    stop: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> Result:
    """Runs a pre-training from its beginning or from a checkpoint to its end.

    Args:
        config: The run.
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
        config = with_lr(config, config.model.width)
        return Loop(SimVTPPretraining(config, parts, world), config, world, path).run(stop, quiet)


class SimVTPPretraining:
    """SimVTP and captioned videos, as `vimpac.train.system.System`.

    Args:
        config: The run.
        parts: The videos, as `open_parts` has them.
        world: The processes.
    """

    metrics: Sequence[str] = METRICS

    def __init__(
        self, config: SimVTPConfig, parts: Mapping[str, CaptionedVideos], world: World
    ) -> None:
        self.pairs = pairs = pick_part(parts, "train", config.data)
        require_test(config.run, parts, config.data)
        self.world = world
        self.words = open_words(config.vocab, pairs.captions)
        network = dataclasses.replace(config.model, vocabulary=self.words.size)
        self.config = dataclasses.replace(config, model=network)
        torch.manual_seed(config.seed)  # the same initial parameters on every rank
        text = dataclasses.replace(config.text, padding=self.words.special.pad)
        model = SimVTP(network, text, config.loss)
        self._notes = [*fill_from(model, self.words, config.init, config.init_text)]
        model.freeze_unused()
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
        _, micro = batch.on_rank(world.size)
        self._test = RecallTest(
            parts,
            self.words,
            network,
            step=config.clips.step,
            length=config.text.length,
            batch=micro,
            workers=config.clips.workers,
            out=config.out,
            precision=config.precision,
            world=world,
        )
        self._step: PairStep | None = None
        self.loader = make_loader(
            PairDataset(
                pairs,
                self.words,
                PretrainingClip(network.frames, network.size, config.clips.step),
                length=config.text.length,
                seed=config.seed,
                out=config.out,
            ),
            self.sampler,
            micro,
            workers=config.clips.workers,
            prefetch=config.clips.prefetch,
            device=world.device,
        )

    def describe(self) -> SimVTPDescription:
        """See `System`."""
        words = json.loads(self.words.to_json())
        return SimVTPDescription.of(
            self.model,
            frame_step=self.config.clips.step,
            masked_cells=self.config.mask.masked_cells(self.config.model.cells),
            words=words,
        )

    def restore(self, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer | None) -> None:
        """See `System`."""
        was = checkpoint.description
        if not isinstance(was, SimVTPDescription) or was.kind != "simvtp":
            raise ValueError(f"it holds a {was.kind}, no pre-trained model of SimVTP")
        for field in dataclasses.fields(was.config):
            values = [getattr(config, field.name) for config in (was.config, self.model.config)]
            if values[0] != values[1] and field.name != "name":
                raise ValueError(f"its model.{field.name} is {values[0]}, not {values[1]}")
        self.model.load_state_dict(checkpoint.tensors)

    def make_step(self) -> PairStep:
        """See `System`."""
        self._step = PairStep(self.model, self.config, self.words.special, self.world)
        return self._step

    def headline(self) -> str:
        """See `System`."""
        parameters = sum(p.numel() for p in self.model.parameters())
        grid = "x".join(map(str, self.model.config.grid))
        return (
            f"SimVTP {self.model.config.name}, {parameters:,} parameters, grid {grid}, "
            f"{len(self.pairs)} videos, {len(self.pairs.captions)} captions, "
            f"{self.words.size} words"
        )

    def warnings(self) -> Iterator[str]:
        """See `System`."""
        yield from self.pairs.notes
        yield from self._notes
        yield from self._test.warnings()
        videos, rivals = len(self.pairs), self.config.batch.contrastive
        if videos < rivals:
            yield (
                f"batch.contrastive={rivals} of {videos} videos tells a video from itself: lower "
                "it, or give more videos"
            )
        yield from caption_warnings(self.words, self.pairs.captions, self.config.text.length)

    def total_loss(self, means: dict[str, float]) -> float:
        """See `System`."""
        return self.config.loss.total(
            means["pixel_loss"],
            means["word_loss"],
            means["contrastive_loss"],
            means["match_loss"],
        )

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """How well the captions of val, and at the end of test, find their videos."""
        assert self._step is not None
        return self._test(self.model, self._step.embedder, final=final)
