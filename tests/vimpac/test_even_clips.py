"""Which clips of which crops judge a video."""

import numpy as np
import pytest
import torch

from vimpac.data.even_clips import EvenClips, even_starts, find_crops
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.data.variants import parse_variants
from vimpac.errors import UsageError
from vimpac.tokens import PAD_TOKEN

PAPER = tuple(map(str, parse_variants("finetune")))
LENGTHS = (1, 3, 4, 9, 40)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    """Videos whose ids are 100 * variant + frame."""
    path = tmp_path_factory.mktemp("data") / "store"
    with TokenStoreWriter(path, StoreMeta("patch", 8192, 1, 1, 2.0, ("a", "b"))) as writer:
        for frames in LENGTHS:
            ids = 100 * np.arange(2)[:, None] + np.arange(frames)
            writer.add(f"{frames}.mp4", ids[:, :, None, None])
        writer.finish()
    return TokenStore(path)


def _views(store, *clips: int, frames: int = 4, stride: int = 1) -> EvenClips:
    videos = range(len(store))
    return EvenClips(store, videos, frames=frames, stride=stride, clips=clips, variants=[0, 1])


def test_clips_reach_from_the_first_frame_to_the_last_and_one_is_in_the_middle():
    assert even_starts(9, 1) == [4] and even_starts(9, 2) == [0, 9]
    assert even_starts(9, 4) == [0, 3, 6, 9] and even_starts(0, 3) == [0, 0, 0]


@pytest.mark.parametrize("clips", [1, 2, 5, 10])
def test_smaller_number_of_clips_is_that_of_its_own_pass(store, clips):
    views, alone = _views(store, 1, 2, 5, 10), _views(store, clips)
    for place in range(len(store)):
        for one in (views, alone):
            assert len({*one.views_of(place)}) == len(one.starts(place)) * 2
        chosen, expected = (
            torch.stack([one[one.views_of(place)[i]] for i in one.chosen(place, clips)])
            for one in (views, alone)
        )
        assert torch.equal(chosen, expected) and len(chosen) == 2 * clips


@pytest.mark.parametrize("clips", [(1,), (7,), (1, 3), (2, 10)])
@pytest.mark.parametrize("stride", [1, 3])
def test_no_view_is_read_twice_or_for_nothing(store, clips, stride):
    views = _views(store, *clips, stride=stride)
    for place in range(len(store)):
        used = torch.cat([views.chosen(place, number) for number in clips])
        assert {*used.tolist()} == {*range(len(views.views_of(place)))}
        read = [tuple(views[i].flatten().tolist()) for i in views.views_of(place)]
        assert len({*read}) == len(read)


def test_all_crops_are_the_unflipped_ones_at_scale_1():
    crops = [PAPER[i] for i in find_crops(PAPER, "all")]
    assert crops == ["1x-topleft", "1x-center", "1x-bottomright"]
    assert find_crops(("a", "b"), "all") == [0]
    assert [PAPER[i] for i in find_crops(PAPER, "center")] == ["1x-center"]
    names = "1.25x-center-flip, 1x-topleft"
    assert [PAPER[i] for i in find_crops(PAPER, names)] == names.split(", ")


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("center", "test_crops=center: the store has no variant '1x-center', only a, b"),
        ("a,c", "the store has no variant 'c'"),
        ("", "the store has no variant ''"),
        ("b,b", "names a variant twice"),
    ],
)
def test_crop_that_is_not_there_is_named(which, message):
    with pytest.raises(UsageError, match=message):
        find_crops(("a", "b"), which)


def test_clip_takes_no_more_memory_than_its_frames(store):
    views = _views(store, 2, frames=2, stride=10**9)
    assert views[0].shape == (2, 1, 1) and views[0].flatten().tolist() == [0, PAD_TOKEN]
