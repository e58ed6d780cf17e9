"""Times rise whatever the timestamps do; nothing is lost, and nothing grows without bound."""

from fractions import Fraction

import pytest

from vimpac.data.clock import JITTER, LONGEST_FREEZE, BestStamp, Clock


def _times(stamps, *, rate=25, believed=None, durations=None):
    """(times in milliseconds, the end, jumps) of frames stamped in milliseconds."""
    clock = Clock(Fraction(rate), None if believed is None else Fraction(believed, 1000))
    durations = durations or [None] * len(stamps)
    times = [
        clock.time(
            None if stamp is None else Fraction(stamp, 1000),
            None if duration is None else Fraction(duration, 1000),
        )
        for stamp, duration in zip(stamps, durations, strict=True)
    ]
    assert times == sorted(times)
    return [float(1000 * time) for time in times], float(1000 * clock.end), clock.jumps


STEADY = list(range(0, 400, 40))


@pytest.mark.parametrize("start", [0, 1000, -80, 95_443_717])
def test_steady_timestamps_are_kept_from_the_first_on(start):
    assert _times([start + time for time in STEADY]) == (STEADY, 400, 0)


def test_variable_rate_is_kept():
    stamps = [0, 100, 101, 1600, 1650, 9000]
    assert _times(stamps) == (stamps, 9040, 0)


def test_missing_timestamps_are_one_frame_length_apart():
    assert _times([None] * 10) == (STEADY, 400, 0)
    assert _times([0, None, 80, None, None, 200]) == ([0, 40, 80, 120, 160, 200], 240, 0)
    assert _times([None, None, 5080, 5120]) == ([0, 40, 80, 120], 160, 0)


@pytest.mark.parametrize("restart", [0, 3_600_000, -7_000_000, 10**10], ids=str)
def test_clock_that_starts_again_is_bridged_by_one_frame(restart):
    second = [restart + time for time in STEADY]
    assert _times(STEADY + second) == (list(range(0, 800, 40)), 800, 1)


def test_short_recordings_joined_together_are_all_kept():
    assert _times(STEADY * 20) == (list(range(0, 8000, 40)), 8000, 19)


def test_single_wild_timestamp_moves_only_its_frame():
    times, end, jumps = _times([0, 40, 10**12, 120, 160])
    assert (times, end, jumps) == ([0, 40, 80, 120, 160], 200, 2)


def test_repeated_and_stale_timestamps_take_no_time():
    assert _times([0, 40, 40, 80, 60, 120]) == ([0, 40, 40, 80, 80, 120], 160, 0)
    doubled = [time for time in STEADY for _ in range(2)]
    assert _times(doubled)[1:] == (400, 0)


def test_clock_that_stands_still_is_not_believed():
    """All timestamps equal: after a few frames they count as absent."""
    times, end, _ = _times([0] * 100)
    assert end == 40 * (100 - JITTER)
    assert times[JITTER + 1 :] == list(range(40, int(end), 40))


def test_gap_is_believed_if_something_states_it():
    gap = [0, 40, 60_000, 60_040]
    assert _times(gap)[1:] == (160, 1)
    assert _times(gap, believed=60_080) == (gap, 60_080, 0)
    assert _times(gap, durations=[40, 59_960, 40, 40]) == (gap, 60_080, 0)
    far = 2000 * LONGEST_FREEZE
    for stated in ({"believed": far + 80}, {"durations": [40, far, 40, 40]}):
        assert _times([0, 40, far, far + 40], **stated)[1:] == (160, 1)


def test_last_frame_is_not_shown_for_ever():
    for duration in (20_000, 10**9):
        assert _times([0, 40], durations=[40, duration])[1] in (20_040, 80)
    assert _times([0, 40], durations=[40, 10**9])[1] == 80


@pytest.mark.parametrize("rate", [0, 90_000, Fraction(1, 10**6), -25])
def test_absurd_rates_are_not_believed(rate):
    clock = Clock(Fraction(rate))
    assert [clock.time(None), clock.time(None)] == [0, Fraction(1, 25)]


def test_timestamps_that_go_backwards_less_often_are_chosen():
    presentation = [1, 4, 3, 5, 2, 8, 7, 9, 6]
    decoding = list(range(2, 11))
    best = BestStamp()
    chosen = [best.choose(p, d) for p, d in zip(presentation, decoding, strict=True)]
    assert chosen[2:] == decoding[2:]
    best = BestStamp()
    assert [best.choose(p, 0) for p in (5, 6, 7)] == [5, 6, 7]
    assert BestStamp().choose(None, 3) == 3
    assert BestStamp().choose(3, None) == 3
    assert BestStamp().choose(None, None) is None
