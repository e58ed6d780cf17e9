"""`vimpac visualise neighbours`: how far copying the nearest visible token goes."""

from __future__ import annotations

import argparse

from vimpac.commands.visualise.arguments import (
    add_clip_arguments,
    check,
    open_scene,
    percent,
    print_table,
)
from vimpac.errors import UsageError
from vimpac.pictures.config import PictureConfig
from vimpac.settings import load_config

DESCRIPTION = (
    "Replaces each hidden token by the nearest visible one, of the same frame or of all frames "
    "(Fig. 4), for block masks and for iid masks that hide as much. Prints the share of hidden "
    "tokens that copying gets right, and the PSNR to the frames painted from all tokens."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.epilog = "example: vimpac visualise neighbours data=store --out neighbours.png"
    parser.add_argument(
        "--ratio",
        default="0.15,0.45",
        metavar="A[,B]",
        help="shares of tokens that are hidden (default: %(default)s)",
    )
    add_clip_arguments(parser, "neighbours.png")


def run(args: argparse.Namespace) -> int:
    """Draws the picture."""
    config, ratios = load_config(PictureConfig, None, args.overrides), parse_ratios(args.ratio)
    check(args)
    from vimpac.pictures.clip import paint
    from vimpac.pictures.neighbours import compare_copying, draw_copying, psnr
    from vimpac.train.batches import open_store

    store = open_store(config.data, cache=config.shard_cache)
    scene = open_scene(args, store, config.clips.frames, config.clips.frame_stride)
    others = scene.others()
    copied = [compare_copying(scene.clip.tokens, others, ratio, seed=args.seed) for ratio in ratios]
    draw_copying(
        scene.tokens,
        scene.pixels,
        copied,
        scene.tokenizer,
        scene.clip.titles,
        args.out,
        clips=len(others),
    )
    truth = paint(scene.tokenizer, scene.tokens)
    rows = list[tuple[object, ...]]()
    rows.append(("copied", "hidden", "PSNR", "right", f"right, {len(others)} clips"))
    for one in (one for pair in copied for one in pair):
        for space, ids in one.filled.items():
            db = psnr(paint(scene.tokenizer, ids[: scene.clip.real]), truth)
            noise = f"{db:.1f} dB" if one.share else "-"
            right, of_all = percent(one.right[space]), percent(one.right_of_all[space])
            name = f"{one.title}, {space}"
            rows.append((name, percent(one.share), noise, right, of_all))
    print_table(rows)
    print(args.out)
    return 0


def parse_ratios(text: str) -> list[float]:
    """Reads --ratio.

    Raises:
        UsageError: It is no list of one to four shares.
    """
    try:
        ratios = [float(word) for word in text.split(",")]
    except ValueError:
        ratios = []
    if not 1 <= len(ratios) <= 4 or not all(0 < ratio < 1 for ratio in ratios):
        raise UsageError(f"--ratio {text}: give one to four shares between 0 and 1: 0.15,0.45")
    return ratios
