"""The settings that every training has: its optimiser, its bookkeeping and where it runs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from vimpac.data.store_config import StoreConfig
from vimpac.errors import UsageError
from vimpac.paper_rows import find_row
from vimpac.settings import (
    ABOVE_ZERO,
    BELOW_ONE,
    FOLDER,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SEED,
    SHARE,
    SIZE,
    WEIGHTS,
    WORKERS,
    range_problem,
    setting,
)


@dataclasses.dataclass
class ReadConfig:
    """How samples are read."""

    workers: int = setting(2, WORKERS, "data-loading processes per rank; 0: none")
    prefetch: int = setting(4, POSITIVE, "micro-batches that each worker keeps ready")


@dataclasses.dataclass
class ClipConfig(ReadConfig):
    """What is read from the token store."""

    frames: int = setting(5, SIZE, "of a clip, T")
    frame_stride: int = setting(1, POSITIVE, "stored frames from one of a clip to the next")
    fps: float | None = setting(
        None, POSITIVE, "of a clip, from which the stride follows; null: as frame_stride says"
    )
    variant: int | None = setting(
        None, NOT_NEGATIVE, "of the stored ones, to train on; null: drawn per sample"
    )
    skip_damaged: bool = setting(
        False, doc="read the whole store first and leave damaged videos out, which else end the run"
    )
    window: int | None = setting(
        None,
        POSITIVE,
        "shards whose videos are mixed at a time; a cache must hold two windows; null: all",
    )

    @property
    def span(self) -> int:
        """Stored frames from the first of a clip to its last, both counted."""
        return clip_span(self.frames, self.frame_stride)


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
class OptimConfig:
    """AdamW with a linear warm-up and a decay to zero, a linear one in the paper (Table 4)."""

    lr: float | None = setting(
        1e-3, POSITIVE, "learning rate after the warm-up; null: the paper's for the model's width"
    )
    betas: tuple[float, float] = setting((0.9, 0.98), BELOW_ONE, "decay of the two moments")
    eps: float = setting(1e-8, POSITIVE, "added to the root of the second moment")
    weight_decay: float = setting(0.05, NOT_NEGATIVE, "of Linear and token embedding weights")
    max_grad_norm: float = setting(1.0, NOT_NEGATIVE, "the gradient is clipped to it; 0: not")
    warmup: float = setting(0.1, SHARE, "share of the updates in which the rate rises")
    schedule: Literal["linear", "cosine"] = setting("linear", doc="how the rate falls")
    min_lr: float = setting(0.0, NOT_NEGATIVE, "where it ends")
    epochs: float = setting(10.0, POSITIVE, "passes over the videos")
    steps: int | None = setting(None, POSITIVE, "updates; null: from the epochs")


@dataclasses.dataclass
class FinetuneOptimConfig(OptimConfig):
    """AdamW with a linear warm-up and decay; lower layers may have a lower rate."""

    layer_decay: float = setting(
        1.0, ABOVE_ZERO, "factor from a layer's rate to that of the one below; 1: one rate"
    )


@dataclasses.dataclass
class RunConfig:
    """Bookkeeping of a run that can be continued; its last step is always saved."""

    log_every: int = setting(10, POSITIVE, "steps between records; the only host synchronisation")
    tensorboard: bool = setting(True, doc="write TensorBoard events, too")
    save_every: int = setting(500, POSITIVE, "steps between checkpoints")
    keep: int = setting(3, POSITIVE, "newest checkpoints that are kept")
    keep_best: bool = setting(
        False, doc="copy the one that val, else test, else k-NN finds best to out/best"
    )
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

    def evaluate_steps(self, epoch_steps: float) -> int:
        """Updates from test to test, of so many in an epoch; 0: at the end only."""
        every = self.evaluate_every
        return 0 if every is None else max(1, round(every * epoch_steps))


@dataclasses.dataclass
class TrainConfig:
    """What every training has."""

    lrs: ClassVar[tuple[float, float]]  # where optim.lr is null: of a base model, of a large one

    data: str = setting("", PATH, "what is learned from")
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
    clips: ReadConfig = dataclasses.field(default_factory=ReadConfig)
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
        optim = self.optim
        if optim.lr is not None and optim.min_lr > optim.lr:
            raise UsageError(f"optim.min_lr={optim.min_lr:g} must not exceed optim.lr={optim.lr:g}")


@dataclasses.dataclass
class TokenTrainConfig(StoreConfig, TrainConfig):
    """What every training on a token store has."""

    row: str = setting(
        "", doc="of the paper's tables, for which `vimpac rows --runs` counts it; set by --row"
    )
    data_weights: tuple[float, ...] | None = setting(
        None,
        WEIGHTS,
        "how often an epoch draws the videos of each store of data; null: once",
    )
    clips: ClipConfig = dataclasses.field(default_factory=ClipConfig)

    def check(self, world_size: int = 1, device_type: str = "cuda") -> None:
        """As `TrainConfig.check`."""
        super().check(world_size, device_type)
        if self.row:
            find_row(self.row)
        if self.clips.fps is not None and self.clips.frame_stride > 1:
            raise UsageError(
                f"clips.fps={self.clips.fps:g} and clips.frame_stride={self.clips.frame_stride}: "
                "give one of them"
            )


def clip_span(frames: int, stride: int) -> int:
    """Stored frames from the first of a clip to its last, both counted."""
    return (frames - 1) * stride + 1
