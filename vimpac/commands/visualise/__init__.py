"""`vimpac visualise`: pictures of a store and of a model, an action and a module each."""

from __future__ import annotations

import argparse

from vimpac.commands.actions import add_actions, run_action

ACTIONS = {  # name: the line that --help shows
    "masks": "what block, iid and tube masks hide of a clip (Fig. 2)",
    "samples": "even frames of some videos, with their classes (Fig. 3)",
    "neighbours": "hidden tokens, copied from the nearest visible one (Fig. 4)",
    "predictions": "what a model fills into a masked clip (Fig. 5)",
    "attention": "where [CLS] of a model looks",
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the actions."""
    parser = subparsers.add_parser(
        "visualise",
        help="draw masks, videos, predictions and attention",
        description="Draws the figures of the paper from your store and checkpoint, as PNG files, "
        "and prints the numbers that belong to them.",
    )
    add_actions(parser, __name__, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    return run_action(args)
