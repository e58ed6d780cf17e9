"""Every setting of a run, once, with its default, its legal values and what it means.

The key of a setting on the command line and in YAML is its place in here: `optim.lr=3e-4` sets
`OptimConfig.lr` of the run. Those of the network stand in vimpac/model/config.py.
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
    FOLDER,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SEED,
    SHARE,
    Range,
    range_problem,
    setting,
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
class ClipConfig:
    """What is read from the token store."""

    frames: int = setting(5, POSITIVE, "of a clip, T")
    frame_stride: int = setting(1, POSITIVE, "stored frames from one of a clip to the next")
    fps: float | None = setting(
        None, POSITIVE, "of a clip, from which the stride follows; null: as frame_stride says"
    )
    variant: int | None = setting(
        None, NOT_NEGATIVE, "of the stored ones, to train on; null: drawn per sample"
    )
    workers: int = setting(2, NOT_NEGATIVE, "data-loading processes per rank; 0: none")
    prefetch: int = setting(4, POSITIVE, "micro-batches that each worker keeps ready")
    skip_damaged: bool = setting(
        False, doc="read the whole store first and leave damaged videos out, which else end the run"
    )

    @property
    def span(self) -> int:
        """Stored frames from the first of a clip to its last, both counted."""
        return clip_span(self.frames, self.frame_stride)


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


class GroupedBatch:
    """A batch of groups of samples, which ranks and micro-batches divide."""

    micro: int

    @property
    def group(self) -> int:
        """Samples of a group, all ranks together."""
        raise NotImplementedError

    def on_rank(self, world_size: int) -> tuple[int, int]:
        """Samples of a group, and of a micro-batch, on each of so many processes."""
        part = self.group // world_size
        return part, min(self.micro, part)

    def check(self, key: str, world_size: int) -> None:
        """Raises UsageError unless a group, the setting `key`, divides among them evenly."""
        part, micro = self.on_rank(world_size)
        if self.group % world_size:
            raise UsageError(f"{key}={self.group} does not divide among {world_size} processes")
        if part % micro:
            raise UsageError(
                f"batch.micro={self.micro} must divide the {part} videos of {key}={self.group} on "
                "each process"
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
    """How many clips, each of another video, make an update; `batch=64` sets `batch.videos`."""

    shorthand: ClassVar[str] = "videos"

    videos: int = setting(128, POSITIVE, "per optimiser update, all ranks together")
    micro: int = setting(128, POSITIVE, "largest part of a rank that is held in memory at once")

    @property
    def group(self) -> int:
        """All of them."""
        return self.videos


@dataclasses.dataclass
class OptimConfig:
    """AdamW with a linear warm-up and a linear decay to zero (Table 4)."""

    lr: float | None = setting(
        1e-3, POSITIVE, "learning rate after the warm-up; null: the paper's for the model's width"
    )
    betas: tuple[float, float] = setting((0.9, 0.98), BELOW_ONE, "decay of the two moments")
    eps: float = setting(1e-8, NOT_NEGATIVE, "added to the root of the second moment")
    weight_decay: float = setting(0.05, NOT_NEGATIVE, "of Linear and token embedding weights")
    max_grad_norm: float = setting(1.0, NOT_NEGATIVE, "the gradient is clipped to it; 0: not")
    warmup: float = setting(0.1, SHARE, "share of the updates in which the rate rises")
    epochs: float = setting(10.0, POSITIVE, "passes over the videos")
    steps: int | None = setting(None, POSITIVE, "updates; null: from the epochs")


@dataclasses.dataclass
class RunConfig:
    """Bookkeeping of a run that can be continued; its last step is always saved."""

    log_every: int = setting(10, POSITIVE, "steps between records; the only host synchronisation")
    tensorboard: bool = setting(True, doc="write TensorBoard events, too")
    save_every: int = setting(500, POSITIVE, "steps between checkpoints")
    keep: int = setting(3, POSITIVE, "newest checkpoints that are kept")
    until: float | None = setting(
        None, POSITIVE, "epoch after which the run ends, its schedule unchanged; null: its last"
    )
    timeout: float = setting(300.0, POSITIVE, "seconds until a silent process counts as dead")


@dataclasses.dataclass
class TestedRunConfig(RunConfig):
    """Bookkeeping of a run that is tested while it trains; it is always tested at its end."""

    evaluate_every: float | None = setting(
        None, POSITIVE, "epochs from test to test; null: at the end only"
    )


@dataclasses.dataclass
class TrainConfig:
    """What every training has."""

    lrs: ClassVar[tuple[float, float]]  # where optim.lr is null: of a base model, of a large one

    data: str = setting("", PATH, "a token store: see `vimpac tokenize`")
    out: str = setting("", FOLDER, "directory of the run")
    seed: int = setting(0, SEED, "of initial weights, order, clips, masks and dropout")
    device: str = setting("auto", doc="auto is cuda if there is one, else cpu")
    precision: Literal["bf16", "fp32"] = setting("bf16", doc="bf16 is autocast; weights stay fp32")
    compile: Literal["none", "default", "max-autotune"] = setting(
        "none", doc="mode of torch.compile"
    )
    parallel: Literal["ddp", "fsdp"] = setting(
        "ddp", doc="each process holds all parameters, or a share"
    )
    activation_checkpointing: bool = setting(
        False, doc="keep a layer's input only, run it again in backward"
    )
    clips: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def check(self, world_size: int = 1, device_type: str = "cuda") -> None:
        """Finds numbers out of range, and the combinations that no single range rules out.

        Args:
            world_size: Number of processes.
            device_type: Where the run takes place.

        Raises:
            UsageError: A value is out of range or two values do not fit together.
        """
        problem = range_problem(self)
        if problem:
            raise UsageError(problem)
        if self.clips.fps is not None and self.clips.frame_stride > 1:
            raise UsageError(
                f"clips.fps={self.clips.fps:g} and clips.frame_stride={self.clips.frame_stride}: "
                "give one of them"
            )


@dataclasses.dataclass
class PretrainConfig(TrainConfig):
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
        if self.graph:
            self._check_graph(world_size, device_type)
        batch.check("batch.contrastive", world_size)

    def _check_losses(self) -> None:
        mask, loss = self.mask, self.loss
        if loss.mask == 0 and loss.alpha == 0:
            raise UsageError("loss.mask=0 and loss.alpha=0 train nothing: raise one of them")
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
class FinetuneConfig(TrainConfig):
    """A classifier on a pre-trained encoder; the defaults are Table 4's for UCF101."""

    command: ClassVar[str] = "finetune"
    lrs: ClassVar[tuple[float, float]] = (1e-4, 5e-5)

    out: str = setting("runs/finetune", FOLDER, "directory of the run")
    labels: str = setting("", LABELS, "the class and the split of every video: see `vimpac labels`")
    test_clips: int = setting(10, POSITIVE, "evenly spaced, of every video and crop")
    test_crops: str = setting("all", doc="all (unflipped, at scale 1), center, or variants by name")
    clips: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    batch: BatchConfig = dataclasses.field(default_factory=BatchConfig)
    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(
            lr=None, betas=(0.9, 0.999), weight_decay=0.01, epochs=50.0
        )
    )
    run: TestedRunConfig = dataclasses.field(default_factory=TestedRunConfig)

    def check(self, world_size: int = 1, device_type: str = "cuda") -> None:
        """As `TrainConfig.check`."""
        super().check(world_size, device_type)
        self.batch.check("batch.videos", world_size)


def clip_span(frames: int, stride: int) -> int:
    """Stored frames from the first of a clip to its last, both counted."""
    return (frames - 1) * stride + 1
