"""Trains a classifier of videos on a pre-trained encoder, or on its frozen features.

    vimpac finetune runs/small/checkpoints/step-00012000 data=ucf labels=ucf.csv out=runs/ucf
    vimpac finetune runs/small/checkpoints/step-00012000 data=ucf labels=ucf.csv --probe linear
    torchrun --nproc-per-node 8 -m vimpac finetune runs/... data=ucf labels=ucf.csv --resume auto

Fine-tuning draws `clips.repeat` clips of every video in an epoch, as does an attentive probe, which
leaves the encoder as it is. A linear probe encodes `test_clips` clips of every training video once
and fits a logistic regression to their [CLS]. All are tested on `test_clips` evenly spaced clips of
the `test_crops` of a video, whose probabilities are averaged.
`vimpac.load_classifier` reads the result, which can itself be fine-tuned.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vimpac.checkpoints.description import CLASSIFIERS
from vimpac.checkpoints.model_dir import (
    DataFacts,
    ModelDescription,
    load_encoder,
    read_description,
)
from vimpac.checkpoints.training_state import (
    AVERAGED,
    Checkpoint,
    list_checkpoints,
    save_checkpoint,
)
from vimpac.config import FinetuneConfig
from vimpac.data.clips import stand_ins
from vimpac.data.even_clips import EvenClips, find_crops
from vimpac.data.labelled_clips import RandomClips
from vimpac.data.labels import SPLITS, Split, read_labels
from vimpac.data.sampler import ResumableSampler
from vimpac.errors import UsageError
from vimpac.eval.evaluate import classify
from vimpac.eval.over_views import over_views
from vimpac.eval.probes import fit_linear
from vimpac.model.config import PRESETS, preset
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.settings import to_yaml
from vimpac.train.batches import (
    damage_warning,
    damaged_videos,
    make_loader,
    open_store,
    padding_warning,
    with_stride,
)
from vimpac.train.distributed import World, join_world
from vimpac.train.finetune_step import METRICS, FinetuneStep
from vimpac.train.log import RunLog
from vimpac.train.loop import Loop
from vimpac.train.optim import with_lr
from vimpac.train.resume import check_tokenizer, choose_checkpoint
from vimpac.train.run_folder import hold_folder

Probe = Literal["none", "linear", "attentive"]
ATTENTIVE_LR = 1e-3  # of so few parameters, from random ones; V-JEPA's
KINDS = ("clip", "video", "top5", "class")  # of accuracies, in the log


@dataclasses.dataclass(frozen=True)
class FinetuneResult:
    """How a run ended.

    Attributes:
        checkpoint: The classifier that was tested; its averaged weights, if there are any.
        clip_accuracy: The share of test clips that are right.
        video_accuracy: Of test videos (top-1).
        top5_accuracy: Of test videos whose class is among the five likeliest.
        class_accuracy: The mean of the classes' shares.
    """

    checkpoint: Path
    clip_accuracy: float
    video_accuracy: float
    top5_accuracy: float
    class_accuracy: float


def finetune(
    config: FinetuneConfig,
    checkpoint: str | Path,
    *,
    probe: Probe = "none",
    resume: str = "none",
    stop: Callable[[], bool] = lambda: False,
    quiet: bool = False,
) -> FinetuneResult:
    """Trains a classifier and tests it.

    Args:
        config: The run.
        checkpoint: A model directory: of a pre-training, a classifier or `vimpac convert`; or the
            name of a network (`vimpac.model.config.PRESETS`), to train it from scratch.
        probe: "none" trains everything. The others leave the encoder as it is: "linear" fits a
            logistic regression to [CLS], in one process; "attentive" trains an
            `AttentiveClassifier`, whose learning rate is 1e-3 unless it is given.
        resume: "none", "auto" (the newest checkpoint of the run, if any) or a checkpoint's
            directory, which then stands in the place of `checkpoint`.
        stop: Asked after every step; true ends the run early, with a checkpoint and untested.
        quiet: Print nothing.

    Returns:
        The classifier's checkpoint and its accuracies, NaN if untested.

    Raises:
        UsageError: The settings, labels, store and checkpoint do not fit together.
        Interrupted: SIGTERM or SIGINT came; a checkpoint was written after the step in hand.
        VimpacError: The loss is not finite, a file is damaged, or another process was lost.
    """
    config.check()
    with join_world(config.device, config.run.timeout) as world:
        config.check(world.size, world.device.type)
        if probe == "linear":
            _check_probe(config, world, resume)
        path = choose_checkpoint(resume, Path(config.out), world)
        saved, found = _train(config, path, Path(checkpoint), world, probe, stop, quiet)
    accuracies = (found.get(f"test_{of}_accuracy", math.nan) for of in KINDS)
    return FinetuneResult(saved, *accuracies)


def _check_probe(config: FinetuneConfig, world: World, resume: str) -> None:
    if world.size > 1 or resume != "none":
        raise UsageError("--probe linear is fitted at once, in one process, without --resume")
    if list_checkpoints(Path(config.out) / "checkpoints"):
        raise UsageError(f"{config.out} has a checkpoint already: give another out=")


def _train(
    config: FinetuneConfig,
    path: Path | None,  # to continue from
    start: Path,
    world: World,
    probe: Probe,
    stop: Callable[[], bool],
    quiet: bool,
) -> tuple[Path, dict[str, float]]:  # the checkpoint, and what the last evaluation found
    """All that holds the model, which must be gone when the process leaves the others."""
    if path is not None:  # the loop loads its weights
        description = read_description(path)
        encoder = VideoTokenEncoder(description.config)
    elif str(start) in PRESETS and not start.exists():  # from scratch
        torch.manual_seed(config.seed)  # the same initial parameters on every rank
        encoder = VideoTokenEncoder(preset(str(start)))
        description = ModelDescription("vimpac", encoder.config)
    else:
        encoder, description = load_encoder(start)
    if probe == "attentive" and config.optim.lr is None:
        optim = dataclasses.replace(config.optim, lr=ATTENTIVE_LR)
        config = dataclasses.replace(config, optim=optim)
    config = with_lr(config, encoder.width)
    run = Finetuning(config, encoder, world, attentive=probe == "attentive")
    run.pretrained_on = description.data
    check_tokenizer(path or start, description.data, run.describe().data)
    if probe == "linear":
        return _fit_probe(run, quiet)
    result = Loop(run, config, world, path).run(stop, quiet)
    averaged = result.checkpoint / AVERAGED  # what was tested
    tested = averaged if config.ema is not None and averaged.is_dir() else result.checkpoint
    return tested, result.record


def _fit_probe(run: Finetuning, quiet: bool) -> tuple[Path, dict[str, float]]:
    """Fits a linear probe, tests it and saves it."""
    out, config = Path(run.config.out), to_yaml(run.config)
    with hold_folder(out, run.world):
        with RunLog(out, steps=0, done=0, active=True, tensorboard=False, quiet=quiet) as log:
            log.say(f"linear probe of {run.headline()}")
            run.fit_probe()
            found = run.evaluate(final=True)
            log.record({"step": 0, **found})
        checkpoint = Checkpoint(run.describe(), run.model.state_dict(), {"step": 0})
        return save_checkpoint(out / "checkpoints", 0, checkpoint, config=config, keep=1), found


class Finetuning:
    """A classifier and its videos, as `vimpac.train.system.System`.

    Args:
        config: The run.
        encoder: Where it starts from; its positions are interpolated to the clips' grid.
        world: The processes.
        attentive: Whether the encoder is frozen, and an attentive probe reads it.

    Raises:
        UsageError: The store or the labels do not fit the settings.
    """

    metrics: Sequence[str] = METRICS

    def __init__(
        self,
        config: FinetuneConfig,
        encoder: VideoTokenEncoder,
        world: World,
        *,
        attentive: bool = False,
    ) -> None:
        self.store = open_store(config.data, config.clips.variant)
        self.config = config = with_stride(config, self.store)
        self.world = world
        self.classes, self.splits = read_labels(config.labels, self.store)
        self._labelled = sum(len(split.videos) for split in self.splits.values())
        self.damaged = damaged_videos(self.store, config.clips)
        for name, split in self.splits.items():
            positions = [i for i, video in enumerate(split.videos) if video in self.damaged]
            chosen = stand_ins(len(split.videos), positions)
            if name != "train":  # nothing is judged twice
                chosen = sorted({*chosen})
            self.splits[name] = split.take(chosen)
        self.has_padding = int(self.store.frames.min()) < config.clips.span
        meta = self.store.meta
        self.grid = (config.clips.frames, meta.height, meta.width)
        encoder.positions.resize_(self.grid, None)
        self.kind = "attentive_classifier" if attentive else "classifier"
        torch.manual_seed(config.seed)  # the same initial parameters on every rank
        self.model = CLASSIFIERS[self.kind](encoder, len(self.classes)).to(world.device)
        train = self.splits["train"]
        self.sampler = ResumableSampler(
            len(train.videos),
            global_batch=config.batch.videos,
            rank=world.rank,
            world_size=world.size,
            seed=config.seed,
            repeat=config.clips.repeat,
        )
        epoch_steps = self.sampler.epoch_size / config.batch.videos
        self.steps = config.optim.steps or math.ceil(config.optim.epochs * epoch_steps)
        every = config.run.evaluate_every
        self.evaluate_every = 0 if every is None else max(1, round(every * epoch_steps))
        self._crops = find_crops(meta.variants, config.test_crops)
        self._reading = {"workers": config.clips.workers, "prefetch": config.clips.prefetch}
        clips = RandomClips(self.store, config, train)
        _, micro = config.batch.on_rank(world.size)
        device = world.device
        self.loader = make_loader(clips, self.sampler, micro, device=device, **self._reading)
        self.pretrained_on: DataFacts | None = None
        self._step: FinetuneStep | None = None

    def describe(self) -> ModelDescription:
        """See `System`."""
        data = DataFacts.of(self.store.meta, self.config.clips.frame_stride)
        return ModelDescription.of(self.model, classes=self.classes, data=data)

    def restore(self, checkpoint: Checkpoint, optimizer: torch.optim.Optimizer | None) -> None:
        """Loads a checkpoint; positions of another grid, and their moments, are interpolated."""
        description = checkpoint.description
        if description.kind == "vimpac":
            raise ValueError("it is of a pre-training, which finetune starts from without --resume")
        if description.kind != self.kind:
            raise ValueError(f"its kind is {description.kind}: give the --probe of its run")
        if description.classes != self.classes:
            raise ValueError(f"its classes are {description.classes}, not {self.classes}")
        positions = self.model.encoder.positions
        positions.resize_(description.config.grid)
        self.model.load_state_dict(checkpoint.tensors)
        positions.resize_(self.grid, optimizer)

    def make_step(self) -> FinetuneStep:
        """See `System`."""
        self._step = FinetuneStep(self.model, self.config, self.world, has_padding=self.has_padding)
        return self._step

    def headline(self) -> str:
        """See `System`."""
        videos = ", ".join(f"{len(split.videos)} {name}" for name, split in self.splits.items())
        return (
            f"{self.model.encoder.config.layout}, {len(self.classes)} classes, "
            f"grid {'x'.join(map(str, self.grid))}, videos: {videos}"
        )

    def warnings(self) -> Iterator[str]:
        """See `System`."""
        yield from padding_warning(self.store, self.config.clips)
        yield from damage_warning(self.store, self.damaged)
        for name, split in self.splits.items():
            if len({*split.classes}) == 1:
                only = self.classes[split.classes[0]]
                yield (
                    f"all videos of the split '{name}' are of the class '{only}', so its accuracy "
                    "says nothing"
                )
        was, now = self.pretrained_on, self.describe().data
        if was and now and not was.same_interval(now):
            yield (
                f"the model was trained on frames {was.interval:g} s apart ({was.clock}), these "
                f"are {now.interval:g} s apart ({now.clock})"
            )
        videos, used = len(self.store), self._labelled
        if used < videos:
            yield (
                f"{videos - used} of {videos} videos are left out: they have no line in "
                f"{self.config.labels}, or a split that is not {', '.join(SPLITS)}"
            )

    def total_loss(self, means: dict[str, float]) -> float:
        """See `System`."""
        return means["loss"]

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """The accuracies on the val split, if there is one, and at the end on the test split."""
        step = self._step or self.make_step()
        names = [name for name in ("val", "test") if name in self.splits]
        found: dict[str, float] = {}
        self.model.eval()
        for name in names if final else names[:1]:
            split = self.splits[name]
            verdicts = classify(
                step.logits,
                self.views(split),
                torch.tensor(split.classes),
                len(self.classes),
                self.world,
                batch=self.config.batch.micro,
                **self._reading,
            )
            (scores,) = verdicts.scores(torch.tensor(split.classes))
            assert scores.clip_top1 is not None
            values = (scores.clip_top1, scores.top1, scores.top5, scores.class_accuracy)
            found |= {f"{name}_{of}_accuracy": x for of, x in zip(KINDS, values, strict=True)}
        self.model.train()
        return found

    @torch.no_grad()
    def fit_probe(self) -> None:
        """Fits the classifier to the frozen encoder's [CLS] of the training videos."""
        classifier, split = self.model.eval().classifier, self.splits["train"]
        views, world, batch = self.views(split), self.world, self.config.batch.micro
        features, labels = list[Tensor](), list[int]()
        for place, values in over_views(self._features, views, world, batch=batch, **self._reading):
            values = values[views.chosen(place, self.config.test_clips)]
            features.append(values)
            labels += [split.classes[place]] * len(values)
        decay, classes = self.config.optim.weight_decay, len(self.classes)
        weight, bias = fit_linear(torch.cat(features), torch.tensor(labels), classes, decay)
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)

    def views(self, split: Split) -> EvenClips:
        """The clips by which the videos of a split are judged."""
        clips = self.config.clips
        return EvenClips(
            self.store,
            split.videos,
            frames=clips.frames,
            stride=clips.frame_stride,
            clips=[self.config.test_clips],
            variants=self._crops,
        )

    def _features(self, clips: Tensor) -> Tensor:
        """(B, T, H, W) -> (B, D) fp32."""
        clips = clips.to(self.world.device, non_blocking=True)
        with self.world.autocast(self.config.precision):
            cls = self.model.encoder.cls(clips, has_padding=self.has_padding)
        return cls.float()
