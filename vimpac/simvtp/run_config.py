"""Every setting of a run of SimVTP; those that every training has are in vimpac/train_config.py."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from vimpac.errors import UsageError
from vimpac.settings import (
    ABOVE_ZERO,
    BELOW_ONE,
    FOLDER,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SHARE,
    SIZE,
    setting,
)
from vimpac.simvtp.config import NetworkConfig, ObjectiveConfig, TextConfig
from vimpac.train_config import (
    GroupedBatch,
    OptimConfig,
    ReadConfig,
    TestedRunConfig,
    TrainConfig,
)

SHORTEST = 3  # tokens of a caption: [CLS], a word, [SEP]
MOST_OPERATIONS = 15  # of RandAugment on a clip: as many as there are


@dataclasses.dataclass
class VideoClipConfig(ReadConfig):
    """What is read of the videos."""

    step: int = setting(4, POSITIVE, "frames of a video from one of a clip to the next")


@dataclasses.dataclass
class VideoMaskConfig:
    """Which tubelets are hidden: the same cells in every time step."""

    ratio: float = setting(0.9, SHARE, "share of cells, rounded down to whole ones")

    def masked_cells(self, cells: int) -> int:
        """How many of so many cells are hidden."""
        return int(self.ratio * cells + 1e-9)


@dataclasses.dataclass
class MatchConfig:
    """Which clip a text is shown beside as a mismatch."""

    negatives: Literal["random", "hard"] = setting(
        "random", doc="any other one, or more likely one that looks alike"
    )


@dataclasses.dataclass
class PairsBatchConfig(GroupedBatch):
    """How many videos, each with a caption, meet where."""

    videos: int = setting(1024, POSITIVE, "per optimiser update, all ranks together")
    contrastive: int = setting(16, POSITIVE, "of them told apart, and mismatched")
    micro: int = setting(16, POSITIVE, "largest part of a rank that is held in memory at once")

    @property
    def group(self) -> int:
        """The videos that are told apart."""
        return self.contrastive


@dataclasses.dataclass
class CosineOptimConfig(OptimConfig):
    """AdamW with a linear warm-up and a decay by a cosine, as released."""

    lr: float | None = setting(6e-4, POSITIVE, "learning rate after the warm-up")
    betas: tuple[float, float] = setting((0.9, 0.95), BELOW_ONE, "decay of the two moments")
    max_grad_norm: float = setting(0.0, NOT_NEGATIVE, "the gradient is clipped to it; 0: not")
    warmup: float = setting(0.2, SHARE, "share of the updates in which the rate rises")
    schedule: Literal["linear", "cosine"] = setting("cosine", doc="how the rate falls")
    min_lr: float = setting(4e-5, NOT_NEGATIVE, "where it ends")
    epochs: float = setting(200.0, POSITIVE, "passes over the videos")


@dataclasses.dataclass
class SimVTPConfig(TrainConfig):
    """A pre-training of SimVTP."""

    command: ClassVar[str] = "simvtp/pretrain"
    lrs: ClassVar[tuple[float, float]] = (6e-4, 6e-4)

    data: str = setting("", PATH, "captions: a table or a directory, see docs/simvtp.md")
    out: str = setting("runs/simvtp", FOLDER, "directory of the run")
    videos: str = setting("", PATH, "their video files: a directory, or a store of `vimpac frames`")
    split: str = setting("", doc="which division of MSR-VTT: 1k-A, 1k-B, full; empty: as data says")
    missing: Literal["error", "skip"] = setting(
        "error", doc="captions without a video, or the reverse"
    )
    vocab: str = setting("", PATH, "vocab.txt or tokenizer.json; empty: the captions' words")
    init: str = setting("", PATH, "a model to start from: a directory, or a released checkpoint")
    init_text: str = setting("", PATH, "BERT's weights, of which the embeddings are taken")
    model: NetworkConfig = dataclasses.field(default_factory=lambda: NetworkConfig().named("base"))
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    loss: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    clips: VideoClipConfig = dataclasses.field(default_factory=VideoClipConfig)
    mask: VideoMaskConfig = dataclasses.field(default_factory=VideoMaskConfig)
    vtm: MatchConfig = dataclasses.field(default_factory=MatchConfig)
    batch: PairsBatchConfig = dataclasses.field(default_factory=PairsBatchConfig)
    optim: CosineOptimConfig = dataclasses.field(default_factory=CosineOptimConfig)
    run: TestedRunConfig = dataclasses.field(default_factory=TestedRunConfig)

    def check(self, world_size: int = 1, device_type: str = "cuda") -> None:
        """As `TrainConfig.check`."""
        super().check(world_size, device_type)
        batch, loss, cells = self.batch, self.loss, self.model.cells
        check_groups(batch)
        if batch.contrastive < 2 and (loss.contrast or loss.match):
            raise UsageError(
                f"batch.contrastive={batch.contrastive} leaves a caption no other video: raise it, "
                "or give loss.contrast=0 loss.match=0"
            )
        if not any((loss.pixels, loss.words, loss.contrast, loss.match)):
            raise UsageError("all weights of loss are 0, which trains nothing: raise one of them")
        hidden = self.mask.masked_cells(cells)
        if not 0 < hidden < cells:
            raise UsageError(
                f"mask.ratio={self.mask.ratio:g} hides {hidden} of the {cells} cells of a frame: "
                "at least one must be hidden, and one seen"
            )
        if not SHORTEST <= self.text.length <= self.model.text_positions:
            raise UsageError(
                f"text.length={self.text.length} must lie in [{SHORTEST}, "
                f"{self.model.text_positions}], the latter being model.text_positions"
            )
        if loss.words and not self.text.ratio:
            raise UsageError(
                "text.ratio=0 masks no word, so the word loss trains nothing: raise it, or give "
                "loss.words=0"
            )
        if self.vtm.negatives == "hard" and not loss.match:
            raise UsageError("vtm.negatives=hard with loss.match=0: there is no match loss")
        batch.check("batch.contrastive", world_size)


@dataclasses.dataclass
class SpreadClipConfig(ReadConfig):
    """What is read of the videos."""

    window: int = setting(64, POSITIVE, "frames of a video that a clip's are spread over")
    scale: tuple[float, float] = setting(
        (0.08, 1.0), ABOVE_ZERO, "least and largest share of the picture that a crop covers"
    )
    flip: float = setting(0.5, SHARE, "share of clips that are mirrored, whatever the caption says")
    augment: int = setting(4, NOT_NEGATIVE, "operations of RandAugment, half of them left out")
    strength: float = setting(7.0, NOT_NEGATIVE, "of an operation, at most 10")
    erase: float = setting(0.25, SHARE, "share of clips of which a rectangle is covered with noise")


@dataclasses.dataclass
class DualTextConfig:
    """How captions are read; the rest is as in the pre-training."""

    length: int = setting(64, SIZE, "tokens after which a caption is cut, [CLS] and [SEP] included")
    dropout: float = setting(0.1, BELOW_ONE, "of the embedded words, in training")
    pool: Literal["all", "words"] | None = setting(
        None, doc="rows of a mean: all, or all but padding; null: as pre-trained"
    )


@dataclasses.dataclass
class DualOptimConfig(CosineOptimConfig):
    """AdamW with a linear warm-up and a decay by a cosine, as released."""

    lr: float | None = setting(7.5e-5, POSITIVE, "learning rate after the warm-up")
    betas: tuple[float, float] = setting((0.9, 0.999), BELOW_ONE, "decay of the two moments")
    warmup: float = setting(0.05, SHARE, "share of the updates in which the rate rises")
    min_lr: float = setting(1e-6, NOT_NEGATIVE, "where it ends")
    epochs: float = setting(100.0, POSITIVE, "passes over the videos")


@dataclasses.dataclass
class SimVTPFinetuneConfig(TrainConfig):
    """A fine-tuning of two encoders, to search videos by text."""

    command: ClassVar[str] = "simvtp/finetune"
    lrs: ClassVar[tuple[float, float]] = (7.5e-5, 7.5e-5)

    data: str = setting("", PATH, "captions: a table or a directory, see docs/simvtp.md")
    out: str = setting("runs/retrieval", FOLDER, "directory of the run")
    videos: str = setting("", PATH, "their video files: a directory, or a store of `vimpac frames`")
    split: str = setting("", doc="which division of MSR-VTT: 1k-A, 1k-B, full; empty: as data says")
    missing: Literal["error", "skip"] = setting(
        "error", doc="captions without a video, or the reverse"
    )
    drop_path: float = setting(
        0.1, BELOW_ONE, "share of samples that go past a branch of the last layer, fewer past lower"
    )
    fresh_norm: bool = setting(True, doc="start the last LayerNorm anew, as released")
    temperature: float = setting(0.05, POSITIVE, "divides the cosine similarities")
    clips: SpreadClipConfig = dataclasses.field(default_factory=SpreadClipConfig)
    text: DualTextConfig = dataclasses.field(default_factory=DualTextConfig)
    batch: PairsBatchConfig = dataclasses.field(
        default_factory=lambda: PairsBatchConfig(videos=64, contrastive=8, micro=8)
    )
    optim: DualOptimConfig = dataclasses.field(default_factory=DualOptimConfig)
    run: TestedRunConfig = dataclasses.field(default_factory=TestedRunConfig)

    def check(self, world_size: int = 1, device_type: str = "cuda") -> None:
        """As `TrainConfig.check`."""
        super().check(world_size, device_type)
        check_groups(self.batch)
        low, high = self.clips.scale
        if low > high:
            raise UsageError(f"clips.scale=[{low:g}, {high:g}]: the first must not be the larger")
        if self.clips.augment > MOST_OPERATIONS:
            raise UsageError(
                f"clips.augment={self.clips.augment} must not exceed {MOST_OPERATIONS}"
            )
        if self.clips.strength > 10:
            raise UsageError(f"clips.strength={self.clips.strength:g} must not exceed 10")
        if self.text.length < SHORTEST:
            raise UsageError(f"text.length={self.text.length} must be at least {SHORTEST}")
        if self.batch.contrastive < 2:
            raise UsageError("batch.contrastive=1 has no other video to tell a caption from")
        self.batch.check("batch.contrastive", world_size)


def check_groups(batch: PairsBatchConfig) -> None:
    """Raises UsageError unless an update is a number of groups."""
    if batch.videos % batch.contrastive:
        raise UsageError(
            f"batch.videos={batch.videos} must be a multiple of "
            f"batch.contrastive={batch.contrastive}"
        )
