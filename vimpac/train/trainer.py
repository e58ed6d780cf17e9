"""Pre-trains VIMPAC on a token store.

    vimpac tokenize videos/ --out store
    vimpac pretrain --config small data=store out=runs/small
    vimpac pretrain --config small data=store out=runs/small --resume auto
    torchrun --nproc-per-node 8 -m vimpac pretrain --config large_half data=store out=runs/large

A run's directory holds config.yaml, log.jsonl, tensorboard/ and checkpoints/. Whatever is random
is a function of the seed and of a number: the order of (seed, epoch), clips of (seed, sample),
masks and dropout of (seed, clip). So a resumed run equals one that was never stopped, bit for
bit on one kind of machine, and ranks only divide the work.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from vimpac.checkpoints import training_state as ckpt
from vimpac.data.sampler import ResumableSampler
from vimpac.data.store import TokenStore
from vimpac.errors import UsageError, VimpacError
from vimpac.model.pretraining import Vimpac
from vimpac.train.batches import clip_pairs, doubts, make_loader, open_store, read
from vimpac.train.config import PretrainConfig
from vimpac.train.distributed import World, join_world
from vimpac.train.log import RunLog
from vimpac.train.optim import lr_at, make_optimizer
from vimpac.train.overrides import to_yaml
from vimpac.train.parallel import load_whole, whole
from vimpac.train.signals import Interrupted, catch_signals, explain
from vimpac.train.step import METRICS, PretrainStep
from vimpac.train.update import Update

STOP = 1  # what `stop` asks for, among the numbers of signals


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        out: The run's directory.
        step: Updates done.
        checkpoint: The last checkpoint.
        record: The last record of the log.
    """

    out: Path
    step: int
    checkpoint: Path
    record: dict[str, float]


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
    store = open_store(config.data, config.clips.variant)
    with join_world(config.device, config.run.timeout) as world:
        config.check(world.size, world.device.type)
        path = ckpt.find_checkpoint(resume, Path(config.out) / "checkpoints")
        return Pretraining(config, store, world, path).run(stop, quiet)


class Pretraining:
    """A run in one process of the world.

    Args:
        config: The run.
        store: The videos.
        world: The processes.
        path: The checkpoint to continue from, if any.
    """

    def __init__(
        self, config: PretrainConfig, store: TokenStore, world: World, path: Path | None = None
    ) -> None:
        self.config, self.world, self.path = config, world, path
        self.out = Path(config.out)
        self.grid = (config.clips.frames, store.meta.height, store.meta.width)
        torch.manual_seed(config.seed)  # the same initial parameters on every rank
        settings = {**dataclasses.asdict(config.model), **dataclasses.asdict(config.loss)}
        try:
            self.model = Vimpac.from_preset(**settings, grid=self.grid).to(world.device)
        except ValueError as error:
            raise UsageError(f"model: {error}") from None
        self.sampler = ResumableSampler(
            len(store),
            global_batch=config.batch.contrastive,
            rank=world.rank,
            world_size=world.size,
            seed=config.seed,
        )
        epoch_steps = len(store) / config.batch.videos
        self.steps = config.optim.steps or math.ceil(config.optim.epochs * epoch_steps)
        self.done = 0
        self.wait = 0.0  # seconds since the last record in which the data was not ready
        self.optimizer = make_optimizer(self.model, config.optim)
        if path is not None:
            self._restore(path)
        has_padding = int(store.frames.min()) < config.clips.span
        loaded = self.optimizer.state_dict()
        self.step = PretrainStep(self.model, config, world, has_padding=has_padding)
        if config.parallel == "fsdp":  # the parameters are other ones now
            self.optimizer = make_optimizer(self.model, config.optim)
            load_whole(self.optimizer, loaded)
        self.update = Update(self.step, self.optimizer)
        self.doubts = list(doubts(store, config))
        pairs = clip_pairs(store, config)
        self.loader = make_loader(pairs, self.sampler, self.step.micro, config.clips, world.device)

    def run(self, stop: Callable[[], bool], quiet: bool) -> Result:
        """Trains to the end; see `pretrain`."""
        if self.world.is_main:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "config.yaml").write_text(to_yaml(self.config), encoding="utf-8")
        log = RunLog(
            self.out,
            steps=self.steps,
            done=self.done,
            active=self.world.is_main,
            tensorboard=self.config.run.tensorboard,
            quiet=quiet,
        )
        signals = catch_signals(only_first=self.world.size == 1)
        with log, signals as caught, closing(read(self.loader)) as batches:
            log.say(self._headline())
            for doubt in self.doubts:
                log.say(f"warning: {doubt}")
            try:
                return self._train(batches, log, lambda: max(STOP * stop(), caught()))
            except RuntimeError as error:
                reason = explain(error, self.world.rank, self.done, self.out / "checkpoints")
                if not reason:
                    raise
                raise VimpacError(reason) from error

    def _train(self, batches: Iterator[Tensor], log: RunLog, asked: Callable[[], int]) -> Result:
        run, optim = self.config.run, self.config.optim
        sums = torch.zeros(len(METRICS) + 1, device=self.world.device)
        request = 0
        since, start, record = self.done, time.perf_counter(), dict[str, float]()
        while self.done < self.steps:
            lr = lr_at(self.done, self.steps, optim)
            first = self.sampler.position + self.world.rank * self.step.group_part
            sums += self.update(self._groups(batches), first, lr)
            self.done += 1
            log.step(self.done)
            request = self.world.largest(asked())
            last = request > 0 or self.done == self.steps
            save = last or self.done % run.save_every == 0
            if save or self.done % run.log_every == 0:
                record = self._record(sums / (self.done - since), since, start)
                record["lr"] = lr
                log.record(record)
                sums.zero_()
                if save:
                    self.path = self._save()
                since, start, self.wait = self.done, time.perf_counter(), 0.0
            if last:
                break
        assert self.path is not None  # there is a step to do or one that was done
        if request > STOP and self.done < self.steps:
            message = f"after step {self.done}: {self.path} is written, --resume auto continues"
            raise Interrupted(request, message)
        return Result(self.out, self.done, self.path, record)

    def _groups(self, micro_batches: Iterator[Tensor]) -> Iterator[list[Tensor]]:
        """This rank's parts of the groups of one update, as they are read."""
        for _ in range(self.step.groups):
            begin = time.perf_counter()
            parts = [next(micro_batches) for _ in range(self.step.group_part // self.step.micro)]
            self.wait += time.perf_counter() - begin
            yield parts
            self.sampler.advance()

    def _record(
        self,
        means: Tensor,  # METRICS and the gradient's norm, (4,)
        since: int,
        start: float,
    ) -> dict[str, float]:
        """The record of the steps after `since`; the one place that waits for the device."""
        values = dict(zip((*METRICS, "grad_norm"), self.world.mean(means).tolist(), strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            raise VimpacError(
                f"the loss is not finite between steps {since + 1} and {self.done} "
                f"({', '.join(f'{k} {v:.4g}' for k, v in values.items())}); the last good "
                f"checkpoint is {self.path or 'not there yet'}; "
                "lower optim.lr, or use precision=fp32"
            )
        seconds = time.perf_counter() - start
        loss = values["mask_loss"] + self.config.loss.alpha * values["cl_loss"]
        return {
            "step": self.done,
            "epoch": self.sampler.position / self.sampler.num_videos,
            "loss": loss,
            **values,
            "videos_per_s": (self.done - since) * self.config.batch.videos / seconds,
            "data_wait": self.wait / seconds,
        }

    def _headline(self) -> str:
        parameters = sum(p.numel() for p in self.model.parameters())
        begin = f"resumed from {self.path}" if self.path else "from the beginning"
        return (
            f"{self.config.model.name} {self.config.model.layout}, {parameters:,} parameters, "
            f"grid {'x'.join(map(str, self.grid))}, {self.sampler.num_videos} videos, "
            f"{self.steps} steps on {self.world.size} x {self.world.device.type}, {begin}"
        )

    def _save(self) -> Path:
        """Writes a checkpoint on the main process; the others only bring their shards."""
        folder = self.out / "checkpoints"
        model, optimizer = whole(self.model.state_dict()), whole(self.optimizer.state_dict())
        path = folder / f"step-{self.done:08d}"
        if self.world.is_main:
            state = {
                "step": self.done,
                "optimizer": optimizer,
                "sampler": self.sampler.state_dict(),
                "grid": list(self.grid),
            }
            path = ckpt.save_checkpoint(
                folder,
                self.done,
                model=model,
                state=state,
                config=to_yaml(self.config),
                keep=self.config.run.keep,
            )
        self.world.largest(0)  # torchrun ends all processes with the first one: not before this
        return path

    def _restore(self, path: Path) -> None:
        """Continues from a checkpoint; positions of another grid are interpolated."""
        model, state = ckpt.load_checkpoint(path)
        try:
            self.model.resize_grid(tuple(state["grid"]))
            self.model.load_state_dict(model)
            # Its moments: the rates and bounds are those of this configuration.
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
            self.model.resize_grid(self.grid, self.optimizer)
            self.sampler.load_state_dict(state["sampler"])
        except (RuntimeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise UsageError(f"{path} does not fit this configuration: {line:.300}") from error
        self.done = state["step"]
        newest = ckpt.list_checkpoints(self.out / "checkpoints")[-1:]
        if newest and int(newest[0].name[5:]) > self.done:  # what is written would count as older
            raise UsageError(f"{newest[0]} is later than {path}: remove it or give another out=")
