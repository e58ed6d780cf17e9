"""`vimpac visualise masks`: what the strategies hide of a clip, and how much."""

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
from vimpac.settings import BOXES, load_config

DESCRIPTION = (
    "Draws which tokens block, iid and tube masks hide of a clip (Fig. 2), and prints the share of "
    "them in that clip and in 4,096 clips, beside Table 2 of the paper where it has one."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.epilog = "example: vimpac visualise masks data=store --blocks 5 --out masks.png"
    parser.add_argument(
        "--blocks", type=int, default=5, help="boxes of a clip (default: %(default)s)"
    )
    parser.add_argument(
        "--ratio", type=float, help="of iid and tube masks (default: the mean share of the boxes)"
    )
    add_clip_arguments(parser, "masks.png")


def run(args: argparse.Namespace) -> int:
    """Draws the picture."""
    config = load_config(PictureConfig, None, args.overrides)
    if not BOXES.legal(args.blocks):
        raise UsageError(f"--blocks {args.blocks} must {BOXES.must}")
    if args.ratio is not None and not 0 <= args.ratio <= 1:
        raise UsageError(f"--ratio {args.ratio:g} must lie in [0, 1]")
    check(args)
    from vimpac.pictures.masks import CLIPS, compare_masks, draw_masks
    from vimpac.train.batches import open_store

    store = open_store(config.data, cache=config.shard_cache)
    scene = open_scene(args, store, config.clips.frames, config.clips.frame_stride)
    masks = compare_masks(scene.clip.tokens, blocks=args.blocks, ratio=args.ratio, seed=args.seed)
    draw_masks(scene.frames, masks, scene.clip.titles, args.out)
    rows = list[tuple[object, ...]]()
    rows.append(("hidden tokens", "this clip", f"mean of {CLIPS:,}", "99th percentile", "Table 2"))
    for one in masks:
        table_2 = "-" if one.table_2 is None else percent(one.table_2)
        rows.append((one.name, *map(percent, (one.share, one.mean, one.most)), table_2))
    print_table(rows)
    print(args.out)
    return 0
