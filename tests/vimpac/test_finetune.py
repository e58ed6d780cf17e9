"""A classifier learns on a checkpoint, probed or fine-tuned, and says what does not fit."""

import itertools
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vimpac import PAD_TOKEN, VideoClassifier, Vimpac, cli, load_classifier, save_model
from vimpac.checkpoints.model_dir import load_encoder
from vimpac.config import FinetuneConfig, PretrainConfig
from vimpac.data.clips import ClipDataset
from vimpac.data.even_clips import EvenClips
from vimpac.data.sampler import ResumableSampler
from vimpac.data.store import TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.data.variants import parse_variants
from vimpac.errors import UsageError
from vimpac.eval.evaluate import classify
from vimpac.eval.over_views import over_views
from vimpac.settings import load_config
from vimpac.train.distributed import World
from vimpac.train.finetune import finetune
from vimpac.train.finetune_system import Finetuning
from vimpac.train.loader import read
from vimpac.train.log import read_log
from vimpac.train.loop import Loop
from vimpac.train.optim import lr_at
from vimpac.train.pretrain import pretrain

SETTINGS = (
    "clips.frames=2",
    "clips.workers=0",
    "precision=fp32",
    "device=cpu",
    "test_clips=3",
    "batch=8",
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Twelve videos of 1 to 6 frames in two variants; only the odd ones have ids above 100."""
    path = tmp_path_factory.mktemp("data") / "store"
    rng = np.random.default_rng(0)
    meta = StoreMeta("patch", 8192, 4, 4, fps=2.0, variants=("a", "b"))
    with TokenStoreWriter(path, meta) as writer:
        for video in range(12):
            ids = 100 * (video % 2) + rng.integers(0, 10, (2, 1 + video // 2, 4, 4))
            writer.add(f"{video}.mp4", ids)
        writer.finish()
    return path


@pytest.fixture(scope="module")
def checkpoint(store, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "pretrain"
    settings = [
        f"data={store}",
        f"out={out}",
        "optim.steps=2",
        "clips.frames=3",
        "run.tensorboard=false",
    ]
    return pretrain(load_config(PretrainConfig, "tiny", settings), quiet=True).checkpoint


def _lines() -> list[str]:
    classes = ("low, even", "high")  # the first needs quotes
    lines = [f'{i}.mp4,"{classes[i % 2]}",{"test" if i > 7 else "train"}' for i in range(12)]
    return ["video,class,split", *lines, "unreadable.mp4,high,train"]


@pytest.fixture
def labels(tmp_path) -> Path:
    return _write(tmp_path, _lines())


def _write(folder: Path, lines: list[str]) -> Path:
    file = folder / "labels.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")  # as Excel saves it
    return file


def _config(store: Path, labels: Path, out: Path, *more: str) -> FinetuneConfig:
    words = [*SETTINGS, f"data={store}", f"labels={labels}", f"out={out}", *more]
    return load_config(FinetuneConfig, None, words)


def test_probe_separates_classes_and_leaves_the_encoder(store, checkpoint, labels, tmp_path):
    config = _config(store, labels, tmp_path / "run")
    result = finetune(config, checkpoint, probe="linear", quiet=True)
    assert (result.clip_accuracy, result.video_accuracy) == (1.0, 1.0)
    saved = load_file(result.checkpoint / "model.safetensors")
    before, _ = load_encoder(checkpoint)
    before.positions.resize_((2, 4, 4))
    for name, tensor in before.state_dict().items():
        assert torch.equal(saved[f"encoder.{name}"], tensor), name
    assert saved["classifier.weight"].shape == (2, 128)
    VideoClassifier(before, 2).load_state_dict(saved)


def test_finetuning_learns_and_moves_the_encoder(store, checkpoint, labels, tmp_path):
    more = ("optim.steps=30", "optim.lr=1e-3", "run.log_every=4")
    config = _config(store, labels, tmp_path / "run", *more)
    result = finetune(config, checkpoint, quiet=True)
    assert result.video_accuracy == 1.0
    saved = load_file(result.checkpoint / "model.safetensors")
    before = load_encoder(checkpoint)[0].state_dict()
    assert not torch.equal(
        saved["encoder.layers.0.mlp.up.weight"], before["layers.0.mlp.up.weight"]
    )
    assert result.checkpoint.name == "step-00000030"
    records = read_log(tmp_path / "run" / "log.jsonl")
    *records, test = records
    kinds = ("clip", "video", "top5", "class")
    assert test == {"step": 30, **{f"test_{kind}_accuracy": 1.0 for kind in kinds}}
    assert [record["step"] for record in records] == [*range(4, 30, 4), 30]
    assert [record["lr"] for record in records] == [
        lr_at(record["step"] - 1, 30, config.optim) for record in records
    ]
    assert records[-1]["accuracy"] == 1.0 > records[0]["accuracy"]
    assert [*(tmp_path / "run" / "tensorboard").iterdir()]


def test_validation_videos_judge_during_training_and_others_are_left_out(
    store, checkpoint, tmp_path, capsys
):
    lines = [line.replace("test", "val") if i > 10 else line for i, line in enumerate(_lines())]
    labels = _write(tmp_path, [*lines[:8], *lines[9:]])  # 7.mp4 has no line
    more = ("optim.epochs=3", "run.evaluate_every=1", "batch.videos=1", "batch.micro=1")
    finetune(_config(store, labels, tmp_path / "run", *more), checkpoint)
    said = " ".join(capsys.readouterr().err.split())
    assert "videos: 7 train, 2 val, 2 test, 21 steps" in said
    assert f"warning: 1 of 12 videos are left out: they have no line in {labels}, or" in said
    records = [[*record] for record in read_log(tmp_path / "run" / "log.jsonl")]
    val, test = (
        [f"{split}_{of}_accuracy" for of in ("clip", "video", "top5", "class")]
        for split in ("val", "test")
    )
    found = [names[1:] for names in records if "loss" not in names]
    assert found == [val, val, val + test]


def test_classifier_is_rebuilt_from_its_own_files(store, labels, tmp_path):
    torch.manual_seed(0)
    settings = dict(layout="T,H,W", norm="pre", cls="paper")  # none of them a default
    save_model(Vimpac.from_preset("tiny", **settings, grid=(3, 2, 2)), tmp_path / "model")
    config = _config(store, labels, tmp_path / "run", "optim.steps=2")
    saved = finetune(config, tmp_path / "model", quiet=True).checkpoint
    model, classes = load_classifier(saved)
    encoder = Vimpac.from_preset("tiny", **settings, grid=(2, 4, 4)).encoder
    expected = VideoClassifier(encoder, 2).eval()
    expected.load_state_dict(load_file(saved / "model.safetensors"))
    clips = torch.randint(8192, (3, 2, 4, 4))
    assert torch.equal(model(clips), expected(clips))
    assert classes == ["high", "low, even"]
    again = _config(store, labels, tmp_path / "again")
    assert finetune(again, saved, probe="linear", quiet=True).video_accuracy == 1.0
    with pytest.raises(UsageError, match="model holds no classifier"):
        load_classifier(tmp_path / "model")


def _begin(store: Path, labels: Path, *more: str, out: Path = Path("unused")) -> Finetuning:
    torch.manual_seed(0)
    encoder = Vimpac.from_preset("tiny", grid=(2, 4, 4)).encoder
    return Finetuning(_config(store, labels, out, *more), encoder, World(torch.device("cpu")))


def test_training_follows_epochs_and_schedule(store, labels, tmp_path, monkeypatch):
    run, seen = _begin(store, labels, "optim.epochs=2.5", "optim.lr=0.5", out=tmp_path), []

    def note(model, optimizer, optim, lr) -> torch.Tensor:
        seen.append((model.training, lr.item()))
        return torch.ones(())

    monkeypatch.setattr("vimpac.train.update.update", note)
    Loop(run, run.config, run.world).run(quiet=True)
    rates = [lr_at(step, 3, run.config.optim) for step in range(3)]
    assert seen == [(True, pytest.approx(rate)) for rate in rates]


def test_training_reads_the_clips_of_the_settings_with_their_classes(store, labels):
    run = _begin(store, labels, "clips.frame_stride=2", "clips.variant=1", "seed=5")
    settings = dict(num_frames=2, clips_per_video=1, frame_stride=2, variant=1, seed=5)
    dataset = ClipDataset(run.store, **settings)
    keys = [*itertools.islice(ResumableSampler(8, global_batch=8, seed=5), 8)]
    clips, classes = next(iter(run.loader))
    assert torch.equal(clips, torch.cat([dataset[key] for key in keys]))
    assert run.classes == ["high", "low, even"]
    assert classes.tolist() == [1 - video % 2 for _, video in keys]


def test_clips_do_not_depend_on_the_workers(store, labels):
    drawn, judged = [], []
    for workers in (0, 2):
        run = _begin(store, labels, f"clips.workers={workers}", "clips.prefetch=1")
        with closing(read(run.loader)) as batches:
            drawn.append([*itertools.islice(batches, 3)])
        views = _views(run, [8, 9, 10, 11], clips=[3])
        found = over_views(lambda clips: clips, views, run.world, batch=2, workers=workers)
        judged.append(torch.cat([values for _, values in found]))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=0)
    assert torch.equal(*judged) and judged[0].shape == (12, 2, 4, 4)


def _views(run: Finetuning, videos: list[int], **more) -> EvenClips:
    settings = {"frames": 2, "stride": 1, "clips": [3], "variants": [0], **more}
    return EvenClips(run.store, videos, **settings)


def test_test_clips_are_evenly_spaced_and_padded_at_their_end(store, labels):
    run = _begin(store, labels)
    views = _views(run, [11, 0], stride=2, variants=[1])  # 3 frames from 1 to 2
    clips = torch.stack([views[i] for i in range(len(views))])
    assert len(clips) == 4 and views.chosen(1, 3).tolist() == [0, 0, 0]  # the same clip
    frames = torch.from_numpy(run.store.read(11, 0, 6, 1).astype(np.int32))
    assert torch.equal(clips[:3], torch.stack([frames[s : s + 3 : 2] for s in (0, 2, 3)]))
    short = torch.from_numpy(run.store.read(0, 0, 1, 1).astype(np.int32))
    assert torch.equal(clips[3, :1], short)
    assert (clips[3, 1] == PAD_TOKEN).all()


def test_video_is_judged_by_the_mean_probability_of_its_clips(store, labels):
    run = _begin(store, labels)
    views = _views(run, [8, 9, 10, 11], clips=[3])
    logits = torch.tensor([[0.0, 1.0], [5.0, 0.0], [0.0, 1.0]])  # the second outweighs the others

    def predict(clips: torch.Tensor) -> torch.Tensor:
        return logits.repeat(len(clips) // 3, 1)

    labels = torch.tensor([0, 0, 0, 1])
    verdicts = classify(predict, views, labels, 2, run.world, batch=6, workers=0)
    (scores,) = verdicts.scores(labels)
    assert (scores.clip_top1, scores.top1) == (pytest.approx(5 / 12), 0.75)
    assert (scores.clip_top5, scores.top5, scores.class_accuracy) == (1.0, 1.0, 0.5)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ranks_judge_every_video_once_and_run_equally_often(store, labels, size):
    views = _views(_begin(store, labels), [0, 5, 9, 11], clips=[1, 3])  # 1, 2, 3 and 4 views
    seen, calls = {}, []
    for rank in range(size):

        def look(clips: torch.Tensor) -> torch.Tensor:
            calls[-1] += 1
            return clips

        calls.append(0)
        world = World(torch.device("cpu"), rank, size)
        for place, values in over_views(look, views, world, batch=3, workers=0):
            assert place not in seen
            seen[place] = values
    assert len({*calls}) == 1 and sorted(seen) == [0, 1, 2, 3]
    for place, values in seen.items():
        assert torch.equal(values, torch.stack([views[i] for i in views.views_of(place)]))


def test_features_have_the_precision_and_the_padding_of_the_settings(store, labels):
    seen = []
    for words in (("clips.frames=1",), ("precision=bf16",)):
        run = _begin(store, labels, *words)
        run.model.encoder.register_forward_hook(lambda *call: seen.append(call[2].dtype))
        assert run.make_step().logits(next(iter(run.loader))[0]).dtype == torch.float32
        seen.append(run.has_padding)
    assert seen == [torch.float32, False, torch.bfloat16, True]  # the shortest video has a frame


def test_command_probes_a_model_directory(store, labels, tmp_path, capsys):
    save_model(Vimpac.from_preset("tiny", grid=(2, 4, 4)), tmp_path / "model")
    words = [*SETTINGS, f"data={store}", f"labels={labels}", f"out={tmp_path / 'run'}"]
    assert cli.main(["finetune", str(tmp_path / "model"), "--probe", "linear", *words]) == 0
    accuracy, folder = capsys.readouterr().out.splitlines()
    assert accuracy == "clips 1.0000 videos 1.0000 top-5 1.0000 mean of classes 1.0000"
    assert (Path(folder) / "model.safetensors").is_file()


def test_sweep_is_of_the_linear_probe(store, checkpoint, labels, tmp_path, capsys):
    config = _config(store, labels, tmp_path / "run", "sweep=true")
    assert finetune(config, checkpoint, probe="linear").video_accuracy == 1.0
    assert "weight decay 1, by a held-out tenth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines[:-2], "11.mp4,new,test"], "class 'new' of '11.mp4' is in no"),
        (lambda lines: lines[1:], "must begin with the line video,class,split"),
        (
            lambda lines: [line.replace("test", "train") for line in lines],
            "has the split 'test'",
        ),
    ],
)
def test_wrong_labels_are_one_line(store, checkpoint, tmp_path, capsys, change, message):
    labels = _write(tmp_path, change(_lines()))
    words = [*SETTINGS, f"data={store}", f"labels={labels}", f"out={tmp_path / 'run'}"]
    assert cli.main(["finetune", str(checkpoint), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_labels_in_another_encoding_are_one_line(store, checkpoint, labels, tmp_path, capsys):
    labels.write_bytes(labels.read_text(encoding="utf-8-sig").replace("high", "é").encode("cp1252"))
    words = [*SETTINGS, f"data={store}", f"labels={labels}", f"out={tmp_path / 'run'}"]
    assert cli.main(["finetune", str(checkpoint), *words]) == 2
    error = capsys.readouterr().err
    assert "labels.csv is not UTF-8" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["labels="], "labels= is missing: give a CSV file"),
        (["labels=/nonexistent.csv"], "labels=/nonexistent.csv: no such file"),
        (["data="], "data= is missing"),
        (["test_clips=0"], "test_clips=0 must lie in [1, 10,000]"),
        (["test_clips=1000000000"], "test_clips=1000000000 must lie in [1, 10,000]"),
        (["clips.frames=1000000000"], "clips.frames=1000000000 must lie in [1, 65,536]"),
        (["mask.blocks=3"], "unknown key 'mask.blocks'"),
        (["clips.max_distance=3"], "unknown key 'clips.max_distance'"),
        (["run.save_every=0"], "run.save_every=0 must be positive"),
        (["batch.micro=3"], "batch.micro=3 must divide the 8"),
    ],
)
def test_wrong_setting_is_one_line(store, checkpoint, labels, tmp_path, capsys, words, message):
    settings = [f"data={store}", f"labels={labels}", f"out={tmp_path / 'run'}", *SETTINGS]
    assert cli.main(["finetune", str(checkpoint), *settings, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_absent_and_damaged_checkpoints_are_named(store, checkpoint, labels, tmp_path, capsys):
    words = [f"data={store}", f"labels={labels}", f"out={tmp_path / 'run'}", *SETTINGS]
    assert cli.main(["finetune", "/nonexistent", *words]) == 2
    assert "/nonexistent is no model: it does not exist" in capsys.readouterr().err
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"nothing")
    assert cli.main(["finetune", str(copy), *words]) == 1
    assert f"{copy} is damaged" in capsys.readouterr().err
    shutil.copy(checkpoint / "model.safetensors", copy)
    text = (copy / "model.json").read_text()
    (copy / "model.json").write_text(text.replace('"layers": 2', '"layers": 3'))
    assert cli.main(["finetune", str(copy), *words]) == 1
    assert f"{copy} is damaged (model.json has another checksum" in capsys.readouterr().err
    (copy / "checksums.json").unlink()  # as of an older version
    assert cli.main(["finetune", str(copy), *words]) == 1
    assert f"{copy} is damaged (Error(s) in loading state_dict" in capsys.readouterr().err


def test_second_run_in_the_same_place_is_refused(store, checkpoint, labels, tmp_path, capsys):
    config = _config(store, labels, tmp_path / "run")
    finetune(config, checkpoint, probe="linear", quiet=True)
    words = [f"data={store}", f"labels={labels}", f"out={tmp_path / 'run'}", *SETTINGS]
    assert cli.main(["finetune", str(checkpoint), "--probe", "linear", *words]) == 2
    assert "has a checkpoint already: give another out=" in capsys.readouterr().err


def test_three_crops_are_tested_and_no_flip(checkpoint, tmp_path):
    names = tuple(map(str, parse_variants("finetune")))
    tokens = np.arange(12)[:, None, None, None] * np.ones((1, 6, 4, 4), np.int64)
    with TokenStoreWriter(tmp_path / "s", StoreMeta("patch", 8192, 4, 4, 2.0, names)) as writer:
        for video in ("a", "b"):
            writer.add(video, tokens)
        writer.finish()
    labels = _write(tmp_path, ["video,class,split", "a,x,train", "b,x,test"])
    config = _config(tmp_path / "s", labels, tmp_path / "run", "test_clips=2")
    run = Finetuning(config, load_encoder(checkpoint)[0], World(torch.device("cpu")))
    views = run.views(run.splits["test"])
    seen = [names[views[i][0, 0, 0]] for i in range(len(views))]
    assert seen == [f"1x-{crop}" for crop in ("topleft", "center", "bottomright") for _ in (0, 1)]
