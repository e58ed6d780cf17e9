"""Which frames of a video, and which part of the picture: crops of training and of test."""

import numpy as np
import pytest
from PIL import Image

from tests.vimpac.videos import write_video
from vimpac.data.random import CLIPS, words
from vimpac.data.video import UnreadableVideo
from vimpac.simvtp import frames
from vimpac.simvtp.frames import CROP_DRAWS, VideoFiles, multi_scale_crop

RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, (2, 60, 80, 3), np.uint8)
SIZE = 32


def _draws(place: int, count: int) -> np.uint64:
    """A word that `below(word, count)` maps to a place."""
    return np.uint64((place * 2 + 1 << 63) // count)


def _close(got: np.ndarray, image: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether this is what Pillow makes of an image, but for rounding."""
    want = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
    return np.abs(got.astype(int) - np.asarray(want)).max() <= 1


def _parts(w: int, h: int) -> list[np.ndarray]:
    """The parts of the first frame of this size, at 13 quarters of the margins."""
    places = [(x, y) for x in range(5) for y in range(5) if x % 2 == y % 2]
    corners = [((80 - w) // 4 * x, (60 - h) // 4 * y) for x, y in places]
    return [CLIP[0, y : y + h, x : x + w] for x, y in corners]


def test_training_crop_is_one_of_ten_shapes_at_each_of_thirteen_places():
    sides = (60, 52, 45, 39)  # 1, 0.875, 0.75 and 0.66 of 60
    shapes = [(w, h) for i, w in enumerate(sides) for j, h in enumerate(sides) if abs(i - j) < 2]
    for i, shape in enumerate(shapes):
        parts = _parts(*shape)
        drawn = [multi_scale_crop(CLIP, SIZE, [_draws(i, 10), _draws(k, 13)]) for k in range(13)]
        assert {crop.shape for crop in drawn} == {(2, SIZE, SIZE, 3)}
        assert all(any(_close(crop[0], part, (SIZE, SIZE)) for part in parts) for crop in drawn)
        assert all(any(_close(crop[0], part, (SIZE, SIZE)) for crop in drawn) for part in parts)


def test_training_crop_depends_on_the_sample_alone():
    first, again, other = (
        multi_scale_crop(CLIP, SIZE, words(CLIPS, 0, sample, CROP_DRAWS)) for sample in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_training_crop_of_a_tiny_picture_is_a_pixel_at_least():
    for shape in range(10):
        crop = multi_scale_crop(CLIP[:, :1, :3], SIZE, [_draws(shape, 10), _draws(0, 13)])
        assert (crop == CLIP[:, :1, :1]).all()


@pytest.mark.parametrize(("height", "size"), [(32, 32), (34, 32), (31, 32)])
def test_training_crop_of_nearly_the_right_size_is_not_resized(height, size):
    """But a picture that is one pixel too small has no crop of the right size."""
    clip = RNG.integers(0, 256, (1, height, 40, 3), np.uint8)
    crop = multi_scale_crop(clip, size, [_draws(0, 10), _draws(0, 13)])
    if height < size:
        assert _close(crop[0], clip[0, :, :32], (32, 32))
    else:
        np.testing.assert_array_equal(crop, clip[:, :32, :32])


@pytest.mark.parametrize("turned", [False, True])
def test_test_crops_lie_evenly_along_the_longer_side(turned):
    clip = RNG.integers(0, 256, (2, 16, 27, 3), np.uint8)
    crops = frames.test_crops(clip.swapaxes(1, 2) if turned else clip, 16)
    assert crops.shape == (3, 2, 16, 16, 3)
    for crop, x in zip(crops, (0, 5, 11), strict=True):
        part = clip[:, :, x : x + 16]
        np.testing.assert_array_equal(crop, part.swapaxes(1, 2) if turned else part)
    single = frames.test_crops(clip, 16, crops=1)
    np.testing.assert_array_equal(single, clip[None, :, :, 5:21])


def test_test_crops_bring_the_shorter_side_to_the_size():
    crops = frames.test_crops(CLIP, 30, crops=3)
    assert crops.shape == (3, 2, 30, 30, 3)
    for crop, x in zip(crops, (0, 5, 10), strict=True):
        whole = np.asarray(Image.fromarray(CLIP[1]).resize((40, 30), Image.Resampling.BILINEAR))
        assert np.abs(crop[1].astype(int) - whole[:, x : x + 30]).max() <= 1


def test_test_windows_are_evenly_spaced_over_every_step_th_frame():
    windows = frames.test_windows(26, frames=4, step=2, clips=3)
    assert windows.tolist() == [[0, 2, 4, 6], [8, 10, 12, 14], [18, 20, 22, 24]]
    assert frames.test_windows(26, 4, 2, 1).tolist() == [[8, 10, 12, 14]]


def test_short_video_repeats_the_last_frame_that_is_used():
    assert frames.test_windows(6, frames=4, step=2, clips=2).tolist() == [[0, 2, 4, 4]] * 2


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="clips=0 must be positive"):
        frames.test_windows(6, 4, 2, 0)
    with pytest.raises(ValueError, match="crops=0 must be positive"):
        frames.test_crops(CLIP, 16, 0)


def test_video_files_are_named_below_their_directory_and_counted_once(tmp_path, monkeypatch):
    (tmp_path / "b").mkdir()
    paths = [tmp_path / "a.mp4", tmp_path / "b" / "c.mp4"]
    for path, count in zip(paths, (3, 5), strict=True):
        write_video(path, range(0, 40 * count, 40))
    videos = VideoFiles.find(str(tmp_path))
    assert (videos.names, videos.paths, len(videos)) == (["a.mp4", "b/c.mp4"], paths, 2)
    assert [videos.num_frames(i) for i in range(2)] == [3, 5]
    monkeypatch.setattr(frames, "num_frames", lambda path: 0)
    assert videos.num_frames(1) == 5


def test_file_that_is_gone_is_an_unreadable_video(tmp_path):
    videos = VideoFiles([("a.mp4", tmp_path / "a.mp4")])
    for use in (lambda: videos.num_frames(0), lambda: videos.read(0, [0])):
        with pytest.raises(UnreadableVideo, match="No such file"):
            use()
