"""`vimpac evaluate` finds what the classifier is worth, and says so in numbers and files."""

import csv
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vimpac.runs import ON_TWO_RANKS, run_process
from vimpac import VideoClassifier, Vimpac, cli, load_classifier, save_model
from vimpac.checkpoints.description import DataFacts
from vimpac.checkpoints.model_dir import read_description
from vimpac.config import FinetuneConfig
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError
from vimpac.eval.evaluate import evaluate
from vimpac.eval.report import Report, score
from vimpac.settings import load_config
from vimpac.train.finetune import FinetuneResult, finetune

pytestmark = pytest.mark.usefixtures("one_thread")

CROPS = ("1x-topleft", "1x-center", "1x-bottomright", "1x-center-flip")
COMMON = ("device=cpu", "precision=fp32")


def write_store(path: Path, *, fps: float = 2.0, tokenizer: str = "patch", side: int = 4) -> Path:
    """Fifteen videos of 1 to 15 frames in four variants; a third has ids above 100, 200."""
    rng = np.random.default_rng(0)
    meta = StoreMeta(tokenizer, 8192, side, side, fps, CROPS)
    with TokenStoreWriter(path, meta) as writer:
        for video in range(15):
            ids = 100 * (video % 3) + rng.integers(0, 90, (4, 1 + video, side, side))
            writer.add(f"{video}.mp4", ids)
        writer.finish()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store, its labels, and two classifiers with dropout that were trained a little."""
    path = tmp_path_factory.mktemp("data")
    write_store(path / "store")
    lines = [f"{i}.mp4,{'abc'[i % 3]},{'test' if i > 6 else 'train'}" for i in range(15)]
    (path / "labels.csv").write_text("\n".join(["video,class,split", *lines]) + "\n")
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_model(Vimpac.from_preset("tiny", grid=(2, 4, 4)), path / f"model{seed}")
    return path


def _finetune(folder: Path, number: int) -> FinetuneResult:
    words = ["clips.frames=2", "clips.workers=0", "test_clips=3", "batch=7", "optim.steps=3"]
    words += ["run.tensorboard=false", f"out={folder / f'run{number}'}", *_data(folder), *COMMON]
    config = load_config(FinetuneConfig, None, words)
    return finetune(config, folder / f"model{number}", quiet=True)


def _data(folder: Path) -> list[str]:
    return [f"data={folder / 'store'}", f"labels={folder / 'labels.csv'}"]


@pytest.fixture(scope="module")
def results(folder) -> list[FinetuneResult]:
    return [_finetune(folder, number) for number in (0, 1)]


def _settings(folder: Path, **more) -> dict:
    paths = {"data": folder / "store", "labels": folder / "labels.csv"}
    return {**paths, "device": "cpu", "precision": "fp32", "workers": 0, **more}


def test_evaluation_is_the_test_of_the_finetuning(folder, results):
    for result in results:
        best = evaluate(result.checkpoint, **_settings(folder), clips=(3,)).best
        assert (best.clip_top1, best.top1) == (result.clip_accuracy, result.video_accuracy)
        assert best.top5 == result.top5_accuracy == 1.0  # of three classes
        assert best.class_accuracy == result.class_accuracy


def test_one_pass_over_many_clips_gives_the_scores_of_a_pass_over_few(folder, results):
    path = results[0].checkpoint
    together = evaluate(path, **_settings(folder, batch=5), clips=(10, 1, 2))
    assert [scores.clips for scores in together.scores] == [1, 2, 10]
    for clips, scores in zip((1, 2, 10), together.scores, strict=True):
        alone = evaluate(path, **_settings(folder), clips=(clips,))
        assert alone.best == scores
        assert alone.facts["views"] <= together.facts["views"]
    torch.testing.assert_close(alone.probabilities, together.probabilities)


def test_probabilities_are_means_over_clips_and_crops(folder, results):
    model, classes = load_classifier(results[0].checkpoint)
    report = evaluate(
        results[0].checkpoint, **_settings(folder), clips=(2,), crops="1x-topleft,1x-center"
    )
    assert report.classes == classes == ["a", "b", "c"] and report.names[-1] == "14.mp4"
    tokens = TokenStore(folder / "store")
    clips = [
        torch.from_numpy(tokens.read(14, start, start + 2, crop).astype(np.int64))
        for crop in (0, 1)
        for start in (0, 13)
    ]
    with torch.no_grad():
        expected = model(torch.stack(clips)).softmax(-1).mean(0)
    torch.testing.assert_close(report.probabilities[-1], expected)


def test_ensemble_is_the_mean_of_its_members(folder, results):
    paths = [result.checkpoint for result in results]
    both = evaluate(paths, **_settings(folder), clips=(2,))
    parts = [evaluate(path, **_settings(folder), clips=(2,)).probabilities for path in paths]
    torch.testing.assert_close(both.probabilities, (parts[0] + parts[1]) / 2)
    assert both.best.clip_top1 is None and not torch.equal(*parts)


def test_store_at_twice_the_rate_is_read_with_twice_the_stride(folder, results, tmp_path):
    write_store(tmp_path / "fast", fps=4.0)
    once = evaluate(results[0].checkpoint, **_settings(folder, data=tmp_path / "fast"), clips=(1,))
    with torch.no_grad():
        model, _ = load_classifier(results[0].checkpoint)
        frames = TokenStore(tmp_path / "fast").read(14, 6, 9, 1)[::2].astype(np.int64)
        expected = model(torch.from_numpy(frames)[None]).softmax(-1)
    one_crop = evaluate(
        results[0].checkpoint,
        **_settings(folder, data=tmp_path / "fast"),
        clips=(1,),
        crops="center",
    )
    torch.testing.assert_close(one_crop.probabilities[-1:], expected)
    assert once.best.videos == 8


def test_videos_that_the_store_lacks_are_told(folder, results, tmp_path, capsys):
    labels, said = tmp_path / "more.csv", []
    labels.write_text((folder / "labels.csv").read_text() + "99.mp4,a,test\n98.mp4,a,train\n")
    settings = _settings(folder, labels=labels, clips=1, say=said.append)
    report = evaluate(results[0].checkpoint, **settings)
    assert said == [f"1 of the 9 test videos of {labels} are not in the store"]
    assert report.facts["missing_videos"] == 1 and report.best.videos == 8
    words = [f"data={folder / 'store'}", f"labels={labels}", *COMMON, "workers=0"]
    assert cli.main(["knn", str(folder / "model0"), *words]) == 0
    assert "1 of the 8 train videos of" in capsys.readouterr().err


def test_larger_map_is_read_and_told(folder, results, tmp_path):
    said = []
    write_store(tmp_path / "large", side=6)
    settings = _settings(folder, data=tmp_path / "large", clips=1, say=said.append)
    assert evaluate(results[0].checkpoint, **settings).best.videos == 8
    assert said == [
        f"the token map is 6 x 6, {results[0].checkpoint} has 4 x 4: positions are interpolated"
    ]


def test_command_writes_the_report(folder, results, tmp_path, capsys):
    words = ["evaluate", str(results[0].checkpoint), *_data(folder), *COMMON, "workers=0"]
    out = tmp_path / "report"
    assert cli.main([*words, "--clips", "1,3", "--out", str(out)]) == 0
    head, _, one, three, path = capsys.readouterr().out.splitlines()
    assert head.startswith("8 videos, 3 classes, crops 1x-topleft, 1x-center, 1x-bottomright, ")
    assert (one.split()[0], three.split()[0], path) == ("1", "3", str(out))
    values = json.loads((out / "report.json").read_text())
    best = values["scores"][-1]
    assert best["top1"] == results[0].video_accuracy and best["clips"] == 3
    low, high = best["top1_interval"]
    assert low <= best["top1"] <= high and f"{100 * low:.1f}-{100 * high:.1f}" in three
    assert sum(row["videos"] for row in values["per_class"]) == 8
    with (out / "predictions.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["video"] for row in rows] == [f"{i}.mp4" for i in range(7, 15)]
    right = sum(row["class"] == row["predicted"] for row in rows)
    assert right / 8 == best["top1"]
    for row in rows:
        top5 = json.loads(row["top5"])
        assert top5[0][0] == row["predicted"] and len(top5) == 3
        assert sum(p for _, p in top5) == pytest.approx(1, abs=1e-5)
    assert (out / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*words, "--out", str(out)]) == 2
    assert "exists: remove it or name another directory" in capsys.readouterr().err


def test_report_is_written_though_nobody_reads_what_is_printed(
    folder, results, tmp_path, monkeypatch
):
    def close(line: str) -> str:
        raise BrokenPipeError

    monkeypatch.setattr("vimpac.commands.evaluate.on_one_line", close)
    words = ["evaluate", str(results[0].checkpoint), *_data(folder), *COMMON, "workers=0"]
    assert cli.main([*words, "--clips", "1", "--out", str(tmp_path / "report")]) == 1
    assert len([*(tmp_path / "report").iterdir()]) == 3


def test_full_disk_is_named_and_leaves_nothing(folder, results, tmp_path, monkeypatch, capsys):
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vimpac.eval.report.draw_confusion", fill)
    words = ["evaluate", str(results[0].checkpoint), *_data(folder), *COMMON, "workers=0"]
    assert cli.main([*words, "--clips", "1", "--out", str(tmp_path / "report")]) == 1
    said = capsys.readouterr()
    assert f"disk full writing {tmp_path / 'report'}: free some space" in said.err
    assert said.out.startswith("8 videos") and [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("out", ["file/report", "file/a/report", "link"])
def test_place_where_no_report_can_be_is_refused_before_the_work(
    folder, results, tmp_path, capsys, out
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    words = ["evaluate", str(results[0].checkpoint), *_data(folder), *COMMON]
    assert cli.main([*words, "--out", str(tmp_path / out)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith(f"vimpac: --out {tmp_path / out}")
    assert said.err.endswith(": name another directory\n" if out != "link" else "directory\n")


def test_of_equal_classes_the_first_is_predicted_everywhere(tmp_path):
    classes = [f"class {number}" for number in range(40)]
    labels = torch.tensor([0, 1, 2])
    scores = torch.full((3, 40), 1 / 40)
    report = Report(classes, ["x", "y", "z"], labels, scores, [score(scores, labels, 1)])
    report.write(tmp_path / "report")
    with (tmp_path / "report" / "predictions.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [row["predicted"] for row in rows] == 3 * ["class 0"]
    assert [name for name, _ in json.loads(rows[0]["top5"])] == classes[:5]
    assert report.confusion()[:, 0].tolist() == [1, 1, 1, *37 * [0]]


def test_report_of_very_many_classes_has_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("vimpac.eval.report.MOST_DRAWN", 3)
    for classes, names in ((3, {"report.json", "predictions.csv", "confusion.png"}),
                           (4, {"report.json", "predictions.csv"})):  # fmt: skip
        labels, scores = torch.tensor([0]), torch.full((1, classes), 1 / classes)
        report = Report([*"abcd"][:classes], ["x"], labels, scores, [score(scores, labels, 1)])
        report.write(tmp_path / str(classes))
        assert {file.name for file in (tmp_path / str(classes)).iterdir()} == names


def test_two_ranks_write_the_report_of_one(folder, results, tmp_path):
    words = ["-m", "vimpac", "evaluate", str(results[0].checkpoint), *_data(folder), *COMMON]
    words += ["workers=0", "--clips", "2", "--out"]
    run_process(*ON_TWO_RANKS, *words, str(tmp_path / "two"))
    report = evaluate(results[0].checkpoint, **_settings(folder), clips=(2,))
    report.write(tmp_path / "one")
    for name in ("predictions.csv", "confusion.png"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clips", "0"], "--clips 0: give a positive number"),
        (["--clips", "2,x"], "--clips 2,x: give a positive number"),
        (["--crops", "left"], "--crops=left: the store has no variant 'left'"),
        (["--split", "val"], "has the split 'val', only 'test', 'train'"),
        (["data="], "data= is missing"),
        (["labels="], "labels= is missing"),
        (["batch=0"], "batch=0 must be positive"),
        (["clips.frames=2"], "unknown key 'clips.frames'"),
        (["x=1"], "unknown key 'x' in x=1: the keys are data, cache, cache_gb, labels, batch,"),
    ],
)
def test_wrong_argument_is_one_line(folder, results, tmp_path, capsys, words, message):
    command = ["evaluate", str(results[0].checkpoint), *_data(folder), *COMMON]
    assert cli.main([*command, *words, "--out", str(tmp_path / "report")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_store_or_labels_of_something_else_are_refused(folder, results, tmp_path):
    path = results[0].checkpoint
    write_store(tmp_path / "odd", fps=3.0)
    with pytest.raises(UsageError, match=r"frames 0.5 s apart, .* at 3 frames .* tokenise at 2 fr"):
        evaluate(path, **_settings(folder, data=tmp_path / "odd"))
    write_store(tmp_path / "other", tokenizer="other")
    with pytest.raises(UsageError, match="tokens of the tokenizer 'patch', .* 'other'"):
        evaluate(path, **_settings(folder, data=tmp_path / "other"))
    labels = tmp_path / "labels.csv"
    labels.write_text("video,class,split\n1.mp4,a,test\n2.mp4,new,test\n")
    with pytest.raises(UsageError, match="line 3: the classifier does not know the class 'new'"):
        evaluate(path, **_settings(folder, labels=labels))
    with pytest.raises(UsageError, match="model0 holds no classifier"):
        evaluate(folder / "model0", **_settings(folder))
    other = VideoClassifier(Vimpac.from_preset("tiny", grid=(2, 4, 4)).encoder, 2)
    save_model(other, tmp_path / "other-classes", classes=["a", "b"])
    with pytest.raises(UsageError, match="other-classes tells other classes apart than"):
        evaluate([path, tmp_path / "other-classes"], **_settings(folder))
    turned = VideoClassifier(other.encoder, 3)
    save_model(turned, tmp_path / "turned", classes=["c", "b", "a"])
    with pytest.raises(UsageError, match="turned has the classes in another order than"):
        evaluate([path, tmp_path / "turned"], **_settings(folder))


def test_damaged_video_ends_the_test_or_is_left_out(folder, results, tmp_path, capsys):
    shutil.copytree(folder / "store", tmp_path / "store")
    shard = tmp_path / "store" / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of the last video, in the last variant
    shard.write_bytes(data)
    words = ["evaluate", str(results[0].checkpoint), f"data={tmp_path / 'store'}", *COMMON]
    words += [f"labels={folder / 'labels.csv'}", "--crops", CROPS[-1], "--clips", "1,9"]
    for workers in ("workers=0", "workers=1"):
        assert cli.main([*words, workers]) == 1
        error = capsys.readouterr().err
        assert "'14.mp4': copy the file again" in error
        assert error.endswith("leave such videos out with clips.skip_damaged=true\n")
        assert error.count("\n") == 1
    assert cli.main([*words, "workers=0", "clips.skip_damaged=true"]) == 0
    said = capsys.readouterr()
    assert said.err == "vimpac: 1 of 15 videos are damaged and left out: '14.mp4'\n"
    assert said.out.startswith("7 videos, ")


def test_model_that_does_not_say_its_data_reads_frame_by_frame(folder, tmp_path):
    encoder = Vimpac.from_preset("tiny", grid=(2, 4, 4)).encoder
    save_model(VideoClassifier(encoder, 3), tmp_path / "bare", classes=["a", "b", "c"])
    said = []
    report = evaluate(tmp_path / "bare", **_settings(folder), clips=(1,), say=said.append)
    assert report.best.videos == 8 and "does not say what it was trained on" in said[0]


def test_facts_of_the_data_are_those_of_the_store(results, folder):
    data = read_description(results[0].checkpoint).data
    assert data is not None and data.same_interval(DataFacts("patch", "", 4.0, 2, 4, 4))
