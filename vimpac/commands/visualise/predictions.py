"""`vimpac visualise predictions CKPT`: what a model fills into a masked clip."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from vimpac.commands.view_arguments import one_checkpoint
from vimpac.commands.visualise.arguments import (
    add_clip_arguments,
    check,
    open_scene,
    percent,
    print_table,
    say,
)
from vimpac.errors import UsageError
from vimpac.paths import on_one_line
from vimpac.pictures.config import ModelPictureConfig
from vimpac.settings import BOXES, load_config

if TYPE_CHECKING:
    from torch import Tensor

    from vimpac.pictures.predictions import Score

LONGEST_NAME = 50  # characters of a video that a title has room for
DESCRIPTION = (
    "Hides tokens of a clip and draws what a pre-trained model fills in (Fig. 5). Prints the share "
    "that is right, in this clip and in up to 64 clips of the store, beside those of "
    "copying the nearest visible token, of the commonest tokens, and of chance."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = "%(prog)s [options] checkpoint [key=value ...]"
    parser.epilog = (
        "example: vimpac visualise predictions runs/a/checkpoints/step-00012000 data=store "
        "--video clip.mp4 --out predictions.png"
    )
    parser.add_argument("checkpoint", nargs="+", help="of `vimpac pretrain` or `convert`")
    parser.add_argument(
        "--strategy",
        choices=("block", "iid", "tube"),
        default="block",
        help="of the mask (default: %(default)s)",
    )
    parser.add_argument(
        "--blocks", type=int, default=5, help="boxes of a block mask (default: %(default)s)"
    )
    parser.add_argument(
        "--ratio", type=float, default=0.15, help="of the other masks (default: %(default)s)"
    )
    parser.add_argument(
        "--sample",
        type=float,
        metavar="TEMPERATURE",
        help="draw tokens from softmax(logits / TEMPERATURE) (default: take the likeliest)",
    )
    add_clip_arguments(parser, "predictions.png", ", device")


def run(args: argparse.Namespace) -> int:
    """Draws the picture."""
    check_mask(args)
    checkpoint, settings = one_checkpoint(args.checkpoint)
    config = load_config(ModelPictureConfig, None, settings + args.overrides)
    check(args)
    from vimpac.pictures.masks import hide
    from vimpac.pictures.opened import open_pretrained
    from vimpac.pictures.predictions import (
        commonest_token,
        draw_predictions,
        judge,
        predict_tokens,
        prediction_rows,
    )
    from vimpac.train.batches import open_store

    store = open_store(config.data, cache=config.shard_cache)
    model, reading = open_pretrained(checkpoint, store.meta, config)
    for note in reading.notes:
        say(note)
    scene = open_scene(args, store, reading.frames, reading.stride)
    tokens, others = scene.clip.tokens[None], scene.others()
    commonest = commonest_token(others)

    def guess(clips: Tensor, first: int) -> tuple[Tensor, Tensor, Score]:
        """The mask of clips, the first of which has that number; what is filled in; its worth."""
        how = {"blocks": args.blocks, "ratio": args.ratio, "seed": args.seed, "first": first}
        mask = hide(clips, args.strategy, **how)
        filled = predict_tokens(model, clips, mask, temperature=args.sample, seed=args.seed)
        return mask, filled, judge(clips, mask, filled, commonest)

    mask, filled, own = guess(tokens, 0)
    if not own.masked:
        raise UsageError(f"--seed {args.seed} hides no token of this clip: give another one")
    _, _, of_all = guess(others, 1)
    real = scene.clip.real
    rows = prediction_rows(
        scene.pixels, scene.tokens, mask[0, :real], filled[0, :real], scene.tokenizer
    )
    name = on_one_line(scene.clip.name)
    name = name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME :]}"
    about = f"{name}, {_mask_words(args)}, seed {args.seed}"
    draw_predictions(rows, own, scene.clip.titles, args.out, about=about)
    print_table(
        [
            ("masked tokens guessed right", "this clip", f"{len(others)} clips"),
            ("model", percent(own.model), percent(of_all.model)),
            ("nearest visible token", percent(own.nearest), percent(of_all.nearest)),
            ("commonest of the clip", percent(own.background), percent(of_all.background)),
            ("commonest of all", percent(own.commonest), percent(of_all.commonest)),
            ("chance", f"{own.chance:.2%}", f"{of_all.chance:.2%}"),
            ("masked tokens", f"{own.masked:,}", f"{of_all.masked:,}"),
        ]
    )
    if of_all.verdict:
        print(of_all.verdict)
    print(args.out)
    return 0


def check_mask(args: argparse.Namespace) -> None:
    """Raises UsageError for a number out of range."""
    if not BOXES.legal(args.blocks):
        raise UsageError(f"--blocks {args.blocks} must {BOXES.must}")
    if not 0 <= args.ratio <= 1:
        raise UsageError(f"--ratio {args.ratio:g} must lie in [0, 1]")
    amount = "blocks" if args.strategy == "block" else "ratio"
    if not getattr(args, amount):
        raise UsageError(f"--{amount} 0 hides no token, so there is none to predict: raise it")
    if args.sample is not None and not 0 < args.sample < math.inf:
        raise UsageError(f"--sample {args.sample:g} must be positive and finite")


def _mask_words(args: argparse.Namespace) -> str:
    """The mask, for a title."""
    if args.strategy == "block":
        return f"block mask of {args.blocks} boxes"
    return f"{args.strategy} mask of {args.ratio:.0%}"
