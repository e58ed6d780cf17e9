"""Frames come at even times, whatever the input's rate; unreadable videos give a reason."""

from fractions import Fraction

import av
import numpy as np
import pytest

from tests.vimpac.videos import frame_numbers, write_video
from vimpac.data.clock import resample
from vimpac.data.frames import frames_at
from vimpac.data.sample_videos import sample_videos
from vimpac.data.variants import Variant, make_variants, parse_variants
from vimpac.data.video import UnreadableVideo
from vimpac.errors import UsageError, VimpacError


def _on_screen(times: list[int], end: int, fps: Fraction) -> list[int]:
    """The definition, in milliseconds: the last frame that has come by first time + k / fps."""
    shown, k = [], 0
    while times[0] + 1000 * k / fps < end:
        shown.append(sum(time <= times[0] + 1000 * k / fps for time in times) - 1)
        k += 1
    return shown


@pytest.mark.parametrize("fps", ["1", "2", "3", "30000/1001", "40"])
@pytest.mark.parametrize(
    "times",
    [[0, 40, 80, 120], [0], [500, 1000, 1100, 1101, 4000], [0, 333, 667, 1000, 1333, 1667]],
    ids=["constant", "single", "variable", "rounded"],
)
def test_resampling_shows_what_is_on_screen(times, fps):
    end = times[-1] + 40
    timed = [(Fraction(time, 1000), i) for i, time in enumerate(times)]
    got = list(resample([*timed, (Fraction(end, 1000), None)], Fraction(fps)))
    assert got == _on_screen(times, end, Fraction(fps))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_constant_rate_video_is_sampled_by_time(tmp_path, suffix):
    path = write_video(tmp_path / f"v.{suffix}", range(0, 2400, 100))
    assert frame_numbers(list(frames_at(path, Fraction(2)))) == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_video_is_sampled_by_time(tmp_path, suffix):
    times = [0, 100, 200, 300, 1600, 1650, 1700, 2500, 2600, 2700, 3000]
    path = write_video(tmp_path / f"v.{suffix}", times)
    got = frame_numbers(list(frames_at(path, Fraction(2))))
    assert got[:7] == _on_screen(times, 3001, Fraction(2))[:7] == [0, 3, 3, 3, 6, 7, 10]
    assert len(got) == 7


def test_real_clips_have_their_length():
    counts = [sum(1 for _ in frames_at(clip, Fraction(2))) for clip in sample_videos()]
    assert counts == [20, 11]  # 10.0 s and 5.28 s


def test_decoder_threads_do_not_change_the_frames():
    clip = sample_videos()[0]
    first, other = (list(frames_at(clip, Fraction(1, 2), threads=n)) for n in (1, 2))
    for a, b in zip(first, other, strict=True):
        np.testing.assert_array_equal(a.to_ndarray(format="rgb24"), b.to_ndarray(format="rgb24"))


def test_video_of_no_frames_is_unreadable(tmp_path):
    with pytest.raises(UnreadableVideo):
        list(frames_at(write_video(tmp_path / "v.mkv", []), Fraction(2)))


def _frame(width: int, height: int) -> av.VideoFrame:
    """Red grows to the right, green downwards."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return av.VideoFrame.from_ndarray(image, "rgb24")


@pytest.mark.parametrize(("width", "height"), [(320, 160), (160, 320), (16, 16), (97, 61)])
def test_views_are_the_crops_they_say(width, height):
    variants = parse_variants("finetune")
    got = make_variants(_frame(width, height), 32, variants).astype(int)
    assert got.shape == (12, 3, 32, 32)
    by_name = dict(zip(map(str, variants), got, strict=True))
    for name, view in by_name.items():
        if not name.endswith("-flip"):
            np.testing.assert_array_equal(by_name[name + "-flip"], view[..., ::-1])
    large = [by_name[f"1.25x-{crop}"] for crop in ("topleft", "center", "bottomright")]
    corners = [(view[0].min(), view[1].min()) for view in large]
    assert corners[0] < corners[1] < corners[2]
    assert large[0][:2, 0, 0].max() < 12 and large[2][:2, -1, -1].min() > 243
    assert abs(by_name["1x-center"][:2].mean() - 127.5) < 3


def test_frames_that_share_scalers_are_as_each_alone():
    variants, scalers = parse_variants("finetune"), {}
    for width, height, format in [
        (97, 61, "yuv420p"),
        (97, 61, "yuv420p"),
        (320, 160, "yuv420p"),
        (320, 160, "yuv444p10le"),
        (97, 61, "gray"),
    ]:
        frame = _frame(width, height).reformat(format=format)
        alone = frame.reformat(width * 40 // height, 40, "rgb24", interpolation="BICUBIC")
        x = (alone.width - 32) // 2
        expected = alone.to_ndarray()[4:36, x : x + 32].transpose(2, 0, 1)
        got = make_variants(frame, 32, variants, scalers)
        np.testing.assert_array_equal(got[list(map(str, variants)).index("1.25x-center")], expected)
        np.testing.assert_array_equal(got, make_variants(frame, 32, variants))


def test_variant_lists():
    assert list(map(str, parse_variants("pretrain"))) == ["1x-center"]
    assert len(set(parse_variants("finetune"))) == 12
    assert not any(variant.flip for variant in parse_variants("finetune-noflip"))
    assert parse_variants("1.5x-topleft-flip,1x-center") == (
        Variant(1.5, "topleft", True),
        Variant(),
    )


@pytest.mark.parametrize(
    "text", ["", "big", "0.5x-center", "1x-left", "1x-center-flop", "nanx-center"]
)
def test_unknown_variant_is_a_usage_error(text):
    with pytest.raises(UsageError, match="unknown variant"):
        parse_variants(text)


def test_absent_sample_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(VimpacError, match=r"pip install 'vimpac-kernels\[demo\]'"):
        sample_videos()
