"""The released names <-> ours, exactly, in both directions; VideoMAE's are a part of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from vimpac.checkpoints.state_file import check_state
from vimpac.simvtp.config import NetworkConfig, TextConfig
from vimpac.simvtp.model import SimVTP

_TEXT = "text_embeddings."
_PAIRS = {  # ours: released; a name that ends in a dot stands for all that begin with it
    "encoder.tubelets.": "encoder.patch_embed.proj.",
    "encoder.words.words.": f"{_TEXT}word_embeddings.",
    "encoder.words.positions.": f"{_TEXT}position_embeddings.",
    "encoder.words.texts.": f"{_TEXT}token_type_embeddings.",
    "encoder.words.norm.": f"{_TEXT}LayerNorm.",
    "decoder.project.": "encoder_to_decoder.",
    "decoder.mask_token": "mask_token",
    "decoder.head.": "decoder.head.",
    "word_head.": "text_cls.",
    "match_head.": "vtm_head.",
}
_LAYER = {
    "attention.q_bias": "attn.q_bias",
    "attention.v_bias": "attn.v_bias",
    "attention.qkv.": "attn.qkv.",
    "attention.out.": "attn.proj.",
    "attention_norm.": "norm2.",
    "mlp.up.": "mlp.fc1.",
    "mlp.out.": "mlp.fc2.",
}
# Of what VideoMAE lacks, and of buffers that follow from the settings.
_NOT_OF_VIDEOS = (_TEXT, "text_cls.", "vtm_head.")
_BUFFERS = ("pos_embed", "encoder.pos_embed", f"{_TEXT}position_ids", f"{_TEXT}token_type_ids")


def network_of(config: Mapping[str, Any]) -> NetworkConfig:
    """Our settings of a released model's.

    Args:
        config: size, patch, frames, width, layers, heads, dec_width, dec_layers, dec_heads, vocab
            and max_text; tubelet (2), mlp_width (4 * width) and dec_mlp_width may stand there, too.

    Raises:
        KeyError: A size is absent.
        ValueError: A value is not legal.
    """
    width, narrow = config["width"], config["dec_width"]
    return NetworkConfig(
        frames=config["frames"],
        size=config["size"],
        tubelet=config.get("tubelet", 2),
        patch=config["patch"],
        width=width,
        layers=config["layers"],
        heads=config["heads"],
        mlp_width=config.get("mlp_width", 4 * width),
        decoder_width=narrow,
        decoder_layers=config["dec_layers"],
        decoder_heads=config["dec_heads"],
        decoder_mlp_width=config.get("dec_mlp_width", 4 * narrow),
        vocabulary=config["vocab"],
        text_positions=config["max_text"],
    )


def network_from(
    state_dict: Mapping[str, Tensor],
    *,
    frames: int = 16,
    size: int = 224,
    heads: int | None = None,
    decoder_heads: int | None = None,
) -> NetworkConfig:
    """Reads the sizes of a released model from its arrays.

    Args:
        state_dict: Released names -> tensors.
        frames: Of a clip, which no array shows.
        size: Of a frame, which no array shows.
        heads: Attention heads; None: width / 64, as in all released models.
        decoder_heads: The decoder's; None: its width / 64.

    Raises:
        ValueError: A key is missing, or the sizes do not fit together.
    """
    state = check_state(state_dict)

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in state:
            raise ValueError(f"the released checkpoint lacks {name!r}")
        if state[name].dim() != dims:
            raise ValueError(f"{name!r} is {tuple(state[name].shape)}, expected {dims} dimensions")
        return tuple(state[name].shape)

    def layers(half: str) -> int:
        return len({name.split(".")[2] for name in state if name.startswith(f"{half}.blocks.")})

    width, _, tubelet, patch, _ = shape("encoder.patch_embed.proj.weight", 5)
    narrow = shape("encoder_to_decoder.weight", 2)[0]
    vocabulary, _ = shape(f"{_TEXT}word_embeddings.weight", 2)
    return NetworkConfig(
        frames=frames,
        size=size,
        tubelet=tubelet,
        patch=patch,
        width=width,
        layers=layers("encoder"),
        heads=max(1, width // 64) if heads is None else heads,
        mlp_width=shape("encoder.blocks.0.mlp.fc1.weight", 2)[0],
        decoder_width=narrow,
        decoder_layers=layers("decoder"),
        decoder_heads=max(1, narrow // 64) if decoder_heads is None else decoder_heads,
        decoder_mlp_width=shape("decoder.blocks.0.mlp.fc1.weight", 2)[0],
        vocabulary=vocabulary,
        text_positions=shape(f"{_TEXT}position_embeddings.weight", 2)[0],
    )


def load_released(
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any] | NetworkConfig,
    text: TextConfig | None = None,
) -> SimVTP:
    """Builds our model from a released state dict.

    Args:
        state_dict: Released names -> tensors; a `module.` prefix of all names is dropped.
        config: The released model's sizes, as `network_of` reads them, or ours.
        text: How texts are read; None: as released, without dropout.

    Returns:
        The model, on the CPU, in training mode.

    Raises:
        ValueError: A size is absent; or a key is missing, unexpected, of a shape that does not fit,
            or holds no dense floating-point tensor; it is named.
    """
    try:
        network = config if isinstance(config, NetworkConfig) else network_of(config)
    except KeyError as error:
        raise ValueError(f"config lacks the size {error}") from None
    with torch.device("meta"):
        model = SimVTP(network, text or TextConfig(dropout=0.0))
    state = check_state(state_dict)
    ours = _renamed(model, state, lambda name: True)
    used = {theirs for _, theirs in _names(model)}
    unexpected = sorted(set(state) - used - set(_BUFFERS))
    if unexpected:
        raise ValueError(f"the released checkpoint has the unexpected key {unexpected[0]!r}")
    model.load_state_dict(ours, assign=True)
    return model.requires_grad_()


def load_videomae(model: SimVTP, state_dict: Mapping[str, Tensor]) -> None:
    """Fills a model's encoder and decoder of videos from a released VideoMAE; texts stay.

    Args:
        model: Of the same sizes.
        state_dict: VideoMAE's names -> tensors.

    Raises:
        ValueError: A key is missing, of a shape that does not fit, or no floating-point tensor.
    """
    state = check_state(state_dict)
    ours = _renamed(model, state, lambda name: not name.startswith(_NOT_OF_VIDEOS))
    model.load_state_dict(ours, strict=False)


def export_released(model: SimVTP) -> dict[str, Tensor]:
    """The model's state dict under the released names.

    Args:
        model: With a word head of its own.

    Raises:
        ValueError: The released code ties no word head.
    """
    if model.text_config.tied:
        raise ValueError("text.tied=true: the released code has a word head of its own")
    state = model.state_dict()
    released = {theirs: state[ours] for ours, theirs in _names(model)}
    released["mask_token"] = released["mask_token"].view(1, 1, -1)
    return released


def export_videomae(model: SimVTP) -> dict[str, Tensor]:
    """The model's encoder and decoder of videos under VideoMAE's names; texts are left out.

    Args:
        model: With a word head of its own or without; it is not written.
    """
    state = model.state_dict()
    released = {
        theirs: state[ours]
        for ours, theirs in _names(model)
        if not theirs.startswith(_NOT_OF_VIDEOS)
    }
    released["mask_token"] = released["mask_token"].view(1, 1, -1)
    return released


def is_videomae(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a released VideoMAE."""
    names = {name.removeprefix("module.") for name in state_dict}
    return "encoder.patch_embed.proj.weight" in names and not is_released(state_dict)


def is_released(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a released SimVTP, not of a VideoMAE."""
    return any(name.removeprefix("module.").startswith(_TEXT) for name in state_dict)


def _renamed(model: SimVTP, state: Mapping[str, Tensor], wanted: Any) -> dict[str, Tensor]:
    """Our names -> tensors of a released state dict, of the shapes that the model has."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found: dict[str, Tensor] = {}
    for ours, theirs in _names(model):
        if not wanted(theirs):
            continue
        if theirs not in state:
            raise ValueError(f"the released checkpoint lacks {theirs!r}")
        tensor = state[theirs].detach()
        if theirs == "mask_token":
            tensor = tensor.flatten()
        if tensor.shape != shapes[ours]:
            raise ValueError(
                f"{theirs!r} is {tuple(tensor.shape)}, the settings say {tuple(shapes[ours])}"
            )
        found[ours] = tensor.clone()
    return found


def _names(model: SimVTP) -> Iterator[tuple[str, str]]:
    """(our name, the released one) of every tensor."""
    layers = {"encoder": model.config.layers, "decoder": model.config.decoder_layers}
    for name in model.state_dict():
        half, _, rest = name.partition(".transformer.")
        if not rest:
            yield name, _replaced(name, _PAIRS)
        elif rest.startswith("first_norm."):
            yield name, f"{half}.blocks.0.norm1.{rest.removeprefix('first_norm.')}"
        else:
            _, number, inner = rest.split(".", 2)
            yield name, f"{half}.{_in_layer(int(number), inner, layers[half])}"


def _in_layer(number: int, name: str, layers: int) -> str:
    """The released name of a part of a layer; there a LayerNorm is in the layer that reads it."""
    kind = name.removeprefix("mlp_norm.")
    if kind == name:
        return f"blocks.{number}.{_replaced(name, _LAYER)}"
    return f"norm.{kind}" if number + 1 == layers else f"blocks.{number + 1}.norm1.{kind}"


def _replaced(name: str, pairs: Mapping[str, str]) -> str:
    for ours, theirs in pairs.items():
        if name == ours or (ours.endswith(".") and name.startswith(ours)):
            return theirs + name[len(ours) :]
    raise ValueError(f"{name} has no released name")
