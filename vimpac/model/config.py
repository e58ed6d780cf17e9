"""The settings of a network and of its loss, and the paper's named networks."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Literal

from vimpac.settings import BELOW_ONE, NOT_NEGATIVE, POSITIVE, SIZE, range_problem, setting

Layout = Literal["T,H|W", "T,H,W", "T|H|W", "T,HW", "THW"]
Norm = Literal["post", "pre", "pre_textbook"]
Cls = Literal["released", "paper"]
LAYOUTS: tuple[str, ...] = typing.get_args(Layout)
_CHOICES = {"layout": LAYOUTS, "norm": typing.get_args(Norm), "cls": typing.get_args(Cls)}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network (the paper's Tables 3, 6 and 13); `name` sets the sizes of a preset.

    `name` becomes that of the preset that has these sizes, whatever was given.
    In `layout`, `,` separates attention blocks in sequence and `|` the axes that share the heads
    of one block. `grid` is (T, H, W) in tokens; a token covers 8 x 8 pixels. `norm` is "pre" for
    the pre-LN column of Table 13, which is the released form; "pre_textbook" is the usual one.

    Raises:
        ValueError: A value is not legal, or two do not fit together.
    """

    name: str = setting(
        "custom", doc="sizes: tiny, small, base, large_half, 6x768, 12x512 or custom"
    )
    layers: int = setting(6, SIZE, "transformer layers")
    width: int = setting(512, SIZE, "of a token between layers, D")
    heads: int = setting(8, SIZE, "attention heads of a block")
    head_dim: int = setting(64, SIZE, "heads * head_dim may differ from width")
    mlp_width: int = setting(2048, SIZE, "hidden units of the MLP")
    layout: Layout = setting(
        "T,H|W", doc="axes of attention: `,` in sequence, `|` sharing the heads"
    )
    grid: tuple[int, int, int] = setting((5, 16, 16), POSITIVE, of_a_run=False)
    norm: Norm = setting(
        "post", doc="LayerNorm after the sum, before the branch as released, or as in textbooks"
    )
    cls: Cls = setting(
        "released", doc="how [CLS] joins the lines: see vimpac/model/cls_per_line.py"
    )
    dropout: float = setting(0.1, BELOW_ONE, "share of values that are dropped in training")
    contrastive_layers: int = setting(2, SIZE, "Linear layers of the contrastive head")
    contrastive_width: int = setting(2048, SIZE, "hidden units of the contrastive head")
    contrastive_dim: int = setting(256, SIZE, "of the vectors that are compared")

    def __post_init__(self) -> None:
        if not isinstance(self.grid, tuple | list):
            raise ValueError(f"grid must be three positive sizes (T, H, W), got {self.grid!r}")
        object.__setattr__(self, "grid", tuple(self.grid))
        _check_kinds(self)
        sizes = vars(self).items()
        fits = (name for name, preset in PRESETS.items() if (_SMALL | preset).items() <= sizes)
        object.__setattr__(self, "name", next(fits, "custom"))
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                value = getattr(self, field)
                raise ValueError(f"{field} must be one of {', '.join(choices)}; got {value!r}")
        if len(self.grid) != 3:
            raise ValueError(f"grid must be three positive sizes (T, H, W), got {self.grid}")
        problem = range_problem(self)
        if problem:
            raise ValueError(problem)
        if self.cls == "paper" and "|" in self.layout:
            raise ValueError(
                f"cls='paper' averages [CLS] per line after the whole block, which layout "
                f"{self.layout!r} leaves undefined: its parallel axes have different lines but "
                "one output projection; use cls='released', or a layout without '|'"
            )
        for block in self.layout.split(","):
            groups = block.count("|") + 1
            if self.heads % groups:
                raise ValueError(
                    f"heads={self.heads} do not divide into the {groups} axes of {block}"
                )

    @property
    def prenorm(self) -> bool:
        """Whether branches read a normalised stream, in either form of pre-LN."""
        return self.norm != "post"

    def named(self, name: str) -> ModelConfig:
        """This network with the sizes of a preset.

        Args:
            name: A key of `PRESETS`, or "custom", which changes nothing.

        Raises:
            ValueError: If there is no such preset.
        """
        if name == "custom":
            return self
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"name: preset must be one of {', '.join(PRESETS)}; got {name!r}")
        return dataclasses.replace(self, **(_SMALL | PRESETS[name]))


def _check_kinds(config: Any) -> None:
    """Raises ValueError for a number that is none, or not whole where only whole ones are legal."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        number: tuple[type, ...] = (int, float) if hint is float else (int,)
        if hint in (int, float, tuple[int, int, int]):
            for x in value if isinstance(value, tuple) else (value,):
                if isinstance(x, bool) or not isinstance(x, number):
                    kind = "number" if hint is float else "whole number"
                    raise ValueError(f"{name}={x!r} must be a {kind}")


_SMALL: dict[str, Any] = dict(
    layers=6,
    width=512,
    heads=8,
    head_dim=64,
    mlp_width=2048,
    contrastive_layers=2,
    contrastive_width=2048,
)
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
    """Returns the settings of a named network.

    Args:
        name: "tiny", "small", "base", "large_half", "6x768" or "12x512".
        overrides: Fields of `ModelConfig` to change.

    Returns:
        The settings.

    Raises:
        ValueError: If there is no such preset, or a setting is illegal.
        TypeError: If an override is not a field of `ModelConfig`.
    """
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for key in overrides:
        if key not in fields:
            raise TypeError(f"{key!r} is no setting of a model; the settings are {fields}")
    return dataclasses.replace(ModelConfig().named(name), **overrides)


def check_same_network(was: ModelConfig, now: ModelConfig) -> None:
    """Raises ValueError if two networks differ in more than the grid and dropout."""
    for field in dataclasses.fields(ModelConfig):
        values = getattr(was, field.name), getattr(now, field.name)
        if values[0] != values[1] and field.name not in ("name", "grid", "dropout"):
            raise ValueError(f"its model.{field.name} is {values[0]}, not {values[1]}")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Loss = mask * token loss + alpha * contrastive loss (Sec. 3)."""

    mask: float = setting(1.0, NOT_NEGATIVE, "weight of the token loss")
    alpha: float = setting(1.0, NOT_NEGATIVE, "weight of the contrastive loss; 0: none")
    gamma: float = setting(0.2, NOT_NEGATIVE, "scale inside the contrastive loss")
    temperature: float = setting(0.2, POSITIVE, "divides the similarities")

    def __post_init__(self) -> None:
        _check_kinds(self)
        problem = range_problem(self)
        if problem:
            raise ValueError(problem)

    def total(self, mask_loss: Any, contrastive_loss: Any) -> Any:
        """The loss of its two parts, tensors or numbers."""
        return self.mask * mask_loss + self.alpha * contrastive_loss
