"""What ends a run before its last step: signals, damage, lack of memory, wrong settings."""

import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.vimpac.runs import (
    BY_TORCHRUN,
    ENVIRONMENT,
    find_worker,
    make_store,
    program,
    start_process,
    tiny_config,
    wait_for_steps,
)
from vimpac import cli
from vimpac.checkpoints.training_state import list_checkpoints, load_checkpoint
from vimpac.errors import VimpacError
from vimpac.train.log import read_log
from vimpac.train.pretrain import pretrain
from vimpac.train.pretrain_step import PretrainStep

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "store")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_signal_to_one_process_ends_all_with_a_checkpoint(store, tmp_path, monkeypatch, number):
    """A killed one cannot answer: the other says where the last checkpoint is."""
    monkeypatch.setitem(ENVIRONMENT, "VIMPAC_TEST", str(tmp_path))
    words = program(store, tmp_path, "optim.steps=100000")[1:]
    process = start_process(*BY_TORCHRUN, *words)
    wait_for_steps(process, tmp_path / "log.jsonl", 7)
    os.kill(find_worker(f"VIMPAC_TEST={tmp_path}", rank=1), number)
    start = time.monotonic()
    error = process.communicate(timeout=60)[1]
    assert process.returncode != 0 and time.monotonic() - start < 60
    last = list_checkpoints(tmp_path / "checkpoints")[-1]
    step = load_checkpoint(last).state["step"]
    if number == signal.SIGKILL:
        assert "process 0 lost contact with another one after step" in error
        assert f"the last checkpoint is {last}, --resume auto continues" in error
        assert step >= 5 and step % 5 == 0
    else:
        assert f"stopped by SIGTERM after step {step}: {last} is written" in error
        assert step == read_log(tmp_path / "log.jsonl")[-1]["step"]


def test_signal_in_the_last_step_leaves_a_finished_run(store, tmp_path):
    def note() -> bool:
        if len(read_log(tmp_path / "log.jsonl")) == 1:  # in the second step
            signal.raise_signal(signal.SIGTERM)
        return False

    config = tiny_config(store, tmp_path, "optim.steps=2")
    result = pretrain(config, stop=note, quiet=True)
    assert result.step == 2 and result.checkpoint.name == "step-00000002"


def test_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    store, tmp_path, monkeypatch, capsys
):
    step = torch.optim.AdamW.step

    def poison(self: torch.optim.AdamW, *args: object) -> None:
        step(self)
        poison.calls += 1
        if poison.calls == 7:
            self.param_groups[0]["params"][0].data.fill_(torch.nan)

    poison.calls = 0
    monkeypatch.setattr(torch.optim.AdamW, "step", poison)
    assert cli.main(program(store, tmp_path)[3:]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the loss is not finite between steps 8 and 8" in error
    assert "the last good checkpoint is" in error and "lower optim.lr" in error
    (good,) = list_checkpoints(tmp_path / "checkpoints")
    assert good.name == "step-00000005"
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(good).tensors.values())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["data="], 2, "data= is missing"),
        (["data=/nonexistent"], 1, "/nonexistent is no token store"),
        (["model.layout=H,T"], 2, "model.layout must be T,H|W or"),
        (["model.name=huge"], 2, "preset must be one of"),
        (["device=tpu9"], 2, "device=tpu9"),
        (["device=meta"], 2, "device=meta"),
        (["clips.variant=2"], 2, "has the variants 0 to 1"),
        (["--resume", "/nonexistent"], 2, "is no checkpoint"),
    ],
)
def test_wrong_setting_is_one_line(store, tmp_path, capsys, words, code, message):
    assert cli.main([*program(store, tmp_path / "run")[3:], *words]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_frame_stops_with_the_shards_name(tmp_path, workers):
    store = make_store(tmp_path / "store")
    shard = store / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[:] = bytes(byte ^ 1 for byte in data)
    shard.write_bytes(data)
    with pytest.raises(VimpacError, match=r"^\S+shard-00000\.bin: corrupt frame"):
        pretrain(tiny_config(store, tmp_path / "run", f"clips.workers={workers}"))
    assert not multiprocessing.active_children()  # for which Python would wait at its exit


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "lower batch.micro or set activation_"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "clips.workers"),
    ],
)
def test_lack_of_memory_is_told_with_its_fix(store, tmp_path, monkeypatch, error, fix):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(PretrainStep, "gradients", fail)
    with pytest.raises(VimpacError, match=f"{fix}.*{re.escape(str(error))}"):
        pretrain(tiny_config(store, tmp_path))
