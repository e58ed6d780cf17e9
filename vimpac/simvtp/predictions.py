"""What a model fills in: masked words, and pixels of masked tubelets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac.simvtp.model import SimVTP
from vimpac.simvtp.outputs import check_finite
from vimpac.simvtp.text import Words
from vimpac.simvtp.tubelets import draw_tubes, patches


@dataclasses.dataclass(frozen=True)
class Filled:
    """Clips and captions, masked and filled in.

    Attributes:
        masked_frames: (B, T, S, S, 3) uint8, grey where tubelets are masked.
        rebuilt_frames: (B, T, S, S, 3) uint8: masked tubelets as predicted. The network predicts
            normalised pixels, so the mean and deviation of each are those of the true one.
        words: Of each caption, without special tokens.
        hidden: Of each caption, which words were masked.
        predicted: Of each caption, the likeliest word at every place.
    """

    masked_frames: Tensor
    rebuilt_frames: Tensor
    words: list[list[str]]
    hidden: list[list[bool]]
    predicted: list[list[str]]


@torch.no_grad()
def fill_in(
    model: SimVTP,
    vocabulary: Words,
    video: Tensor,  # (B, T, S, S, 3) uint8
    captions: Sequence[str],
    hidden: Sequence[Sequence[int]],
    *,
    masked_cells: int,
    seed: int = 0,
) -> Filled:
    """Masks clips and captions, and lets the joint encoder fill them in.

    Args:
        model: In evaluation mode.
        vocabulary: Its words.
        video: (B, T, S, S, 3) uint8 on its device.
        captions: B captions.
        hidden: Of each caption, the places of the words that are masked, from 0: at least one, and
            none that is cut off.
        masked_cells: Hidden cells of a frame.
        seed: Of which.

    Raises:
        TypeError: `captions` is one text.
        ValueError: There are more of one than of another, or a place has no word.
        VimpacError: Predictions are not finite.
    """
    config, special = model.config, vocabulary.special
    length = min(model.text_config.length, config.text_positions)
    ids, attention = (x.to(video.device) for x in vocabulary.encode(captions, length))
    if not len(captions) == len(hidden) == len(video):
        raise ValueError(f"{len(video)} clips, {len(captions)} captions and {len(hidden)} hidden")
    covered = torch.zeros_like(attention)
    for row, (places, count) in enumerate(zip(hidden, attention.sum(1).tolist(), strict=True)):
        if not places or not all(0 <= place < count - 2 for place in places):
            raise ValueError(f"hidden[{row}]={[*places]} must be places of its {count - 2} words")
        covered[row, [1 + place for place in places]] = True  # after [CLS]
    visible, masked = draw_tubes(config, masked_cells, len(video), seed, device=video.device)
    tubelets = model.encoder.tubelets(video, visible)
    text = model.encoder.words(ids.masked_fill(covered, special.mask))
    joint, _ = model.encoder(tubelets, text, attention)
    seen = visible.shape[1]
    logits = F.linear(joint[:, seen:], model.word_weight, model.word_head.bias)
    best = check_finite(logits, "logits of words").argmax(-1)
    pixels = check_finite(model.decoder(joint[:, :seen], visible, masked), "pixels")
    sides = config.tubelet, config.patch
    truth = patches(video, masked, sides).float() / 255  # (B, M, n, 3)
    std, mean = torch.std_mean(truth, dim=2, keepdim=True)
    rebuilt = pixels.float().view_as(truth) * (std + 1e-6) + mean
    counts = attention.sum(1).tolist()
    return Filled(
        _with_tubelets(video, masked, torch.full_like(truth, 0.5), sides),
        _with_tubelets(video, masked, rebuilt, sides),
        [vocabulary.words(row[1 : n - 1]) for row, n in zip(ids, counts, strict=True)],
        [row[1 : n - 1].tolist() for row, n in zip(covered, counts, strict=True)],
        [vocabulary.words(row[1 : n - 1]) for row, n in zip(best, counts, strict=True)],
    )


def _with_tubelets(
    video: Tensor,  # (B, T, S, S, 3) uint8
    tubelets: Tensor,  # (B, M) int32
    pixels: Tensor,  # (B, M, t*P*P, 3) in [0, 1]
    sides: tuple[int, int],  # t, P
) -> Tensor:  # (B, T, S, S, 3) uint8
    """A video, some of whose tubelets are replaced."""
    B, T, H, W, _ = video.shape
    t, P = sides
    grid = T // t, H // P, W // P
    every = torch.arange(grid[0] * grid[1] * grid[2], dtype=torch.int32, device=video.device)
    rows = patches(video, every.expand(B, -1), sides).clone()
    new = pixels.mul(255).round().clamp(0, 255).to(torch.uint8)
    rows.scatter_(1, tubelets.long()[:, :, None, None].expand_as(new), new)
    rows = rows.view(B, *grid, t, P, P, 3).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return rows.reshape(B, T, H, W, 3)


def accuracy_by_place(filled: Filled, captions: Sequence[Sequence[str]]) -> list[float]:
    """The share of masked words that are predicted right, for each place of a word.

    Args:
        filled: Of captions that all have as many words.
        captions: The words that are right.
    """
    places = len(captions[0])
    pairs = [*zip(filled.predicted, captions, strict=True)]
    return [
        sum(best[place] == words[place] for best, words in pairs) / len(pairs)
        for place in range(places)
    ]
