"""Clips and their order depend on the seed and the sample's number, on nothing else."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from vimpac.data.clips import ClipDataset
from vimpac.data.random import CLIPS, each_below, words, words_of_each
from vimpac.data.sampler import ResumableSampler, epoch_order
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta

PAD = 8193
FRAMES = [20, 3, 9, 1, 12, 6, 7]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    """Token = 100 * video + frame, plus 4000 in the second variant."""
    path = tmp_path_factory.mktemp("data") / "store"
    meta = StoreMeta("patch", 8192, 2, 2, fps=2.0, variants=("a", "b"))
    with TokenStoreWriter(path, meta) as writer:
        for video, frames in enumerate(FRAMES):
            times = (100 * video + np.arange(frames))[:, None, None] + np.zeros((2, 2), int)
            writer.add(str(video), np.stack([times, times + 4000]))
        writer.finish()
    return TokenStore(path)


def _starts(dataset: ClipDataset, video: int, samples: int) -> np.ndarray:
    """First frame of each clip of many samples, (samples, C)."""
    clips = np.stack([dataset[p, video][:, 0, 0, 0] for p in range(samples)])
    return clips % 4000 - 100 * video


def test_clip_is_consecutive_frames_of_one_variant(store):
    clips = ClipDataset(store, num_frames=4, frame_stride=2)[0, 4]
    assert clips.shape == (2, 4, 2, 2)
    assert clips.dtype == torch.int32
    assert (clips[:, 1:] - clips[:, :-1] == 2).all()
    assert (clips // 4000).unique().numel() == 1


def test_short_video_is_padded_on_the_right(store):
    clips = ClipDataset(store, num_frames=5, variant=0)[7, 1]
    assert (clips[:, :3, 0, 0] == torch.tensor([100, 101, 102])).all()
    assert (clips[:, 3:] == PAD).all()


def test_starts_are_uniform_and_independent(store):
    starts = _starts(ClipDataset(store, num_frames=5, variant=0), 4, 4096)
    joint = np.zeros((8, 8))
    np.add.at(joint, (starts[:, 0], starts[:, 1]), 1)
    chi2 = ((joint - 64) ** 2 / 64).sum()  # 63 degrees of freedom: mean 63, deviation 11.2
    assert 63 - 5 * 11.2 < chi2 < 63 + 5 * 11.2


@pytest.mark.parametrize(("seconds", "frames"), [(0.0, 0), (1.0, 2), (1.4, 2), (100.0, 15)])
def test_distance_of_the_starts_is_bounded_and_reached(store, seconds, frames):
    dataset = ClipDataset(store, num_frames=5, max_distance=seconds)
    starts = _starts(dataset, 0, 1024)
    assert abs(starts[:, 0] - starts[:, 1]).max() == frames
    assert starts.max() == 15 and starts.min() == 0


def test_both_variants_are_drawn(store):
    dataset = ClipDataset(store, num_frames=1)
    share = np.mean([dataset[p, 0][0, 0, 0, 0].item() >= 4000 for p in range(1024)])
    assert 0.4 < share < 0.6


def test_sample_depends_on_seed_and_number_only(store):
    datasets = [ClipDataset(store, num_frames=5, seed=seed) for seed in (0, 0, 1)]
    draws = [[d[p, 0][:, 0, 0, 0].tolist() for p in range(64)] for d in datasets]
    datasets[1][99, 3]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"num_frames": 0}, "num_frames=0"),
        ({"num_frames": 1, "max_distance": -1.0}, "max_distance"),
        ({"num_frames": 1, "variant": 2}, "variant=2"),
        ({"num_frames": 1, "pad_token": 8191}, "pad_token=8191"),
    ],
)
def test_rejects_bad_settings(store, kwargs, words):
    with pytest.raises(ValueError, match=words):
        ClipDataset(store, **kwargs)


@pytest.mark.parametrize("settings", [{}, {"max_distance": 1.0}, {"variant": 1, "frame_stride": 2}])
@pytest.mark.parametrize("clips_per_video", [1, 2, 3])
def test_batch_is_drawn_as_each_sample_was_in_version_01(store, settings, clips_per_video):
    """Samples, read one by one, as they were when a checkpoint of then continues."""
    stride, seed, keys = settings.get("frame_stride", 1), 3, [(p, p % 7) for p in range(70)]
    dataset = ClipDataset(
        store, num_frames=3, clips_per_video=clips_per_video, seed=seed, pad_token=PAD, **settings
    )
    for (sample, video), clips in zip(keys, dataset.__getitems__(keys), strict=True):
        draws = [int(word) for word in words(CLIPS, seed, sample, 1 + clips_per_video)]
        variant = settings.get("variant", draws[0] * 2 >> 64)
        last = max(FRAMES[video] - 2 * stride - 1, 0)
        first = draws[1] * (last + 1) >> 64
        low, high = 0, last
        if "max_distance" in settings:  # two frames
            low, high = max(first - 2, 0), min(first + 2, last)
        starts = [first, *(low + (draw * (high - low + 1) >> 64) for draw in draws[2:])]
        for clip, start in zip(clips, starts, strict=True):
            times = [start + stride * t for t in range(3)]
            token = 100 * video + 4000 * variant
            expected = [token + t if t < FRAMES[video] else PAD for t in times]
            assert clip[:, 1, 1].tolist() == expected
        assert torch.equal(dataset[sample, video], clips)


def test_words_of_several_samples_are_those_of_each():
    numbers = [5, 0, 2**40, 5]
    found = words_of_each(CLIPS, 2**62, numbers, 6)
    np.testing.assert_array_equal(found, [words(CLIPS, 2**62, number, 6) for number in numbers])


def test_words_are_mapped_below_bounds_exactly():
    edges = [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]
    drawn = np.array([*edges, *words(CLIPS, 0, 0, 100)], np.uint64)[:, None]
    bounds = np.array([1, 2, 3, 1000, 2**31, 2**32 - 1])
    expected = [[int(word) * bound >> 64 for bound in bounds.tolist()] for word in drawn[:, 0]]
    np.testing.assert_array_equal(each_below(drawn, bounds), expected)


def _take(sampler: ResumableSampler, samples: int) -> list[tuple[int, int]]:
    return list(itertools.islice(sampler, samples))


def test_every_epoch_has_every_video_once_in_another_order():
    order = [video for _, video in _take(ResumableSampler(13, global_batch=4), 39)]
    epochs = [order[:13], order[13:26], order[26:]]
    assert all(sorted(epoch) == list(range(13)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_together_read_what_one_rank_reads(world_size):
    whole = _take(ResumableSampler(13, global_batch=6, seed=5), 60)
    part = 6 // world_size
    ranks = [
        iter(ResumableSampler(13, global_batch=6, rank=r, world_size=world_size, seed=5))
        for r in range(world_size)
    ]
    together = [next(rank) for _ in range(10) for rank in ranks for _ in range(part)]
    assert together == whole


def test_resumes_mid_epoch_with_another_batch_and_world_size():
    first = ResumableSampler(13, global_batch=4, seed=3)
    whole = _take(first, 60)
    first.advance(5)
    second = ResumableSampler(13, global_batch=6, rank=1, world_size=2, seed=3)
    second.load_state_dict(first.state_dict())
    assert second.epoch == 1
    assert _take(second, 3) == whole[23:26]


def test_position_of_another_order_is_refused():
    state = ResumableSampler(13, global_batch=4, seed=3).state_dict()
    with pytest.raises(ValueError, match="seed=3"):
        ResumableSampler(13, global_batch=4, seed=4).load_state_dict(state)
    with pytest.raises(ValueError, match="made with 13 videos, not 14"):
        ResumableSampler(14, global_batch=4, seed=3).load_state_dict(state)


@pytest.mark.parametrize(
    "kwargs",
    [{"global_batch": 0}, {"global_batch": 3, "world_size": 2}, {"global_batch": 2, "rank": 1}],
)
def test_rejects_bad_batches(kwargs):
    with pytest.raises(ValueError, match="global_batch"):
        ResumableSampler(4, **kwargs)


def test_order_is_fixed_for_all_time():
    assert epoch_order(8, seed=1, epoch=2).tolist() == [4, 5, 6, 7, 1, 0, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_workers(store, workers):
    sampler = ResumableSampler(len(store), global_batch=3, seed=1)
    dataset = ClipDataset(store, num_frames=5)
    loader = DataLoader(dataset, batch_size=3, sampler=sampler, num_workers=workers)
    batches = list(itertools.islice(loader, 5))
    expected = torch.stack([dataset[key] for key in _take(sampler, 15)]).unflatten(0, (5, 3))
    assert torch.equal(torch.stack(batches), expected)
