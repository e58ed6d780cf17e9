"""Several stores read as one, each drawn as often as its weight says."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vimpac.runs import finetune_config, make_store, tiny_config
from vimpac.config import PretrainConfig
from vimpac.data.clips import ClipDataset
from vimpac.data.joined_store import JoinedStore
from vimpac.data.labels import read_labels
from vimpac.data.sampler import ResumableSampler, Share, epoch_order
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError
from vimpac.model.config import preset
from vimpac.model.encoder import VideoTokenEncoder
from vimpac.settings import load_config, to_yaml
from vimpac.train.batches import make_shares, open_store
from vimpac.train.distributed import World
from vimpac.train.finetune_system import Finetuning
from vimpac.train.log import read_log
from vimpac.train.pretrain import pretrain

PAD = 8193
META = dict(tokenizer="patch", vocab_size=8192, height=1, width=2, fps=2.0, variants=("a", "b"))


def _write(path: Path, base: int, names: str, **changes) -> Path:
    """Video k has 3 + k frames; token = base + 100 k + frame, 50 more in the second variant."""
    meta = StoreMeta(**{**META, **changes})
    with TokenStoreWriter(path, meta) as writer:
        for k, name in enumerate(names):
            frame = base + 100 * k + np.arange(3 + k)[:, None, None]
            tokens = frame + np.zeros((meta.height, meta.width), int)
            writer.add(name, np.stack([tokens + 50 * v for v in range(len(meta.variants))]), k)
        writer.skip(f"bad {path.name}", "empty")
        writer.finish()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Stores of three videos and of two."""
    folder = tmp_path_factory.mktemp("data")
    _write(folder / "one", 0, "xyz")
    _write(folder / "two", 1000, "vw")
    return folder


@pytest.fixture
def joined(folder) -> JoinedStore:
    """Both, as another process gets them."""
    return pickle.loads(pickle.dumps(open_store(f"{folder / 'one'},{folder / 'two'}")))


def test_has_the_videos_of_all_in_order(joined):
    assert len(joined) == 5 and joined.meta == StoreMeta(**META)
    assert [joined.name(i) for i in range(5)] == [*"xyzvw"]
    assert joined.frames.tolist() == [3, 4, 5, 3, 4]
    assert [joined.num_frames(i) for i in range(5)] == [3, 4, 5, 3, 4]
    assert [joined.label(i) for i in range(5)] == [0, 1, 2, 0, 1]
    assert joined.skipped == [("bad one", "empty"), ("bad two", "empty")]
    assert [*joined.verify()] == [None] * 5
    assert joined.read(4, 1, 3, 1)[:, 0].tolist() == [[1151, 1151], [1152, 1152]]


def test_batch_mixes_the_stores(joined):
    videos, starts, variants = [4, 0, 3, 2, 4], [0, 1, 2, 0, 1], [0, 1, 0, 0, 1]
    clips = joined.read_many(videos, starts, 2, stride=2, variants=variants, fill=PAD)
    assert clips[:, :, 0, 0].tolist() == [
        [1100, 1102],
        [51, PAD],
        [1002, PAD],
        [200, 202],
        [1151, 1153],
    ]
    with pytest.raises(IndexError, match="video 5 of stores of 5 videos"):
        joined.read_many([0, 5], [0, 0], 2, fill=PAD)
    with pytest.raises(IndexError, match="video -1 of stores"):
        joined.read(-1, 0, 1)


def test_clips_are_drawn_of_all(joined):
    clips = ClipDataset(joined, num_frames=2, variant=0).__getitems__([(0, 1), (1, 4)])
    assert [clip.flatten()[0].item() // 100 for clip in clips] == [1, 11]


def test_one_path_is_a_store_alone(folder, tmp_path):
    odd = _write(tmp_path / "one,two", 0, "xyz")
    assert isinstance(open_store(str(odd)), TokenStore)
    with pytest.raises(UsageError, match="a path is empty"):
        open_store(f"{folder / 'one'},")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(fps=4.0), "its fps is 4.0, not 2.0"),
        (dict(width=3), "its width is 3, not 2"),
        (dict(tokenizer="dalle"), "its tokenizer is 'dalle', not 'patch'"),
        (dict(digest="ab"), "its digest is 'ab', not ''"),
        (dict(vocab_size=4096), "its vocab_size is 4096, not 8192"),
        (dict(variants=("a",)), r"its variants is \['a'\], not \['a', 'b'\]"),
    ],
)
def test_other_settings_are_refused(folder, tmp_path, change, said):
    other = _write(tmp_path / "other", 0, "x", **change)
    with pytest.raises(UsageError, match=rf"other cannot be joined to .*one: {said}: tokenise"):
        open_store(f"{folder / 'one'},{other}")


def test_store_that_is_given_twice_is_refused(folder):
    with pytest.raises(UsageError, match="one is given twice: data_weights"):
        open_store(f"{folder / 'one'},{folder / 'two'},{folder / 'two' / '..' / 'one'}")


def test_labels_refuse_a_name_of_two_stores(folder, tmp_path):
    other = _write(tmp_path / "other", 0, "wz")
    labels = tmp_path / "labels.csv"
    labels.write_text("video,class,split\nx,a,train\nv,b,train\ny,a,test\n")
    classes, splits = read_labels(str(labels), open_store(f"{folder / 'one'},{folder / 'two'}"))
    assert classes == ["a", "b"] and splits["train"].videos == [0, 3]
    with pytest.raises(UsageError, match=r"'w' is a video of .*two and of .*other, and the labels"):
        read_labels(str(labels), open_store(f"{folder / 'two'},{other}"))


def _sampler(*weights: float, seed: int = 5, **more) -> ResumableSampler:
    """Of videos 0 to 3, 4 to 9, and 10 and 11."""
    parts = (np.arange(4), np.arange(4, 10), np.arange(10, 12))
    shares = [Share("abc"[k], parts[k], weight) for k, weight in enumerate(weights)]
    return ResumableSampler(12, **{"global_batch": 6, "seed": seed, "shares": shares, **more})


def _take(sampler: ResumableSampler, samples: int) -> list[tuple[int, int]]:
    return [*itertools.islice(sampler, samples)]


def test_epoch_draws_every_store_by_its_weight():
    sampler = _sampler(2, 0.5, 1.5)
    assert sampler.epoch_size == 2 * 4 + 3 + 3
    drawn = np.array([video for _, video in _take(sampler, 4 * 14)]).reshape(4, 14)
    counts = np.array([np.bincount(epoch, minlength=12) for epoch in drawn])
    assert (counts[:, :4] == 2).all()
    assert (counts[:, 4:10].sum(1) == 3).all() and (counts[:, 10:].sum(1) == 3).all()
    pairs = counts.reshape(2, 2, 12).sum(1)  # of epochs, in which no half is left
    assert (pairs[:, 4:10] == 1).all() and (pairs[:, 10:] == 3).all()
    assert len({tuple(epoch) for epoch in drawn}) == 4


def test_weighted_order_is_fixed_for_all_time():
    order = [video for _, video in _take(_sampler(1, 0.5, 2), 11)]
    assert order == [6, 4, 10, 11, 2, 10, 8, 11, 0, 3, 1]


def test_equal_weights_of_one_change_nothing():
    plain = ResumableSampler(12, global_batch=6, seed=5)
    assert _take(_sampler(1, 1, 1), 30) == _take(plain, 30)
    assert _take(plain, 12) == [*enumerate(epoch_order(12, 5, 0))]


def test_ranks_together_read_what_one_rank_reads():
    settings = dict(global_batch=12, repeat=2)
    whole = _take(_sampler(2, 0.5, 1, **settings), 48)
    ranks = [iter(_sampler(2, 0.5, 1, **settings, rank=r, world_size=3)) for r in range(3)]
    assert [next(rank) for _ in range(4) for rank in ranks for _ in range(4)] == whole
    assert all(whole[k][1] == whole[k + 1][1] for k in range(0, 48, 2))  # repeat


def test_position_goes_on_with_the_same_shares_only():
    first = _sampler(2, 0.5, 1)
    whole = _take(first, 60)
    first.advance(4)
    state = first.state_dict()
    second = _sampler(2, 0.5, 1, global_batch=4)
    second.load_state_dict(state)
    assert _take(second, 36) == whole[24:]
    others = (_sampler(1, 0.5, 1), _sampler(1, 1, 1), _sampler(), _sampler(2, 0.5, 1, seed=6))
    for other in others:
        with pytest.raises(ValueError, match="it was made with .*, not "):
            other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"the stores and weights none, not 1 x a,"):
        _sampler(1, 1, 1).load_state_dict(_sampler().state_dict())


def test_weight_that_draws_nothing_is_refused(joined):
    with pytest.raises(ValueError, match="b with the weight 0.05 draws no video"):
        _sampler(1, 0.05, 1)
    with pytest.raises(
        UsageError, match=r"data_weights: 0\.1 of the 2 videos of .*two is no video"
    ):
        make_shares(joined, (1.0, 0.1))
    with pytest.raises(UsageError, match=r"data_weights=\[1, 2, 3\] has 3 weights, .* 2 stores"):
        make_shares(joined, (1.0, 2.0, 3.0))


def test_shares_of_a_split_are_by_its_places(joined):
    shares = make_shares(joined, (1.0, 2.0), videos=[4, 0, 3, 1])
    assert [share.videos.tolist() for share in shares] == [[1, 3], [0, 2]]
    assert [share.draws for share in shares] == [2, 4]
    assert shares[0].name != shares[1].name


def test_one_store_needs_no_share(folder):
    store = open_store(str(folder / "one"))
    assert make_shares(store, None) == []
    (share,) = make_shares(store, (2.0,))
    assert share.draws == 6


def test_fine_tuning_draws_the_training_videos_of_every_store(folder, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("video,class,split\nx,a,test\ny,a,train\nz,a,train\nv,b,train\nw,b,test\n")
    words = (f"data={folder / 'one'},{folder / 'two'}", f"labels={labels}", "data_weights=1,4")
    config = finetune_config(folder, tmp_path, *words, "batch=6")
    encoder = VideoTokenEncoder(preset("tiny", grid=(2, 1, 2)))
    run = Finetuning(config, encoder, World(torch.device("cpu")))
    assert run.sampler.epoch_size == 2 + 4
    clips, classes = next(iter(run.loader))
    videos = clips[:, 0, 0, 0] // 100  # 1, 2 of the first store, 10 of the second
    assert sorted(videos.tolist()) == [1, 2, 10, 10, 10, 10]
    assert classes.tolist() == [int(video == 10) for video in videos]


@pytest.mark.parametrize("text", ["2,0.5", "[2, 0.5]"])
def test_weights_are_a_list(text, tmp_path):
    config = load_config(PretrainConfig, None, ["data=a,b", f"data_weights={text}"])
    assert config.data_weights == (2.0, 0.5) and config.data == "a,b"
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load_config(PretrainConfig, str(tmp_path / "c.yaml")) == config


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data_weights=2,x", r"data_weights must be \[a number, ...\] or null"),
        ("data_weights=[]", "data_weights must be"),
        ("data_weights=2,0", r"must lie in \(0, 1,000\]"),
    ],
)
def test_wrong_settings_are_refused(word, said):
    with pytest.raises(UsageError, match=said):
        load_config(PretrainConfig, None, [word])


@pytest.mark.usefixtures("one_thread")
def test_run_on_two_stores_goes_on_and_refuses_others(tmp_path, capsys):
    one, two = make_store(tmp_path / "one"), make_store(tmp_path / "two", frames=3)
    words = (f"data={one},{two}", "data_weights=2,0.5", "clips.workers=2", "run.save_every=2")
    whole = tiny_config(one, tmp_path / "whole", *words, "optim.steps=4")
    losses = read_log(pretrain(whole, quiet=True).checkpoint.parents[1] / "log.jsonl")
    part = tiny_config(one, tmp_path / "part", *words, "optim.steps=4", "run.until=0.25")
    pretrain(part, quiet=True)
    rest = tiny_config(one, tmp_path / "part", *words, "optim.steps=4")
    pretrain(rest, resume="auto")
    assert "32 videos, 40 drawn in an epoch, " in capsys.readouterr().err
    again = read_log(tmp_path / "part" / "log.jsonl")
    keys = ("step", "mask_loss", "cl_loss", "epoch")
    wanted = [[r[key] for key in keys] for r in losses if "mask_loss" in r]
    assert [[r[key] for key in keys] for r in again if "mask_loss" in r] == wanted
    assert wanted[-1][3] == pytest.approx(4 * 8 / 40)  # 2 x 16 videos and 0.5 x 16 are an epoch
    for word, said in (
        (
            "data_weights=2,1",
            r"it was made with the stores and weights 2 x 16 .*, 0\.5 x .*, not 2 x .*, 1 x ",
        ),
        (f"data={two},{one}", "it was made with the stores and weights "),
        (f"data={one}", f"its videos are not those of {one}: 16, not 32; {one},{two} goes on with"),
    ):
        more = ("data_weights=null",) if word.endswith("one") else ()
        other = tiny_config(one, tmp_path / "part", *words, "optim.steps=6", word, *more)
        with pytest.raises(UsageError, match=said):
            pretrain(other, resume="auto", quiet=True)
    assert torch.get_num_threads() == 1
