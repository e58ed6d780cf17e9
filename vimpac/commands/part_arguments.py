"""Videos in parts: one of them, by number or as a scheduler says, or all of them with Dask."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from vimpac.errors import UsageError
from vimpac.paths import local_path

if TYPE_CHECKING:
    from vimpac.data.parts import Plan
    from vimpac.data.sources import Video
    from vimpac.data.store import TokenStore
    from vimpac.data.tokenize import TokenizeSettings


def add_part_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares --part, --dask and --parts."""
    parser.add_argument(
        "--part",
        metavar="I/N",
        default=argparse.SUPPRESS,
        help="work on part I of N alone, 0 <= I < N, and write OUT.parts/part-I; "
        "`vimpac store merge OUT.parts --out OUT` then makes the store. auto/N: a SLURM array, AWS "
        "Batch array or Kubernetes Indexed Job gives I; auto: a whole SLURM or AWS Batch array "
        "gives I and N",
    )
    parser.add_argument(
        "--dask",
        metavar="ADDRESS",
        help="make all parts on the workers of a Dask cluster and join them: the address of its "
        "scheduler, such as tcp://head:8786, or local:N for N workers here. --workers is then "
        "the number of processes of each worker (default: 1). See docs/tokenizing.md",
    )
    parser.add_argument(
        "--parts",
        type=int,
        default=argparse.SUPPRESS,
        metavar="N",
        help="with --dask: how many parts (default: 4 for each worker)",
    )


def plan_of(args: argparse.Namespace, parts: int, report: Callable[[str], None]) -> Plan:
    """The parts of the videos of a command line.

    Args:
        args: With what `vimpac.commands.tokenize.add_video_arguments` declares.
        parts: How many.
        report: Takes a line about what was passed over.

    Raises:
        UsageError: The list is the standard input, or see `vimpac.data.parts.make_plan`.
        VimpacError: See `vimpac.data.sources.find_videos`.
    """

    from vimpac.data.parts import make_plan
    from vimpac.data.sources import find_videos

    videos = [os.path.abspath(video) for video in args.videos]
    source: dict[str, object] = {"videos": videos, "list": None}
    if args.list == "-":
        raise UsageError("--list - can be read once only: parts need a file that all can read")
    if args.list is not None:
        source["list"] = hashlib.sha256(local_path(args.list).read_bytes()).hexdigest()
    return make_plan(
        args.out, parts, source, lambda: find_videos(args.videos, args.list, report=report)
    )


def make_parts(
    args: argparse.Namespace,
    videos: list[Video],
    settings: TokenizeSettings,
    report: Callable[[int, str], None],
) -> TokenStore:
    """Makes a store in parts on a Dask cluster.

    Args:
        args: With what `vimpac.commands.tokenize.add_video_arguments` declares.
        videos: All of them.
        settings: How.
        report: As of `vimpac.data.tokenize.tokenize_videos`.

    Returns:
        The store.
    """
    from vimpac.data.cluster import connect, default_parts, make_on_cluster
    from vimpac.data.parts import parts_folder, read_plan

    workers = getattr(args, "workers", 1)
    if workers < 0 or getattr(args, "parts", 1) < 1:
        raise UsageError("--workers must not be negative, and --parts must be positive")
    if settings.weights is not None:
        settings = dataclasses.replace(settings, weights=settings.weights.resolve())
    settings.make_tokenizer()  # finds out here what is wrong with it
    with connect(args.dask, gpu=settings.device != "cpu") as client:
        if not hasattr(args, "parts"):
            begun = read_plan(parts_folder(args.out))
            args.parts = len(begun) if begun else default_parts(client, len(videos))
        return make_on_cluster(
            client,
            plan_of(args, args.parts, lambda line: None),
            args.out,
            settings,
            workers=workers,
            timeout=args.video_timeout,
            report=report,
        )


def which_part(text: str, environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Reads which part of how many a process works on.

    Args:
        text: "I/N"; "auto/N", where the scheduler's variables say I; or "auto" if they say N, too.
        environ: The variables: of a SLURM array job whose tasks are numbered from 0, of an AWS
            Batch array job, or of a Kubernetes Job of the mode Indexed.

    Returns:
        I and N, 0 <= I < N.

    Raises:
        UsageError: It is not of this form, or no variable says it.
    """

    from vimpac.data.parts import MOST_PARTS

    index, _, count = text.partition("/")
    if index == "auto":
        index, known = _from_scheduler(environ)
        count = count or known
        if not count:
            raise UsageError(
                "--part auto: the scheduler does not say how many parts there are (SLURM and AWS "
                "Batch do, for a whole array from 0 on): give auto/N"
            )
    try:
        part, parts = int(index), int(count)
    except ValueError:
        raise UsageError(f"--part {text}: give I/N, such as 0/8, auto/N or auto") from None
    if not 0 <= part < parts <= MOST_PARTS:
        raise UsageError(
            f"--part {text}: {part} of {parts}, but parts are numbered from 0 to N - 1, and N is "
            f"at most {MOST_PARTS}"
        )
    return part, parts


def _from_scheduler(environ: Mapping[str, str]) -> tuple[str, str]:
    """The number of this task and, if it is known, of all of them."""
    if "SLURM_ARRAY_TASK_ID" in environ:
        last, count = (environ.get(f"SLURM_ARRAY_TASK_{name}", "") for name in ("MAX", "COUNT"))
        whole = last.isdigit() and count == str(int(last) + 1)  # 0-7, not 1-8 or 3 alone
        return environ["SLURM_ARRAY_TASK_ID"], count if whole else ""
    if "AWS_BATCH_JOB_ARRAY_INDEX" in environ:
        return environ["AWS_BATCH_JOB_ARRAY_INDEX"], environ.get("AWS_BATCH_JOB_ARRAY_SIZE", "")
    if "JOB_COMPLETION_INDEX" in environ:
        return environ["JOB_COMPLETION_INDEX"], ""
    raise UsageError(
        "--part auto: this is no task of a SLURM array, AWS Batch array or Kubernetes Indexed Job "
        "(none of SLURM_ARRAY_TASK_ID, AWS_BATCH_JOB_ARRAY_INDEX, JOB_COMPLETION_INDEX is set)"
    )
