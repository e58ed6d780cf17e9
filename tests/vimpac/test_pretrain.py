"""A run can be killed, moved to other ranks and to another shape, and continues as it was."""

import itertools
import json
import re
import shutil
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vimpac.runs import (
    BY_TORCHRUN,
    ON_TWO_RANKS,
    TORCHRUN,
    make_store,
    program,
    run_process,
    start_process,
    tiny_config,
    wait_for_steps,
)
from vimpac import cli, export_released, load_model
from vimpac.checkpoints.training_state import list_checkpoints, load_checkpoint
from vimpac.data.clips import ClipDataset
from vimpac.data.sampler import ResumableSampler
from vimpac.errors import UsageError
from vimpac.train.batches import open_store
from vimpac.train.distributed import World
from vimpac.train.log import read_log
from vimpac.train.loop import Loop
from vimpac.train.pretrain import Pretraining, pretrain
from vimpac.train.signals import Interrupted

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "store")


@pytest.fixture(scope="module")
def whole_run(store, tmp_path_factory) -> Path:
    """The run that nothing interrupts."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run_process(*program(store, out))
    return out


def _same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(v, second[k]) for k, v in first.items())
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return first == second


def _losses(out: Path) -> list[tuple[float, ...]]:
    return [(r["mask_loss"], r["cl_loss"], r["grad_norm"]) for r in read_log(out / "log.jsonl")]


def _check_same_run(out: Path, whole_run: Path) -> None:
    """The parameters, losses and log are those of the run that nothing interrupted."""
    ends = [load_checkpoint(folder / "checkpoints/step-00000020") for folder in (whole_run, out)]
    assert ends[0].description == ends[1].description
    assert _same(ends[0].tensors, ends[1].tensors) and _same(ends[0].state, ends[1].state)
    assert _losses(out) == _losses(whole_run)
    assert [record["step"] for record in read_log(out / "log.jsonl")] == list(range(1, 21))


def _check_same_losses(one: Path, two: Path) -> None:
    """Up to the order in which the ranks' sums are rounded."""
    losses = [np.array(_losses(out))[:, :2] for out in (one, two)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_kill_and_resume_is_bit_exact(store, whole_run, tmp_path):
    process = start_process(*program(store, tmp_path))
    wait_for_steps(process, tmp_path / "log.jsonl", 12)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list_checkpoints(tmp_path / "checkpoints")[-1].name in (
        "step-00000010",
        "step-00000015",
    )
    run_process(*program(store, tmp_path, "--resume", "auto"))
    _check_same_run(tmp_path, whole_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_run_after_the_step_and_resume_is_bit_exact(
    store, whole_run, tmp_path, number
):
    before = signal.getsignal(number)

    def interrupt() -> bool:
        if len(read_log(tmp_path / "log.jsonl")) == 6:  # in the seventh step
            signal.raise_signal(number)
        return False

    with pytest.raises(Interrupted) as error:
        pretrain(tiny_config(store, tmp_path), stop=interrupt)
    last = tmp_path / "checkpoints/step-00000007"
    message = f"stopped by {number.name} after step 7: {last} is written, --resume auto continues"
    assert str(error.value) == message and error.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    pretrain(tiny_config(store, tmp_path), resume="auto")
    _check_same_run(tmp_path, whole_run)


def test_training_learns(whole_run):
    records = read_log(whole_run / "log.jsonl")
    assert records[-1]["mask_loss"] < records[0]["mask_loss"] - 1
    assert all(0 <= r["mask_accuracy"] <= 1 and r["videos_per_s"] > 0 for r in records)
    assert records[-1]["lr"] == pytest.approx(records[1]["lr"] / 18)


# At a rate at which rounding, which differs in the sums over ranks, stays rounding.
GENTLE = ("optim.steps=10", "optim.lr=3e-4")


def test_two_ranks_equal_one(store, tmp_path):
    pretrain(tiny_config(store, tmp_path / "one", *GENTLE))
    run_process(*BY_TORCHRUN, *program(store, tmp_path / "two", *GENTLE)[1:])
    _check_same_losses(tmp_path / "one", tmp_path / "two")


def test_two_nodes_equal_one(store, tmp_path):
    """The command of docs/training.md for several nodes, started twice on this one."""
    pretrain(tiny_config(store, tmp_path / "one", *GENTLE))
    with socket.create_server(("localhost", 0)) as free:
        meeting = f"localhost:{free.getsockname()[1]}"
    words = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting)
    command = (*TORCHRUN, *words, *program(store, tmp_path / "two", *GENTLE)[1:])
    for node in [start_process(*command) for _ in range(2)]:
        said = node.communicate()[1]
        assert node.returncode == 0, said
    _check_same_losses(tmp_path / "one", tmp_path / "two")


# One graph for the last layer, one for those before it, and the same of the pass that caches [CLS].
WITHOUT_INDUCTOR = """
import sys, torch
from torch._dynamo.utils import counters
from vimpac import cli
real = torch.compile
torch.compile = lambda f, options, **more: real(f, backend="aot_eager", **more)
code = cli.main(sys.argv[1:])
sys.exit(code or counters["stats"]["unique_graphs"] != 4)
"""


@pytest.mark.parametrize("mode", ["none", "default"], ids=["eager", "compiled"])
def test_two_sharded_ranks_continue_and_equal_one(store, tmp_path, mode):
    """Checkpoints are whole: FSDP2 loads one process's, and writes what that one writes."""
    settings = (*GENTLE, "batch.micro=1")
    pretrain(tiny_config(store, tmp_path / "one", *settings))
    start = str(tmp_path / "one/checkpoints/step-00000005")
    settings = (*settings, "parallel=fsdp", "activation_checkpointing=true", f"compile={mode}")
    words = program(store, tmp_path / "two", *settings, "--resume", start)[1:]
    if mode != "none":
        words = ["--no-python", sys.executable, "-c", WITHOUT_INDUCTOR, *words[2:]]
    run_process(*ON_TWO_RANKS, *words)
    losses = np.array(_losses(tmp_path / "one"))[5:], np.array(_losses(tmp_path / "two"))
    np.testing.assert_allclose(losses[1][:, :2], losses[0][:, :2], rtol=1e-5)
    # PyTorch sums the squares of the embedding's million gradients in fp32, here by shard.
    np.testing.assert_allclose(losses[1][:, 2], losses[0][:, 2], rtol=5e-5)
    ends = [load_checkpoint(tmp_path / run / "checkpoints/step-00000010") for run in ("one", "two")]
    for end in ends:  # before BatchNorm: the bias has no gradient, Adam scales up its rounding
        for name in ("0.bias", "1.running_mean"):
            del end.tensors[f"contrastive_head.layers.{name}"]
    torch.testing.assert_close(ends[1].tensors, ends[0].tensors, rtol=1e-4, atol=1e-5)
    states = [end.state["optimizer"]["state"] for end in ends]
    torch.testing.assert_close(states[1], states[0], rtol=1e-4, atol=1e-6)


def _begin(store: Path, out: Path, *more: str, path: Path | None = None) -> Loop:
    config, world = tiny_config(store, out, *more), World(torch.device("cpu"))
    return Loop(Pretraining(config, open_store(str(store)), world), config, world, path)


def test_update_is_groups_of_the_next_samples_and_their_mean_metrics(store, tmp_path):
    """Masks and dropout follow from the number of the first sample."""
    run, seen = _begin(store, tmp_path, "optim.steps=2"), []

    def group(parts: list[torch.Tensor], first_clip: int, *, is_last: bool) -> torch.Tensor:
        seen.append((len(parts), first_clip, is_last))
        return torch.full((3,), float(len(seen)))

    run.step.group = group
    run.run(lambda: False, quiet=True)
    assert [losses[0] for losses in _losses(tmp_path)] == [1.5, 3.5]
    assert seen == [(2, 0, False), (2, 8, True), (2, 16, False), (2, 24, True)]


def test_batches_are_the_clips_of_the_settings(store, tmp_path):
    words = ("clips.frame_stride=2", "clips.max_distance=0.5", "clips.variant=1", "seed=5")
    settings = dict(num_frames=2, frame_stride=2, max_distance=0.5, variant=1, seed=5)
    clips = ClipDataset(open_store(str(store)), **settings)
    keys = itertools.islice(ResumableSampler(16, global_batch=4, seed=5), 8)
    expected = torch.stack([clips[key] for key in keys])
    run = _begin(store, tmp_path, "batch.micro=4", *words)
    assert torch.equal(torch.cat([*itertools.islice(run.system.loader, 2)]), expected)


@pytest.mark.parametrize(("frames", "stride", "pads"), [(6, 1, False), (7, 1, True), (4, 2, True)])
def test_padding_is_looked_for_where_a_clip_is_longer_than_a_video(
    store, tmp_path, frames, stride, pads
):
    words = ("optim.steps=1", f"clips.frames={frames}", f"clips.frame_stride={stride}")
    run, told = _begin(store, tmp_path, *words), set()
    run.system.model.encoder.register_forward_pre_hook(
        lambda _, arguments, options: told.add(options["has_padding"]), with_kwargs=True
    )
    run.run(quiet=True)
    assert told == {pads}


def test_epochs_are_of_all_videos(store, tmp_path):
    assert _begin(store, tmp_path, "optim.steps=null", "optim.epochs=2.2").system.steps == 5


def test_record_is_the_mean_of_its_steps(store, tmp_path):
    for every in (1, 2):
        words = ("optim.steps=4", f"run.log_every={every}")
        pretrain(tiny_config(store, tmp_path / str(every), *words), quiet=True)
    each, pairs = (np.array(_losses(tmp_path / name)) for name in ("1", "2"))
    np.testing.assert_allclose(pairs, each.reshape(2, 2, -1).mean(1), rtol=1e-6)


def _gradients(store: Path, out: Path, *more: str) -> dict[str, torch.Tensor]:
    run = _begin(store, out, *more)
    model = run.system.model.double()
    batches, step = iter(run.system.loader), run.step
    sizes = step.groups * [step.group_part // step.micro]
    step.gradients([list(itertools.islice(batches, size)) for size in sizes], 0)
    return {name: p.grad for name, p in model.named_parameters()}


def test_cached_gradients_are_those_of_one_pass(store, tmp_path):
    """With the same dropout, which depends on the micro-batch, they could not be compared."""
    settings = ("model.dropout=0", "batch.videos=8", "batch.contrastive=8")
    one = _gradients(store, tmp_path, *settings, "batch.micro=8")
    four = _gradients(store, tmp_path, *settings, "batch.micro=2")
    for name, gradient in one.items():
        torch.testing.assert_close(four[name], gradient, rtol=1e-5, atol=1e-8, msg=name)


def test_resume_with_another_shape_interpolates(store, whole_run, tmp_path):
    taller = make_store(tmp_path / "taller", height=6, frames=8)
    config = tiny_config(taller, tmp_path / "run", "clips.frames=4", "optim.steps=21")
    result = pretrain(config, resume=str(whole_run / "checkpoints/step-00000020"))
    end = load_checkpoint(result.checkpoint)
    assert result.step == 21
    assert end.tensors["encoder.positions.height"].shape == (6, 128)
    assert end.tensors["encoder.positions.time"].shape == (4, 128)
    assert end.description.config.grid == (4, 6, 4)
    assert load_model(result.checkpoint).encoder.grid == (4, 6, 4)


def test_checkpoint_is_a_model_directory(store, whole_run, tmp_path):
    """Which every command that takes a model reads, with the facts of its data."""
    path = whole_run / "checkpoints/step-00000020"
    model = load_model(path)
    assert model.encoder.grid == (2, 4, 4) and model.config.name == "tiny"
    assert cli.main(["convert", "--back", str(path), str(tmp_path / "released.pt")]) == 0
    released = torch.load(tmp_path / "released.pt", weights_only=True)
    expected = export_released(model)
    assert released.keys() == expected.keys() and _same(released, dict(expected))
    data = load_checkpoint(path).description.data
    meta = open_store(str(store)).meta
    assert (data.tokenizer, data.digest, data.fps) == (meta.tokenizer, meta.digest, meta.fps)
    assert (data.height, data.width, data.frame_stride) == (4, 4, 1)


def test_tokens_of_another_tokenizer_are_refused(store, whole_run, tmp_path):
    path = shutil.copytree(store, tmp_path / "other")
    values = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(values | {"digest": "ab" * 32}))
    with pytest.raises(UsageError, match="the tokenizer 'patch', data= holds .* weights abab"):
        pretrain(tiny_config(path, tmp_path), resume=str(whole_run / "checkpoints/step-00000020"))


def test_resumed_run_takes_its_own_settings_of_the_optimiser(store, whole_run, tmp_path):
    path = whole_run / "checkpoints/step-00000020"
    words = ("optim.weight_decay=0.5", "optim.betas=[0.5, 0.6]")
    run = _begin(store, tmp_path, *words, path=path)
    decay, keep = run.optimizer.param_groups
    assert (decay["weight_decay"], keep["weight_decay"]) == (0.5, 0.0)
    assert decay["betas"] == keep["betas"] == (0.5, 0.6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.layout=THW"], "its model.layout is T,H|W, not THW"),
        (["model.layout=T,HW"], "its model.layout is T,H|W, not T,HW"),  # of the same shapes
        (["model.heads=8", "model.head_dim=16"], "its model.heads is 4, not 8"),  # also
        (["seed=5"], "it was made with seed=0, not 5"),
    ],
)
def test_checkpoint_of_another_model_or_order_is_refused(
    store, whole_run, tmp_path, words, message
):
    config = tiny_config(store, tmp_path, *words)
    with pytest.raises(UsageError, match=f"does not fit this configuration: {re.escape(message)}"):
        pretrain(config, resume=str(whole_run / "checkpoints/step-00000020"))


def test_going_back_before_later_checkpoints_is_refused(store, whole_run):
    earlier, _, newest = list_checkpoints(whole_run / "checkpoints")
    with pytest.raises(UsageError, match=f"{newest} is later than {earlier}: remove it"):
        pretrain(tiny_config(store, whole_run), resume=str(earlier))
