"""`vimpac doctor`: what runs on this machine, and why."""

from __future__ import annotations

import argparse
import json


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declares the arguments."""
    parser = subparsers.add_parser(
        "doctor",
        help="what runs on this machine, and why",
        description="Reports versions, compilers, the implementation each op would use and why, "
        "the video decoders that really decode, and the devices.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    from vimpac.doctor import report, to_text  # torch: seconds that --help need not wait

    found = report()
    print(json.dumps(found, indent=1) if args.json else to_text(found))
    return 0
