"""The settings of the commands that apply a trained model to the videos of a store."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from vimpac.config import LABELS
from vimpac.data.store_config import StoreConfig
from vimpac.settings import POSITIVE, SIZE, WORKERS, setting


@dataclasses.dataclass
class InferenceClipConfig:
    """What is read of a store."""

    skip_damaged: bool = setting(
        False, doc="read the whole store first and leave damaged videos out, which else end the run"
    )


@dataclasses.dataclass
class InferenceConfig(StoreConfig):
    """What is read, and how it is computed."""

    command: ClassVar[str] = "evaluate"

    labels: str = setting("", LABELS, "the classes of its videos: see `vimpac labels`")
    batch: int = setting(32, POSITIVE, "views at once, of each process")
    workers: int = setting(2, WORKERS, "data-loading processes per rank; 0: none")
    device: str = setting("auto", doc="auto is cuda if there is one, else cpu")
    precision: Literal["bf16", "fp32"] = setting("bf16", doc="bf16 is autocast")
    timeout: float = setting(300.0, POSITIVE, "seconds until a silent process counts as dead")
    clips: InferenceClipConfig = dataclasses.field(default_factory=InferenceClipConfig)


@dataclasses.dataclass
class FeatureClipConfig(InferenceClipConfig):
    """What is read of a video, where it is not what the model was trained on."""

    frames: int | None = setting(None, SIZE, "of a clip, T; null: as in training")
    frame_stride: int | None = setting(
        None, POSITIVE, "stored frames from one of a clip to the next; null: as far as in training"
    )


@dataclasses.dataclass
class FeatureConfig(InferenceConfig):
    """What is read, and how features are computed."""

    command: ClassVar[str] = "extract"

    clips: FeatureClipConfig = dataclasses.field(default_factory=FeatureClipConfig)
