"""`vimpac simvtp retrieve`: finds videos by text, or tests a model by it."""

from __future__ import annotations

import argparse
import json

from vimpac.commands.new_file import check_new
from vimpac.commands.simvtp.arguments import (
    VIEWS,
    add_model_arguments,
    add_video_arguments,
    check_range,
    settle,
)
from vimpac.data.annotations.rows import SPLITS
from vimpac.errors import UsageError
from vimpac.files import whole_file
from vimpac.paths import local_path, on_one_line

DESCRIPTION = (
    "With --query, finds the videos that fit a text. Else tests a model: every caption of data= "
    "searches its video, and every video its caption. A pre-trained model is tested zero-shot."
)

DEFAULTS = {
    **VIEWS,
    "top": 5,
    "split": "",
    "part": "test",
    "missing": "error",
    "dual_softmax": False,
    "rerank": 0,
    "json": None,
}
UNUSED = {  # by each of the three things that can be asked
    "query": ("split", "part", "missing", "dual_softmax", "json"),
    "data": ("top",),
    "choices": ("top", "split", "part", "dual_softmax", "rerank"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.epilog = (
        'example: vimpac simvtp retrieve CHECKPOINT --videos holiday/ --query "a dog runs"'
    )
    add_model_arguments(parser)
    add_video_arguments(parser)
    parser.add_argument("--query", metavar="TEXT", help="print the videos that fit it best")
    parser.add_argument("--top", type=int, help=f"how many (default: {DEFAULTS['top']})")
    parser.add_argument("--data", help="a table of captions, or MSR-VTT's directory")
    parser.add_argument("--split", help="division of MSR-VTT: 1k-A, 1k-B or full")
    parser.add_argument("--part", help="train, val or test, where data says so (default: test)")
    parser.add_argument(
        "--missing",
        choices=("error", "skip"),
        help="captions without a video, and videos without a caption, which --choices never reads: "
        "an error, or left out (default: error)",
    )
    parser.add_argument(
        "--dual-softmax",
        action="store_true",
        default=None,
        help="weigh each answer by how many queries find it; takes all queries at once",
    )
    parser.add_argument(
        "--rerank",
        type=int,
        metavar="N",
        help="order the N best videos of a text by how well they match it (VTM); with --query only "
        "these are printed, with the cosine and the probability of a match",
    )
    parser.add_argument("--choices", help="multiple choice: a table of questions")
    parser.add_argument("--json", type=local_path, metavar="FILE", help="write the numbers, too")


def run(args: argparse.Namespace) -> int:
    """Runs the action."""
    asked = [name for name in UNUSED if getattr(args, name) is not None]
    if len(asked) != 1:
        raise UsageError("give one of --query TEXT, --data CAPTIONS and --choices QUESTIONS")
    settle(args, DEFAULTS, UNUSED[asked[0]], f"--{asked[0]}")
    if args.part not in SPLITS:
        raise UsageError(f"--part {args.part} must be {', '.join(SPLITS)}")
    check_range(args)
    if args.json:
        check_new("--json", args.json)
    from vimpac.simvtp import search

    if args.query is not None:
        for found in search.find(args):
            match = "" if found.match is None else f"{found.match:7.4f}  "
            print(on_one_line(f"{found.cosine:7.4f}  {match}{found.name}"))
        return 0
    lines, facts = search.test_choices(args) if asked == ["choices"] else search.test(args)
    for line in lines:
        print(on_one_line(line))
    if args.json:
        with whole_file(args.json) as temporary:
            temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 0
