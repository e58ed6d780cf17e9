"""Random clips of many short videos: our store against plain memory maps and other formats.

    pytest benchmarks/bench_read.py --benchmark-only          # 100,000 videos
    pytest benchmarks/bench_read.py --benchmark-only --full   # 1,000,000, too: 15 GB for a while

A batch is 128 clips of 5 frames of 16 x 16 tokens, two of each of 64 videos, in one array. Clips
per second of this process's CPU time; all files are in the page cache. Memory is that of a process
of its own which opens the store. Checked first: all give the same clips. `webdataset` and MDS
(mosaicml-streaming) are timed where they are installed; the former has no random access, so it
reads in order.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import interleaved
import numpy as np
import pytest
import readers

SIZES = (100_000, 1_000_000)
VIDEOS, BATCHES = 64, 16  # of a batch, of a call that is timed
FEW = 10


@dataclasses.dataclass(frozen=True)
class ReadRow:
    """A reader of a store of so many videos."""

    impl: str
    videos: int
    clips_per_s: float
    private_mib: float
    anonymous_mib: float
    peak_mib: float
    opening_s: float


_timed: list[common.Timed] = []


def write(folder: Path, count: int) -> dict[str, str]:
    """Writes every format, of all videos and of a few; returns why some are left out."""
    left_out = {}
    for name, write_format in readers.WRITERS.items():
        try:
            for part, videos in (("few", FEW), ("all", count)):
                (folder / name / part).mkdir(parents=True)
                write_format(folder / name / part, videos)
        except ImportError as error:
            left_out[name] = f"not installed ({error.name})"
    return left_out


def draw(generator: np.random.Generator, count: int) -> tuple[list[int], list[int]]:
    """The videos of a batch, each twice, and the starts of their clips."""
    videos = generator.integers(0, count, VIDEOS).repeat(2)
    starts = generator.integers(0, readers.FRAMES - readers.CLIP + 1, 2 * VIDEOS)
    return videos.tolist(), starts.tolist()


def check(name: str, reader: readers.Reader, count: int) -> None:
    """Raises AssertionError unless a reader gives the right clips."""
    videos, starts = draw(np.random.default_rng(1), min(count, 5000))
    if name == readers.IN_ORDER:
        videos = [*range(len(starts))]
    tokens = [video for _, video in readers.videos_of(max(videos) + 1)]
    found = reader(videos, starts)
    for clip, video, start in zip(found, videos, starts, strict=True):
        wanted = {start} if name != readers.TRAINING else {0, 1}  # draws them itself
        right = (tokens[video][s : s + readers.CLIP] for s in wanted)
        assert any(np.array_equal(clip, clip_of) for clip_of in right), f"{name}: another clip"


def measure(
    reader: readers.Reader, generator: np.random.Generator, count: int
) -> tuple[float, ...]:
    """Milliseconds of CPU that some batches take."""
    batches = [draw(generator, count) for _ in range(BATCHES)]
    begin = time.process_time()
    for videos, starts in batches:
        reader(videos, starts)
    return ((time.process_time() - begin) * 1e3,)


def memory(name: str, folder: Path) -> dict[str, float]:
    """The medians of three processes that open a store: see `readers.memory_of_opening`."""
    command = [sys.executable, readers.__file__, name, str(folder)]
    found = [
        json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
        for _ in range(3)
    ]
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


@pytest.mark.parametrize("count", SIZES)
def test_read(bench: Any, count: int) -> None:
    """Times the readers of so many videos, interleaved."""
    if count > SIZES[0] and not bench.full:
        bench.skip({f"{count:,} videos": "slow here: --full"})
    with tempfile.TemporaryDirectory() as folder:  # pytest would keep it
        time_readers(bench, count, Path(folder))


def time_readers(bench: Any, count: int, folder: Path) -> None:
    """Writes the stores, checks and times their readers, and records the rows."""
    missing = write(folder, count)
    formats = {name: format_ for name, (format_, _) in readers.READERS.items()}
    names, left_out = bench.wanted([n for n in formats if formats[n] not in missing])
    left_out |= {name: missing[of] for name, of in formats.items() if of in missing}
    opened = {name: readers.READERS[name][1](folder / formats[name] / "all") for name in names}
    for name, reader in opened.items():
        check(name, reader, count)
    generator = np.random.default_rng(2)
    each = [functools.partial(measure, reader, generator, count) for reader in opened.values()]
    interleaved.run_rounds(each, least=1, most=1)
    rounds = interleaved.run_rounds(each, least=5, most=20, budget_s=60.0)
    rows = []
    for name, (ms,) in zip(names, interleaved.typical(rounds), strict=True):
        taken = memory(name, folder / formats[name])
        rate = BATCHES * 2 * VIDEOS / ms * 1e3
        mib = (taken["private"], taken["anonymous"], taken["peak"])
        rows.append(ReadRow(name, count, rate, *mib, taken["seconds"]))
    timed = common.Timed(rows, {}, len(rounds), left_out)
    _timed.append(timed)
    bench.record("read", f"{count:,} videos", timed, lambda: None)


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    """Prints the table when the last test has been timed."""
    yield
    if _timed:
        print("\nvideos | reader | clips/s | private, anonymous, peak MiB | opening s")
    for timed in _timed:
        for row in timed.rows:
            print(
                f"{row.videos:,} | {row.impl} | {row.clips_per_s:,.0f} | {row.private_mib:.1f}, "
                f"{row.anonymous_mib:.1f}, {row.peak_mib:.1f} | {row.opening_s:.3f}"
            )
