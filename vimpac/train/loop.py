"""The loop of every training: steps, records, checkpoints, signals and ranks.

What is trained is a `System`: the loop knows no model and no loss. A run's directory holds
config.yaml, log.jsonl, tensorboard/ and checkpoints/. Whatever is random is a function of the seed
and of the number of a sample, so a resumed run equals one that was never stopped, bit for bit on
one kind of machine, and ranks only divide the work.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimpac.checkpoints.training_state import (
    Checkpoint,
    checkpoint_path,
    load_checkpoint,
    save_checkpoint,
)
from vimpac.errors import UsageError, VimpacError
from vimpac.files import whole_file
from vimpac.settings import to_yaml
from vimpac.train.averaged_weights import AveragedWeights
from vimpac.train.best import BestCheckpoint
from vimpac.train.distributed import World
from vimpac.train.divergence import absurd_weights, are_absurd, check_losses, check_start
from vimpac.train.loader import read
from vimpac.train.log import RunLog
from vimpac.train.optim import lr_at, make_optimizer
from vimpac.train.parallel import load_whole, whole
from vimpac.train.resume import check_moments, set_damaged_aside
from vimpac.train.run_folder import hold_folder
from vimpac.train.signals import Interrupted, catch_signals, explain
from vimpac.train.system import System
from vimpac.train.update import Update
from vimpac.train_config import TrainConfig

STOP = 1  # what `stop` asks for, among the numbers of signals


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        out: The run's directory.
        step: Updates done.
        checkpoint: The last checkpoint.
        record: The last record of the log, and what the last evaluation found.
    """

    out: Path
    step: int
    checkpoint: Path
    record: dict[str, float]


class Loop:
    """A run in one process of the world.

    Args:
        system: What is trained.
        config: The run.
        world: The processes.
        path: The checkpoint to continue from, if any.

    Raises:
        UsageError: The checkpoint does not fit.
    """

    def __init__(
        self, system: System, config: TrainConfig, world: World, path: Path | None = None
    ) -> None:
        self.system, self.config, self.world, self.path = system, config, world, path
        self.out = Path(config.out)
        self.done = 0
        self._wait = 0.0  # seconds since the last record in which the data was not ready
        self._notes: list[str] = []  # for the log
        self.optimizer = make_optimizer(system.model, config.optim)
        decay: float | None = getattr(config, "ema", None)
        average = None if path is None else self._restore(path, averaging=decay is not None)
        check_start(system.model.parameters())
        loaded = self.optimizer.state_dict()
        self.step = system.make_step()
        if config.parallel == "fsdp":  # the parameters are other ones now
            self.optimizer = make_optimizer(system.model, config.optim)
            load_whole(self.optimizer, loaded)
        graph = getattr(config, "graph", False)
        self.update = Update(self.step, system.model, self.optimizer, config.optim, world, graph)
        self.averaged: AveragedWeights | None = None
        if decay is not None:
            self.averaged = AveragedWeights(system.model, decay, average)
        keep_best = config.run.keep_best and world.is_main
        self.best = BestCheckpoint(self.out, self.done, active=keep_best)
        self.end = self._find_end()

    def run(self, stop: Callable[[], bool] = lambda: False, quiet: bool = False) -> Result:
        """Trains to the end.

        Args:
            stop: Asked after every step; true ends the run early, with a checkpoint.
            quiet: Print nothing.

        Raises:
            Interrupted: SIGTERM or SIGINT came; a checkpoint was written after the step in hand.
            VimpacError: The loss is not finite, a file is damaged, another process was lost, or
                another run writes to the same directory.
        """
        with hold_folder(self.out, self.world):
            return self._run(stop, quiet)

    def _run(self, stop: Callable[[], bool], quiet: bool) -> Result:
        """As `run`, in a directory of its own."""
        # In here, as another run may have ended meanwhile.
        aside = self.world.on_main(lambda: set_damaged_aside(self.out, self.done, self.path))
        self._notes += [f"warning: {note}" for note in aside or ()]
        if self.world.is_main:
            with whole_file(self.out / "config.yaml") as temporary:
                temporary.write_text(to_yaml(self.config), encoding="utf-8")
        log = RunLog(
            self.out,
            steps=self.end,
            done=self.done,
            active=self.world.is_main,
            tensorboard=self.config.run.tensorboard,
            quiet=quiet,
        )
        signals = catch_signals(only_first=self.world.size == 1)
        with log, signals as caught, closing(read(self.system.loader)) as batches:
            begin = f"resumed from {self.path}" if self.path else "from the beginning"
            where = f"{self.world.size} x {self.world.device.type}"
            log.say(f"{self.system.headline()}, {self.system.steps} steps on {where}, {begin}")
            for note in self._notes:
                log.say(note)
            for warning in self.system.warnings():
                log.say(f"warning: {warning}")
            try:
                return self._train(batches, log, lambda: max(STOP * stop(), caught()))
            except RuntimeError as error:
                reason = explain(error, self.world.rank, self.done, self.out / "checkpoints")
                if not reason:
                    raise
                raise VimpacError(reason) from error

    def _find_end(self) -> int:
        """Updates after which the run ends, the schedule at its end or not."""
        steps, until, sampler = self.system.steps, self.config.run.until, self.system.sampler
        end = steps
        if until is not None:
            epoch_steps = sampler.epoch_size / (self.step.groups * sampler.global_batch)
            end = min(steps, math.ceil(until * epoch_steps))
        if self.done > end:
            raise UsageError(
                f"{self.path} is at step {self.done}, past run.until={until:g} (step {end}): raise "
                "or drop it"
            )
        if end < steps:
            self._notes.append(f"the run ends early, after step {end} (run.until={until:g} epochs)")
        if self.done == end:
            setting = "run.until" if end < steps else "optim.epochs or optim.steps"
            self._notes.append(f"no step is left to do after step {end}: raise {setting} to go on")
        return end

    def _train(self, batches: Iterator[Any], log: RunLog, asked: Callable[[], int]) -> Result:
        run, system = self.config.run, self.system
        sums = torch.zeros(len(system.metrics) + 1, device=self.world.device)
        request = 0
        since, start, record = self.done, time.perf_counter(), dict[str, float]()
        while self.done < self.end and not request:
            lr = lr_at(self.done, system.steps, self.config.optim)
            first = system.sampler.position + self.world.rank * self.step.group_part
            sums += self.update(self._groups(batches), first, lr)
            if self.averaged is not None:
                self.averaged.update(self.done)
            self.done += 1
            log.step(self.done)
            request = self.world.largest(asked())
            due = system.evaluate_every and self.done % system.evaluate_every == 0
            save = request > 0 or self.done == self.end or self.done % run.save_every == 0
            if save or due or self.done % run.log_every == 0:
                record = self._record(sums / (self.done - since), since, start) | {"lr": lr}
                log.record(record)
                sums.zero_()
                if save or due:  # an evaluation may take longer than a scheduler waits
                    self.path = self._save()
                if due and not request and self.done < self.end:
                    self._evaluate(log, final=False)
                since, start, self._wait = self.done, time.perf_counter(), 0.0
        assert self.path is not None  # there is a step to do or one that was done
        if self.done == self.end:
            record |= self._evaluate(log, final=True)
        elif request > STOP:
            message = f"after step {self.done}: {self.path} is written, --resume auto continues"
            raise Interrupted(request, message)
        return Result(self.out, self.done, self.path, record)

    def _groups(self, micro_batches: Iterator[Any]) -> Iterator[list[Any]]:
        """This process's parts of the groups of one update, as they are read."""
        for _ in range(self.step.groups):
            begin = time.perf_counter()
            parts = [next(micro_batches) for _ in range(self.step.group_part // self.step.micro)]
            self._wait += time.perf_counter() - begin
            yield parts
            self.system.sampler.advance()

    def _record(
        self,
        means: Tensor,  # (metrics + 1,), the last one being the gradient's norm
        since: int,
        start: float,
    ) -> dict[str, float]:
        """The record of the steps after `since`; the one place that waits for the device."""
        names = (*self.system.metrics, "grad_norm")
        values = dict(zip(names, self.world.mean(means).tolist(), strict=True))
        check_losses(values, since, self.done, self.path)
        seconds, sampler = time.perf_counter() - start, self.system.sampler
        videos = (self.done - since) * self.step.groups * sampler.global_batch
        return {
            "step": self.done,
            "epoch": sampler.position / sampler.epoch_size,
            "loss": self.system.total_loss(values),
            **values,
            "videos_per_s": videos / seconds,
            "data_wait": self._wait / seconds,
        }

    def _evaluate(self, log: RunLog, *, final: bool) -> dict[str, float]:
        with nullcontext() if self.averaged is None else self.averaged.applied():
            found = self.system.evaluate(final=final)
        if found:
            log.record({"step": self.done, **found})
        if self.best.offer(self.path, found):
            log.say(f"step {self.done} is the best so far: {self.best.folder}")
        return found

    def _save(self) -> Path:
        """Writes a checkpoint on the main process; the others only bring their shards."""
        folder, model = self.out / "checkpoints", self.system.model
        tensors = whole(model.state_dict())
        optimizer = whole(self.optimizer.state_dict())
        averaged = None if self.averaged is None else self.averaged.whole()
        path = checkpoint_path(folder, self.done)
        absurd = False
        if self.world.is_main:  # the losses are those of the weights before the last update
            absurd = are_absurd(tensors[name] for name, _ in model.named_parameters())
        if self.world.largest(absurd):
            raise absurd_weights(self.done, self.path)
        if self.world.is_main:
            sampler = self.system.sampler.state_dict()
            state = {"step": self.done, "optimizer": optimizer, "sampler": sampler}
            path = save_checkpoint(
                folder,
                self.done,
                Checkpoint(self.system.describe(), tensors, state, averaged),
                config=to_yaml(self.config),
                keep=self.config.run.keep,
            )
        self.world.largest(0)  # torchrun ends all processes with the first one: not before this
        return path

    def _restore(self, path: Path, averaging: bool) -> dict[str, Tensor] | None:
        """Continues from a checkpoint; returns the average of its weights, if it is wanted."""
        checkpoint, average = load_checkpoint(path), None
        state, steps = checkpoint.state, self.system.steps
        if "optimizer" not in state:
            raise UsageError(f"{path} holds a model but no run that could be continued")
        self._notes += self.system.describe().check_data(path, checkpoint.description)
        try:
            # Its moments: the rates and bounds are those of this configuration.
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
            if averaging and checkpoint.averaged is not None:
                self.system.restore(checkpoint._replace(tensors=checkpoint.averaged), None)
                average = {name: x.clone() for name, x in self.system.model.state_dict().items()}
            elif averaging:
                self._notes.append(f"the mean of the weights begins here: {path} has none")
            elif checkpoint.averaged is not None:
                self._notes.append(f"the mean of the weights in {path} is dropped: ema is not set")
            self.system.restore(checkpoint, self.optimizer)
            check_moments(self.optimizer)
            self.system.sampler.load_state_dict(state["sampler"])
            self.done = operator.index(state["step"])
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            line = " ".join(str(error).split())
            raise UsageError(f"{path} does not fit this configuration: {line:.300}") from error
        if not 0 <= self.done <= steps:
            raise UsageError(
                f"{path} is at step {self.done}, this run ends at step {steps}: raise optim.steps "
                "or optim.epochs"
            )
        return average
