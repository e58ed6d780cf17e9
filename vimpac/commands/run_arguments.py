"""The arguments that every command with a configuration takes."""

from __future__ import annotations

import argparse


def add_run_arguments(parser: argparse.ArgumentParser, about_settings: str = "") -> None:
    """Declares --resume, --show and the settings.

    Args:
        parser: Of the command.
        about_settings: What its help says of the settings of this command.
    """
    parser.add_argument(
        "--resume",
        default="none",
        metavar="auto|DIR",
        help="continue from the run's newest checkpoint, or from a given one",
    )
    parser.add_argument(
        "--show",
        action="store_true",
        help="print every setting, what it means and what is legal, and stop",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help=f"settings, keys dotted, as --show prints them{about_settings}",
    )


def add_row_argument(parser: argparse.ArgumentParser) -> None:
    """Declares --row, of the commands whose runs the paper's tables have."""
    parser.add_argument(
        "--row",
        metavar="NAME",
        help="take the settings of a row of the paper's tables, such as t8.iid128: see "
        "`vimpac rows`; what is given beside it counts more",
    )
