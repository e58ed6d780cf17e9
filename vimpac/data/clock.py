"""Presentation times that rise steadily, from timestamps that may repeat, jump or be absent, and
which frame is on screen at even times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import TypeVar

Item = TypeVar("Item")

LONGEST_GAP = 10  # seconds between two frames that need no proof
LONGEST_FREEZE = 3600  # seconds between two frames that are believed at all
JITTER = 5  # frame lengths by which a timestamp may fall behind without being a jump
RATES = Fraction(1, LONGEST_GAP), Fraction(240)  # frames per second that are believed


class Clock:
    """Turns timestamps into times from 0 on, in seconds.

    A timestamp that falls behind or runs ahead is a jump of the clock, as where recordings were
    joined: the frame comes one frame length after the last, and the clock goes on from there. A gap
    of more than `LONGEST_GAP` seconds is none if the last frame's own duration covers it, or if it
    ends before `believed`.

    Args:
        rate: Nominal frames per second, or None.
        believed: Time in seconds up to which every gap is believed: what a header states, or
            anything where clocks do not start again. None: where they do.

    Attributes:
        jumps: Jumps so far.
    """

    def __init__(self, rate: Fraction | None, believed: Fraction | None = None) -> None:
        usual = rate is not None and RATES[0] <= rate <= RATES[1]
        self._step = 1 / rate if rate and usual else Fraction(1, 25)
        self._believed = believed
        self.jumps = 0
        self._time = -self._step  # of the last frame
        self._length = self._step  # of the last frame
        self._offset: Fraction | None = None  # of timestamps from times
        self._stuck = 0  # frames in a row whose timestamps did not advance

    def time(self, stamp: Fraction | None, duration: Fraction | None = None) -> Fraction:
        """The time of the next frame, not before that of the last.

        Args:
            stamp: Its timestamp in seconds, if it has one.
            duration: How long it is shown, in seconds, if it says so.
        """
        if stamp is not None and self._offset is not None:
            time = stamp - self._offset
            if 0 < time - self._time <= LONGEST_GAP:  # as nearly all: no more arithmetic than this
                self._stuck = 0
                return self._advance(time, duration)
        next_time = self.end
        time = next_time
        if stamp is not None:
            if self._offset is not None:
                time = stamp - self._offset
            if time < self._time - JITTER * self._step or time > self._latest():
                self.jumps += 1
                time = next_time
            elif time <= self._time:
                self._stuck += 1
                time = next_time if self._stuck > JITTER else self._time
            else:
                self._stuck = 0
            self._offset = stamp - time if time == next_time else self._offset
        return self._advance(time, duration)

    def _advance(self, time: Fraction, duration: Fraction | None) -> Fraction:
        self._time = time
        self._length = duration if duration and duration > 0 else self._step
        return time

    @property
    def end(self) -> Fraction:
        """When the last frame ends."""
        end = self._time + self._length
        return end if end <= self._latest() else self._time + self._step

    def _latest(self) -> Fraction:
        """The latest time at which the next frame is believed to come."""
        longest = Fraction(LONGEST_GAP)
        if self._length > longest:
            longest = self._length
        if self._believed is not None:
            longest = max(longest, self._believed + 1 - self._time)
        return self._time + min(longest, Fraction(LONGEST_FREEZE))


class BestStamp:
    """The likelier one of a frame's two timestamps.

    Some containers (AVI) store decoding times only, others presentation times that are wrong: the
    kind that has gone backwards less often is believed, as FFmpeg does.
    """

    def __init__(self) -> None:
        self._last: list[int | None] = [None, None]
        self._faults = [0, 0]

    def choose(self, presentation: int | None, decoding: int | None) -> int | None:
        """One of the two, or None if both are absent."""
        stamps = presentation, decoding
        for i, stamp in enumerate(stamps):
            if stamp is not None:
                last = self._last[i]
                self._faults[i] += last is not None and stamp <= last
                self._last[i] = stamp
        if presentation is None or (self._faults[0] > self._faults[1] and decoding is not None):
            return decoding
        return presentation


def resample(timed: Iterable[tuple[Fraction, Item | None]], fps: Fraction) -> Iterator[Item]:
    """Samples frames at even times.

    Args:
        timed: (time, frame) with times that do not fall; last (end of the last frame, None).
        fps: Output frames per second.

    Yields:
        For k = 0, 1, ... the last frame whose time is at most `first time + k / fps`.
    """
    shown: Item | None = None
    start, count = Fraction(0), 0
    for time, frame in timed:
        if shown is None:
            start = time
        else:
            while start + count / fps < time:
                yield shown
                count += 1
        shown = frame
