"""Where a pre-training starts from: a model of ours, a released one, VideoMAE, BERT's embeddings.

Files of others are read without running code from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vimpac.checkpoints.state_file import load_tensors
from vimpac.errors import UsageError
from vimpac.paths import local_path
from vimpac.simvtp.description import read_simvtp
from vimpac.simvtp.model import SimVTP
from vimpac.simvtp.released import is_released, load_released, load_videomae
from vimpac.simvtp.text import Words

_BERT = {  # our parameter: the end of BERT's name
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "texts": "embeddings.token_type_embeddings.weight",
    "norm": "embeddings.LayerNorm.weight",
}


def fill_from(model: SimVTP, words: Words, init: str, init_text: str) -> Iterator[str]:
    """Fills a fresh model.

    Args:
        model: With fresh weights, on the CPU.
        words: Its vocabulary.
        init: A model directory of SimVTP, or a released checkpoint of it or of VideoMAE; empty:
            none.
        init_text: BERT's weights (.safetensors or .pt); empty: none.

    Yields:
        What was not filled, a line each.

    Raises:
        UsageError: A file holds something else, or of other sizes.
        VimpacError: It is damaged, or holds no dense floating-point tensors by names.
    """
    if init:
        path = local_path(init)
        try:
            yield from _fill_model(model, words, path)
        except ValueError as error:
            raise UsageError(f"init={init}: {error}") from None
    if init_text:
        try:
            _fill_text(model, _read(local_path(init_text)))
        except ValueError as error:
            raise UsageError(f"init_text={init_text}: {error}") from None


def _fill_model(model: SimVTP, words: Words, path: Path) -> Iterator[str]:
    if path.is_dir():
        other, description = read_simvtp(path)
        if description.words is not None and description.words != _as_dict(words):
            state = {k: v for k, v in other.state_dict().items() if not _of_words(k)}
            yield f"the words of {path} are other ones: those of this run start anew"
        else:
            state = other.state_dict()
        _load(model, state)
        return
    state = _read(path)
    if is_released(state):
        _load(model, load_released(state, model.config, model.text_config).state_dict())
        return
    load_videomae(model, state)
    yield f"{path} is of videos only: words start anew, or from init_text="


def _load(model: SimVTP, state: Mapping[str, Tensor]) -> None:
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(str(error).partition("\n\t")[2]) from None


def _fill_text(model: SimVTP, state: Mapping[str, Tensor]) -> None:
    embedding = model.encoder.words
    targets = {
        **{name: getattr(embedding, name).weight for name in _BERT},
        "bias": embedding.norm.bias,
    }
    for name, end in {**_BERT, "bias": "embeddings.LayerNorm.bias"}.items():
        old = end.replace("weight", "gamma").replace("bias", "beta")  # of the first releases
        found = [tensor for key, tensor in state.items() if key.endswith((end, old))]
        if not found:
            raise ValueError(f"it has no {end}: give BERT's weights")
        target = targets[name]
        if found[0].shape != target.shape:
            raise ValueError(
                f"{end} is {tuple(found[0].shape)}, the model's {tuple(target.shape)}: give the "
                "vocab= of BERT, and a model of its width"
            )
        with torch.no_grad():
            target.copy_(found[0])


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    return load_tensors(path)


def _as_dict(words: Words) -> object:
    return json.loads(words.to_json())


def _of_words(name: str) -> bool:
    return name.startswith(("encoder.words.words", "word_head"))
