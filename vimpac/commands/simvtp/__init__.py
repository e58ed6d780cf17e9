"""`vimpac simvtp`: the commands of the second system, an action and a module each."""

from __future__ import annotations

import argparse

from vimpac.commands.actions import add_actions, run_action

ACTIONS = {  # name: the line that --help shows
    "pretrain": "pre-train on video files and a table of captions",
    "finetune": "train two encoders to search videos by text",
    "retrieve": "find videos by text, or test a model by it",
    "embed": "write the features of videos, or of texts, into a file",
    "visualise": "see what a model fills into a masked video and its caption",
    "demo": "see it work on videos of moving shapes, in a minute or two",
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the actions."""
    parser = subparsers.add_parser(
        "simvtp",
        help="pre-train on videos and their captions",
        description="SimVTP (arXiv 2212.03490): masked pre-training on videos with captions.",
    )
    add_actions(parser, __name__, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    return run_action(args)
