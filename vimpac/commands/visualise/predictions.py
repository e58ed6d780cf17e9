"""`vimpac visualise predictions CKPT`: what a model fills into a masked clip."""

from __future__ import annotations

import argparse
import math

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
from vimpac.pictures.config import ModelPictureConfig
from vimpac.settings import BOXES, load_config

DESCRIPTION = (
    "Hides tokens of a clip and draws what a pre-trained model fills in (Fig. 5). Prints the share "
    "that is right, in this clip and in clips of up to 64 videos of the store, beside those of "
    "copying the nearest visible token, of the commonest token, and of chance."
)
CLIPS = 64  # of the store, over which shares are taken


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
    checkpoint, settings = one_checkpoint(args.checkpoint)
    config = load_config(ModelPictureConfig, None, settings + args.overrides)
    if not BOXES.legal(args.blocks):
        raise UsageError(f"--blocks {args.blocks} must {BOXES.must}")
    if not 0 <= args.ratio <= 1:
        raise UsageError(f"--ratio {args.ratio:g} must lie in [0, 1]")
    if args.sample is not None and not 0 < args.sample < math.inf:
        raise UsageError(f"--sample {args.sample:g} must be positive and finite")
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
    tokens, others = scene.clip.tokens[None], scene.others(CLIPS)
    commonest, scores = commonest_token(others), []
    for first, clips in ((1, others), (0, tokens)):
        mask = hide(
            clips, args.strategy, blocks=args.blocks, ratio=args.ratio, seed=args.seed, first=first
        )
        filled = predict_tokens(model, clips, mask, temperature=args.sample, seed=args.seed)
        scores.append(judge(clips, mask, filled, commonest))
    of_all, of_clip = scores
    real = scene.clip.real
    rows = prediction_rows(
        scene.pixels, scene.tokens, mask[0, :real], filled[0, :real], scene.tokenizer
    )
    draw_predictions(rows, of_clip, scene.clip.titles, args.out)
    table = list[tuple[object, ...]]()
    table.append(("masked tokens guessed right", "this clip", f"{len(others)} clips"))
    for name in ("model", "nearest", "commonest"):
        label = {"nearest": "nearest visible token", "commonest": "commonest token"}.get(name, name)
        table.append((label, percent(getattr(of_clip, name)), percent(getattr(of_all, name))))
    table.append(("chance", *[f"{of_clip.chance:.2%}"] * 2))
    table.append(("masked tokens", f"{of_clip.masked:,}", f"{of_all.masked:,}"))
    print_table(table)
    if of_all.verdict:
        print(of_all.verdict)
    print(args.out)
    return 0
