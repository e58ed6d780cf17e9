"""Checks of what a model is given.

Values are looked at on the CPU only: on a GPU, where that would cost a synchronisation, a word out
of range makes the loss NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vimpac.checks import check_integers, check_tensor, may_look
from vimpac.simvtp.config import NetworkConfig
from vimpac.simvtp.objective import IGNORE_INDEX


def check_video(video: Tensor, config: NetworkConfig) -> None:
    """Raises an error unless clips are (B, T, S, S, 3) uint8 of the network's sizes."""
    check_tensor("video", video)
    clip = (config.frames, config.size, config.size, 3)
    if video.dim() != 5 or video.shape[1:] != clip or video.dtype != torch.uint8:
        raise ValueError(
            f"video must be (B, {', '.join(map(str, clip))}) uint8, got {tuple(video.shape)} "
            f"{video.dtype}"
        )


def check_text(ids: Tensor, attention: Tensor, config: NetworkConfig, prefix: str = "") -> None:
    """Raises an error unless ids and attention are (B, L) and the network has L positions.

    Args:
        ids: Words of the vocabulary.
        attention: Bool or integer.
        config: Of the network.
        prefix: Of both names, for messages.
    """
    named = {f"{prefix}ids": ids, f"{prefix}attention": attention}
    for name, tensor in named.items():
        check_tensor(name, tensor)
    check_one_device(**named)
    if ids.dim() != 2 or attention.shape != ids.shape:
        raise ValueError(
            f"{' and '.join(named)} must be (B, L), got {tuple(ids.shape)} and "
            f"{tuple(attention.shape)}"
        )
    if attention.dtype != torch.bool:
        check_integers(f"{prefix}attention", attention)
    if not 0 < ids.shape[1] <= config.text_positions:
        raise ValueError(
            f"a text of {ids.shape[1]} tokens does not fit: the network has text_positions="
            f"{config.text_positions}"
        )
    _check_numbers(f"{prefix}ids", ids, config.vocabulary)


def check_pairs(video: Tensor, ids: Tensor, prefix: str = "") -> None:
    """Raises ValueError unless there are as many texts as videos, on one device."""
    if len(ids) != len(video):
        raise ValueError(f"{len(ids)} texts do not fit {len(video)} videos: give pairs")
    check_one_device(**{"video": video, f"{prefix}ids": ids})


def check_masked_words(masked_ids: Tensor, labels: Tensor, ids: Tensor, words: int) -> None:
    """Raises an error unless the first two are integers beside `ids` (B, L) of a vocabulary."""
    for name, tensor in (("text_masked_ids", masked_ids), ("text_labels", labels)):
        check_tensor(name, tensor)
        check_one_device(text_ids=ids, **{name: tensor})
        if tensor.shape != ids.shape:
            raise ValueError(
                f"{name} must be {tuple(ids.shape)} as text_ids, got {tuple(tensor.shape)}"
            )
    _check_numbers("text_masked_ids", masked_ids, words)
    if labels.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"text_labels must be int32 or int64, got {labels.dtype}")
    if may_look(labels):
        _check_numbers("text_labels", labels[labels != IGNORE_INDEX], words)


def check_mask(mask: Tensor, video: Tensor, config: NetworkConfig) -> int:
    """Raises an error unless a mask fits the clips; returns the masked tubelets of each clip."""
    check_tensor("mask", mask)
    check_one_device(video=video, mask=mask)
    if mask.shape != (len(video), config.tubelets) or mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be ({len(video)}, {config.tubelets}) bool, got {tuple(mask.shape)} "
            f"{mask.dtype}"
        )
    counts = mask.sum(1)
    masked = int(counts[0])
    if not 0 < masked < config.tubelets or bool((counts != masked).any()):
        raise ValueError(
            f"every clip must have as many masked tubelets, between 1 and "
            f"{config.tubelets - 1}, got {counts.tolist()}"
        )
    return masked


def check_negatives(negatives: Tensor | None, video: Tensor) -> None:
    """Raises an error unless every text has another clip of the batch, or may draw one."""
    pairs = len(video)
    if pairs < 2:
        raise ValueError("a batch of one pair has no mismatch: give two pairs or more")
    if negatives is None:
        return
    check_tensor("negatives", negatives)
    check_one_device(video=video, negatives=negatives)
    if negatives.shape != (pairs,):
        raise ValueError(f"negatives must be ({pairs},), got {tuple(negatives.shape)}")
    _check_numbers("negatives", negatives, pairs)
    if may_look(negatives):
        own = (negatives == torch.arange(pairs)).nonzero().flatten().tolist()
        if own:
            raise ValueError(f"negatives must be other clips than a text's own, got {own[0]} there")


def check_one_device(**named: Tensor) -> None:
    """Raises ValueError unless all tensors are on the device of the first."""
    first = next(iter(named))
    for name, tensor in named.items():
        if tensor.device != named[first].device:
            raise ValueError(f"{name} is on {tensor.device}, {first} on {named[first].device}")


def _check_numbers(name: str, numbers: Tensor, end: int) -> None:
    """Raises ValueError unless they are integers in [0, end)."""
    check_integers(name, numbers)
    if may_look(numbers) and numbers.numel():
        low, high = (int(number) for number in torch.aminmax(numbers.long()))
        if low < 0 or high >= end:
            raise ValueError(f"{name} must lie in [0, {end}), got {low if low < 0 else high}")
