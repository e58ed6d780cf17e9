"""What `model.json` says of a VIMPAC model: its kind, its settings and the data it was trained on.

{"format": 4, "kind": "vimpac" | "classifier" | "attentive_classifier",
 "config": ModelConfig,
 "loss": LossConfig | null, "classes": [name, ...] | null, "data": DataFacts | null}
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from vimpac.checkpoints import version_01
from vimpac.checkpoints.protocol import Description
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError
from vimpac.model.attentive import AttentiveClassifier
from vimpac.model.config import LossConfig, ModelConfig
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.model.heads import VideoClassifier
from vimpac.model.pretraining import Vimpac
from vimpac.settings import LARGEST

# 2 and 3 are read, too. Their data has no variants, and in 2 "pre" is what is "pre_textbook" now.
FORMAT = 4
CLASSIFIERS = {"classifier": VideoClassifier, "attentive_classifier": AttentiveClassifier}
KINDS = ("vimpac", *CLASSIFIERS)


@dataclasses.dataclass(frozen=True)
class DataFacts:
    """Of the clips that a model was trained on."""

    tokenizer: str
    digest: str  # SHA-256 of the tokenizer's weights; empty when it has none
    fps: float  # of the store
    frame_stride: int  # stored frames from one frame of a clip to the next
    height: int  # rows of the token map
    width: int  # columns of the token map
    variants: tuple[str, ...] = ()  # of the store; empty where it is not known

    def __post_init__(self) -> None:
        object.__setattr__(self, "variants", tuple(self.variants))
        if not all(isinstance(text, str) for text in (self.tokenizer, self.digest, *self.variants)):
            raise TypeError(f"tokenizer {self.tokenizer!r}, digest and variants must be texts")
        sizes = (self.frame_stride, self.height, self.width)
        if not all(type(size) is int for size in sizes):
            raise TypeError(f"frame_stride, height and width {sizes} must be whole numbers")
        if not all(0 < number <= LARGEST for number in (self.fps, *sizes)):
            raise ValueError(f"fps {self.fps} and {sizes} must be positive, up to {LARGEST:,}")

    @classmethod
    def of(cls, meta: StoreMeta, frame_stride: int) -> DataFacts:
        """The facts of clips of a store."""
        sizes = meta.height, meta.width
        return cls(meta.tokenizer, meta.digest, meta.fps, frame_stride, *sizes, meta.variants)

    @property
    def interval(self) -> float:
        """Seconds from one frame of a clip to the next."""
        return self.frame_stride / self.fps

    def same_interval(self, other: DataFacts) -> bool:
        """Whether both intervals are one, but for the rounding of a division."""
        return math.isclose(self.interval, other.interval, rel_tol=1e-6)

    @property
    def clock(self) -> str:
        """What makes the interval, for messages."""
        return f"{self.fps:g} frames per second, stride {self.frame_stride}"

    @property
    def map(self) -> str:
        """The size of the token map, for messages."""
        return f"{self.height} x {self.width}"

    @property
    def tokens(self) -> str:
        """What made the tokens, for messages."""
        return f"the tokenizer '{self.tokenizer}'" + (
            f" with the weights {self.digest[:12]}" if self.digest else ""
        )


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """What `model.json` says."""

    kind: str
    config: ModelConfig
    loss: LossConfig | None = None
    classes: list[str] | None = None
    data: DataFacts | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """See `Description`."""
        return {"classes": self.classes, "data": self.data}

    def build(self) -> Vimpac | VideoClassifier | AttentiveClassifier:
        """The model, with fresh weights, on the current default device."""
        if self.kind == "vimpac":
            return Vimpac(self.config, self.loss or LossConfig(alpha=0))
        classifier: type[VideoClassifier | AttentiveClassifier] = CLASSIFIERS[self.kind]
        return classifier(VideoTokenEncoder(self.config), len(self.classes or ()))

    @classmethod
    def of(cls, model: nn.Module, **more: Any) -> ModelDescription:
        """Describes a `Vimpac` or, with `classes`, one of `CLASSIFIERS`."""
        if isinstance(model, Vimpac):
            return cls("vimpac", model.config, model.loss_config, **more)
        assert isinstance(model, VideoClassifier | AttentiveClassifier)
        (kind,) = (kind for kind, other in CLASSIFIERS.items() if isinstance(model, other))
        config = dataclasses.replace(model.encoder.config, grid=model.encoder.grid)
        return cls(kind, config, **more)

    def to_json(self) -> str:
        """The text of `model.json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    def with_new_names(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See `Description`."""
        return version_01.with_new_names(tensors)

    def check_data(self, path: Path, was: Description) -> Iterator[str]:
        """See `Description`; the tokenizer and the time between two frames must be the same."""
        if not isinstance(was, ModelDescription) or was.data is None or self.data is None:
            return
        check_tokenizer(path, was.data, self.data)
        if not was.data.same_interval(self.data):
            raise UsageError(
                f"{path} was trained on frames {was.data.interval:g} s apart ({was.data.clock}), "
                f"here they are {self.data.interval:g} s apart ({self.data.clock}): give the same "
                "data= and clips.frame_stride, or another out="
            )
        if was.data.map != self.data.map:
            yield f"the token map is {self.data.map}, it was {was.data.map} in {path}"

    @classmethod
    def from_json(cls, text: str) -> ModelDescription:
        """Reads `to_json`, or the file of version 0.1.

        Raises:
            ValueError: If it is neither.
            KeyError: If something is missing.
            TypeError: If something has a wrong type or name.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it holds no names and values")
        if "format" not in values:
            config, loss = version_01.read_settings(values)
            return cls("vimpac", config, loss)
        if values["format"] not in (2, 3, FORMAT) or values["kind"] not in KINDS:
            raise UsageError(
                f"it is of format {values['format']}, kind {values['kind']!r}, which this version "
                "of vimpac does not know: upgrade it"
            )
        classes = values["classes"]
        if classes is not None:
            check_classes(classes)
        network, data = values["config"], values["data"]
        if values["format"] == 2:
            network = version_01.with_new_norm(network)
        if data and values["format"] < 4:
            data = {**data, "variants": ()}
        return cls(
            values["kind"],
            _from_fields(ModelConfig, network),
            _from_fields(LossConfig, values["loss"]) if values["loss"] else None,
            classes,
            _from_fields(DataFacts, data) if data else None,
        )


from_json = ModelDescription.from_json  # see `vimpac.checkpoints.protocol`


def of_version_01(folder: Path) -> ModelDescription:
    """Of a checkpoint of version 0.1, which has no `model.json`."""
    return ModelDescription(**version_01.read_description(folder))


def check_tokenizer(path: Path, was: DataFacts | None, now: DataFacts | None) -> None:
    """Raises UsageError if a model would read tokens that another tokenizer made."""
    if was and now and (was.tokenizer, was.digest) != (now.tokenizer, now.digest):
        raise UsageError(
            f"{path} was trained on tokens of {was.tokens}, data= holds those of {now.tokens}"
        )


def check_classes(classes: Any) -> None:
    """Raises TypeError or ValueError unless these are names of classes, each another one."""
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes must be a list of names, got {classes!r}")
    if len({*classes}) < len(classes):
        raise ValueError("two classes have one name")


T = TypeVar("T")


def _from_fields(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass of all of its fields and no other."""
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    wrong = sorted(names ^ values.keys())
    if wrong:
        raise ValueError(f"{wrong[0]!r} is absent or unknown")
    return kind(**values)
