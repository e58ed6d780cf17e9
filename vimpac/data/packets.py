"""What the packets of a video say without being decoded: when each picture is shown, and which
others need it.

Only formats that store the time of every picture, and codecs with one picture in each packet, tell
all of it. Where one is not as they say, the decoder shows it: what comes then differs from this.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator

import numpy as np

from vimpac.data.video import VideoReader

TIMED = frozenset("mov matroska".split())
ONE_EACH = frozenset("h264 hevc mpeg4 mpeg1video mpeg2video vp9 av1 mjpeg prores ffv1".split())
_HEAD = 1024  # bytes in which a packet's headers are looked for


class Kind(enum.IntFlag):
    """What a packet's own bytes say; without a flag, later pictures may need this one."""

    RESET = 1  # nothing after it needs anything before it, B pictures that are shown before apart
    UNNEEDED = 2  # no other picture needs it
    SETUP = 4  # it has parameters of the decoder that later packets may need


@dataclasses.dataclass(frozen=True)
class PacketTable:
    """The N packets of a stream in the order of decoding.

    Attributes:
        stamps: (N,) int64, when each is shown, in units of the stream; none comes twice.
        durations: (N,) int64, 0 where it is not known.
        keys: (N,) bool, which are key frames by the container.
        hidden: (N,) bool, which are decoded but not shown, as the edit list says.
        kinds: (N,) of `Kind`.
    """

    stamps: np.ndarray
    durations: np.ndarray
    keys: np.ndarray
    hidden: np.ndarray
    kinds: np.ndarray


def packet_table(video: VideoReader) -> PacketTable | None:
    """Reads the packets of an open video to its end.

    Args:
        video: Of which nothing has been read.

    Returns:
        The table; None if the packets do not tell all, or one is damaged.

    Raises:
        UnreadableVideo: The video is cut short.
    """
    codec = video.stream.codec.canonical_name
    if not video.formats & TIMED or codec not in ONE_EACH:
        return None
    kind_of = _kinds(codec, video.stream.codec_context.extradata or b"")
    rows = []
    for packet in video.read_packets():
        video.alive()
        if packet.stream.index != video.stream.index or not packet.size:
            continue
        if packet.pts is None or packet.is_corrupt or packet.has_sidedata("new_extradata"):
            return None
        kind, layer = kind_of(memoryview(packet))
        rows.append(
            (packet.pts, packet.duration or 0, packet.is_keyframe, packet.is_discard, kind, layer)
        )
    video.check_length()
    if video.error or video.late_streams or not rows:
        return None
    stamps, durations, keys, hidden, kinds, layers = np.array(rows, np.int64).T
    if len(np.unique(stamps)) < len(stamps):
        return None
    # A picture that its own layer does not need may be needed by a higher one.
    kinds[layers < layers.max()] &= ~Kind.UNNEEDED
    return PacketTable(stamps, durations, keys.astype(bool), hidden.astype(bool), kinds)


def _kinds(codec: str, extradata: bytes) -> Callable[[memoryview], tuple[int, int]]:
    """How to find the kind of a packet, and the temporal layer of its picture."""
    if codec == "h264" and extradata[:1] == b"\1" and len(extradata) > 4:
        return lambda data: _h264(data, (extradata[4] & 3) + 1)
    if codec == "hevc" and extradata[:1] == b"\1" and len(extradata) > 21:
        return lambda data: _hevc(data, (extradata[21] & 3) + 1)
    simple = {
        "mpeg4": _mpeg4,
        "mpeg1video": _mpeg2,
        "mpeg2video": _mpeg2,
        "vp9": _vp9,
        "prores": lambda data: Kind.RESET,
    }.get(codec)  # not MJPEG and FFV1: what is damaged in a picture is taken from the one before
    return (lambda data: (simple(data), 0)) if simple else (lambda data: (0, 0))


def _units(data: memoryview, length_size: int, header_size: int) -> Iterator[memoryview]:
    """The headers of the NAL units of a packet in which each stands behind its length."""
    i, end = 0, len(data) - length_size - header_size
    while i <= end:
        begin = i + length_size
        yield data[begin : begin + header_size]
        i = begin + int.from_bytes(data[i:begin], "big")


def _h264(data: memoryview, length_size: int) -> tuple[int, int]:
    """By Table 7-1 of H.264: slices are 1 to 5, of which 5 are of an IDR picture."""
    needed, kind = False, 0
    for header in _units(data, length_size, 1):
        unit = header[0] & 31
        if unit == 5:
            kind |= Kind.RESET
        elif unit in (7, 8, 13, 15):
            kind |= Kind.SETUP
        needed |= 1 <= unit <= 5 and header[0] & 0x60 > 0
    return kind if needed else kind | Kind.UNNEEDED, 0


def _hevc(data: memoryview, length_size: int) -> tuple[int, int]:
    """By Table 7-1 of H.265: slices are 0 to 31; BLA and IDR pictures 16 to 20.

    Of those below 16, the even ones are not needed in their temporal layer.
    """
    kind, layer, needed = 0, 0, False
    for header in _units(data, length_size, 2):
        unit = header[0] >> 1 & 63
        if unit < 32:
            layer = max(layer, (header[1] & 7) - 1)
            needed |= unit >= 16 or unit % 2 == 1
            kind |= Kind.RESET if 16 <= unit <= 20 else 0
        elif unit <= 34:
            kind |= Kind.SETUP
    return kind if needed else kind | Kind.UNNEEDED, layer


def _mpeg4(data: memoryview) -> int:
    """By the coding type of the first picture: 0 is I, 2 is B."""
    head = bytes(data[:_HEAD])
    at = head.find(b"\0\0\1\xb6") + 4
    coding = head[at] >> 6 if 4 <= at < len(head) else -1
    return {0: Kind.RESET, 2: Kind.UNNEEDED}.get(coding, 0)


def _mpeg2(data: memoryview) -> int:
    """By the coding type of the first picture: 1 is I, which needs its sequence header; 3 is B."""
    head = bytes(data[:_HEAD])
    at = head.find(b"\0\0\1\0") + 5
    coding = head[at] >> 3 & 7 if 5 <= at < len(head) else -1
    if coding == 1 and b"\0\0\1\xb3" not in head[:at]:
        return 0
    return {1: Kind.RESET, 3: Kind.UNNEEDED}.get(coding, 0)


def _vp9(data: memoryview) -> int:
    """By the uncompressed header: a frame that is not shown from memory, and is a key frame.

    A frame that no other refers to still leaves them its motion and its probabilities.
    """
    first = data[0]
    if first & 0x30 == 0x30:  # profile 3 has one more bit
        first <<= 1
    return Kind.RESET if first & 0x0C == 0 else 0
