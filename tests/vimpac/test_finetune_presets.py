"""The paper's settings of the five data sets, splits, and training from scratch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.vimpac.annotation_trees import UCF101, write_files
from vimpac import Vimpac, cli, load_classifier, save_model
from vimpac.config import FinetuneConfig, PretrainConfig
from vimpac.data.store import TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError
from vimpac.model.config import preset
from vimpac.presets import config_names
from vimpac.settings import load_config
from vimpac.train.finetune import finetune
from vimpac.train.optim import lr_at, with_lr

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE_4 = {  # epochs, frames per second, crops that are tested, times the epochs from scratch
    "ssv2": (22, 4.0, "center", 1.5),
    "diving48": (50, 4.0, "all", 4),
    "ucf101": (50, 2.0, "all", 4),
    "hmdb51": (50, 4.0, "all", 4),
    "kinetics400": (30, 2.0, "all", 1.5),
}
SETTINGS = (
    "clips.frames=2",
    "clips.workers=0",
    "precision=fp32",
    "device=cpu",
    "test_clips=1",
    "batch=4",
    "optim.steps=2",
    "run.tensorboard=false",
)


def test_every_data_set_has_its_presets():
    kinds = [name + kind for name in TABLE_4 for kind in ("", "/analysis", "/scratch")]
    assert config_names("finetune") == sorted(kinds)


@pytest.mark.parametrize("name", TABLE_4)
def test_presets_are_those_of_the_paper(name):
    epochs, fps, crops, scratch = TABLE_4[name]
    paper, analysis, from_scratch = (
        load_config(FinetuneConfig, name + kind) for kind in ("", "/analysis", "/scratch")
    )
    for config in (paper, analysis, from_scratch):
        assert (config.batch.videos, config.test_crops) == (128, crops)
        assert (config.optim.betas, config.optim.weight_decay) == ((0.9, 0.999), 0.01)
        assert (config.optim.warmup, config.optim.max_grad_norm) == (0.1, 1.0)
        assert with_lr(config, 768).optim.lr == 1e-4 and with_lr(config, 1024).optim.lr == 5e-5
        for world in (1, 2, 4, 8, 16):
            config.check(world)
    assert (paper.clips.frames, paper.clips.fps, paper.test_clips) == (10, fps, 10)
    for config in (analysis, from_scratch):
        assert (config.clips.frames, config.clips.fps, config.test_clips) == (5, 2.0, 2)
    assert paper.optim.epochs == analysis.optim.epochs == epochs
    assert from_scratch.optim.epochs == scratch * epochs


def test_rate_follows_the_width_unless_it_is_given():
    for words, width, lr in ((["optim.lr=null"], 512, 1e-3), (["optim.lr=null"], 1024, 3e-4)):
        assert with_lr(load_config(PretrainConfig, "small", words), width).optim.lr == lr
    config = with_lr(load_config(FinetuneConfig, "ucf101", ["optim.lr=0.5"]), 1024)
    assert config.optim.lr == 0.5 and lr_at(0, 10, config.optim) == 0.5


@pytest.mark.parametrize("word", ["ucf101", "finetune/ucf101", "finetune/ucf101/analysis"])
def test_command_shows_the_preset(word, capsys):
    words = ["finetune", "small", "--config", word, "data=S", "labels=ucf101:DIR:1", "--show"]
    assert cli.main(words) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["labels"] == "ucf101:DIR:1" and shown["clips"]["fps"] == 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store of eight videos at 8 frames per second, and a table of labels for each split."""
    path, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    with TokenStoreWriter(path / "store", StoreMeta("patch", 8192, 4, 4, 8.0)) as writer:
        for video in range(8):
            writer.add(f"{video}.mp4", rng.integers(0, 99, (1, 9, 4, 4)))
        writer.finish()
    for split in (1, 2):
        lines = [f"{i}.mp4,{'ab'[i % 2]},{'test' if i < 2 * split else 'train'}" for i in range(8)]
        (path / f"labels:{split}").write_text("\n".join(["video,class,split", *lines]) + "\n")
    save_model(Vimpac.from_preset("tiny", grid=(2, 4, 4)), path / "model")
    return path


def _config(folder: Path, out: Path, *more: str) -> FinetuneConfig:
    words = [*SETTINGS, f"data={folder / 'store'}", f"labels={folder / 'labels:1'}", f"out={out}"]
    return load_config(FinetuneConfig, None, [*words, *more])


def test_frames_per_second_become_a_stride(folder, tmp_path):
    result = finetune(_config(folder, tmp_path / "a", "clips.fps=2"), folder / "model", quiet=True)
    data = json.loads((result.checkpoint / "model.json").read_text())["data"]
    assert (data["fps"], data["frame_stride"]) == (8.0, 4)
    again = _config(folder, tmp_path / "a", "clips.frame_stride=4", "optim.steps=3")
    assert finetune(again, folder / "model", resume="auto", quiet=True)  # the same clips
    with pytest.raises(UsageError, match=r"clips.fps=3: .* has 8 frames per second, which is no"):
        finetune(_config(folder, tmp_path / "b", "clips.fps=3"), folder / "model")
    for fps in ("9", "1e-310"):
        with pytest.raises(UsageError, match=f"clips.fps={fps}"):
            finetune(_config(folder, tmp_path / "b", f"clips.fps={fps}"), folder / "model")
    both = _config(folder, tmp_path / "b", "clips.fps=2", "clips.frame_stride=2")
    with pytest.raises(UsageError, match="clips.fps=2 and clips.frame_stride=2: give one"):
        finetune(both, folder / "model")


def test_network_is_trained_from_scratch_by_its_name(folder, tmp_path):
    config = _config(folder, tmp_path / "run", "optim.lr=1e-9", "seed=3")
    saved = finetune(config, "tiny", quiet=True).checkpoint
    model, classes = load_classifier(saved)
    torch.manual_seed(3)
    weights = Vimpac.from_preset("tiny").encoder.state_dict()
    for name, tensor in model.encoder.state_dict().items():
        if "positions" not in name:
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-6)
    assert classes == ["a", "b"] and model.encoder.config.width == preset("tiny").width
    assert finetune(config, "tiny", resume="auto", quiet=True).checkpoint == saved


def test_directory_goes_before_the_name_of_a_network(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    with pytest.raises(UsageError, match="tiny is no model: it has no model.safetensors"):
        finetune(_config(folder, tmp_path / "run"), "tiny", quiet=True)


def test_mean_of_splits_is_printed_and_each_has_its_run(folder, tmp_path, capsys):
    out = tmp_path / "runs"
    words = [*SETTINGS, f"data={folder / 'store'}", f"labels={folder / 'labels'}", f"out={out}"]
    command = ["finetune", str(folder / "model"), "--splits", "1,2", *words]
    assert cli.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(str(out / "split-1")) and lines[3].startswith(str(out / "split-2"))
    videos = [float(line.split("videos ")[1].split()[0]) for line in (lines[0], *lines[2::2])]
    assert lines[4].startswith("mean of 2 splits: clips ")
    assert videos[2] == pytest.approx((videos[0] + videos[1]) / 2, abs=1e-4)
    assert cli.main([*command, "--resume", "auto"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_splits_are_looked_at_before_the_first_one_is_trained(folder, tmp_path, capsys):
    out = tmp_path / "runs"
    words = [str(folder / "model"), *SETTINGS, f"data={folder / 'store'}", f"out={out}"]
    write_files(tmp_path / "ucf101", UCF101)
    for labels, splits, message in (
        (folder / "labels", "1,3", "give labels=ucf101:DIR or hmdb51:DIR, not labels="),
        (f"ssv2:{folder}", "1", "give labels=ucf101:DIR or hmdb51:DIR"),
        (f"ucf101:{tmp_path / 'ucf101'}", "1,4", "ucf101 has the splits 1 to 3, no split 4"),
        (f"ucf101:{tmp_path / 'ucf101'}", "1,3", "trainlist03.txt: no such file"),
        (f"hmdb51:{folder}", "1", "holds no annotations of hmdb51"),
    ):
        assert cli.main(["finetune", *words, f"labels={labels}", "--splits", splits]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not out.exists()
    (out / "split-2" / "checkpoints" / "step-00000001").mkdir(parents=True)
    command = ["finetune", *words, f"labels={folder / 'labels'}", "--splits", "1,2"]
    assert cli.main(command) == 2
    assert "split-2/checkpoints has checkpoints already" in capsys.readouterr().err
    assert not (out / "split-1").exists()


@pytest.mark.parametrize("splits", ["", "1,1", "1,01", "a", "1,,2"])
def test_wrong_splits_are_one_line(folder, splits, capsys):
    assert cli.main(["finetune", str(folder / "model"), f"--splits={splits}"]) == 2
    assert f"--splits {splits}: give numbers of splits" in capsys.readouterr().err
