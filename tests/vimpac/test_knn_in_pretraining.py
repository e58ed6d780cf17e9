"""A pre-training is watched by k-NN, which changes nothing of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vimpac.runs import ON_TWO_RANKS, make_store, program, run_process, tiny_config
from vimpac.checkpoints.training_state import load_checkpoint
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError
from vimpac.eval.config import FeatureConfig
from vimpac.eval.knn import judge_model
from vimpac.settings import load_config
from vimpac.train.distributed import World
from vimpac.train.log import read_log
from vimpac.train.pretrain import Pretraining, pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ("precision=fp32", "clips.workers=0", "optim.steps=8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store, and labels with a split val or without."""
    path = tmp_path_factory.mktemp("data")
    make_store(path / "store")
    for name, other in (("labels.csv", "test"), ("val.csv", "val")):
        splits = ["train"] * 9 + [other] * 3 + ["test"] * 4
        lines = [f"{i},{'ab'[i % 2]},{split}" for i, split in enumerate(splits)]
        (path / name).write_text("\n".join(["video,class,split", *lines]) + "\n")
    return path


def _knn(folder: Path, every: float = 2.0, labels: str = "labels.csv") -> tuple[str, ...]:
    return (*WORDS, f"run.knn_every={every}", f"run.knn_labels={folder / labels}")


@pytest.fixture(scope="module")
def plain_run(folder, tmp_path_factory) -> Path:
    """The run that nobody watches."""
    out = tmp_path_factory.mktemp("runs") / "plain"
    pretrain(tiny_config(folder / "store", out, *WORDS), quiet=True)
    return out


def _losses(out: Path) -> list[tuple[float, ...]]:
    names = ("loss", "mask_loss", "mask_accuracy", "cl_loss", "grad_norm")
    records = [record for record in read_log(out / "log.jsonl") if "loss" in record]
    return [tuple(record[name] for name in names) for record in records]


def _knn_records(out: Path) -> dict[float, float]:
    records = read_log(out / "log.jsonl")
    return {r["step"]: r["knn_accuracy"] for r in records if "knn_accuracy" in r}


@pytest.mark.parametrize("layout", ["T,H|W", "T,HW"])
def test_knn_changes_no_bit_of_the_run(folder, tmp_path, layout):
    """Joint axes draw their dropout from PyTorch's generator."""
    plain, layout = tmp_path / "plain", f"model.layout={layout}"
    pretrain(tiny_config(folder / "store", plain, *WORDS, layout), quiet=True)
    watched = tiny_config(folder / "store", tmp_path / "watched", *_knn(folder), layout)
    result = pretrain(watched, quiet=True)
    assert [*_knn_records(result.out)] == [4, 8] and len(_losses(plain)) == 8
    assert _losses(result.out) == _losses(plain)
    ends = [load_checkpoint(run / "checkpoints/step-00000008") for run in (result.out, plain)]
    samplers = [end.state.pop("sampler") for end in ends]
    assert samplers[0] == samplers[1]
    for mine, theirs in zip(ends[0][1:], ends[1][1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_knn_leaves_mode_and_random_state_as_they_were(folder, tmp_path, workers):
    words = (*_knn(folder), f"clips.workers={workers}")
    config = tiny_config(folder / "store", tmp_path, *words)
    run = Pretraining(config, TokenStore(folder / "store"), World(torch.device("cpu")))
    before = torch.get_rng_state()
    first, second = (run.evaluate(final=False) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in run.model.modules())
    assert first == second  # dropout would draw anew
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.parametrize("labels", ["labels.csv", "val.csv"])
def test_knn_is_that_of_the_command_on_the_checkpoint(folder, tmp_path, labels):
    """Of val, if there is such a split."""
    words = _knn(folder, labels=labels)
    result = pretrain(tiny_config(folder / "store", tmp_path, *words), quiet=True)
    data = [f"data={folder / 'store'}", f"labels={folder / labels}", "workers=0", "device=cpu"]
    config = load_config(FeatureConfig, None, [*data, "precision=fp32"])
    hits = judge_model(result.checkpoint, config, clips=2, crops="a").splits
    judged = hits["val" if labels == "val.csv" else "test"]
    assert _knn_records(result.out)[8] == judged.top1 / judged.videos
    assert result.record["knn_accuracy"] == judged.top1 / judged.videos


def test_knn_of_another_store_is_read_at_the_pace_of_training(folder, tmp_path):
    with TokenStoreWriter(tmp_path / "fast", StoreMeta("patch", 8192, 4, 4, fps=6.0)) as writer:
        for video in range(16):
            writer.add(str(video), np.full((1, 9, 4, 4), 10 * video))
        writer.finish()
    words = (*_knn(folder), f"run.knn_data={tmp_path / 'fast'}")
    config = tiny_config(folder / "store", tmp_path / "run", *words)
    run = Pretraining(config, TokenStore(folder / "store"), World(torch.device("cpu")))
    views = run._neighbours._views([3])
    assert views.stride == 3 and views.starts(0) == [0, 5]
    assert run.evaluate(final=True)["knn_accuracy"] >= 0
    (warning,) = [line for line in run.warnings() if "k-NN" in line]
    assert warning == "k of the k-NN test is 9: all training videos vote"


def test_two_ranks_with_fsdp_learn_and_find_what_one_does(folder, plain_run, tmp_path):
    words = (*_knn(folder), "optim.lr=1e-5")
    one, two = tmp_path / "one", tmp_path / "two"
    pretrain(tiny_config(folder / "store", one, *words), quiet=True)
    command = program(folder / "store", two, *words, "parallel=fsdp")
    run_process(*ON_TWO_RANKS, *command[1:])
    np.testing.assert_allclose(_losses(one), _losses(two), rtol=1e-3)
    assert _knn_records(one) == _knn_records(two) and len(_knn_records(two)) == 2


def _other_store(path: Path, tokenizer: str = "patch", side: int = 4, fps: float = 2.0) -> Path:
    meta = StoreMeta(tokenizer, 8192, side, side, fps)
    with TokenStoreWriter(path, meta) as writer:
        writer.add("0", np.zeros((1, 4, side, side), int))
        writer.finish()
    return path


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tokenizer": "dalle"}, "holds tokens of the tokenizer 'dalle', data= those of .*'patch'"),
        ({"side": 6}, "has token maps 6 x 6, data= 4 x 4"),
        ({"fps": 3.0}, "was trained on frames 0.5 s apart, .* tokenise at 2 frames per second"),
    ],
)
def test_knn_of_a_store_that_does_not_fit_is_refused(folder, tmp_path, other, message):
    path = _other_store(tmp_path / "other", **other)
    config = tiny_config(folder / "store", tmp_path / "run", *_knn(folder), f"run.knn_data={path}")
    with pytest.raises(UsageError, match=f"run.knn_data={path}.*{message}"):
        pretrain(config, quiet=True)
    assert not (tmp_path / "run").exists()


def test_knn_needs_labels_with_a_train_split(folder, tmp_path):
    config = tiny_config(folder / "store", tmp_path, *WORDS, "run.knn_every=1")
    with pytest.raises(UsageError, match="run.knn_every=1 needs run.knn_labels"):
        pretrain(config, quiet=True)
    best = tiny_config(folder / "store", tmp_path, *WORDS, "run.keep_best=true")
    with pytest.raises(UsageError, match="nothing to choose by: give run.knn_every"):
        pretrain(best, quiet=True)
    labels = tmp_path / "labels.csv"
    labels.write_text("video,class,split\n0,a,test\n")
    config.run.knn_labels = str(labels)
    with pytest.raises(UsageError, match="is in no training video"):
        pretrain(config, quiet=True)
