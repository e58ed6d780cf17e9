"""The released checkpoints' names <-> ours, exactly, in both directions.

The released model keeps a query, a key and a value Linear per axis; ours is one packed Linear per
block whose rows are (q | k | v) x (head groups in axis order) x heads x Dh. Everything else is a
renaming, and two tied copies (`mlm_head.decoder.*`) that we do not store.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vimpac.checkpoints.state_file import check_state
from vimpac.model.config import LAYOUTS, LossConfig, ModelConfig
from vimpac.model.pretraining import Vimpac

_PARTS = ("query", "key", "value")
# Released copy -> the tensor it is tied to.
_TIED = {
    "mlm_head.decoder.weight": "backbone.embedding.weight",
    "mlm_head.decoder.bias": "mlm_head.bias",
}


def load_released(
    state_dict: Mapping[str, Tensor],
    *,
    layout: str,
    num_heads: int,
    norm: str = "post",
) -> Vimpac:
    """Builds our model from a released state dict; every size is read from the arrays.

    Args:
        state_dict: Released names -> tensors; a `module.` prefix of all names is dropped. Without
            `cls_head.*` the model has no contrastive head.
        layout: The layout the checkpoint was trained with, such as "T,H|W".
        num_heads: Number of heads, which no array shows.
        norm: "post" or "pre", the released pre-LN, whose attention blocks add to the normalised
            stream; "pre_textbook" would give the same arrays another meaning.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        ValueError: If a key is missing, unexpected, or of a shape that does not fit, or holds no
            dense floating-point tensor; it is named. If the released code has no such model.
    """
    state = check_state(state_dict)
    config, loss = _read_config(state, layout, num_heads, norm)
    with torch.device("meta"):
        model = Vimpac(config, loss)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ours: dict[str, Tensor] = {}
    used = set()
    for name, sources in _names(model).items():
        missing = [key for key in sources if key not in state]
        if missing:
            raise ValueError(f"the released checkpoint lacks {missing[0]!r} (layout {layout!r}?)")
        used.update(sources)
        expected, number = shapes[name], len(sources)
        if number > 1:
            expected = (expected[0] // number, *expected[1:])
        for key in sources:
            if state[key].shape != expected:
                raise ValueError(
                    f"{key!r} is {tuple(state[key].shape)}, expected {expected} (layout "
                    f"{layout!r}?)"
                )
        parts = [state[key].detach() for key in sources]
        ours[name] = torch.cat(parts) if number > 1 else parts[0].clone()
    for copy, source in _TIED.items():
        if copy in state and not _equal(state[copy], state[source]):
            raise ValueError(f"{copy!r} differs from {source!r}; the model ties them")
    unexpected = sorted(set(state) - used - set(_TIED))
    if unexpected:
        raise ValueError(f"the released checkpoint has the unexpected key {unexpected[0]!r}")
    model.load_state_dict(ours, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_()
    return model


def export_released(model: Vimpac) -> dict[str, Tensor]:
    """Returns the model's state dict under the released names, tied copies included.

    Args:
        model: Any `Vimpac`.

    Returns:
        Released names -> tensors, sharing memory with the model where the layout permits.

    Raises:
        ValueError: If the released code has no such model.
    """
    state = model.state_dict()
    released: dict[str, Tensor] = {}
    for name, targets in _names(model).items():
        parts = state[name].chunk(len(targets)) if len(targets) > 1 else (state[name],)
        released.update(zip(targets, parts, strict=True))
    released.update({copy: released[source] for copy, source in _TIED.items()})
    return released


def _names(model: Vimpac) -> dict[str, list[str]]:
    """Our name -> the released names whose concatenation along dim 0 it is."""
    config = model.config
    for setting, value in (("norm", "pre_textbook"), ("cls", "paper")):
        if getattr(config, setting) == value:
            raise ValueError(f"{setting}={value!r}: the released code computes no such model")
    pre = config.prenorm
    pairs = {
        "encoder.token_embedding.weight": ["backbone.embedding.weight"],
        "encoder.cls_token": ["backbone.cls_param"],
        "token_head.cross_entropy.bias": ["mlm_head.bias"],
    }
    for ours, theirs in (
        ("cls", "cls_pos"),
        ("time", "temporal_pos"),
        ("height", "height_pos"),
        ("width", "width_pos"),
    ):
        key = f"backbone.positional_embedding.{theirs}_embedding"
        pairs[f"encoder.positions.{ours}"] = [key]
    modules = {  # our module -> theirs; each has a weight and a bias
        ("encoder.final_norm" if pre else "encoder.embedding_norm"): (
            "backbone.ln_post" if pre else "backbone.ln_pre"
        ),
        "token_head.dense": "mlm_head.transform.0",
        "token_head.norm": "mlm_head.transform.2",
    }
    for i in range(config.layers):
        layer, block = f"encoder.layers.{i}", f"backbone.transformer.resblocks.{i}"
        for j, axes in enumerate(config.layout.split(",")):
            source = f"{block}.attention_blocks.{j}"
            groups = range(axes.count("|") + 1)
            for kind in ("weight", "bias"):
                pairs[f"{layer}.attention.{j}.axial.in_proj_{kind}"] = [
                    f"{source}.attentions.{g}.attention.{part}.{kind}"
                    for part in _PARTS
                    for g in groups
                ]
            output = source if pre else f"{source}.output"
            modules[f"{layer}.attention.{j}.axial.out_proj"] = f"{output}.dense"
            modules[f"{layer}.attention.{j}.norm"] = f"{output}.LayerNorm"
        modules[f"{layer}.mlp.up"] = f"{block}.mlp.c_fc"
        modules[f"{layer}.mlp.out"] = f"{block}.mlp.c_proj"
        modules[f"{layer}.mlp.norm"] = f"{block}.ln"
    if model.contrastive_head is not None:
        _add_contrastive_names(config.contrastive_layers, modules, pairs)
    for ours, theirs in modules.items():
        for kind in ("weight", "bias"):
            pairs[f"{ours}.{kind}"] = [f"{theirs}.{kind}"]
    return pairs


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether all elements are; NaN equals NaN."""
    alike = a.dtype == b.dtype and a.shape == b.shape
    return alike and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _add_contrastive_names(
    layers: int, modules: dict[str, str], pairs: dict[str, list[str]]
) -> None:
    for n in range(layers - 1):  # Linear, BatchNorm, ReLU take three numbers of ours
        modules[f"contrastive_head.layers.{3 * n}"] = f"cls_head.mlp.linear_{n}"
        modules[f"contrastive_head.layers.{3 * n + 1}"] = f"cls_head.mlp.bn_{n}"
        for buffer in ("running_mean", "running_var", "num_batches_tracked"):
            name = f"contrastive_head.layers.{3 * n + 1}.{buffer}"
            pairs[name] = [f"cls_head.mlp.bn_{n}.{buffer}"]
    last = f"cls_head.mlp.linear_{layers - 1}.weight"
    pairs[f"contrastive_head.layers.{3 * (layers - 1)}.weight"] = [last]


def _read_config(
    state: Mapping[str, Tensor], layout: str, num_heads: int, norm: str
) -> tuple[ModelConfig, LossConfig]:
    """Reads every size from the arrays; without a contrastive head there is no such loss."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")

    def size(key: str, dim: int = 0) -> int:
        if key not in state:
            raise ValueError(f"the released checkpoint lacks {key!r}")
        if state[key].dim() != 2:
            raise ValueError(f"{key!r} is {tuple(state[key].shape)}, expected 2 dimensions")
        return state[key].shape[dim]

    block = "backbone.transformer.resblocks"
    layers = len({key.split(".")[3] for key in state if key.startswith(f"{block}.")})
    groups = layout.split(",")[0].count("|") + 1
    query = f"{block}.0.attention_blocks.0.attentions.0.attention.query.weight"
    inner = groups * size(query)
    if num_heads < 1 or inner % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide the attention width {inner}")
    position = "backbone.positional_embedding.{}_pos_embedding"
    contrastive: dict[str, int] = {}
    depth = sum(key.startswith("cls_head.mlp.linear_") and key.endswith("weight") for key in state)
    if depth:
        contrastive = {
            "contrastive_layers": depth,
            "contrastive_width": size("cls_head.mlp.linear_0.weight"),
            "contrastive_dim": size(f"cls_head.mlp.linear_{depth - 1}.weight"),
        }
    config = ModelConfig(
        layers=layers,
        width=size("backbone.embedding.weight", 1),
        heads=num_heads,
        head_dim=inner // num_heads,
        mlp_width=size(f"{block}.0.mlp.c_fc.weight"),
        layout=layout,  # type: ignore[arg-type]  # one of LAYOUTS
        grid=(
            size(position.format("temporal")),
            size(position.format("height")),
            size(position.format("width")),
        ),
        norm=norm,  # type: ignore[arg-type]  # checked by ModelConfig
        **contrastive,  # type: ignore[arg-type]
    )
    return config, LossConfig(alpha=1.0 if depth else 0.0)
