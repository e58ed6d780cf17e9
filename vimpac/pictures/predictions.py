"""What a model fills into a masked clip (Fig. 5 of the paper), and what that is worth.

An accuracy says little by itself: beside it stand those of copying the nearest visible token, of
the commonest visible token of the clip, of the commonest token of all clips, and of chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vimpac.model.pretraining import Vimpac
from vimpac.pictures.clip import cover, mark, paint
from vimpac.pictures.neighbours import copy_nearest
from vimpac.pictures.opened import check_finite
from vimpac.pictures.sheet import LINE, MARGIN, Row, Sheet, size_of_rows
from vimpac.tokenizers import Tokenizer
from vimpac.tokens import MASK_TOKEN, NUM_TOKENS, PAD_TOKEN

_COLDEST = 1e-30  # a smaller temperature is 0 in fp32


@torch.no_grad()
def predict_tokens(
    model: Vimpac,
    tokens: Tensor,  # (B, T, H, W)
    mask: Tensor,  # (B, T, H, W) bool
    *,
    temperature: float | None = None,
    seed: int = 0,
) -> Tensor:  # (B, T, H, W), on the CPU
    """Fills masked tokens in, clip by clip, each token by itself.

    Args:
        model: In evaluation mode, of the clips' shape.
        tokens: (B, T, H, W) ids.
        mask: (B, T, H, W) bool, what is hidden.
        temperature: Draws ids from softmax(logits / temperature); None takes the likeliest.
        seed: Of the draws.

    Returns:
        The ids, which are those of `tokens` where nothing is hidden.

    Raises:
        VimpacError: What the model computes is not finite.
    """
    device, generator = model.encoder.cls_token.device, torch.Generator().manual_seed(seed)
    filled = tokens.clone()
    for clip, hidden, out in zip(tokens, mask, filled, strict=True):
        if not hidden.any():
            continue
        inputs = clip.masked_fill(hidden, MASK_TOKEN)[None].to(device)
        states = model.encoder(inputs)[0, 1:][hidden.flatten().to(device)]
        logits = model.token_head.logits(states)[:, :NUM_TOKENS].float().cpu()
        check_finite(logits, "predictions")
        if temperature is None:
            ids = logits.argmax(-1)
        else:
            below = logits - logits.amax(-1, keepdim=True)  # so that no quotient is NaN
            p = (below / max(temperature, _COLDEST)).softmax(-1)
            ids = torch.multinomial(p, 1, generator=generator)[:, 0]
        out[hidden] = ids.to(out.dtype)
    return filled


class Score(NamedTuple):
    """Shares of masked tokens that are guessed right; NaN if none is masked.

    Attributes:
        masked: Tokens.
        model: The model's.
        nearest: Of copying the nearest visible token, of any frame.
        background: Of always guessing the commonest visible token of the clip.
        commonest: Of always guessing the commonest token of all clips.
        chance: Of guessing blindly.
    """

    masked: int
    model: float
    nearest: float
    background: float
    commonest: float
    chance: float = 1 / NUM_TOKENS

    @property
    def verdict(self) -> str:
        """The best of the guesses that the model does not beat, in a sentence; empty if none."""
        guesses = {
            "always guessing the commonest token": self.commonest,
            "guessing the commonest visible token of the clip": self.background,
            "copying the nearest visible token": self.nearest,
        }
        best = max(guesses, key=guesses.__getitem__)
        return f"The model is no better than {best}." if self.model <= guesses[best] else ""

    @property
    def baselines(self) -> tuple[str, str]:
        """The other shares, in words, in two halves."""
        return (
            f"nearest visible token {self.nearest:.1%}, commonest of the clip "
            f"{self.background:.1%}",
            f"commonest of all {self.commonest:.1%}, chance {self.chance:.2%}",
        )


def commonest_token(tokens: Tensor) -> int:
    """The id that is there most often, PAD apart; the lowest of several, 0 if there is none."""
    counts = torch.bincount(tokens[tokens != PAD_TOKEN].long().flatten(), minlength=1)
    return int(counts.argmax())


def judge(
    tokens: Tensor,  # (B, T, H, W)
    mask: Tensor,  # (B, T, H, W) bool
    filled: Tensor,  # (B, T, H, W)
    commonest: int,
) -> Score:
    """How many masked tokens are guessed right, by the model and without one.

    Args:
        tokens: (B, T, H, W) ids.
        mask: (B, T, H, W) bool.
        filled: (B, T, H, W), what the model guesses.
        commonest: The commonest id.
    """
    copied = torch.stack(
        [copy_nearest(clip, one, same_frame=False) for clip, one in zip(tokens, mask, strict=True)]
    )
    background = torch.stack(
        [
            torch.full_like(clip, commonest_token(clip[~one]))
            for clip, one in zip(tokens, mask, strict=True)
        ]
    )
    guesses = (filled, copied, background, torch.full_like(tokens, commonest))
    right = [float((guess == tokens)[mask].float().mean()) for guess in guesses]
    return Score(int(mask.sum()), *right)


def prediction_rows(
    original: np.ndarray | None,  # (T, S, S, 3) uint8
    tokens: Tensor,  # (T, H, W), without PAD
    mask: Tensor,  # (T, H, W) bool
    filled: Tensor,  # (T, H, W)
    tokenizer: Tokenizer,
) -> list[Row]:
    """The rows of the picture.

    Args:
        original: (T, S, S, 3) uint8, if the pixels are known.
        tokens: (T, H, W) ids of the frames that are not PAD.
        mask: (T, H, W) bool.
        filled: (T, H, W), what the model guesses.
        tokenizer: Paints them.
    """
    painted, same = paint(tokenizer, tokens), filled == tokens
    rows = [] if original is None else [Row("original", original)]
    return [
        *rows,
        Row("its tokens (VQ)", painted),
        Row("masked\n(chequered)", cover(painted, mask)),
        Row("predicted", paint(tokenizer, filled)),
        Row("right (green),\nwrong (red)", mark(painted, mask & same, mask & ~same)),
    ]


def draw_predictions(
    rows: Sequence[Row], score: Score, titles: Sequence[str], path: Path, *, about: str
) -> None:
    """Draws what a model fills into a clip.

    Args:
        rows: Of `prediction_rows`.
        score: Of this clip.
        titles: Of the frames.
        path: The PNG file.
        about: The video and the mask, on one line.
    """
    width, height = size_of_rows(len(rows), len(titles))
    words = (
        f"{score.model:.1%} of {score.masked} masked tokens are predicted right\n"
        f"without a model: {score.baselines[0]},\n{score.baselines[1]}\n{about}"
    )
    lines = 4.2 + 1.5 * bool(score.verdict)
    sheet = Sheet(max(width, 6.8) + 2 * MARGIN, height + lines * LINE + 2 * MARGIN)
    sheet.words(MARGIN, MARGIN, words, 10)
    sheet.rows(MARGIN, MARGIN + 4.2 * LINE, rows, titles)
    if score.verdict:
        at = MARGIN + 4.2 * LINE + height + LINE / 2
        sheet.words(MARGIN, at, score.verdict, 10, color="tab:red")
    sheet.write(path)
