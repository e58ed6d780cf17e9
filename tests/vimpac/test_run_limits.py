"""Runs that end early, go on with other data, read a damaged store, or must not be saved."""

import json

import pytest

from tests.vimpac.runs import (
    BY_TORCHRUN,
    make_store,
    program,
    run_process,
    start_process,
    tiny_config,
)
from vimpac import cli
from vimpac.checkpoints.training_state import list_checkpoints, load_checkpoint
from vimpac.data.clips import stand_ins
from vimpac.data.store import TokenStore
from vimpac.errors import UsageError, VimpacError
from vimpac.train.log import RunLog, read_log
from vimpac.train.pretrain import pretrain


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "store")


def _damage(store, *videos):
    """Flips a byte of a frame of each of these videos."""
    shard = store / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    record = len(data) // 16
    for video in videos:
        data[video * record + 3] ^= 1
    shard.write_bytes(data)


def test_until_ends_a_run_and_leaves_its_schedule(store, tmp_path):
    whole = tiny_config(store, tmp_path / "whole", "optim.steps=6")
    pretrain(whole, quiet=True)
    early = tiny_config(store, tmp_path / "early", "optim.steps=6", "run.until=2")
    assert pretrain(early, quiet=True).step == 4  # two steps of 8 videos in an epoch of 16
    pretrain(tiny_config(store, tmp_path / "early", "optim.steps=6"), resume="auto", quiet=True)
    records = [
        [{k: r[k] for k in ("step", "loss", "lr")} for r in read_log(tmp_path / name / "log.jsonl")]
        for name in ("whole", "early")
    ]
    assert records[0] == records[1] and len(records[0]) == 6
    with pytest.raises(UsageError, match=r"is at step 6, past run\.until=2 \(step 4\): raise or"):
        pretrain(early, resume="auto", quiet=True)


def test_run_with_nothing_left_to_do_says_so(store, tmp_path, capsys):
    config = tiny_config(store, tmp_path / "run", "optim.steps=2")
    pretrain(config, quiet=True)
    assert pretrain(config, resume="auto").step == 2
    said = "no step is left to do after step 2: raise optim.epochs or optim.steps to go on"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mask.blocks=0"], "mask.blocks=0 hides no token"),
        (["mask.strategy=iid", "mask.ratio=0"], "mask.ratio=0 hides no token"),
        (["mask.contrast=whole", "loss.alpha=0"], "mask.contrast=whole needs the contrastive loss"),
        (["loss.mask=0", "loss.alpha=0"], "loss.mask=0 and loss.alpha=0 train nothing"),
    ],
)
def test_run_without_a_loss_is_refused(store, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        pretrain(tiny_config(store, tmp_path / "run", *words), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_video_ends_a_run_that_can_go_on_without_it(store, tmp_path, capsys, workers):
    words = ["optim.steps=6", "run.save_every=1", f"clips.workers={workers}"]
    config = tiny_config(store, tmp_path / "run", *words)
    assert pretrain(config, stop=lambda: True, quiet=True).step == 1
    _damage(store, 3, 15)
    with pytest.raises(VimpacError) as failure:
        pretrain(config, resume="auto", quiet=True)
    assert "corrupt frame (checksum) in '" in str(failure.value)
    assert str(failure.value).endswith("leave such videos out with clips.skip_damaged=true")
    config = tiny_config(store, tmp_path / "run", *words, "clips.skip_damaged=true")
    assert pretrain(config, resume="auto").step == 6
    said = capsys.readouterr().err
    assert "warning: 2 of 16 videos are damaged and left out: '3', '15'" in said


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "training_state.pt"])
def test_run_goes_on_from_the_last_whole_checkpoint(store, tmp_path, capsys, name):
    words = ["optim.steps=6", "run.save_every=2", "run.keep=5"]
    pretrain(tiny_config(store, tmp_path / "whole", *words), quiet=True)
    config = tiny_config(store, tmp_path / "run", *words)
    pretrain(tiny_config(store, tmp_path / "run", *words, "run.until=2"), quiet=True)
    file = tmp_path / "run" / "checkpoints" / "step-00000004" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    pretrain(config, resume="auto")
    said = capsys.readouterr().err
    assert "step-00000004 is damaged (" in said and "step-00000002" in said
    ends = [
        load_checkpoint(tmp_path / run / "checkpoints/step-00000006") for run in ("whole", "run")
    ]
    for key, tensor in ends[0].tensors.items():
        assert tensor.equal(ends[1].tensors[key])
    with pytest.raises(UsageError, match="step-00000006 is later than .*step-00000002"):
        pretrain(config, resume=str(file.parents[1] / "step-00000002"), quiet=True)


def test_damaged_checkpoint_is_not_kept_in_the_place_of_a_new_one(store, tmp_path, capsys):
    """With run.keep=1 every new one would be removed as the older of the two."""
    config = tiny_config(store, tmp_path, "optim.steps=6", "run.save_every=2", "run.keep=1")
    pretrain(tiny_config(store, tmp_path, "optim.steps=6", "run.save_every=2"), quiet=True)
    folder = tmp_path / "checkpoints"
    (folder / "step-00000006" / "training_state.pt").write_bytes(b"garbage")
    steps = iter([True])
    stopped = pretrain(config, resume="auto", stop=lambda: next(steps))
    assert stopped.step == 5 and list_checkpoints(folder) == [stopped.checkpoint]
    said = capsys.readouterr().err
    assert "it is now damaged-step-00000006, and the run goes on before it" in said
    assert pretrain(config, resume="auto", quiet=True).step == 6
    assert {path.name for path in folder.iterdir()} == {"damaged-step-00000006", "step-00000006"}


def test_processes_go_on_from_the_same_checkpoint(store, tmp_path):
    run_process(*program(store, tmp_path, "optim.steps=4", "run.save_every=2"))
    (tmp_path / "checkpoints" / "step-00000004" / "training_state.pt").write_bytes(b"garbage")
    words = program(store, tmp_path, "optim.steps=4", "--resume", "auto")[1:]
    process = start_process(*BY_TORCHRUN, *words)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    assert said.count("is damaged") == 1 and "resumed from" in said


def test_stand_in_of_a_damaged_video_is_the_next_whole_one():
    assert [*stand_ins(5, [])] == [0, 1, 2, 3, 4]
    assert [*stand_ins(5, [1, 2, 4])] == [0, 3, 3, 3, 0]
    with pytest.raises(VimpacError, match="all of 2 videos are damaged"):
        stand_ins(2, [0, 1])


def _with_meta(store, tmp_path, name, **values):
    """The same store, but for what it says of itself."""
    meta = json.loads((store / "meta.json").read_text())
    (tmp_path / name).mkdir()
    for file in store.iterdir():
        (tmp_path / name / file.name).write_bytes(file.read_bytes())
    (tmp_path / name / "meta.json").write_text(json.dumps({**meta, **values}))
    return tmp_path / name


def test_resume_refuses_other_frame_rates_and_tells_another_map(store, tmp_path, capsys):
    out = tmp_path / "run"
    pretrain(tiny_config(store, out, "optim.steps=1"), quiet=True)
    faster = _with_meta(store, tmp_path, "faster", fps=4.0)
    with pytest.raises(UsageError) as refusal:
        pretrain(tiny_config(faster, out, "optim.steps=2"), resume="auto", quiet=True)
    assert "was trained on frames 0.5 s apart (2 frames per second, stride 1)" in str(refusal.value)
    assert "here they are 0.25 s apart (4 frames per second, stride 1)" in str(refusal.value)
    pretrain(
        tiny_config(faster, out, "optim.steps=2", "clips.frame_stride=2"), resume="auto", quiet=True
    )
    larger = make_store(tmp_path / "larger", height=6)
    pretrain(tiny_config(larger, out, "optim.steps=3"), resume="auto")
    assert "the token map is 6 x 4, it was 4 x 4 in" in capsys.readouterr().err


def test_interval_of_another_stride_is_the_same_but_for_rounding(store, tmp_path):
    out = tmp_path / "run"
    slow = _with_meta(store, tmp_path, "slow", fps=2.4)
    fast = _with_meta(store, tmp_path, "fast", fps=7.2)
    pretrain(tiny_config(slow, out, "optim.steps=1"), quiet=True)
    assert 1 / 2.4 != 3 / 7.2
    config = tiny_config(fast, out, "optim.steps=2", "clips.frame_stride=3")
    assert pretrain(config, resume="auto", quiet=True).step == 2


def test_absurd_weights_are_not_saved(store, tmp_path):
    """The loss of the last step is that of the weights before it."""
    config = tiny_config(store, tmp_path / "run", "optim.steps=1", "optim.lr=1e9")
    config.optim.warmup = 0.0
    with pytest.raises(VimpacError, match=r"step 1 made weights beyond 10000, which are not saved"):
        pretrain(config, quiet=True)
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize(
    ("rate", "text"), [(1234.5, "1234.5"), (3.21, "3.21"), (0.0412, "0.0412"), (0.0, "0.0")]
)
def test_slow_runs_show_their_speed(tmp_path, capsys, rate, text):
    with RunLog(tmp_path, steps=1, done=0, active=True, tensorboard=False, quiet=False) as log:
        log.record({"step": 1, "videos_per_s": rate})
    assert f"videos/s {text}" in capsys.readouterr().err


def _labels(tmp_path, test_class):
    lines = [f"{i},{'ab'[i % 2]},train" for i in range(12)]
    lines += [f"{i},{test_class},test" for i in range(12, 16)]
    (tmp_path / "labels.csv").write_text("video,class,split\n" + "\n".join(lines) + "\n")
    return tmp_path / "labels.csv"


def test_finetuning_warns_of_what_says_nothing(store, tmp_path, capsys):
    out = tmp_path / "run"
    saved = pretrain(tiny_config(store, out, "optim.steps=1"), quiet=True).checkpoint
    faster = _with_meta(store, tmp_path, "faster", fps=4.0)
    _damage(faster, 13)
    words = [f"data={faster}", f"labels={_labels(tmp_path, 'a')}", "batch=4", "optim.steps=1"]
    words += ["clips.frames=2", "clips.workers=0", "device=cpu", "run.tensorboard=false"]
    command = ["finetune", str(saved), *words, f"out={tmp_path / 'tuned'}"]
    assert cli.main(command) == 1
    assert "clips.skip_damaged=true" in capsys.readouterr().err
    assert cli.main([*command[:-1], f"out={tmp_path / 'again'}", "clips.skip_damaged=true"]) == 0
    said = capsys.readouterr().err
    assert "all videos of the split 'test' are of the class 'a', so its accuracy says" in said
    assert "trained on frames 0.5 s apart (2 frames per second, stride 1), these are 0.25" in said
    assert "1 of 16 videos are damaged and left out: '13'" in said
    assert "12 train, 3 test" in said
    assert len(TokenStore(faster)) == 16
