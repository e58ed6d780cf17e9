"""A run of SimVTP: resumed exactly, told from VIMPAC's, and clear about bad data."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from tests.vimpac.runs import ENVIRONMENT
from vimpac import Vimpac, load_model, save_model
from vimpac.checkpoints.training_state import load_checkpoint
from vimpac.errors import UsageError, VimpacError
from vimpac.simvtp.clips import PretrainingClip
from vimpac.simvtp.description import read_simvtp, save_simvtp
from vimpac.simvtp.initial import fill_from
from vimpac.simvtp.model import SimVTP
from vimpac.simvtp.pairs import PairDataset, open_pairs, open_words
from vimpac.simvtp.pretrain import pretrain
from vimpac.simvtp.released import export_released
from vimpac.train.log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


def _losses(out):
    records = read_log(out / "log.jsonl")
    return {r["step"]: (r["loss"], r["grad_norm"]) for r in records if "loss" in r}


def _dataset(pairs, config):
    network, words = config.model, open_words("", pairs.captions)
    draw = PretrainingClip(network.frames, network.size, config.clips.step)
    return PairDataset(pairs, words, draw, length=16, seed=config.seed, out=config.out)


def _assert_same_run(one, other):
    assert _losses(one.out) == _losses(other.out)
    ours, theirs = load_checkpoint(one.checkpoint), load_checkpoint(other.checkpoint)
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor, theirs.tensors[name]), name


def test_losses_fall(make_run, tmp_path):
    result = pretrain(make_run(tmp_path / "a", "optim.steps=40", "run.log_every=5"), quiet=True)
    records = read_log(result.out / "log.jsonl")
    assert result.record["loss"] < 0.9 * records[0]["loss"]
    assert {"pixel_loss", "word_accuracy", "match_accuracy", "lr"} <= records[0].keys()


def test_resumed_run_equals_one_that_was_never_stopped(make_run, tmp_path):
    whole = pretrain(make_run(tmp_path / "whole"), quiet=True)
    count = iter(range(10))
    config = make_run(tmp_path / "stopped", "clips.workers=1")
    pretrain(config, stop=lambda: next(count) == 3, quiet=True)
    assert max(_losses(tmp_path / "stopped")) == 4
    _assert_same_run(pretrain(config, resume="auto", quiet=True), whole)


def test_killed_run_continues_by_the_command_line(make_run, shapes, tmp_path):
    whole = pretrain(make_run(tmp_path / "whole"), quiet=True)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "vimpac", "simvtp", "pretrain", "--config", "tiny"]
    config = tmp_path / "whole" / "config.yaml"
    command = [*command[:-1], str(config), f"out={out}", "--resume", "auto"]
    code = (
        "import os, signal, sys\n"
        "from vimpac.train.log import RunLog\n"
        "record = RunLog.record\n"
        "def kill(self, values):\n"
        "    record(self, values)\n"
        "    if values['step'] == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "RunLog.record = kill\n"
        "from vimpac.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, *command[3:]], env=ENVIRONMENT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    done = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert done.stdout.strip().endswith("step-00000006")
    assert _losses(out) == _losses(whole.out)


def test_checkpoint_is_a_model_with_its_words(checkpoint):
    model, description = read_simvtp(checkpoint)
    assert description.frame_step == 1
    assert description.masked_cells == 27  # 75 % of 36
    assert "square" in description.words["content"]
    assert model.config.vocabulary == len(description.words["content"]) + 5


def test_models_of_the_two_systems_are_told_apart(checkpoint, make_run, tmp_path):
    with pytest.raises(UsageError, match="holds a simvtp, a model of another system"):
        load_model(checkpoint)
    save_model(Vimpac.from_preset("tiny", grid=(2, 2, 2)), tmp_path / "vimpac")
    with pytest.raises(UsageError, match=r"holds a vimpac, no model of SimVTP"):
        read_simvtp(tmp_path / "vimpac")
    with pytest.raises(UsageError, match=r"holds a vimpac, no model of SimVTP"):
        pretrain(make_run(tmp_path / "a", f"init={tmp_path / 'vimpac'}"), quiet=True)


def test_other_captions_or_sizes_do_not_continue_a_run(checkpoint, make_run, tmp_path):
    out = tmp_path / "a"
    shutil.copytree(checkpoint.parents[1], out)
    with pytest.raises(UsageError, match=r"its model\.layers is 1, not 2"):
        pretrain(make_run(out, "model.layers=2"), resume="auto", quiet=True)
    (tmp_path / "b.csv").write_text("video,caption\n0.mkv,words that are new\n1.mkv,and others\n")
    settings = f"data={tmp_path / 'b.csv'}", "missing=skip"
    with pytest.raises(UsageError, match="was trained on other words"):
        pretrain(make_run(out, *settings), resume="auto", quiet=True)


def test_unreadable_video_is_named_and_the_next_one_takes_its_place(shapes, make_run, tmp_path):
    folder = tmp_path / "shapes"
    shutil.copytree(shapes, folder)
    (folder / "videos" / "3.mkv").write_bytes(b"no video")
    config = make_run(tmp_path / "a", f"data={folder}/captions.csv", f"videos={folder}/videos")
    (tmp_path / "a").mkdir()
    pairs = open_pairs(config.data, config.videos)
    dataset = _dataset(pairs, config)
    clip, ids, unreadable = dataset[9, 3]
    assert (clip.shape, clip.dtype) == ((8, 48, 48, 3), torch.uint8)
    assert int(unreadable) == 1
    assert torch.equal(ids, dataset[9, 4][1])
    dataset[50, 3]
    (line,) = (tmp_path / "a" / "unreadable.txt").read_text().splitlines()
    assert line.startswith("3.mkv: ")
    for video in (folder / "videos").iterdir():
        video.write_bytes(b"no video")
    with pytest.raises(VimpacError, match="12 videos in a row are unreadable"):
        _dataset(pairs, config)[0, 0]


def test_a_video_has_one_of_its_captions_in_each_sample(shapes, make_run, tmp_path):
    config = make_run(tmp_path / "a")
    pairs = open_pairs(config.data, config.videos)
    vocabulary = open_words("", pairs.captions)
    dataset = _dataset(pairs, config)
    assert len(dataset) == 12  # those of the split train
    texts = {" ".join(vocabulary.words(dataset[sample, 0][1])) for sample in range(20)}
    assert len(texts) == 2
    assert all(dataset[sample, 0][1].shape == (dataset.length,) for sample in range(3))


def test_missing_settings_and_videos_are_named(shapes, make_run, tmp_path):
    with pytest.raises(UsageError, match="videos= is missing"):
        open_pairs(f"{shapes}/captions.csv", "")
    with pytest.raises(UsageError, match="data= is missing"):
        open_pairs("", f"{shapes}/videos")
    with pytest.raises(UsageError, match="no video in 'val', only in test, train"):
        open_pairs(f"{shapes}/captions.csv", f"{shapes}/videos", part="val")


def test_run_begins_with_a_model_a_release_or_bert(checkpoint, tmp_path, make_run):
    model, description = read_simvtp(checkpoint)
    words = open_words("", open_pairs(make_run(tmp_path).data, make_run(tmp_path).videos).captions)
    torch.save({"model": export_released(model)}, tmp_path / "released.pth")
    video = {k: v for k, v in export_released(model).items() if not k.startswith(("text", "vtm"))}
    torch.save({"model": video}, tmp_path / "videomae.pth")
    torch.manual_seed(1)
    for source in (checkpoint, tmp_path / "released.pth", tmp_path / "videomae.pth"):
        fresh = SimVTP(model.config, model.text_config)
        assert bool([*fill_from(fresh, words, str(source), "")]) == ("videomae" in source.name)
        assert torch.equal(fresh.decoder.head.weight, model.decoder.head.weight)
        same = torch.equal(fresh.word_head.weight, model.word_head.weight)
        assert same == ("videomae" not in source.name)
    width = model.config.width
    bert = {
        "bert.embeddings.word_embeddings.weight": torch.ones(model.config.vocabulary, width),
        "bert.embeddings.position_embeddings.weight": torch.ones(32, width),
        "bert.embeddings.token_type_embeddings.weight": torch.ones(2, width),
        "bert.embeddings.LayerNorm.gamma": torch.full((width,), 2.0),
        "bert.embeddings.LayerNorm.beta": torch.full((width,), 3.0),
    }
    torch.save(bert, tmp_path / "bert.bin")
    fresh = SimVTP(model.config)
    assert not [*fill_from(fresh, words, "", str(tmp_path / "bert.bin"))]
    assert bool((fresh.encoder.words.norm.bias == 3).all())
    assert bool((fresh.encoder.words.words.weight == 1).all())
    bert["bert.embeddings.word_embeddings.weight"] = torch.ones(7, width)
    torch.save(bert, tmp_path / "other.bin")
    with pytest.raises(UsageError, match=r"word_embeddings\.weight is \(7, 32\)"):
        [*fill_from(fresh, words, "", str(tmp_path / "other.bin"))]
    with pytest.raises(UsageError, match="no such file"):
        [*fill_from(fresh, words, str(tmp_path / "absent.pth"), "")]


def test_files_that_would_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(VimpacError, match="more than plain tensors"):
        [*fill_from(SimVTP.from_preset("tiny"), None, str(tmp_path / "evil.pth"), "")]
    assert not (tmp_path / "ran").exists()


def test_saved_model_reads_back(tmp_path):
    torch.manual_seed(0)
    model = SimVTP.from_preset("tiny", vocabulary=50)
    save_simvtp(model, tmp_path / "model", frame_step=4)
    again, description = read_simvtp(tmp_path / "model")
    assert description.frame_step == 4 and description.words is None
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    with pytest.raises(UsageError, match="exists already"):
        save_simvtp(model, tmp_path / "model")
