"""Pre-trains VIMPAC on a token store.

    vimpac tokenize videos/ --out store
    vimpac pretrain --config small data=store out=runs/small
    vimpac pretrain --config small data=store out=runs/small --resume auto
    torchrun --nproc-per-node 8 -m vimpac pretrain --config large_half data=store out=runs/large

The order of the videos is a function of (seed, epoch), clips of (seed, sample), masks and dropout
of (seed, clip).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from vimpac.checkpoints.model_dir import DataFacts, ModelDescription
from vimpac.checkpoints.training_state import Checkpoint
from vimpac.config import PretrainConfig
from vimpac.data.clips import stand_ins
from vimpac.data.fetch_ahead import fetch_ahead
from vimpac.data.joined_store import Store
from vimpac.data.sampler import ResumableSampler
from vimpac.model.config import check_same_network
from vimpac.model.pretraining import Vimpac
from vimpac.train.batches import (
    clip_pairs,
    damage_warning,
    damaged_videos,
    make_shares,
    make_windows,
    open_store,
    padding_warning,
    with_stride,
)
from vimpac.train.distributed import World, join_world
from vimpac.train.loader import make_loader
from vimpac.train.loop import Loop, Result
from vimpac.train.neighbour_test import NeighbourTest
from vimpac.train.optim import with_lr
from vimpac.train.pretrain_step import METRICS, PretrainStep, expected_ratio
from vimpac.train.resume import choose_checkpoint
from vimpac.train.same_videos import check_same_videos, source_of


def pretrain(
    config: PretrainConfig,
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
        UsageError: The configuration does not fit the store, the machine or the checkpoint.
        Interrupted: SIGTERM or SIGINT came; a checkpoint was written after the step in hand.
        VimpacError: The loss is not finite, a file is damaged, or another process was lost.
    """
    config.check()
    store = open_store(config.data, config.clips.variant, cache=config.shard_cache)
    with join_world(config.device, config.run.timeout) as world:
        config.check(world.size, world.device.type)
        path = choose_checkpoint(resume, Path(config.out), world)
        config = with_lr(config, config.model.width)
        return Loop(Pretraining(config, store, world), config, world, path).run(stop, quiet)


class Pretraining:
    """VIMPAC and the videos of a store, as `vimpac.train.loop.System`.

    Args:
        config: The run.
        store: The videos.
        world: The processes.
    """

    metrics: Sequence[str] = METRICS

    def __init__(self, config: PretrainConfig, store: Store, world: World) -> None:
        config = with_stride(config, store)
        self.config, self.store, self.world = config, store, world
        self.grid = (config.clips.frames, store.meta.height, store.meta.width)
        torch.manual_seed(config.seed)  # the same initial parameters on every rank
        network = dataclasses.replace(config.model, grid=self.grid)
        self.model = Vimpac(network, config.loss).to(world.device)
        batch = config.batch
        windows = make_windows(store, config)
        self.sampler = ResumableSampler(
            len(store),
            global_batch=batch.contrastive,
            rank=world.rank,
            world_size=world.size,
            seed=config.seed,
            shares=make_shares(store, config.data_weights),
            windows=windows,
            source=source_of(store),
        )
        epoch_steps = self.sampler.epoch_size / batch.videos
        self.steps = config.optim.steps or math.ceil(config.optim.epochs * epoch_steps)
        every = config.run.knn_every
        self.evaluate_every = 0 if every is None else max(1, round(every * epoch_steps))
        self._neighbours = None if every is None else NeighbourTest(config, store, world)
        self._step: PretrainStep | None = None
        self.damaged = damaged_videos(store, config.clips)
        pairs = clip_pairs(store, config, stand_ins(len(store), self.damaged))
        _, micro = batch.on_rank(world.size)
        self.loader = make_loader(
            pairs,
            fetch_ahead(self.sampler, store, windows),
            micro,
            workers=config.clips.workers,
            prefetch=config.clips.prefetch,
            device=world.device,
        )

    def describe(self) -> ModelDescription:
        """See `System`."""
        data = DataFacts.of(self.store.meta, self.config.clips.frame_stride)
        return ModelDescription.of(self.model, data=data)

    def restore(self, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer | None) -> None:
        """Loads a checkpoint; positions of another grid, and their moments, are interpolated."""
        check_same_videos(checkpoint.state["sampler"].get("source", {}), self.store)
        was = checkpoint.description
        if not isinstance(was, ModelDescription) or was.kind != "vimpac":
            raise ValueError(f"it holds a {was.kind}")
        check_same_network(was.config, self.model.config)
        self.model.resize_grid(was.config.grid)
        self.model.load_state_dict(checkpoint.tensors)
        self.model.resize_grid(self.grid, optimizer)

    def make_step(self) -> PretrainStep:
        """See `System`."""
        has_padding = int(self.store.frames.min()) < self.config.clips.span
        self._step = PretrainStep(self.model, self.config, self.world, has_padding=has_padding)
        return self._step

    def headline(self) -> str:
        """See `System`."""
        parameters = sum(p.numel() for p in self.model.parameters())
        weights = self.config.data_weights
        drawn = "" if weights is None else f", {self.sampler.epoch_size} drawn in an epoch"
        return (
            f"{self.config.model.name} {self.config.model.layout}, {parameters:,} parameters, "
            f"grid {'x'.join(map(str, self.grid))}, {len(self.store)} videos{drawn}"
        )

    def warnings(self) -> Iterator[str]:
        """See `System`."""
        videos, rivals = len(self.store), self.config.batch.contrastive
        if self.config.loss.alpha and videos < rivals:
            yield (
                f"batch.contrastive={rivals} of {videos} videos tells clips of one video apart: "
                "lower it, or give more videos"
            )
        if self.config.loss.alpha and rivals == 1:
            yield "batch.contrastive=1 has no other video to tell a clip from: raise it"
        hidden = expected_ratio(self.config.mask, self.grid) * math.prod(self.grid)
        if self.config.loss.mask and hidden < 1:
            yield f"masks hide {hidden:.2g} tokens of a clip on average: raise mask.ratio"
        if self._neighbours is not None:
            yield from self._neighbours.warnings()
        yield from padding_warning(self.store, self.config.clips)
        yield from damage_warning(self.store, self.damaged)

    def total_loss(self, means: dict[str, float]) -> float:
        """See `System`."""
        return self.config.loss.total(means["mask_loss"], means["cl_loss"])

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """The accuracy of the nearest neighbours, if it is asked for."""
        if self._neighbours is None:
            return {}
        step = self._step or self.make_step()
        self.model.eval()
        found = self._neighbours(step.features, self.model.config.width)
        self.model.train()
        return found
