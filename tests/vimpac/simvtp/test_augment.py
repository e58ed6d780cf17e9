"""What fine-tuning does to a clip: every frame alike, and no more than is asked for."""

import numpy as np
import pytest
from PIL import Image

from vimpac.data.random import words
from vimpac.simvtp.augment import ERASE_DRAWS, OPERATIONS, augment_draws, erase, rand_augment

NAMES = (
    "autocontrast equalize invert rotate posterize solarize solarize_add color contrast "
    "brightness sharpness shear_x shear_y translate_x translate_y"
).split()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """(40, 48, 3) uint8: smooth, of many colours, brighter than black and darker than white."""
    y, x = np.mgrid[0:40, 0:48]
    channels = (40 + 3 * x, 60 + 4 * y, 200 - 2 * x - y)
    return np.stack(channels, -1).astype(np.uint8)


def apply(name: str, picture: np.ndarray, level: float, negative: bool = False) -> np.ndarray:
    operation = OPERATIONS[NAMES.index(name)]
    return np.asarray(operation(Image.fromarray(picture), level, negative)).astype(int)


def test_every_operation_keeps_shape_and_type(picture):
    assert len(OPERATIONS) == len(NAMES)
    for operation in OPERATIONS:
        for level in (0.0, 0.7, 1.0):
            for negative in (False, True):
                out = np.asarray(operation(Image.fromarray(picture), level, negative))
                assert out.shape == picture.shape and out.dtype == np.uint8


@pytest.mark.parametrize("name", [*NAMES[3:4], *NAMES[5:]])
def test_operations_of_strength_0_change_nothing(picture, name):
    assert np.array_equal(apply(name, picture, 0.0), picture)


def test_operations_do_what_they_are_called(picture):
    assert np.array_equal(apply("invert", picture, 0.7), 255 - picture.astype(int))
    assert np.array_equal(apply("posterize", picture, 0.5), picture & 0b11000000)
    assert np.array_equal(apply("posterize", picture, 1.0), 0 * picture)
    solarized = np.where(picture < 128, picture, 255 - picture.astype(int))
    assert np.array_equal(apply("solarize", picture, 0.5), solarized)
    added = np.where(picture < 128, picture + 55.0, picture)
    assert np.array_equal(apply("solarize_add", picture, 0.5), added)
    assert apply("brightness", picture, 0.5).mean() == pytest.approx(1.45 * picture.mean(), rel=0.1)
    darker = apply("brightness", picture, 0.5, True)
    assert darker.mean() == pytest.approx(0.55 * picture.mean(), rel=0.02)
    moved = apply("translate_x", picture, 10 / 48 / 0.45)  # by ten columns
    assert np.array_equal(moved[:, :38], picture[:, 10:])
    assert (moved[:, 39:] == (124, 116, 104)).all()
    back = apply("translate_y", picture, 10 / 40 / 0.45, True)
    assert np.array_equal(back[10:], picture[:30])
    sheared = apply("shear_x", picture, 1.0)  # row y is moved by 0.3 y
    assert np.array_equal(sheared[20, :40, 0], picture[20, 6:46, 0])
    grey = apply("color", picture, 1.0, True)
    assert np.ptp(grey, axis=-1).mean() < 0.2 * np.ptp(picture, axis=-1).mean()


def test_all_frames_are_changed_alike(picture):
    clip = np.stack([picture] * 3)
    changed = 0
    for seed in range(40):
        out = rand_augment(clip, 7.0, words(1, seed, 0, augment_draws(4)))
        assert out.shape == clip.shape and out.dtype == np.uint8
        assert np.array_equal(out[0], out[1]) and np.array_equal(out[0], out[2])
        changed += not np.array_equal(out, clip)
    assert 32 <= changed < 40  # all four operations are left out once in sixteen


def test_operations_are_drawn_evenly_and_half_of_the_time(monkeypatch):
    from vimpac.simvtp import augment

    seen: list[tuple[int, float, bool]] = []

    def record(number):
        def operation(picture, level, negative):
            seen.append((number, level, negative))
            return picture

        return operation

    monkeypatch.setattr(augment, "OPERATIONS", [record(i) for i in range(15)])
    clip = np.zeros((1, 2, 2, 3), np.uint8)
    for seed in range(1500):
        rand_augment(clip, 7.0, words(1, seed, 0, augment_draws(4)))
    assert len(seen) == pytest.approx(3000, rel=0.05)
    counts = np.bincount([number for number, _, _ in seen], minlength=15)
    assert counts.min() > 150 and counts.max() < 250
    levels = np.array([level for _, level, _ in seen])
    assert levels.mean() == pytest.approx(0.7, abs=0.005)
    assert levels.std() == pytest.approx(0.05, rel=0.1)
    assert np.mean([negative for _, _, negative in seen]) == pytest.approx(0.5, abs=0.05)


def test_no_operation_changes_nothing(picture):
    clip = np.stack([picture] * 2)
    assert rand_augment(clip, 7.0, words(1, 0, 0, 0)) is clip


def test_a_rectangle_of_all_frames_is_erased():
    clip = np.full((3, 60, 80, 3), 7, np.uint8)
    shares = []
    for seed in range(200):
        out = erase(clip, words(1, seed, 0, ERASE_DRAWS))
        gone = (out != 7).any(-1)  # but for noise that happens to be 7
        rows, columns = gone.any((0, 2)), gone.any((0, 1))
        box = np.zeros((60, 80), bool)
        box[np.ix_(rows, columns)] = True
        assert np.array_equal(gone.any(0), box)
        assert rows.sum() == np.flatnonzero(rows)[[0, -1]] @ (-1, 1) + 1
        shares.append(box.mean())
        inside = out[:, box]
        assert not np.array_equal(inside[0], inside[1])
        assert abs(inside.mean() - 127.5) < 15
    assert 0.015 < min(shares) < 0.05 and 0.3 < max(shares) < 0.35
    assert np.mean(shares) == pytest.approx(0.177, abs=0.02)
    again = erase(clip, words(1, 199, 0, ERASE_DRAWS))
    assert np.array_equal(again, out)
