"""Which packets of a video need not be decoded for the frames that are sampled.

Two kinds of pictures are left out if no sample shows them: those that no other picture needs, as
most B pictures, and those behind the last sample before a picture that needs nothing before it, or
before the end.
"""

from __future__ import annotations

import dataclasses
import enum
from fractions import Fraction

import numpy as np

from vimpac.data.clock import LONGEST_GAP, Clock, resample
from vimpac.data.packets import Kind, PacketTable


class Action(enum.IntEnum):
    """What is done with a packet."""

    DECODE = 0
    SKIP = 1  # the decoder reads its headers only
    DROP = 2  # the decoder does not see it


@dataclasses.dataclass(frozen=True)
class DecodePlan:
    """What to decode of N packets, and what must come of it: M frames in the order of display.

    Attributes:
        stamps: (N,) of the packets.
        actions: (N,) of `Action`.
        shown: (M,) the stamps of the frames.
        times: Of the frames, M in seconds from the first one.
        settled: (M,) the number of frames that must have come until every packet that was decoded
            up to this frame has proved to be whole.
    """

    stamps: np.ndarray
    actions: np.ndarray
    shown: np.ndarray
    times: list[Fraction]
    settled: np.ndarray


def make_plan(table: PacketTable, clock: Clock, base: Fraction, fps: Fraction) -> DecodePlan | None:
    """Plans the decoding of a video.

    Args:
        table: Of its packets.
        clock: For its frames, as new.
        base: Unit of the stamps in seconds.
        fps: Samples per second of video time.

    Returns:
        The plan; None if all is to be decoded, or the times of the frames depend on which come.
    """
    visible = np.flatnonzero(~table.hidden)
    display = visible[np.argsort(table.stamps[visible])]  # packets in the order of display
    if not len(display):
        return None
    stamps, durations = (a[display].tolist() for a in (table.stamps, table.durations))
    times = [clock.time(s * base, d * base) for s, d in zip(stamps, durations, strict=True)]
    if clock.jumps:
        return None
    timed: list[tuple[Fraction, int | None]] = [(time, i) for i, time in enumerate(times)]
    samples = [*resample([*timed, (clock.end, None)], fps)]
    last = samples[-1]
    length = min(durations[last] * base, Fraction(LONGEST_GAP))
    if (len(samples) - 1) / fps >= times[last] + length:  # the frames behind it prolong it
        last = len(display) - 1
    wanted = np.zeros(len(table.stamps), bool)
    wanted[display[[0, *samples, last]]] = True
    actions = _actions(table, wanted)
    if not actions.any():
        return None
    comes = actions[display] == Action.DECODE
    frames = display[comes]
    place = np.zeros(len(table.stamps), np.int64)
    place[frames] = np.arange(1, len(frames) + 1)
    return DecodePlan(
        stamps=table.stamps,
        actions=actions,
        shown=table.stamps[frames],
        times=[time for time, come in zip(times, comes, strict=True) if come],
        settled=np.maximum.accumulate(place)[frames],
    )


def _actions(table: PacketTable, wanted: np.ndarray) -> np.ndarray:
    """What is done with each packet, (N,) of `Action`."""
    stamps, count = table.stamps, len(table.stamps)
    earliest = np.minimum.accumulate(stamps[::-1])[::-1]  # of a packet and all behind it
    # A decoder that was told a wrong number of B pictures may lose one that comes behind a later
    # one. It loses the same ones without this picture if all that follow are shown after it.
    in_order = stamps == earliest
    setup = table.kinds & Kind.SETUP > 0
    unneeded = (table.kinds & Kind.UNNEEDED > 0) & ~setup & in_order
    if table.hidden.any():  # damage in these is not seen, and what it does depends on all before
        unneeded[: np.flatnonzero(table.hidden)[-1]] = False
    actions = np.where(unneeded & ~wanted, Action.SKIP, Action.DECODE)
    resets = (table.kinds & Kind.RESET > 0) & table.keys & in_order
    resets[1:] &= stamps[1:] > np.maximum.accumulate(stamps)[:-1]
    if (setup & ~resets).any():  # in any packet, which must then reach the decoder
        return actions
    resets[0] = True
    begins = np.flatnonzero(resets)
    for begin, end in zip(begins, [*begins[1:], count], strict=True):
        needed = np.flatnonzero((wanted | setup)[begin:end])
        actions[begin + (needed[-1] + 1 if len(needed) else 0) : end] = Action.DROP
    return actions
