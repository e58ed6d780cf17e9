"""Every setting of a run, once, with its default, its legal values and what it means.

The key of a setting on the command line and in YAML is its place in here: `clips.frames=5` sets
`ClipConfig.frames` of the run. Those that every training has stand in vimpac/train_config.py, those
of the network in vimpac/model/config.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Literal

from vimpac.data.annotations.datasets import DATASETS, parse_source
from vimpac.errors import UsageError
from vimpac.model.config import LossConfig, ModelConfig, preset
from vimpac.paths import is_url
from vimpac.settings import (
    BELOW_ONE,
    BOXES,
    CLIPS,
    FOLDER,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Range,
    setting,
)
from vimpac.train_config import (
    ClipConfig,
    FinetuneOptimConfig,
    GroupedBatch,
    RunConfig,
    TestedRunConfig,
    TokenTrainConfig,
)


def _are_labels(text: str) -> bool:
    source = parse_source(text)
    return not any(is_url(path) for path in (source.paths if source else [text]))


LABELS = Range(
    f"be a CSV file on this machine (video,class,split), {', '.join(DATASETS)}:DIRECTORY[:SPLIT] "
    "or list:TRAIN,TEST[,CLASSES], no URL",
    _are_labels,
    str,
)


@dataclasses.dataclass
class LabelledClipConfig(ClipConfig):
    """What is read of videos whose class is known."""

    repeat: int = setting(
        1, POSITIVE, "clips of each video in an epoch, side by side; batch.videos counts clips"
    )


@dataclasses.dataclass
class PairConfig(ClipConfig):
    """What is read where two clips of a video meet."""

    max_distance: float | None = setting(
        None, NOT_NEGATIVE, "seconds between the two starts; null: any"
    )


@dataclasses.dataclass
class MaskConfig:
    """What is hidden from the model (Sec. B.1)."""

    strategy: Literal["block", "iid", "tube"] = setting(
        "block", doc="boxes, single tokens, or the same tokens of every frame"
    )
    blocks: int = setting(5, BOXES, "boxes per clip (block)")
    ratio: float = setting(0.15, SHARE, "share of tokens (iid, tube)")
    noise: tuple[float, float, float] | None = setting(
        None, SHARE, "shares of [MASK], random, kept; null: [MASK]"
    )
    noise_unit: Literal["block", "token"] = setting(
        "token", doc="noise is drawn once per box, or per token"
    )
    contrast: Literal["masked", "whole"] = setting(
        "masked",
        doc="the contrastive loss reads the same pass over masked clips, or one over whole clips",
    )


@dataclasses.dataclass
class PairBatchConfig(GroupedBatch):
    """How many videos meet where; each gives two clips."""

    videos: int = setting(1024, POSITIVE, "per optimiser update, all ranks together")
    contrastive: int = setting(64, POSITIVE, "of them told apart: 2 * this - 1 candidates")
    micro: int = setting(32, POSITIVE, "largest part of a rank that is held in memory at once")

    @property
    def group(self) -> int:
        """The videos that are told apart."""
        return self.contrastive


@dataclasses.dataclass
class BatchConfig(GroupedBatch):
    """How many clips make an update; `batch=64` sets `batch.videos`."""

    shorthand: ClassVar[str] = "videos"

    videos: int = setting(128, POSITIVE, "per optimiser update, all ranks together")
    micro: int = setting(128, POSITIVE, "largest part of a rank that is held in memory at once")

    @property
    def group(self) -> int:
        """All of them."""
        return self.videos


@dataclasses.dataclass
class WatchedRunConfig(RunConfig):
    """Bookkeeping of a run whose features may be tested while it trains (see `vimpac knn`)."""

    knn_every: float | None = setting(
        None, POSITIVE, "epochs from k-NN test to test, with one at the end; null: none"
    )
    knn_data: str = setting("", doc="its token stores, of the same tokenizer; empty: data")
    knn_labels: str = setting("", LABELS, "the classes of its videos, in train and val or test")


@dataclasses.dataclass
class PretrainConfig(TokenTrainConfig):
    """A pre-training run."""

    command: ClassVar[str] = "pretrain"
    lrs: ClassVar[tuple[float, float]] = (1e-3, 3e-4)

    out: str = setting("runs/pretrain", FOLDER, "directory of the run")
    graph: bool = setting(
        False, doc="one CUDA graph of the step: pays where launching outlasts computing"
    )
    model: ModelConfig = dataclasses.field(default_factory=lambda: preset("small"))
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    clips: PairConfig = dataclasses.field(default_factory=PairConfig)
    mask: MaskConfig = dataclasses.field(default_factory=MaskConfig)
    batch: PairBatchConfig = dataclasses.field(default_factory=PairBatchConfig)
    run: WatchedRunConfig = dataclasses.field(default_factory=WatchedRunConfig)

    def check(self, world_size: int = 1, device_type: str = "cuda") -> None:
        """As `TrainConfig.check`."""
        super().check(world_size, device_type)
        mask, batch = self.mask, self.batch
        if mask.noise is not None:
            if not math.isclose(sum(mask.noise), 1.0, abs_tol=1e-6):
                raise UsageError(f"mask.noise={[*mask.noise]} must sum to 1")
            if mask.noise_unit == "block" and mask.strategy != "block":
                raise UsageError("mask.noise_unit=block needs mask.strategy=block")
        self._check_losses()
        if batch.videos % batch.contrastive:
            raise UsageError(
                f"batch.videos={batch.videos} must be a multiple of "
                f"batch.contrastive={batch.contrastive}"
            )
        if self.run.keep_best and self.run.knn_every is None:
            raise UsageError("run.keep_best has nothing to choose by: give run.knn_every, too")
        if self.run.knn_every is not None and not self.run.knn_labels:
            raise UsageError(f"run.knn_every={self.run.knn_every:g} needs run.knn_labels")
        if self.graph:
            self._check_graph(world_size, device_type)
        batch.check("batch.contrastive", world_size)

    def _check_losses(self) -> None:
        mask, loss = self.mask, self.loss
        if loss.mask == 0 and loss.alpha == 0:
            raise UsageError("loss.mask=0 and loss.alpha=0 train nothing: raise one of them")
        if mask.contrast == "whole" and loss.alpha == 0:
            raise UsageError("mask.contrast=whole needs the contrastive loss, but loss.alpha=0")
        name = "blocks" if mask.strategy == "block" else "ratio"
        if loss.mask and not getattr(mask, name):
            raise UsageError(
                f"mask.{name}=0 hides no token, so there is no token loss: raise it, or give "
                "loss.mask=0 for the contrastive loss alone"
            )

    def _check_graph(self, world_size: int, device_type: str) -> None:
        reason = None
        if device_type != "cuda":
            reason = f"this run is on {device_type}"
        elif world_size > 1:
            reason = f"gradients are averaged over {world_size} processes"
        elif self.model.dropout and {"HW", "THW"} & {*self.model.layout.split(",")}:
            reason = (
                "joint axes draw dropout from PyTorch's generator, which the host seeds for every "
                "micro-batch: model.dropout=0 is possible"
            )
        if reason:
            raise UsageError(f"graph=true records one CUDA device's step, but {reason}")


@dataclasses.dataclass
class FinetuneConfig(TokenTrainConfig):
    """A classifier on a pre-trained encoder; the defaults are Table 4's for UCF101."""

    command: ClassVar[str] = "finetune"
    lrs: ClassVar[tuple[float, float]] = (1e-4, 5e-5)

    out: str = setting("runs/finetune", FOLDER, "directory of the run")
    labels: str = setting("", LABELS, "the class and the split of every video: see `vimpac labels`")
    test_clips: int = setting(10, CLIPS, "evenly spaced, of every video and crop")
    test_crops: str = setting("all", doc="all (unflipped, at scale 1), center, or variants by name")
    sweep: bool = setting(
        False, doc="linear probe: choose optim.weight_decay by a held-out tenth of the videos"
    )
    label_smoothing: float = setting(
        0.0, BELOW_ONE, "share of a clip's label that all classes have alike"
    )
    cutmix: float = setting(0.0, SHARE, "share of clips that get a box of another one")
    drop_path: float = setting(
        0.0,
        BELOW_ONE,
        "share of clips that go past a branch of the last layer, fewer past lower ones",
    )
    ema: float | None = setting(
        None, BELOW_ONE, "decay of the mean weights, which are tested and saved, too; null: none"
    )
    clips: LabelledClipConfig = dataclasses.field(default_factory=LabelledClipConfig)
    batch: BatchConfig = dataclasses.field(default_factory=BatchConfig)
    optim: FinetuneOptimConfig = dataclasses.field(
        default_factory=lambda: FinetuneOptimConfig(
            lr=None, betas=(0.9, 0.999), weight_decay=0.01, epochs=50.0
        )
    )
    run: TestedRunConfig = dataclasses.field(default_factory=TestedRunConfig)

    def check(self, world_size: int = 1, device_type: str = "cuda") -> None:
        """As `TrainConfig.check`."""
        super().check(world_size, device_type)
        self.batch.check("batch.videos", world_size)
        repeat, micro = self.clips.repeat, self.batch.on_rank(world_size)[1]
        if self.batch.videos % repeat:
            raise UsageError(
                f"batch.videos={self.batch.videos} counts clips, of which every video has "
                f"clips.repeat={repeat}: give a multiple of it"
            )
        if self.cutmix and micro <= repeat:
            raise UsageError(
                f"cutmix={self.cutmix:g} pastes from another video of a micro-batch, which has "
                "one video here: raise batch.micro or batch.videos"
            )
