"""`vimpac visualise attention CKPT`: where [CLS] of a model looks."""

from __future__ import annotations

import argparse

from vimpac.commands.view_arguments import one_checkpoint
from vimpac.commands.visualise.arguments import (
    add_clip_arguments,
    check,
    open_scene,
    print_table,
    say,
)
from vimpac.pictures.config import ModelPictureConfig
from vimpac.settings import load_config

DESCRIPTION = (
    "Draws the attention of [CLS] along every axis of a layer, the mean over the heads, over the "
    "frames of a clip. Nothing is hidden from the model."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.usage = "%(prog)s [options] checkpoint [key=value ...]"
    parser.epilog = (
        "example: vimpac visualise attention runs/a/checkpoints/step-00012000 data=store "
        "--video clip.mp4 --out attention.png"
    )
    parser.add_argument(
        "checkpoint", nargs="+", help="of `vimpac pretrain`, `finetune` or `convert`"
    )
    parser.add_argument("--layer", type=int, help="from 1 on (default: the last one)")
    add_clip_arguments(parser, "attention.png", ", device")


def run(args: argparse.Namespace) -> int:
    """Draws the picture."""
    checkpoint, settings = one_checkpoint(args.checkpoint)
    config = load_config(ModelPictureConfig, None, settings + args.overrides)
    check(args)
    from vimpac.pictures.attention import AXES, cls_attention, draw_attention, relative
    from vimpac.pictures.opened import open_encoder
    from vimpac.train.batches import open_store

    store = open_store(config.data, cache=config.shard_cache)
    encoder, reading = open_encoder(checkpoint, store.meta, config)
    for note in reading.notes:
        say(note)
    scene = open_scene(args, store, reading.frames, reading.stride)
    found = cls_attention(encoder, scene.clip.tokens, args.layer)
    layers, real = len(encoder.layers), scene.clip.real
    title = f"Attention of [CLS] in layer {args.layer or layers} of {layers}, mean over the heads"
    draw_attention(scene.frames, found, title, scene.clip.titles, args.out)
    rows = list[tuple[object, ...]]()
    rows.append(("attention of [CLS] along", "to itself", "largest / mean", *scene.clip.titles))
    for one in found:
        of_frames = one.tokens.sum((1, 2))[:real].tolist()
        most = f"{float(relative(one, real).max()):.1f}"
        shares = [f"{share:.1%}" for share in of_frames]
        rows.append((AXES[one.axis], f"{one.itself:.1%}", most, *shares))
    print_table(rows)
    print(args.out)
    return 0
