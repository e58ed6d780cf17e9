"""Video files to frames with their times, by PyAV: the picture that a player shows, and when.

A damaged packet is skipped and counted, a clock that jumps is bridged, and both are told. A video
that is cut short, or of which too much is damaged, is refused with its reason.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from vimpac.data.clock import BestStamp, Clock
from vimpac.data.variants import scale
from vimpac.errors import VimpacError

MOST_DAMAGED = 0.1  # share of the pictures of a video that may be damaged
MOST_PIXELS = 1 << 27  # of a picture; a damaged header may say anything
NARROWEST = 64  # longer side of a picture over its shorter one, and of a pixel
# Formats with a header that states the duration, the first ones of each stream; of others FFmpeg
# guesses it from the file's end.
STREAM_DURATION = frozenset("mov avi".split())
STATE_DURATION = STREAM_DURATION | frozenset("matroska flv asf rm mxf".split())
RESTARTING = frozenset("mpegts mpeg".split())  # where clocks start again, as in broadcasts
_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
SCARCE = frozenset({errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE})  # no video's fault
_ERRORS_IN_A_ROW = 100  # of the container's reader, until it is given up


class UnreadableVideo(VimpacError):
    """A video that cannot be used; the message is the reason alone."""


@contextmanager
def open_video(
    path: Path, threads: int = 0
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Opens a video, and turns what FFmpeg says against it into our error.

    Args:
        path: The video, a local file.
        threads: Decoder threads; 0 lets the decoder choose.

    Yields:
        The container, and the stream that a player shows.

    Raises:
        UnreadableVideo: It is no video, or fails while it is open.
        FFmpegError: With an errno of `SCARCE`.
    """
    try:
        # "file:" keeps FFmpeg from reading a name as an address, and the white list what is in
        # the file: a playlist may name any other file or host.
        with av.open(
            f"file:{path}",
            metadata_errors="replace",
            container_options={"protocol_whitelist": "file"},
        ) as container:
            stream = best_stream(container)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
            yield container, stream
    except FFmpegError as error:
        if error.errno in SCARCE:
            raise
        raise UnreadableVideo(error.strerror or type(error).__name__) from error


def best_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The stream that a player shows: the default one, else the largest.

    Raises:
        UnreadableVideo: There is none, or its codec is not known.
    """
    streams = [s for s in container.streams.video if not s.disposition & _NO_VIDEO]
    known = [s for s in streams if s.codec_context is not None]
    if known:
        return max(known, key=lambda s: (s.disposition & Disposition.default, s.width * s.height))
    if streams:
        raise UnreadableVideo("its codec is not known")
    if container.streams.video:
        raise UnreadableVideo("has no video stream, only a still picture")
    if container.streams.audio:
        raise UnreadableVideo("has no video stream, only sound")
    raise UnreadableVideo("has no video stream")


class VideoReader:
    """One stream of an open container, decoded to its end whatever is damaged in it."""

    def __init__(
        self,
        container: av.container.InputContainer,
        stream: av.VideoStream,
        alive: Callable[[], object] = lambda: None,
    ) -> None:
        self.container, self.stream, self.alive = container, stream, alive
        self.base = stream.time_base or Fraction(1, 1000)
        self.formats = frozenset(container.format.name.split(","))
        believed: Fraction | None = None if self.formats & RESTARTING else Fraction(10**9)
        if self.formats & STATE_DURATION and container.duration:
            believed = Fraction(container.duration, av.time_base)
        self.clock = Clock(stream.guessed_rate or stream.average_rate, believed)
        self.good = self.damaged = 0  # pictures
        self.lost = 0  # packets that cannot be decoded
        self.leading = 0  # pictures and packets that were damaged or lost before the first good one
        self.error = ""  # the last one
        self.late_streams = False
        self.packets = 0  # of the stream
        self.ends: dict[int, int] = {}  # of every stream: the latest time of its packets, its units

    def timed_frames(self) -> Iterator[tuple[Fraction, av.VideoFrame | None]]:
        """Frames with their times in seconds, then the end.

        Raises:
            UnreadableVideo: There is no frame, too many are damaged, or the end comes too early.
        """
        best = BestStamp()
        for frame in self.frames():
            stamp = best.choose(frame.pts, frame.dts)
            base = frame.time_base or self.base
            duration = frame.duration * base if frame.duration else None
            yield self.clock.time(None if stamp is None else stamp * base, duration), frame
        self.check_damage()
        self.check_length()
        yield self.clock.end, None

    def frames(self) -> Iterator[av.VideoFrame]:
        """Frames in the order of display, from the first good one on."""
        for frame in self._decoded():
            if frame.is_corrupt and not self.good:
                self.leading += 1  # it refers to pictures that the file does not have
                continue
            self.good += not frame.is_corrupt
            self.damaged += frame.is_corrupt
            yield frame

    def notes(self) -> Iterator[str]:
        """What is wrong with the video, although it is used."""
        if self.leading:
            yield f"damaged pictures left out at its beginning: {self.leading}"
        if self.damaged or self.lost:
            damaged = self.damaged + self.lost
            yield f"{damaged} of {self.good + damaged} pictures are damaged"
        if self.clock.jumps:
            yield f"jumps of its clock: {self.clock.jumps}"
        if self.late_streams:
            yield "streams that begin in the middle of the file are left out"

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """The frames of the stream; packets that cannot be decoded are counted."""
        for packet in self.read_packets():
            self.alive()
            if packet.stream.index != self.stream.index:
                continue
            try:
                frames = self.stream.decode(packet)
            except FFmpegError as error:
                self.error = error.strerror or type(error).__name__
                self.lost += self.good > 0
                self.leading += not self.good
            else:
                yield from frames

    def read_packets(self) -> Iterator[av.Packet]:
        """The packets of all streams: where the last of them ends, the file ends."""
        errors = 0  # in a row
        while True:
            try:
                for packet in self.container.demux():
                    errors = 0
                    stamp = packet.dts if packet.pts is None else packet.pts
                    index = packet.stream.index  # stream_index is wrong in the last, empty packets
                    if stamp is not None:
                        end = stamp + (packet.duration or 0)
                        self.ends[index] = max(end, self.ends.get(index, end))
                        self.packets += index == self.stream.index
                    yield packet
                return
            except IndexError:  # PyAV's, at the end, over streams that it did not see at the begin
                self.late_streams = True
                return
            except FFmpegError as error:
                self.error = error.strerror or type(error).__name__
                errors += 1
                if errors == _ERRORS_IN_A_ROW:
                    return

    def check_damage(self) -> None:
        """Raises `UnreadableVideo` if too much of what was decoded is damaged."""
        if not self.good:
            raise UnreadableVideo("has no whole picture" + (self.error and f": {self.error}"))
        damaged = self.damaged + self.lost
        if damaged > MOST_DAMAGED * (self.good + damaged):
            raise UnreadableVideo(f"{damaged} of its {self.good + damaged} pictures are damaged")

    def check_length(self) -> None:
        """Raises `UnreadableVideo` if fewer packets came than the header states, guesses apart."""
        stream, container = self.stream, self.container
        if not self.formats & STATE_DURATION or stream.index not in self.ends:
            return
        if stream.duration and self.formats & STREAM_DURATION:
            stated, end = stream.duration * self.base, self.ends[stream.index] * self.base
            start = (stream.start_time or 0) * self.base
        elif container.duration:
            stated = Fraction(container.duration, av.time_base)
            end = max(
                end * (container.streams[index].time_base or self.base)
                for index, end in self.ends.items()
            )
            start = Fraction(container.start_time or 0, av.time_base)
        else:
            return
        if not stream.frames and start > 0:
            start = Fraction(0)  # Matroska, fragments: stated is the end, however late they begin
        length = end - start
        # Edit lists and rounded durations differ by a few frames; a cut file by far more.
        if stated - length > max(Fraction(1, 2), stated / 50):
            raise UnreadableVideo(
                f"is cut short: it ends at {float(length):.2f} s of {float(stated):.2f} s"
            )
        # FFmpeg shortens the duration of an AVI file that was cut, but not its number of pictures.
        # Those that repeat the last one have no packet; their time has passed all the same.
        if container.format.name == "avi" and stream.frames and stream.average_rate:
            missing = stream.frames - max(12, stream.frames // 50) - self.packets
            if missing > 0 and stream.frames / stream.average_rate - length > Fraction(1, 2):
                raise UnreadableVideo(
                    f"is cut short: it has {self.packets} of {stream.frames} pictures"
                )


def with_square_pixels(
    frame: av.VideoFrame, aspect: Fraction | None, scaler: VideoReformatter
) -> av.VideoFrame:
    """The frame, enlarged along one side if a pixel is not as wide as high.

    Args:
        frame: The frame.
        aspect: The width of a pixel over its height; None or not positive: 1.
        scaler: Keeps its tables for the next frame.
    """
    width, height = Fraction(frame.width), Fraction(frame.height)
    if aspect is not None and aspect > 1:
        width *= aspect
    elif aspect is not None and aspect > 0:
        height /= aspect
    if not Fraction(1, NARROWEST) <= width / height <= NARROWEST:
        raise UnreadableVideo(f"its pictures are {round(width)} x {round(height)}, too narrow")
    if (width, height) == (frame.width, frame.height):
        return frame
    return scale(scaler, frame, round(width), round(height), None)
