"""Repeated sampling: several clips of a video side by side, and all else as with one."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vimpac.runs import finetune_config, make_labelled
from vimpac.config import FinetuneConfig
from vimpac.data.sampler import ResumableSampler
from vimpac.errors import UsageError
from vimpac.model.config import preset
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.settings import load_config
from vimpac.train.cutmix import CutMix
from vimpac.train.distributed import World
from vimpac.train.finetune import finetune
from vimpac.train.finetune_system import Finetuning
from vimpac.train.log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store of twelve videos, nine of them to train on, their labels, and a model."""
    return make_labelled(tmp_path_factory.mktemp("data"))


def _take(sampler: ResumableSampler, samples: int) -> list[tuple[int, int]]:
    return [*itertools.islice(sampler, samples)]


def test_clips_of_a_video_stand_together_in_the_order_of_the_videos():
    once = [video for _, video in _take(ResumableSampler(7, global_batch=6, seed=3), 14)]
    samples = _take(ResumableSampler(7, global_batch=6, seed=3, repeat=3), 42)
    assert [number for number, _ in samples] == [*range(42)]  # so each is another clip
    assert [video for _, video in samples] == np.repeat(once, 3).tolist()


def test_ranks_together_read_what_one_rank_reads():
    settings = dict(global_batch=12, seed=5, repeat=3)
    whole = _take(ResumableSampler(7, **settings), 48)
    ranks = [iter(ResumableSampler(7, **settings, rank=r, world_size=4)) for r in range(4)]
    assert [next(rank) for _ in range(4) for rank in ranks for _ in range(3)] == whole


def test_position_goes_on_and_is_that_of_one_repetition():
    first = ResumableSampler(7, global_batch=6, repeat=2)
    whole = _take(first, 40)
    first.advance(3)
    second = ResumableSampler(7, global_batch=4, repeat=2)
    second.load_state_dict(first.state_dict())
    assert second.epoch == 1 and _take(second, 22) == whole[18:]
    with pytest.raises(ValueError, match="made with clips.repeat=2, not 1"):
        ResumableSampler(7, global_batch=6).load_state_dict(first.state_dict())


def test_position_of_before_there_was_repetition_goes_on():
    state = {"position": 5, "seed": 0, "num_videos": 7}
    sampler = ResumableSampler(7, global_batch=5)
    sampler.load_state_dict(state)
    assert sampler.position == 5
    with pytest.raises(ValueError, match="made with clips.repeat=1, not 2"):
        ResumableSampler(7, global_batch=5, repeat=2).load_state_dict(state)


def test_batch_holds_other_clips_of_the_same_videos(folder, tmp_path):
    words = ("batch=6", "clips.repeat=3")
    config = finetune_config(folder, tmp_path, *words)
    encoder = VideoTokenEncoder(preset("tiny", grid=(2, 4, 4)))
    clips, classes = next(iter(Finetuning(config, encoder, World(torch.device("cpu"))).loader))
    videos = [video for _, video in _take(ResumableSampler(9, global_batch=6, repeat=3), 6)]
    assert classes.tolist() == [video % 2 for video in videos]
    for group in clips.flatten(1).split(3):
        assert len(group.unique(dim=0)) > 1


def test_epoch_has_every_video_once_and_repeat_clips_of_it(folder, tmp_path):
    words = ("optim.steps=null", "optim.epochs=2", "batch=6", "clips.repeat=2")
    result = finetune(finetune_config(folder, tmp_path, *words), folder / "model", quiet=True)
    assert result.checkpoint.name == "step-00000006"  # 2 epochs * 9 videos * 2 clips / 6
    records = [r for r in read_log(tmp_path / "log.jsonl") if "epoch" in r]
    assert [r["epoch"] for r in records] == pytest.approx([step / 3 for step in range(1, 7)])


def test_boxes_come_from_another_video():
    clips = torch.arange(6).view(6, 1, 1, 1).expand(-1, 2, 4, 4).int()
    classes = torch.arange(6) // 2
    mix = CutMix(1.0, 3, 0, torch.device("cpu"), repeat=2)
    mixed, weights = mix(clips, classes, 0)
    for i in range(6):
        assert {*mixed[i].unique().tolist()} <= {i, (i + 2) % 6}
        share = (mixed[i] == (i + 2) % 6).float().mean()
        assert weights[i, classes[(i + 2) % 6]] == share and share > 0


def test_batch_that_does_not_divide_is_refused():
    config = load_config(FinetuneConfig, None, ["batch=8", "clips.repeat=3"])
    with pytest.raises(UsageError, match=r"batch.videos=8 counts clips, .* clips.repeat=3: give"):
        config.check()
    words = ["batch=8", "batch.micro=2", "clips.repeat=2", "cutmix=0.1"]
    with pytest.raises(UsageError, match="cutmix=0.1 pastes from another video"):
        load_config(FinetuneConfig, None, words).check()
