"""A fine-tuning runs as a pre-training does: it stops, goes on, divides and saves memory."""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vimpac.runs import (
    ON_TWO_RANKS,
    make_labelled,
    run_process,
    start_process,
    wait_for_steps,
)
from tests.vimpac.runs import finetune_config as _config
from tests.vimpac.runs import finetune_program as _program
from tests.vimpac.runs import finetune_words as _words
from vimpac import Vimpac, cli, load_classifier, save_model
from vimpac.checkpoints.training_state import list_checkpoints, load_checkpoint
from vimpac.data.store import TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError
from vimpac.train.finetune import finetune
from vimpac.train.finetune_system import Finetuning
from vimpac.train.log import read_log
from vimpac.train.signals import Interrupted

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store of twelve videos, their labels, and a model with dropout."""
    return make_labelled(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole_run(folder, tmp_path_factory) -> Path:
    """The run that nothing interrupts."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run_process(*_program(folder, out))
    return out


def _losses(out: Path) -> list[tuple[float, ...]]:
    return [(r["loss"], r["grad_norm"]) for r in read_log(out / "log.jsonl") if "loss" in r]


def _check_same_end(out: Path, whole_run: Path, rtol: float = 0.0) -> None:
    """The parameters and moments of the last step, and the losses of all."""
    ends = [load_checkpoint(run / "checkpoints/step-00000012") for run in (out, whole_run)]
    assert ends[0].description == ends[1].description
    for mine, theirs in zip(ends[0][1:], ends[1][1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol and 1e-5)
    np.testing.assert_allclose(_losses(out), _losses(whole_run), rtol=rtol)


def test_kill_and_resume_is_bit_exact(folder, whole_run, tmp_path):
    process = start_process(*_program(folder, tmp_path))
    wait_for_steps(process, tmp_path / "log.jsonl", 6)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list_checkpoints(tmp_path / "checkpoints")
    run_process(*_program(folder, tmp_path, "--resume", "auto"))
    _check_same_end(tmp_path, whole_run)


def test_signal_ends_the_run_after_the_step_and_resume_is_bit_exact(folder, whole_run, tmp_path):
    def interrupt() -> bool:
        if len(read_log(tmp_path / "log.jsonl")) == 5:  # in the sixth step
            signal.raise_signal(signal.SIGTERM)
        return False

    config = _config(folder, tmp_path)
    with pytest.raises(Interrupted, match="after step 6: .* is written") as error:
        finetune(config, folder / "model", stop=interrupt, quiet=True)
    assert error.value.exit_code == 128 + signal.SIGTERM
    result = finetune(config, folder / "model", resume="auto", quiet=True)
    assert result.checkpoint.name == "step-00000012" and result.video_accuracy >= 0
    _check_same_end(tmp_path, whole_run)


@pytest.mark.parametrize(
    "words",
    [("batch.micro=2",), ("parallel=fsdp", "activation_checkpointing=true")],
    ids=["ddp", "fsdp"],
)
def test_two_ranks_equal_one(folder, tmp_path, words):
    """Dropout follows from the first clip of a micro-batch, of which two ranks have two."""
    words = (*words, "optim.lr=1e-5")
    finetune(_config(folder, tmp_path / "one", "batch.micro=2", *words[-1:]), folder / "model")
    run_process(*ON_TWO_RANKS, *_program(folder, tmp_path / "two", *words)[1:])
    _check_same_end(tmp_path / "two", tmp_path / "one", rtol=1e-3)
    tests = [read_log(tmp_path / run / "log.jsonl")[-1] for run in ("one", "two")]
    assert tests[0] == tests[1] and "test_video_accuracy" in tests[0]


def test_micro_batches_give_the_gradients_of_the_batch(folder, tmp_path):
    torch.manual_seed(0)
    save_model(Vimpac.from_preset("tiny", grid=(2, 4, 4), dropout=0.0), tmp_path / "model")
    for micro in (4, 1):
        words = ("optim.lr=1e-5", f"batch.micro={micro}")
        finetune(_config(folder, tmp_path / str(micro), *words), tmp_path / "model", quiet=True)
    _check_same_end(tmp_path / "1", tmp_path / "4", rtol=1e-3)


def test_activation_checkpointing_changes_no_bit(folder, whole_run, tmp_path):
    run_process(*_program(folder, tmp_path, "activation_checkpointing=true"))
    _check_same_end(tmp_path, whole_run)


def test_run_is_tested_while_it_trains_and_is_no_other_one(folder, whole_run, tmp_path):
    result = finetune(
        _config(folder, tmp_path, "run.evaluate_every=2.2"), folder / "model", quiet=True
    )
    tested = [r for r in read_log(tmp_path / "log.jsonl") if "test_video_accuracy" in r]
    assert [record["step"] for record in tested] == [5, 10, 12]  # 2.25 steps an epoch
    assert tested[-1]["test_clip_accuracy"] == result.clip_accuracy
    assert tested[-1]["test_video_accuracy"] == result.video_accuracy
    _check_same_end(tmp_path, whole_run)


def test_checkpoint_is_written_before_the_test(folder, tmp_path, monkeypatch):
    """Which may take longer than a scheduler waits for the process to end."""

    def fail(*_: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vimpac.train.finetune_system.classify", fail)
    config = _config(folder, tmp_path, "run.evaluate_every=1", "run.save_every=100")
    with pytest.raises(KeyboardInterrupt):
        finetune(config, folder / "model", quiet=True)
    (saved,) = list_checkpoints(tmp_path / "checkpoints")
    assert saved.name == "step-00000002"


def test_best_checkpoint_is_kept_if_asked_also_over_a_stop(folder, tmp_path, monkeypatch):
    scores = iter([0.5, 0.75, 0.25, 0.75])  # of steps 3, 6, 9, 12, of which the run stops at 7

    def judge(self: Finetuning, *, final: bool) -> dict[str, float]:
        return {"test_video_accuracy": next(scores)}

    monkeypatch.setattr(Finetuning, "evaluate", judge)
    words = ("run.evaluate_every=1.3", "run.keep=1", "run.keep_best=true")
    config, steps = _config(folder, tmp_path, *words), iter(range(100))
    finetune(config, folder / "model", quiet=True, stop=lambda: next(steps) == 6)
    assert load_checkpoint(tmp_path / "best").state["step"] == 6
    finetune(config, folder / "model", quiet=True, resume="auto")
    assert load_checkpoint(tmp_path / "best").state["step"] == 6
    assert load_classifier(tmp_path / "best")[1] == ["a", "b"]
    assert next(scores, None) is None


def test_compiled_run_is_the_plain_run(folder, tmp_path, monkeypatch):
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, options, **more: real(f, backend="aot_eager", **more)
    )
    for mode in ("none", "default"):
        words = ("optim.lr=1e-5", f"compile={mode}", "optim.steps=12")
        finetune(_config(folder, tmp_path / mode, *words), folder / "model", quiet=True)
    _check_same_end(tmp_path / "default", tmp_path / "none", rtol=1e-3)


def test_checkpoint_of_a_run_is_a_classifier(folder, whole_run, tmp_path):
    model, classes = load_classifier(whole_run / "checkpoints/step-00000004")
    assert classes == ["a", "b"] and model.encoder.grid == (2, 4, 4)
    data = load_checkpoint(whole_run / "checkpoints/step-00000004").description.data
    assert (data.tokenizer, data.fps, data.frame_stride, data.height) == ("patch", 2.0, 1, 4)


def test_other_classes_or_another_tokenizer_are_refused(folder, whole_run, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text((folder / "labels.csv").read_text().replace(",a,", ",c,"))
    path = str(whole_run / "checkpoints/step-00000004")
    config = _config(folder, tmp_path / "run", f"labels={labels}")
    with pytest.raises(UsageError, match=r"its classes are \['a', 'b'\], not \['b', 'c'\]"):
        finetune(config, folder / "model", resume=path)
    with TokenStoreWriter(
        tmp_path / "store", StoreMeta("dalle", 8192, 4, 4, 2.0, digest="ab" * 32)
    ) as writer:
        for video in range(12):
            writer.add(f"{video}.mp4", np.zeros((1, 4, 4, 4), int))
        writer.finish()
    config = _config(folder, tmp_path / "run", f"data={tmp_path / 'store'}")
    for resume in ("none", path):
        with pytest.raises(UsageError, match="tokens of the tokenizer 'patch', .* 'dalle' with"):
            finetune(config, path, resume=resume)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("is_main", [True, False])
def test_only_the_main_process_prints(folder, tmp_path, monkeypatch, capsys, is_main):
    monkeypatch.setattr("vimpac.train.distributed.is_main_process", lambda: is_main)
    words = _words(folder, tmp_path, "optim.steps=1")
    assert cli.main(["finetune", str(folder / "model"), *words]) == 0
    assert capsys.readouterr().out.startswith("clips") == is_main


def test_folder_that_cannot_be_made_is_said_before_training(folder, tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UsageError, match="checkpoints cannot be made .*: give another out="):
        finetune(_config(folder, tmp_path), folder / "model", quiet=True)


def test_run_past_its_new_end_is_refused(folder, whole_run, tmp_path):
    config = _config(folder, tmp_path, "optim.steps=3")
    with pytest.raises(UsageError, match="is at step 4, this run ends at step 3: raise"):
        finetune(config, folder / "model", resume=str(whole_run / "checkpoints/step-00000004"))


def _drop(state: dict) -> None:
    del state["optimizer"]["state"][0]


def _reshape(state: dict) -> None:
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)


def _swap(state: dict) -> None:
    moments = state["optimizer"]["state"]
    moments[1], moments[2] = moments[2], moments[1]


@pytest.mark.parametrize(
    "break_state",
    [
        *(_drop, _reshape, _swap),
        lambda state: state.update(optimizer=None),
        lambda state: state["optimizer"].update(state={}),
        lambda state: state.pop("sampler"),
        lambda state: state.update(sampler={}),
        *(lambda state, p=p: state["sampler"].update(position=p) for p in ("3", -8, 2.5, None)),
        lambda state: state.update(step="2"),
        lambda state: state.update(step=2.5),
        lambda state: state.pop("step"),
    ],
)
def test_state_of_another_run_or_of_none_is_refused(folder, whole_run, tmp_path, break_state):
    """The fused optimiser would read moments of another shape past their end."""
    path = shutil.copytree(whole_run / "checkpoints/step-00000004", tmp_path / "copy")
    state = torch.load(path / "training_state.pt", weights_only=True)
    break_state(state)
    torch.save(state, path / "training_state.pt")
    (path / "checksums.json").unlink()
    with pytest.raises(UsageError, match="does not fit this configuration"):
        finetune(_config(folder, tmp_path / "run"), folder / "model", resume=str(path))


def test_probe_cannot_be_resumed(folder, tmp_path):
    result = finetune(_config(folder, tmp_path), folder / "model", probe="linear", quiet=True)
    with pytest.raises(UsageError, match="fitted at once, in one process, without --resume"):
        finetune(_config(folder, tmp_path), folder / "model", probe="linear", resume="auto")
    with pytest.raises(UsageError, match=f"{result.checkpoint} holds a model but no run"):
        finetune(_config(folder, tmp_path), folder / "model", resume="auto")


def test_linear_probe_says_what_is_odd_in_its_videos(folder, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    labels.write_text("video,class,split\n0.mp4,a,train\n1.mp4,a,test\n")
    words = [*_words(folder, tmp_path / "run"), f"labels={labels}"]
    assert cli.main(["finetune", str(folder / "model"), "--probe", "linear", *words]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "warning: all videos of the split 'train' are of the class 'a'" in said
    assert "warning: 10 of 12 videos are left out" in said
