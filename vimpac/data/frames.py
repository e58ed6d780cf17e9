"""The frames of a video at even times; what no sample shows is decoded only if others need it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.video.reformatter import VideoReformatter

from vimpac.data.clock import resample
from vimpac.data.decode_plan import Action, DecodePlan, make_plan
from vimpac.data.packets import packet_table
from vimpac.data.video import UnreadableVideo, VideoReader, open_video, with_square_pixels


def frames_at(
    path: Path,
    fps: Fraction,
    *,
    threads: int = 0,
    note: Callable[[str], object] = lambda text: None,
    alive: Callable[[], object] = lambda: None,
) -> Iterator[av.VideoFrame]:
    """Decodes a video and samples it by time.

    The packets are read once before, to plan what need not be decoded. If anything then comes that
    was not planned, the whole video is decoded, so that the frames are the same in any case.

    Args:
        path: The video, a local file.
        fps: Output frames per second of video time.
        threads: Decoder threads; 0 lets the decoder choose.
        note: Called at the end with what is wrong with a video that is used all the same.
        alive: Called whenever there is progress.

    Yields:
        For k = 0, 1, ... the frame that is on screen k / fps seconds after the first frame, with
        square pixels; `vimpac.data.variants` turns and mirrors it as its display matrix says.

    Raises:
        UnreadableVideo: It is no video, has no frame, is cut short, or too damaged.
        FFmpegError: With an errno of `SCARCE`: memory, threads or open files do not suffice.
    """
    plan = _plan(path, fps, threads, alive)
    given = 0
    if plan is not None:
        try:
            for frame in _sampled(path, fps, threads, note, alive, plan):
                yield frame
                given += 1
            return
        except _Unplanned:
            pass
    yield from itertools.islice(_sampled(path, fps, threads, note, alive), given, None)


def _plan(
    path: Path, fps: Fraction, threads: int, alive: Callable[[], object]
) -> DecodePlan | None:
    """What to decode; None if that is all."""
    with open_video(path, threads) as (container, stream):
        video = VideoReader(container, stream, alive)
        try:
            table = packet_table(video)
        except UnreadableVideo:  # cut short, or worse, as decoding it will show
            return None
        return None if table is None else make_plan(table, video.clock, video.base, fps)


def _sampled(
    path: Path,
    fps: Fraction,
    threads: int,
    note: Callable[[str], object],
    alive: Callable[[], object],
    plan: DecodePlan | None = None,
) -> Iterator[av.VideoFrame]:
    """The frames of `frames_at`; raises _Unplanned if they may differ from what is planned."""
    with open_video(path, threads) as (container, stream):
        if plan is None:
            video = VideoReader(container, stream, alive)
        else:
            video = _PlannedReader(container, stream, alive, plan)
        scaler = VideoReformatter()
        for frame in resample(video.timed_frames(), fps):
            yield with_square_pixels(frame, stream.sample_aspect_ratio, scaler)
        for text in video.notes():
            note(text)


class _Unplanned(Exception):
    """Something is damaged, or a frame is not as planned."""


class _PlannedReader(VideoReader):
    """Decodes what a plan says, and compares what comes with it."""

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        alive: Callable[[], object],
        plan: DecodePlan,
    ) -> None:
        super().__init__(container, stream, alive)
        self.plan = plan

    def timed_frames(self) -> Iterator[tuple[Fraction, av.VideoFrame | None]]:
        """Frames with their times, which are those of the plan; see `VideoReader`."""
        for number, (time, frame) in enumerate(super().timed_frames()):
            if frame is not None and time != self.plan.times[number]:
                raise _Unplanned
            yield time, frame

    def frames(self) -> Iterator[av.VideoFrame]:
        """The planned frames; none is given before all that may have harmed it has proved whole."""
        shown = self.plan.shown
        held: deque[av.VideoFrame] = deque()
        for frame in super().frames():
            come = self.good
            if frame.is_corrupt or come > len(shown) or frame.pts != shown[come - 1]:
                raise _Unplanned
            held.append(frame)
            while held and self.plan.settled[come - len(held)] <= come:
                yield held.popleft()
        if self.good < len(shown) or self.leading or self.error:
            raise _Unplanned

    def read_packets(self) -> Iterator[av.Packet]:
        """The packets that are to be decoded."""
        plan, context, number = self.plan, self.stream.codec_context, 0
        for packet in super().read_packets():
            if packet.stream.index != self.stream.index or not packet.size:
                yield packet
                continue
            if self.error or number == len(plan.stamps) or packet.pts != plan.stamps[number]:
                raise _Unplanned
            action = plan.actions[number]
            number += 1
            if action == Action.DROP:
                self.alive()
            else:
                context.skip_frame = "NONREF" if action == Action.SKIP else "DEFAULT"
                yield packet
