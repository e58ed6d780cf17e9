"""What fine-tuning can do beyond the paper: each option is what its definition says."""

from pathlib import Path

import pytest
import torch

from tests.vimpac.runs import (
    ON_TWO_RANKS,
    finetune_config,
    finetune_program,
    make_labelled,
    run_process,
)
from vimpac import VideoClassifier, Vimpac
from vimpac.checkpoints.training_state import Checkpoint, load_checkpoint
from vimpac.config import FinetuneConfig
from vimpac.settings import load_config
from vimpac.train.distributed import World
from vimpac.train.finetune import finetune
from vimpac.train.finetune_step import FinetuneStep
from vimpac.train.log import read_log

# All of them, in micro-batches of two videos.
EVERY = (
    "batch=8",
    "batch.micro=4",
    "optim.steps=6",
    "optim.layer_decay=0.75",
    "label_smoothing=0.1",
    "cutmix=0.7",
    "drop_path=0.4",
    "ema=0.5",
    "clips.repeat=2",
    "run.evaluate_every=2",
)
pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = World(torch.device("cpu"))


def _classifier() -> VideoClassifier:
    """Three classes that it tells apart, without dropout."""
    torch.manual_seed(0)
    model = VideoClassifier(Vimpac.from_preset("tiny", grid=(2, 4, 4), dropout=0.0).encoder, 3)
    torch.nn.init.normal_(model.classifier.weight)
    return model


def _step(model: VideoClassifier, *words: str) -> FinetuneStep:
    config = load_config(
        FinetuneConfig, None, ["batch=4", "batch.micro=2", "precision=fp32", *words]
    )
    return FinetuneStep(model, config, WORLD, has_padding=False)


def test_no_option_is_on_by_default():
    plain, off = FinetuneConfig(), ("optim.layer_decay=1", "label_smoothing=0", "cutmix=0")
    assert plain == load_config(
        FinetuneConfig, None, [*off, "drop_path=0", "ema=null", "clips.repeat=1"]
    )


def test_label_smoothing_divides_its_share_among_all_classes():
    model, clips = _classifier(), torch.randint(8192, (4, 2, 4, 4))
    classes = torch.tensor([0, 1, 2, 0])
    parts = [(clips[i : i + 2], classes[i : i + 2]) for i in (0, 2)]
    loss, _ = _step(model, "label_smoothing=0.3").gradients([parts], 0)
    found = model.classifier.weight.grad.clone()
    model.zero_grad()
    targets = 0.7 * torch.nn.functional.one_hot(classes, 3) + 0.1
    expected = -(targets * model(clips).log_softmax(-1)).sum(-1).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, model.classifier.weight.grad)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store of twelve videos, their labels, and a model with dropout."""
    return make_labelled(tmp_path_factory.mktemp("data"))


def _end(out: Path) -> Checkpoint:
    return load_checkpoint(out / "checkpoints/step-00000006")


def _tests(out: Path) -> list[dict]:
    return [r for r in read_log(out / "log.jsonl") if "test_video_accuracy" in r]


def test_resumed_run_with_every_option_is_the_run_that_never_stopped(folder, tmp_path):
    def stop() -> bool:
        return len(read_log(tmp_path / "resumed" / "log.jsonl")) == 2  # in the third step

    configs = [finetune_config(folder, tmp_path / run, *EVERY) for run in ("whole", "resumed")]
    finetune(configs[0], folder / "model", quiet=True)
    stopped = finetune(configs[1], folder / "model", stop=stop, quiet=True)
    assert stopped.checkpoint == tmp_path / "resumed/checkpoints/step-00000003/averaged"
    finetune(configs[1], folder / "model", resume="auto", quiet=True)
    ends = [_end(tmp_path / run) for run in ("whole", "resumed")]
    assert ends[0].averaged is not None
    torch.testing.assert_close(ends[0][1:], ends[1][1:], rtol=0, atol=0)
    assert _tests(tmp_path / "whole") == _tests(tmp_path / "resumed")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_equal_one_with_every_option(folder, tmp_path, parallel):
    words = (*EVERY, "optim.lr=1e-5")
    finetune(finetune_config(folder, tmp_path / "one", *words), folder / "model", quiet=True)
    program = finetune_program(folder, tmp_path / "two", *words, f"parallel={parallel}")
    run_process(*ON_TWO_RANKS, *program[1:])
    one, two = (_end(tmp_path / run) for run in ("one", "two"))
    torch.testing.assert_close(two[1:], one[1:], rtol=1e-3, atol=1e-5)
    assert _tests(tmp_path / "one") == _tests(tmp_path / "two")
    first = [read_log(tmp_path / run / "log.jsonl")[0]["loss"] for run in ("one", "two")]
    assert first[0] == pytest.approx(first[1], rel=1e-4)


def _losses(config: FinetuneConfig, folder: Path) -> tuple[float, ...]:
    finetune(config, folder / "model", quiet=True)
    return tuple(r["loss"] for r in read_log(Path(config.out) / "log.jsonl") if "loss" in r)


def test_every_option_changes_the_run(folder, tmp_path):
    """Else the tests above would say nothing of it."""
    plain = (*EVERY[:2], "optim.steps=2", "optim.lr=1e-2")
    options = [word for word in EVERY[3:] if not word.startswith(("ema", "run"))]
    words = ["seed=0", *options]
    configs = [finetune_config(folder, tmp_path / word, *plain, word) for word in words]
    assert len({_losses(config, folder) for config in configs}) == len(words) == 6
