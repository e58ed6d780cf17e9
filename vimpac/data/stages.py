"""Where the time of a run goes: decoding, resizing, encoding, writing, or nothing."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping


class Stopwatch:
    """Seconds by stage.

    Attributes:
        seconds: The time of every stage.
    """

    def __init__(self) -> None:
        self.seconds = defaultdict[str, float](float)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Counts the time since the last call, or the begin, for a stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self._last
        self._last = now


class Throughput:
    """How fast videos are done, and the share of every stage in the time of the processes.

    Args:
        workers: Processes beside this one; 0 where this one does all.

    Attributes:
        frames: That have been written.
        work: Seconds of all workers, or of the same work in this process, by stage.
        own: Of this process; its stage "wait" is no work.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.frames = 0
        self.work = defaultdict[str, float](float)
        self.own = Stopwatch()
        self._begin = time.perf_counter()

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds the time of the stages of a video."""
        for stage, taken in seconds.items():
            self.work[stage] += taken

    def __str__(self) -> str:
        seconds = time.perf_counter() - self._begin
        own = {stage: taken for stage, taken in self.own.seconds.items() if stage != "wait"}
        speed = f"{self.frames / seconds:,.1f} frames/s"
        line = f"{self.frames:,} frames in {seconds:,.1f} s: {speed}; "
        if not self.workers:
            return line + _shares({**self.work, **own}, seconds)
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        work = _shares(self.work, self.workers * seconds)
        return f"{line}{workers}: {work}; writer: {_shares(own, seconds)}"


def _shares(stages: Mapping[str, float], seconds: float) -> str:
    """The percentage of every stage, and of the rest."""
    idle = max(0.0, seconds - sum(stages.values()))
    shares = {**stages, "idle": idle}.items()
    return ", ".join(f"{stage} {100 * taken / seconds:.0f} %" for stage, taken in shares)
