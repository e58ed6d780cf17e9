"""The settings of `vimpac visualise`: which store is read, and how."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from vimpac.config import LABELS
from vimpac.data.store_config import StoreConfig
from vimpac.settings import POSITIVE, SIZE, setting


@dataclasses.dataclass
class PictureClipConfig:
    """What is read of a video."""

    frames: int | None = setting(
        None, SIZE, "of a clip, T; null: as in training, without a checkpoint 5"
    )
    frame_stride: int | None = setting(
        None,
        POSITIVE,
        "stored frames from one of a clip to the next; null: as far as in training, else 1",
    )


@dataclasses.dataclass
class PictureConfig(StoreConfig):
    """A picture of a clip."""

    command: ClassVar[str] = "visualise"

    clips: PictureClipConfig = dataclasses.field(default_factory=PictureClipConfig)


@dataclasses.dataclass
class ModelPictureConfig(PictureConfig):
    """A picture of what a model makes of a clip."""

    device: str = setting("auto", doc="auto is cuda if there is one, else cpu")


@dataclasses.dataclass
class SamplesConfig(StoreConfig):
    """A picture of some videos."""

    command: ClassVar[str] = "visualise"

    labels: str = setting("", LABELS, "the classes of its videos: see `vimpac labels`")
