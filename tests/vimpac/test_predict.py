"""`vimpac predict` says of a file what `vimpac evaluate` says of its tokens."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.vimpac.videos import write_moving, write_video
from vimpac import VideoClassifier, Vimpac, cli, save_model
from vimpac.checkpoints.description import DataFacts
from vimpac.data.store_format import StoreMeta
from vimpac.data.tokenize import TokenizeSettings, tokenize_videos
from vimpac.data.variants import parse_variants
from vimpac.data.video import UnreadableVideo
from vimpac.errors import UsageError
from vimpac.eval.evaluate import evaluate
from vimpac.eval.predict import Predictor

pytestmark = pytest.mark.usefixtures("one_thread")

VARIANTS = parse_variants("finetune")
SETTINGS = TokenizeSettings(fps=Fraction(5), size=32, variants=VARIANTS)
CLASSES = ["dance", "run", "swim"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three videos, of which one is shorter than a clip, their store and labels, a classifier."""
    path = tmp_path_factory.mktemp("data")
    (path / "videos").mkdir()
    write_moving(path / "videos" / "a.mp4", "mpeg4", frames=60)
    write_moving(path / "videos" / "b.mkv", "mpeg4", frames=45, b_frames=2)
    write_video(path / "videos" / "c.mp4", [0, 40, 80])
    names = sorted(file.name for file in (path / "videos").iterdir())
    videos = [(name, path / "videos" / name) for name in names]
    store = tokenize_videos(videos, path / "store", SETTINGS)
    lines = [f"{name},{label},test" for name, label in zip(names, CLASSES, strict=True)]
    (path / "labels.csv").write_text("\n".join(["video,class,split", *lines]) + "\n")
    torch.manual_seed(0)
    model = VideoClassifier(Vimpac.from_preset("tiny", grid=(3, 4, 4)).encoder, 3)
    torch.nn.init.normal_(model.classifier.weight, std=0.3)  # so that the classes differ
    save_model(model, path / "model", classes=CLASSES, data=DataFacts.of(store.meta, 2))
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_file_is_classified_as_its_tokens_are(folder, workers):
    settings = {"device": "cpu", "precision": "fp32", "workers": 0, "clips": 4}
    report = evaluate(folder / "model", folder / "store", folder / "labels.csv", **settings)
    predictor = Predictor(folder / "model", clips=4, device="cpu", precision="fp32")
    videos = [(name, folder / "videos" / name) for name in report.names]
    found = [*predictor.predict(videos, workers=workers)]
    assert [prediction.name for prediction in found] == ["a.mp4", "b.mkv", "c.mp4"]
    for prediction, expected in zip(found, report.probabilities, strict=True):
        p = torch.tensor([p for _, p in sorted(prediction.classes)])
        torch.testing.assert_close(p, expected)
        assert [p for _, p in prediction.classes] == sorted(p.tolist(), reverse=True)
    assert [prediction.note for prediction in found] == [
        "",
        "",
        "1 of the 5 frames of a clip: padded",
    ]
    assert predictor(folder / "videos/a.mp4") == found[0].classes


def test_all_crops_are_those_of_the_training(folder, tmp_path):
    model = VideoClassifier(Vimpac.from_preset("tiny", grid=(3, 4, 4)).encoder, 3)
    for number, (names, expected) in enumerate(
        [
            (tuple(map(str, VARIANTS)), "1x-topleft,1x-center,1x-bottomright"),
            (("1x-center",), "1x-center"),
            ((), "1x-center"),  # an older checkpoint does not say it
            (("0", "1"), "1x-center"),  # nor does a converted LMDB
        ]
    ):
        data = DataFacts("patch", "", 5.0, 2, 4, 4, names)
        save_model(model, tmp_path / str(number), classes=CLASSES, data=data)
        made = Predictor(tmp_path / str(number), device="cpu").settings
        assert made.variants == parse_variants(expected)
        assert (made.fps, made.size, made.tokenizer) == (5, 32, "patch")
    chosen = Predictor(folder / "model", crops="1.25x-center-flip", device="cpu").settings
    assert [str(variant) for variant in chosen.variants] == ["1.25x-center-flip"]


def test_command_prints_a_line_for_each_video_and_lists_what_it_cannot_read(
    folder, tmp_path, capsys
):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    (tmp_path / "-odd,[name].mp4").write_bytes((folder / "videos/a.mp4").read_bytes())
    words = ["predict", str(folder / "model"), str(tmp_path), str(folder / "videos/b.mkv")]
    options = ["--device", "cpu", "--clips", "2", "--top", "2", "--workers", "0"]
    assert cli.main([*words, *options]) == 1
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["-odd,[name].mp4", "b.mkv"]
    assert all(line.count("%") == 2 for line in lines)
    assert "broken.mp4: " in err and err.endswith("vimpac: 1 of 3 videos could not be read\n")
    assert cli.main([*words, *options, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["video"] for row in rows] == ["-odd,[name].mp4", "broken.mp4", "b.mkv"]
    assert rows[1]["classes"] == [] and rows[1]["note"]
    assert [len(row["classes"]) for row in rows] == [2, 0, 2]


def test_json_of_the_command_is_all_that_it_prints(folder):
    words = ["predict", str(folder / "model"), str(folder / "videos/a.mp4"), "--json"]
    command = [sys.executable, "-m", "vimpac", *words, "--device", "cpu", "--top", "9"]
    done = subprocess.run(command, capture_output=True, check=True)
    (row,) = json.loads(done.stdout)
    assert sorted(entry["class"] for entry in row["classes"]) == CLASSES
    assert sum(entry["p"] for entry in row["classes"]) == pytest.approx(1, abs=1e-5)


def test_video_that_cannot_be_read_raises_in_python(folder, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(UnreadableVideo):
        Predictor(folder / "model", device="cpu")(tmp_path / "x.mp4")


def test_memory_that_runs_out_is_one_line(folder, monkeypatch, capsys):
    def run_out(*_: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(VideoClassifier, "forward", run_out)
    words = ["predict", str(folder / "model"), str(folder / "videos/a.mp4"), "--device", "cpu"]
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.endswith("vimpac: memory ran out, lower the batch: CUDA out of memory.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clips", "0"], "--clips 0: give a positive number"),
        (["--clips", "1,2"], "--clips 1,2: give one number"),
        (["--top", "0"], "--top 0 must be positive"),
        (["--batch", "0"], "batch=0 must be positive"),
        (["--crops", "left"], "unknown variant 'left'"),
        (["--workers", "-1"], "--workers -1 must not be negative"),
        (["--video-timeout", "0"], "--video-timeout 0 must be positive"),
        (["--weights", "w.pt"], "the tokenizer 'patch' has no weights"),
        (["--device", "tpu"], "device=tpu: give auto, cpu or cuda"),
    ],
)
def test_wrong_argument_is_one_line(folder, capsys, words, message):
    video = str(folder / "videos/a.mp4")
    assert cli.main(["predict", str(folder / "model"), video, *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_model_that_cannot_predict_says_why(folder, tmp_path):
    encoder = Vimpac.from_preset("tiny", grid=(3, 4, 4)).encoder
    save_model(VideoClassifier(encoder, 3), tmp_path / "bare", classes=CLASSES)
    with pytest.raises(UsageError, match="bare does not say what it was trained on: tokenise"):
        Predictor(tmp_path / "bare")
    save_model(Vimpac.from_preset("tiny"), tmp_path / "encoder")
    with pytest.raises(UsageError, match="encoder holds no classifier"):
        Predictor(tmp_path / "encoder")
    data = DataFacts("patch", "ab" * 32, 5.0, 1, 4, 4)
    save_model(VideoClassifier(encoder, 3), tmp_path / "other", classes=CLASSES, data=data)
    with pytest.raises(UsageError, match="reads tokens of .* with the weights abababababab"):
        Predictor(tmp_path / "other")


def test_facts_of_older_checkpoints_have_no_variants(folder, tmp_path):
    meta = StoreMeta("patch", 8192, 4, 4, 5.0, ("x", "y"))
    facts = DataFacts.of(meta, 1)
    assert facts.variants == ("x", "y")
    encoder = Vimpac.from_preset("tiny", grid=(3, 4, 4)).encoder
    save_model(VideoClassifier(encoder, 3), tmp_path / "m", classes=CLASSES, data=facts)
    text = (tmp_path / "m/model.json").read_text()
    values = json.loads(text)
    assert values["data"].pop("variants") == ["x", "y"]
    (tmp_path / "m/model.json").write_text(json.dumps({**values, "format": 3}))
    (tmp_path / "m/checksums.json").unlink()
    assert Predictor(tmp_path / "m", device="cpu").data.variants == ()
