"""What `vimpac finetune` trains: a classifier, and the labelled videos of a store."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from vimpac.checkpoints.description import CLASSIFIERS
from vimpac.checkpoints.model_dir import DataFacts, ModelDescription
from vimpac.checkpoints.training_state import Checkpoint
from vimpac.config import FinetuneConfig
from vimpac.data.clips import stand_ins
from vimpac.data.even_clips import EvenClips, find_crops
from vimpac.data.fetch_ahead import fetch_ahead
from vimpac.data.labelled_clips import RandomClips
from vimpac.data.labels import SPLITS, Split, missing_warning, read_labels
from vimpac.data.sampler import ResumableSampler
from vimpac.eval.evaluate import classify
from vimpac.eval.metrics import check_finite
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.train.batches import (
    damage_warning,
    damaged_videos,
    make_shares,
    make_windows,
    open_store,
    padding_warning,
    with_stride,
)
from vimpac.train.distributed import World
from vimpac.train.finetune_step import METRICS, FinetuneStep
from vimpac.train.loader import make_loader

KINDS = ("clip", "video", "top5", "class")  # of accuracies, in the log


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
        self.store = open_store(config.data, config.clips.variant, cache=config.shard_cache)
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
        windows = make_windows(self.store, config, train.videos)
        self.sampler = ResumableSampler(
            len(train.videos),
            global_batch=config.batch.videos,
            rank=world.rank,
            world_size=world.size,
            seed=config.seed,
            repeat=config.clips.repeat,
            shares=make_shares(self.store, config.data_weights, train.videos),
            windows=windows,
        )
        epoch_steps = self.sampler.epoch_size / config.batch.videos
        self.steps = config.optim.steps or math.ceil(config.optim.epochs * epoch_steps)
        self.evaluate_every = config.run.evaluate_steps(epoch_steps)
        self._crops = find_crops(meta.variants, config.test_crops)
        self.reading = {"workers": config.clips.workers, "prefetch": config.clips.prefetch}
        clips = RandomClips(self.store, config, train)
        _, micro = config.batch.on_rank(world.size)
        device = world.device
        samples = fetch_ahead(self.sampler, self.store, windows)
        self.loader = make_loader(clips, samples, micro, device=device, **self.reading)
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
        if not isinstance(description, ModelDescription) or description.kind != self.kind:
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
        for name, split in self.splits.items():
            yield from missing_warning(self.config.labels, name, split)
        clips, videos = self.config.batch.videos, len(self.splits["train"].videos)
        if clips > videos * self.config.clips.repeat:
            yield (
                f"an update takes {clips} clips of {videos} training videos: lower batch, or each "
                "is seen several times in it"
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
                **self.reading,
            )
            for probabilities in verdicts.probabilities.values():
                check_finite(probabilities, f"probabilities of the split '{name}'")
            (scores,) = verdicts.scores(torch.tensor(split.classes))
            assert scores.clip_top1 is not None
            values = (scores.clip_top1, scores.top1, scores.top5, scores.class_accuracy)
            found |= {f"{name}_{of}_accuracy": x for of, x in zip(KINDS, values, strict=True)}
        self.model.train()
        return found

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
