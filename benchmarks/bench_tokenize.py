"""Videos to a store of tokens at 2 frames per second: `vimpac tokenize` against other decoders.

    pytest benchmarks/bench_tokenize.py --benchmark-only [--full]

CPU seconds, user and system, of whole commands with all their processes, two of which work at a
time, each with one decoder thread: `vimpac tokenize --workers 2` with its start, its tokenizer and
its store; the command ffmpeg once per clip, with frames of the same rate and size to nowhere; and
decord, where it is installed, with the frames only. A round runs each once, so that a ratio
compares the same minutes. The number of frames of every clip is compared. `start only` is ours on
two clips of one picture each.

The 25 clips are those of benchmarks/tokenize_clips.py; `--full` takes each eight times, and runs
one round.

The second table takes ours apart, in this process and so without any start: seconds by stage, codec
and size, beside those of ffmpeg on the same clips.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import common
import interleaved
import numpy as np
import pytest
from av import VideoFrame
from tokenize_clips import Clip, ffmpeg, make_clips, make_picture

from vimpac.data import frames, tokenize, variants
from vimpac.data.store import TokenStore
from vimpac.data.video import VideoReader

FPS, SIZE, PROCESSES = 2, 128, 2
CENTRE = (variants.Variant(),)
STAGES = ("packets and plan", "decoding", "scaling and cropping", "tokens", "other")


@dataclasses.dataclass(frozen=True)
class TokenizeRow:
    """CPU seconds of a command, or of a group of clips."""

    impl: str
    clips: int
    frames: int  # sampled
    cpu_s: float
    wall_s: float
    ratio: float | None  # to ffmpeg


@dataclasses.dataclass(frozen=True)
class StageRow:
    """CPU seconds of ours by stage, without the start of processes, and of ffmpeg."""

    codec: str
    lines: int
    clips: int
    decoded: int  # pictures
    stages: dict[str, float]
    cpu_s: float
    ffmpeg_cpu_s: float


_timed: list[common.Timed] = []
_stages: list[common.Timed] = []


def cpu_of(command: Callable[[], Any]) -> tuple[float, float, Any]:
    """Milliseconds of the processor, children included, and of the clock; what is returned."""

    def spent() -> float:
        whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
        return sum(sum(resource.getrusage(who)[:2]) for who in whose)

    before = spent()
    wall_ms, out = interleaved.wall_ms(command)
    return (spent() - before) * 1e3, wall_ms, out


def run_ours(clips: Sequence[Clip], out: Path) -> list[int]:
    """Tokenises clips into a new store; how many frames each has."""
    listed = out.with_suffix(".txt")
    listed.write_text("\n".join(str(clip.path) for clip in clips) + "\n")
    number = len([*out.parent.glob(f"{out.name}-*")])
    store = out.parent / f"{out.name}-{number}"
    command = [sys.executable, "-m", "vimpac", "tokenize", "--list", listed, "--out", store]
    command += ["--max-skipped", 0, "--fps", FPS, "--size", SIZE, "--workers", PROCESSES]
    subprocess.run([*map(str, command)], check=True, capture_output=True, cwd=common.ROOT)
    return TokenStore(store).frames.tolist()


def run_ffmpeg(clips: Sequence[Clip]) -> list[int]:
    """Runs ffmpeg on each clip, two at a time; how many frames each has."""
    shorter = f"scale={SIZE}:{SIZE}:force_original_aspect_ratio=increase:flags=bicubic"
    look = f"fps={FPS},{shorter},crop={SIZE}:{SIZE}"

    def frames_of(clip: Clip) -> int:
        words = ["-threads", "1", "-i", clip.path, "-an", "-vf", look, "-filter_threads", "1"]
        words += ["-threads", "1", "-pix_fmt", "rgb24", "-f", "rawvideo", "-progress", "-"]
        ran = subprocess.run(ffmpeg(*words, "/dev/null"), check=True, stdout=subprocess.PIPE)
        return int(ran.stdout.rpartition(b"frame=")[2].split()[0])

    with ThreadPoolExecutor(PROCESSES) as pool:
        return [*pool.map(frames_of, clips)]


DECORD = f"""
import sys, decord
for path in sys.argv[1:]:
    first = decord.VideoReader(path)[0].shape[:2]
    height, width = (side * {SIZE} // min(first) for side in first)
    video = decord.VideoReader(path, width=width, height=height, num_threads=1)
    rate, count = video.get_avg_fps(), len(video)
    numbers = [round(k * rate / {FPS}) for k in range(int(count * {FPS} / rate) + 1)]
    print(video.get_batch([number for number in numbers if number < count]).shape[0])
"""


def run_decord(clips: Sequence[Clip]) -> list[int]:
    """Reads each clip, in two processes; how many frames each has."""

    def frames_of(some: Sequence[Clip]) -> list[int]:
        command = [sys.executable, "-c", DECORD, *(str(clip.path) for clip in some)]
        ran = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        return [int(word) for word in ran.stdout.split()]

    with ThreadPoolExecutor(PROCESSES) as pool:
        halves = [*pool.map(frames_of, (clips[i::PROCESSES] for i in range(PROCESSES)))]
    return [halves[i % PROCESSES][i // PROCESSES] for i in range(len(clips))]


def test_tokenize(bench: Any, tmp_path: Path) -> None:
    """Times the whole commands, in turns."""
    clips, store = make_clips(8 if bench.full else 1), tmp_path / "store"
    pictures = [make_picture(tmp_path / f"{i}.mp4") for i in range(PROCESSES)]
    commands: dict[str, Callable[[], list[int]]] = {
        "ffmpeg": functools.partial(run_ffmpeg, clips),
        "ours": functools.partial(run_ours, clips, store),
        "ours, start only": functools.partial(run_ours, pictures, store),
        "decord": functools.partial(run_decord, clips),
    }
    names, left_out = bench.wanted(commands)
    if "decord" in names and importlib.util.find_spec("decord") is None:
        names.remove("decord")
        left_out["decord"] = "is not installed"
    rounds, counts = [], {}
    for _ in range(1 if bench.full else 3):
        rounds.append([cpu_of(commands[name]) for name in names])
        counts |= {name: out for name, (*_, out) in zip(names, rounds[-1], strict=True)}
    for name in {*names} - {"ours, start only"}:
        pairs = zip(counts[name], counts[names[0]], strict=True)
        assert all(abs(a - b) <= 1 for a, b in pairs), f"{name} samples other numbers of frames"
    typical = interleaved.typical([[(cpu_ms,) for cpu_ms, *_ in calls] for calls in rounds])
    times = {name: cpu_ms for name, (cpu_ms,) in zip(names, typical, strict=True)}
    rows = []
    for i, name in enumerate(names):
        wall_s = sorted(calls[i][1] for calls in rounds)[len(rounds) // 2] / 1e3
        ratio = times[name] / times["ffmpeg"] if "ffmpeg" in times else None
        total = len(counts[name]), sum(counts[name])
        rows.append(TokenizeRow(name, *total, times[name] / 1e3, wall_s, ratio))
    timed = common.Timed(rows, {}, len(rounds), left_out)
    _timed.append(timed)
    bench.record("tokenize", f"{len(clips)} clips", timed, lambda: None)


class Stages:
    """CPU seconds of this process by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._entered = [STAGES[-1]]
        self._last = time.process_time()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """What runs inside belongs to this stage, unless to one inside it."""
        self._count()
        self._entered.append(name)
        try:
            yield
        finally:
            self._count()
            self._entered.pop()

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, as this stage."""

        def run(*args: Any) -> Any:
            with self(name):
                return function(*args)

        return run

    def _count(self) -> None:
        now = time.process_time()
        self.seconds[self._entered[-1]] += now - self._last
        self._last = now


def take_apart(clips: Sequence[Clip]) -> tuple[dict[str, float], int]:
    """Tokenises clips in this process; CPU seconds by stage, and how many pictures it decoded."""
    tokenizer = tokenize.TokenizeSettings().make_tokenizer()
    stage, decoded, every = Stages(), 0, VideoReader.frames

    def counted(video: VideoReader) -> Iterator[VideoFrame]:
        nonlocal decoded
        for frame in every(video):
            decoded += 1
            yield frame

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(VideoReader, "frames", counted))
        for name in ("packet_table", "make_plan"):
            wrapped = stage.within(STAGES[0], getattr(frames, name))
            stack.enter_context(mock.patch.object(frames, name, wrapped))
        for clip in clips:
            images, scalers = [], {}
            sampled = frames.frames_at(clip.path, Fraction(FPS), threads=1)
            while True:
                with stage(STAGES[1]):
                    frame = next(sampled, None)
                if frame is None:
                    break
                with stage(STAGES[2]):
                    images.append(
                        variants.make_variants(frame, SIZE, (variants.Variant(),), scalers)
                    )
            with stage(STAGES[3]):
                tokenizer.encode(np.concatenate(images))
    return stage.seconds, decoded


def test_stages(bench: Any) -> None:
    """Times the stages of ours beside ffmpeg, by codec and size."""
    names, left_out = bench.wanted(["ours"])
    if not names:
        bench.skip(left_out)
    clips, rows = make_clips(), []
    groups = sorted({(clip.codec, clip.lines) for clip in clips}, key=str)
    for codec, lines in groups:
        group = [clip for clip in clips if (clip.codec, clip.lines) == (codec, lines)]
        rounds, theirs = [], []
        for _ in range(3):
            rounds.append(take_apart(group))
            theirs.append(cpu_of(functools.partial(run_ffmpeg, group))[0] / 1e3)
        middle = sorted(rounds, key=lambda one: sum(one[0].values()))[1]
        cpu_s, ffmpeg_s = sum(middle[0].values()), sorted(theirs)[1]
        rows.append(StageRow(codec, lines, len(group), middle[1], *middle[:1], cpu_s, ffmpeg_s))
    timed = common.Timed(rows, {}, 3, left_out)
    _stages.append(timed)
    bench.record("tokenize_stages", f"{len(clips)} clips", timed, lambda: None)


@pytest.fixture(scope="module", autouse=True)
def _report() -> Iterator[None]:
    """Prints the tables when the last test has been timed."""
    yield
    for timed in _timed:
        print("\ncommand | clips | frames | CPU s | ratio to ffmpeg | s")
        for row in timed.rows:
            ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
            counts = f"{row.impl} | {row.clips} | {row.frames}"
            print(f"{counts} | {row.cpu_s:.1f} | {ratio} | {row.wall_s:.1f}")
    for timed in _stages:
        print(f"\ncodec | lines | clips | decoded | {' | '.join(STAGES)} | ours | ffmpeg | ratio")
        for row in timed.rows:
            parts = " | ".join(f"{seconds:.2f}" for seconds in row.stages.values())
            print(
                f"{row.codec} | {row.lines} | {row.clips} | {row.decoded} | {parts} | "
                f"{row.cpu_s:.2f} | {row.ffmpeg_cpu_s:.2f} | {row.cpu_s / row.ffmpeg_cpu_s:.2f}"
            )
