"""Tokenising videos here or in worker processes; whatever a video does, the others go on.

Workers run ahead of the video that comes next in the store, so that a long one does not hold them
up. A worker that dies, or in which a video makes no progress, costs that video one of `MOST_TRIES`;
the writer's journal knows them, too, if this process itself is killed. A video that was under way
then is tried alone, so that the one that is to blame is found.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from vimpac.data.encoder import SharedEncoder, VideoIds
from vimpac.data.journal import Tries
from vimpac.data.stages import Stopwatch
from vimpac.data.video import SCARCE, UnreadableVideo
from vimpac.data.worker_process import HUNG
from vimpac.data.workers import WorkerDied, Workers
from vimpac.errors import VimpacError

MOST_TRIES = 3  # of a video that kills its process
AHEAD = 16  # videos for every worker that are begun before the first of them is taken


class Outcome(NamedTuple):
    """What became of a video: its tokens and a note on them, or None and the reason."""

    tokens: np.ndarray | None  # (variants, frames, H, W) ids
    text: str
    seconds: Mapping[str, float] = {}  # that the stages of the work took


Result = Callable[[], Outcome]  # waits for it


class Work(Protocol):
    """Tokenises a video in a process that is ready for it."""

    def __call__(
        self,
        path: Path,
        *,
        note: Callable[[str], object],
        alive: Callable[[], object],
        lap: Callable[[str], object],
        send: Callable[[np.ndarray], object],
    ) -> np.ndarray:
        """Tokenises a video.

        Args:
            path: The video.
            note: Called with what is wrong with it, although it is used.
            alive: Called whenever there is progress.
            lap: Called after every stage of the work with the stage's name.
            send: Sends frames (variants, F, 3, S, S) to the process that has an encoder.

        Returns:
            Ids (variants, frames, H, W), or an empty array for those of the frames it has sent.
        """


def outcomes(
    videos: Sequence[tuple[str, Path]],
    make_work: Callable[[], Work],
    *,
    workers: int,
    timeout: float,
    record: Tries,
    encoder: SharedEncoder | None = None,
) -> Generator[Outcome]:
    """Tokenises videos.

    Args:
        videos: (name, path).
        make_work: Called once in every process.
        workers: Processes; 0 works in this one, which a video can then end.
        timeout: Seconds without progress after which a worker is ended.
        record: Of what was begun and has not ended, by the videos' names.
        encoder: What encodes the frames that workers send.

    Yields:
        Their outcomes, in order.

    Raises:
        VimpacError: The device failed, or no worker can start.
    """
    guarded = functools.partial(_guard, make_work)
    processes: Workers | _ThisProcess
    if workers and encoder is not None:
        processes = _DecodingWorkers(guarded, workers, timeout, encoder)
    else:
        processes = Workers(guarded, workers, timeout) if workers else _ThisProcess(guarded)
    pending: deque[tuple[str, Path, Result | None]] = deque()

    def start(name: str, path: Path, *, again: bool = False) -> Result | None:
        if record.tries[name] >= MOST_TRIES:
            return None
        begin, end = (functools.partial(call, name) for call in (record.begin, record.end))
        return processes.start(path, begin=begin, end=end, again=again)

    def finish() -> Outcome:
        name, path, result = pending.popleft()
        reason = "was under way when the process was killed"
        while result is not None:
            try:
                return result()
            except (WorkerDied, MemoryError) as error:
                reason = _why(error, timeout)
            result = start(name, path, again=True)
        return Outcome(None, f"{reason} ({MOST_TRIES} times)")

    try:
        for name, path in videos:
            alone = record.tries[name] > 0
            while pending and (alone or len(pending) >= max(1, AHEAD * workers)):
                yield finish()
            pending.append((name, path, start(name, path)))
            if alone:
                yield finish()
        while pending:
            yield finish()
    finally:
        processes.close()


def _why(error: Exception, timeout: float) -> str:
    if isinstance(error, WorkerDied) and error.code == HUNG:
        return f"made no progress for {timeout:g} s"
    if isinstance(error, MemoryError):
        return "needs more memory, threads or open files than there are"
    return "ended its process: out of memory, or a crash of the decoder"


def _outcome(
    work: Work,
    path: Path,
    alive: Callable[[], object] = lambda: None,
    send: Callable[[np.ndarray], object] = lambda frames: None,
) -> Outcome:
    """The guard around everything that happens to one video."""
    notes: list[str] = []
    watch = Stopwatch()
    try:
        tokens = work(path, note=notes.append, alive=alive, lap=watch.lap, send=send)
    except UnreadableVideo as error:
        return Outcome(None, str(error), watch.seconds)
    except MemoryError:
        raise  # another try may find more
    except Exception as error:
        if _is_of_the_device(error):
            line = str(error).strip().partition("\n")[0]
            raise VimpacError(
                f"the device failed at {path} ({line:.200}): run the same command again, when no "
                "one else uses it"
            ) from error
        if isinstance(error, OSError) and error.errno in SCARCE:
            raise MemoryError from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        return Outcome(None, reason, watch.seconds)
    return Outcome(tokens, "; ".join(notes), watch.seconds)


def _is_of_the_device(error: Exception) -> bool:
    """Whether a device failed; none can where torch is not imported, as here it need not be."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError))


def _guard(make_work: Callable[[], Work]) -> Callable[..., Outcome]:
    return functools.partial(_outcome, make_work())


class _DecodingWorkers(Workers):
    """Workers that send frames, which are encoded here."""

    def __init__(
        self,
        make_work: Callable[[], Callable[..., Outcome]],
        most: int,
        timeout: float,
        encoder: SharedEncoder,
    ) -> None:
        super().__init__(make_work, most, timeout)
        self._encoder = encoder

    def start(self, argument: Path, **more: Any) -> Result:
        ids = VideoIds()
        decoded = super().start(argument, part=functools.partial(self._encoder.add, ids), **more)
        return functools.partial(self._encoded, decoded, ids)

    def close(self) -> None:
        super().close()
        self._encoder.close()

    def _encoded(self, decoded: Result, ids: VideoIds) -> Outcome:
        """The outcome of a video, whose last batch other videos may have to fill."""
        outcome = decoded()
        if outcome.tokens is None:
            return outcome
        while not ids.is_complete:
            if not self.receive():
                self._encoder.flush()
            self._encoder.collect()
        return outcome._replace(tokens=ids.whole())


class _ThisProcess:
    def __init__(self, make_work: Callable[[], Callable[..., Outcome]]) -> None:
        self.work = make_work()

    def start(
        self, path: Path, *, begin: Callable[[], object], end: Callable[[], object], again: bool
    ) -> Result:
        def result() -> Outcome:
            begin()
            outcome = self.work(path)
            end()
            return outcome

        return result

    def close(self) -> None:
        pass
