"""The settings of a SimVTP network and of its losses, and the named networks."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from vimpac.settings import BELOW_ONE, NOT_NEGATIVE, POSITIVE, SHARE, SIZE, check_values, setting

MOST_TUBELETS = 65_536  # of a clip: all of them meet in attention


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The network; `name` sets the sizes of a preset and becomes that of the one that fits.

    A tubelet is `tubelet` frames of `patch` x `patch` pixels.

    Raises:
        ValueError: A value is not legal, or two do not fit together.
    """

    name: str = setting("custom", doc="sizes: tiny, base or custom")
    frames: int = setting(16, SIZE, "of a clip")
    size: int = setting(224, SIZE, "of a frame, pixels")
    tubelet: int = setting(2, SIZE, "frames of a tubelet")
    patch: int = setting(16, SIZE, "pixels of a tubelet's side")
    width: int = setting(768, SIZE, "of a token between layers, D")
    layers: int = setting(12, SIZE, "of the encoder")
    heads: int = setting(12, SIZE, "attention heads of the encoder")
    mlp_width: int = setting(3072, SIZE, "hidden units of the encoder's MLP")
    decoder_width: int = setting(384, SIZE, "of a token in the decoder")
    decoder_layers: int = setting(4, SIZE, "of the decoder")
    decoder_heads: int = setting(6, SIZE, "attention heads of the decoder")
    decoder_mlp_width: int = setting(1536, SIZE, "hidden units of the decoder's MLP")
    vocabulary: int = setting(30_522, POSITIVE, of_a_run=False)  # words, special ones included
    text_positions: int = setting(512, SIZE, "longest text that has a position")

    def __post_init__(self) -> None:
        sizes = vars(self).items()
        fits = (name for name, preset in PRESETS.items() if preset.items() <= sizes)
        object.__setattr__(self, "name", next(fits, "custom"))
        check_values(self)
        for whole, part in (
            ("frames", "tubelet"),
            ("size", "patch"),
            ("width", "heads"),
            ("decoder_width", "decoder_heads"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole}={getattr(self, whole)} must be a multiple of "
                    f"{part}={getattr(self, part)}"
                )
        if self.tubelets > MOST_TUBELETS:
            raise ValueError(
                f"frames={self.frames} and size={self.size} make {self.tubelets:,} tubelets of a "
                f"clip: at most {MOST_TUBELETS:,} are possible"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tubelets of a clip along time, height and width."""
        side = self.size // self.patch
        return self.frames // self.tubelet, side, side

    @property
    def cells(self) -> int:
        """Tubelets of one time step."""
        return self.grid[1] * self.grid[2]

    @property
    def tubelets(self) -> int:
        """Tubelets of a clip."""
        return math.prod(self.grid)

    @property
    def pixels(self) -> int:
        """Values of a tubelet."""
        return self.tubelet * self.patch**2 * 3

    def named(self, name: str) -> NetworkConfig:
        """This network with the sizes of a preset.

        Args:
            name: A key of `PRESETS`, or "custom", which changes nothing.

        Raises:
            ValueError: If there is no such preset.
        """
        if name == "custom":
            return self
        if name not in PRESETS:
            raise ValueError(f"name: preset must be one of {', '.join(PRESETS)}; got {name!r}")
        return dataclasses.replace(self, **PRESETS[name])


PRESETS: dict[str, dict[str, Any]] = {
    "base": dict(
        frames=16,
        size=224,
        tubelet=2,
        patch=16,
        width=768,
        layers=12,
        heads=12,
        mlp_width=3072,
        decoder_width=384,
        decoder_layers=4,
        decoder_heads=6,
        decoder_mlp_width=1536,
        text_positions=512,
    ),
    "tiny": dict(
        frames=8,
        size=48,
        tubelet=2,
        patch=8,
        width=64,
        layers=3,
        heads=4,
        mlp_width=256,
        decoder_width=32,
        decoder_layers=1,
        decoder_heads=2,
        decoder_mlp_width=128,
        text_positions=32,
    ),
}


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """How captions are read; the defaults are what the released code does.

    Raises:
        ValueError: A value is not legal.
    """

    length: int = setting(64, SIZE, "tokens after which a caption is cut, [CLS] and [SEP] included")
    ratio: float = setting(0.75, SHARE, "share of words that are masked")
    dropout: float = setting(0.1, BELOW_ONE, "of the embedded words, in training")
    tied: bool = setting(False, doc="predict words by the embedding's own weight")
    pool: Literal["all", "words"] = setting(
        "all", doc="rows of a mean: all, or all but the text's padding"
    )
    padding: int = setting(0, NOT_NEGATIVE, of_a_run=False)  # its id, whose row is not trained
    contrast: Literal["masked", "whole"] = setting(
        "masked", doc="the text that is compared with videos in the contrastive loss"
    )

    def __post_init__(self) -> None:
        check_values(self)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the four losses.

    Raises:
        ValueError: A value is not legal.
    """

    pixels: float = setting(1.0, NOT_NEGATIVE, "of the squared error of masked tubelets")
    words: float = setting(1.0, NOT_NEGATIVE, "of the cross-entropy of masked words")
    contrast: float = setting(1.0, NOT_NEGATIVE, "of video-text contrast (VTC)")
    match: float = setting(1.0, NOT_NEGATIVE, "of video-text matching (VTM)")
    temperature: float = setting(0.05, POSITIVE, "divides the cosine similarities")

    def __post_init__(self) -> None:
        check_values(self)

    def total(self, pixels: Any, words: Any, contrast: Any, match: Any) -> Any:
        """The loss of its four parts, tensors or numbers."""
        return (
            self.pixels * pixels
            + self.words * words
            + self.contrast * contrast
            + self.match * match
        )
