"""The settings of a model and the named presets of the paper (Tables 3 and 6)."""

from __future__ import annotations

import dataclasses
from typing import Any

NUM_TOKENS = 8192  # the tokenizer's vocabulary
PAD_TOKEN = 8193
MASK_TOKEN = 8196
EMBEDDING_ROWS = 8197  # rows 8192, 8194 and 8195 are unused
LAYOUTS = ("T,H|W", "T,H,W", "T|H|W", "T,HW", "THW")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Every setting of a `Vimpac` model.

    In `layout`, `,` separates attention blocks in sequence and `|` the axes that share the heads
    of one block. `grid` is (T, H, W) in tokens; a token covers 8 x 8 pixels.
    """

    layers: int = 6
    width: int = 512
    heads: int = 8
    head_dim: int = 64  # heads * head_dim may differ from width (halved attention)
    mlp_width: int = 2048
    layout: str = "T,H|W"
    grid: tuple[int, int, int] = (5, 16, 16)
    norm: str = "post"  # "post" | "pre"
    cls: str = "released"  # "released" | "paper": see vimpac/model/cls_per_line.py
    dropout: float = 0.1
    contrastive_layers: int = 2
    contrastive_width: int = 2048
    contrastive_dim: int = 256
    alpha: float = 1.0  # weight of the contrastive loss; 0 builds no contrastive head
    gamma: float = 0.2  # scale inside the contrastive loss
    temperature: float = 0.2
    contrastive_batch: int | None = None  # videos that compete; None: all in the (global) batch

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {self.layout!r}")
        if self.norm not in ("post", "pre"):
            raise ValueError(f"norm must be 'post' or 'pre', got {self.norm!r}")
        if self.cls not in ("released", "paper"):
            raise ValueError(f"cls must be 'released' or 'paper', got {self.cls!r}")
        if self.cls == "paper" and "|" in self.layout:
            raise ValueError(
                f"cls='paper' averages [CLS] per line after the whole block, which layout "
                f"{self.layout!r} leaves undefined: its parallel axes have different lines but "
                "one output projection; use cls='released', or a layout without '|'"
            )
        if len(self.grid) != 3 or any(size < 1 for size in self.grid):
            raise ValueError(f"grid must be three positive sizes (T, H, W), got {self.grid}")
        for block in self.layout.split(","):
            groups = block.count("|") + 1
            if self.heads % groups:
                raise ValueError(f"{self.heads} heads do not divide into the {groups} axes {block}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")


_SMALL: dict[str, Any] = {}
_BASE: dict[str, Any] = dict(layers=12, width=768, heads=12, mlp_width=3072)
_LARGE: dict[str, Any] = dict(
    layers=24, width=1024, heads=16, contrastive_layers=3, contrastive_width=4096
)

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(layers=2, width=128, heads=4, head_dim=32, mlp_width=512, contrastive_width=256),
    "small": _SMALL,
    "base": _BASE,
    "large_half": {**_LARGE, "head_dim": 32, "mlp_width": 2048},
    "6x768": {**_BASE, "layers": 6},
    "12x512": {**_SMALL, "layers": 12},
}


def preset(name: str, **overrides: Any) -> ModelConfig:
    """Returns the settings of a named preset.

    Args:
        name: "tiny", "small", "base", "large_half", "6x768" or "12x512".
        overrides: Fields of `ModelConfig` to change.

    Returns:
        The settings.

    Raises:
        ValueError: If there is no such preset, or a setting is illegal.
        TypeError: If an override is not a field of `ModelConfig`.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for key in overrides:
        if key not in fields:
            raise TypeError(f"{key!r} is no setting of a model; the settings are {fields}")
    return ModelConfig(**{**PRESETS[name], **overrides})
