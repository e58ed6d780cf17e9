"""A command of several actions, each of them a module of its package.

Such a module has `DESCRIPTION`, `add_arguments(parser)` and `run(args) -> int`.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping


def add_actions(parser: argparse.ArgumentParser, package: str, actions: Mapping[str, str]) -> None:
    """Declares the actions of a command and their arguments.

    Args:
        parser: Of the command.
        package: That of the modules.
        actions: The names of the modules, and the line that --help shows of each.
    """
    subparsers = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, line in actions.items():
        module = importlib.import_module(f"{package}.{name}")
        action = subparsers.add_parser(name, help=line, description=module.DESCRIPTION)
        module.add_arguments(action)
        action.set_defaults(act=module.run)


def run_action(args: argparse.Namespace) -> int:
    """Runs the action that was chosen; returns its exit code."""
    return args.act(args)
