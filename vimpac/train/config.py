"""What can be set in a run. `vimpac.train.overrides` fills it from YAML and `key=value` words."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Literal

from vimpac.errors import UsageError


@dataclasses.dataclass
class ModelConfig:
    """The network: the paper's Table 3."""

    name: str = "small"  # small | base | large_half | tiny | 6x768 | 12x512
    layout: str = "T,H|W"  # attention blocks: `,` in sequence, `|` in parallel
    dropout: float = 0.1


@dataclasses.dataclass
class ClipConfig:
    """What is read from the token store."""

    frames: int = 5  # T
    frame_stride: int = 1  # stored frames from one frame of a clip to the next
    variant: int | None = None  # which stored variant; null: drawn per sample
    workers: int = 2  # data-loading processes per rank; 0: load in the training process
    prefetch: int = 4  # micro-batches that each worker keeps ready

    @property
    def span(self) -> int:
        """Stored frames from the first of a clip to its last, both counted."""
        return (self.frames - 1) * self.frame_stride + 1


@dataclasses.dataclass
class PairConfig(ClipConfig):
    """What is read where two clips of a video meet."""

    max_distance: float | None = None  # seconds between the two starts; null: unbounded


@dataclasses.dataclass
class MaskConfig:
    """What is hidden from the model (Sec. B.1)."""

    strategy: Literal["block", "iid", "tube"] = "block"
    blocks: int = 5  # boxes per clip (block)
    ratio: float = 0.15  # share of tokens (iid, tube)
    noise: tuple[float, float, float] | None = None  # BERT: [MASK] / random id / unchanged
    noise_unit: Literal["block", "token"] = "token"


@dataclasses.dataclass
class BatchConfig:
    """How many videos meet where; each gives two clips."""

    videos: int = 1024  # per optimiser update, all ranks together
    contrastive: int = 128  # that are told apart: 2 * contrastive - 1 candidates per clip
    micro: int = 32  # largest part of a rank that is held in memory at once


@dataclasses.dataclass
class OptimConfig:
    """AdamW with a linear warm-up and a linear decay to zero (Table 4)."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0  # largest norm of the gradient; 0: no clipping
    warmup: float = 0.1  # share of the updates
    epochs: float = 10.0
    steps: int | None = None  # updates; null: from the epochs


@dataclasses.dataclass
class LossConfig:
    """Loss = token loss + alpha * gamma * contrastive loss, gamma = 0.2 (Sec. 3)."""

    alpha: float = 1.0  # 0: no contrastive loss
    temperature: float = 0.2


@dataclasses.dataclass
class LogConfig:
    """What a run tells while it goes."""

    log_every: int = 10  # steps between lines of the log; the only host synchronisation
    tensorboard: bool = True


@dataclasses.dataclass
class RunConfig(LogConfig):
    """Bookkeeping of a run that can be continued; its last step is always saved."""

    save_every: int = 500  # steps between checkpoints
    keep: int = 3  # newest checkpoints that are kept
    timeout: float = 300.0  # seconds after which a process that others wait for counts as dead


@dataclasses.dataclass
class PretrainConfig:
    """A pre-training run."""

    data: str = ""  # a token store: see `vimpac tokenize`
    out: str = "runs/pretrain"
    seed: int = 0
    device: str = "auto"  # auto: cuda if there is one, else cpu
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: Literal["none", "default", "max-autotune"] = "none"
    parallel: Literal["ddp", "fsdp"] = "ddp"  # each process holds all parameters, or a share
    graph: bool = False  # one CUDA graph of the step: pays where launching outlasts computing
    activation_checkpointing: bool = False  # keep a layer's input only, run it again in backward
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    clips: PairConfig = dataclasses.field(default_factory=PairConfig)
    mask: MaskConfig = dataclasses.field(default_factory=MaskConfig)
    batch: BatchConfig = dataclasses.field(default_factory=BatchConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)

    def check(self, world_size: int = 1, device_type: str = "cuda") -> None:
        """Finds the combinations that no single type rules out.

        Args:
            world_size: Number of processes.
            device_type: Where the run takes place.

        Raises:
            UsageError: A value is out of range or two values do not fit together.
        """
        _check_ranges(
            self,
            "batch.videos batch.contrastive batch.micro loss.temperature run.save_every run.keep "
            "run.timeout",
            "loss.alpha mask.blocks clips.max_distance",
            "mask.ratio mask.noise",
            "model.dropout",
        )
        mask, batch = self.mask, self.batch
        if mask.noise is not None:
            if not math.isclose(sum(mask.noise), 1.0, abs_tol=1e-6):
                raise UsageError(f"mask.noise={[*mask.noise]} must sum to 1")
            if mask.noise_unit == "block" and mask.strategy != "block":
                raise UsageError("mask.noise_unit=block needs mask.strategy=block")
        if batch.videos % batch.contrastive:
            raise UsageError(
                f"batch.videos={batch.videos} must be a multiple of "
                f"batch.contrastive={batch.contrastive}"
            )
        if self.graph:
            self._check_graph(world_size, device_type)
        part = batch.contrastive // world_size
        if batch.contrastive % world_size:
            raise UsageError(
                f"batch.contrastive={batch.contrastive} does not divide among "
                f"{world_size} processes"
            )
        if part % min(batch.micro, part):
            raise UsageError(
                f"batch.micro={batch.micro} must divide the {part} videos of a contrastive batch "
                "on each process"
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
class FinetuneConfig:
    """A classifier on a pre-trained encoder; the defaults are Table 4's for UCF101."""

    data: str = ""  # a token store
    labels: str = ""  # a CSV file with the columns video, class, split (train or test)
    out: str = "runs/finetune"
    seed: int = 0
    device: str = "auto"
    precision: Literal["bf16", "fp32"] = "bf16"
    batch: int = 128  # clips
    test_clips: int = 10  # of every video and crop, evenly spaced
    clips: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(
            lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01, epochs=50.0
        )
    )
    run: LogConfig = dataclasses.field(default_factory=LogConfig)

    def check(self) -> None:
        """Finds the values that no type rules out.

        Raises:
            UsageError: A value is out of range.
        """
        _check_ranges(self, "batch test_clips")


_LARGEST = 10**9  # what no setting needs to pass, and everything can compute with


def _check_ranges(
    config: PretrainConfig | FinetuneConfig,
    positive: str,
    not_negative: str = "",
    shares: str = "",
    below_one: str = "",
) -> None:
    """Checks the numbers at the given keys, and those that every command has, and their size."""
    for key, number in _numbers(dataclasses.asdict(config)):
        if isinstance(number, float) and not math.isfinite(number):
            raise UsageError(f"{key}={number} must be finite")
        if key != "seed" and abs(number) > _LARGEST:
            raise UsageError(f"{key}={number} must be within {_LARGEST:,} of 0")
    positive += " clips.frames clips.frame_stride clips.prefetch"
    positive += " optim.lr optim.epochs optim.steps run.log_every"
    not_negative += " clips.workers clips.variant"
    not_negative += " optim.weight_decay optim.eps optim.clip"
    rules: tuple[tuple[str, Callable[[float], bool], str], ...] = (
        (positive, lambda x: x > 0, "be positive"),
        (not_negative, lambda x: x >= 0, "not be negative"),
        (f"{shares} optim.warmup", lambda x: 0 <= x <= 1, "lie in [0, 1]"),
        (f"{below_one} optim.betas", lambda x: 0 <= x < 1, "lie in [0, 1)"),
        ("seed", lambda x: 0 <= x < 2**63, "lie in [0, 2^63)"),
    )
    for keys, legal, must in rules:
        for key in keys.split():
            value = operator.attrgetter(key)(config)
            values = value if isinstance(value, tuple) else (value,)
            if not all(x is None or legal(x) for x in values):
                raise UsageError(f"{key}={value} must {must}")


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """(dotted key, number) of every number, those of a tuple one by one."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, tuple):
        for inner in value:
            yield from _numbers(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
