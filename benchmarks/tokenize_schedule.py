"""How well the workers of `vimpac tokenize` are kept busy by videos of very different lengths.

    python benchmarks/tokenize_schedule.py [--workers 8] [--videos 200] [--seconds 40] [--seed 0]

Every video is a sleep, so that the numbers do not depend on how many processors there are: with
lognormal lengths (sigma 1), and with one long video before many short ones. The ideal is the time
of all videos over the number of workers, or that of the longest. The start of the processes counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vimpac.data.journal import Tries
from vimpac.data.tokenize_workers import Work, outcomes


def sleep(path: Path, **_: Callable[..., object]) -> np.ndarray:
    """Takes as many seconds as the video's name says."""
    time.sleep(float(path.name))
    return np.zeros((1, 1, 1, 1), np.int32)


def make_work() -> Work:
    """What a worker does."""
    return sleep


def measure(lengths: np.ndarray, workers: int) -> str:
    """Runs videos of these lengths in seconds; a line on how long they took."""
    import tokenize_schedule  # by the name by which the workers find it

    videos = [(str(i), Path(f"{length:.4f}")) for i, length in enumerate(lengths)]
    begin = time.perf_counter()
    for _ in outcomes(
        videos, tokenize_schedule.make_work, workers=workers, timeout=1e6, record=Tries()
    ):
        pass
    took = time.perf_counter() - begin
    ideal = max(lengths.sum() / workers, lengths.max())
    return f"{took:.1f} s, ideal {ideal:.1f} s: {took / ideal:.2f}x"


def main() -> None:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=40.0, help="of every worker")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lengths = np.random.default_rng(args.seed).lognormal(0.0, 1.0, args.videos)
    lengths *= args.seconds * args.workers / lengths.sum()
    print(f"{args.workers} workers, lognormal lengths: {measure(lengths, args.workers)}")
    print(f"2 workers, a long video first: {measure(np.array([5.0] + [0.1] * 50), 2)}")


if __name__ == "__main__":
    main()
