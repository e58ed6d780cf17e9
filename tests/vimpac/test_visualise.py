"""`vimpac visualise` draws what it prints, and refuses what it cannot draw."""

import itertools
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image

from tests.vimpac.runs import make_store
from tests.vimpac.videos import write_moving, write_video
from vimpac import Vimpac, cli, load_model, save_model
from vimpac.checkpoints.description import DataFacts
from vimpac.data.labels import read_classes
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.data.tokenize import TokenizeSettings, tokenize_videos
from vimpac.errors import UsageError, VimpacError
from vimpac.pictures.clip import (
    even_clips,
    find_video,
    open_tokenizer,
    original_frames,
    read_clip,
)
from vimpac.pictures.masks import hide
from vimpac.pictures.predictions import predict_tokens
from vimpac.pictures.sheet import DPI, Sheet
from vimpac.tokenizers import dalle, get_tokenizer
from vimpac.tokens import PAD_TOKEN

pytestmark = pytest.mark.usefixtures("one_thread")

ACTIONS = ("masks", "samples", "neighbours", "predictions", "attention")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two videos and one of a single frame, their store and labels, a model of clips (3, 4, 4)."""
    path = tmp_path_factory.mktemp("data")
    (path / "videos").mkdir()
    write_moving(path / "videos" / "a.mp4", "mpeg4", frames=75)
    write_moving(path / "videos" / "b.mp4", "mpeg4", frames=50)
    write_video(path / "videos" / "one.mp4", [0])
    videos = [(file.name, file) for file in sorted((path / "videos").iterdir())]
    store = tokenize_videos(videos, path / "store", TokenizeSettings(fps=Fraction(5), size=32))
    (path / "labels.csv").write_text("video,class,split\na,run,train\nb.mp4,swim,extra\n")
    torch.manual_seed(0)
    model = Vimpac.from_preset("tiny", grid=(3, 4, 4))
    save_model(model, path / "model", data=DataFacts.of(store.meta, 2))
    save_model(model, path / "other", data=DataFacts("dalle", "f" * 64, 5.0, 2, 4, 4))
    return path


def _run(folder: Path, action: str, *words: str, out: Path | str, model: str = "model") -> int:
    checkpoint = [str(folder / model)] if action in ("predictions", "attention") else []
    return cli.main(
        ["visualise", action, *checkpoint, f"data={folder / 'store'}", "--out", str(out), *words]
    )


@pytest.mark.parametrize("action", ACTIONS)
def test_action_draws_a_picture_and_prints_numbers(folder, tmp_path, capsys, action):
    out = tmp_path / "picture.png"
    words = () if action == "samples" else ("--video", str(folder / "videos" / "b.mp4"))
    assert _run(folder, action, *words, "--seed", "7", out=out) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("seed 7") and printed[-1] == str(out)
    if action != "samples":
        assert printed[0].startswith("video 'b.mp4' from 0.")
    assert len(printed) >= 5
    pixels = image.imread(out)
    assert min(pixels.shape[:2]) > 300 and pixels.std() > 0.1
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_same_seed_draws_the_same_picture(folder, tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        words = ("--seed", seed, "--sample", "1.0")
        assert _run(folder, "predictions", *words, out=tmp_path / f"{name}.png") == 0
    first, same, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == same and first != other


def test_printed_accuracy_is_that_of_the_masked_clip(folder, tmp_path, capsys):
    words = ("--name", "b", "--seed", "5", "--blocks", "3", "--start", "0.4", "device=cpu")
    assert _run(folder, "predictions", *words, out=tmp_path / "a.png") == 0
    printed = capsys.readouterr().out
    store, model = TokenStore(folder / "store"), load_model(folder / "model").eval()
    clip = read_clip(store, 1, frames=3, stride=2, start=2)
    assert (clip.tokens.numpy() == store.read(1, 2, 7)[::2]).all()
    mask = hide(clip.tokens[None], "block", blocks=3, seed=5)
    filled = predict_tokens(model, clip.tokens[None], mask)
    right = float((filled[0] == clip.tokens)[mask[0]].float().mean())
    assert re.search(rf"^model +{right:.1%} ", printed, flags=re.M)
    assert re.search(rf"^masked tokens +{int(mask.sum())} ", printed, flags=re.M)
    assert "chance " in printed and " 0.01%" in printed
    assert "The model is no better than" in printed  # it was never trained


def test_classes_of_samples_are_printed_whatever_their_split(folder, tmp_path, capsys):
    labels = f"labels={folder / 'labels.csv'}"
    assert read_classes(str(folder / "labels.csv"), TokenStore(folder / "store")) == {
        0: "run",
        1: "swim",
    }
    assert _run(folder, "samples", labels, out=tmp_path / "a.png") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "2 of 3 videos, of 2 classes, seed 0"
    assert [line.split()[:2] for line in printed[2:4]] == [["a.mp4", "run"], ["b.mp4", "swim"]]


@pytest.mark.parametrize("action", ACTIONS)
def test_video_of_one_frame_is_shown(folder, tmp_path, capsys, monkeypatch, action):
    drawn, write = list[Sheet](), Sheet.write
    monkeypatch.setattr(Sheet, "write", lambda self, path: (drawn.append(self), write(self, path)))
    words = ("--videos", "3") if action == "samples" else ("--name", "one")
    assert _run(folder, action, *words, out=tmp_path / "a.png") == 0
    expected = "one.mp4" if action == "samples" else "(1 there are, the others are PAD)"
    ((figure,), printed) = [sheet.figure for sheet in drawn], capsys.readouterr().out
    written = "".join(text.get_text() for text in figure.texts)
    assert expected in printed and "nan" not in printed + written
    _check_words(figure)
    if action == "neighbours":  # three boxes hide nothing of the only frame, nor do copies change
        assert re.search(r"block, 3 boxes, spatial +0\.0% +- +- ", printed)
        assert "copies right: spatial -, spatio-temporal -" in written
    if action == "attention":
        assert re.search(r"time +(49|50)\.\d% +1\.\d ", printed)  # of 1 frame


def _check_words(figure) -> None:
    """The words lie in the picture, and none on others."""
    figure.set_dpi(DPI)  # as it was written
    boxes = [text.get_window_extent() for text in figure.texts]
    page = figure.bbox
    for box in boxes:
        assert page.x0 <= box.x0 < box.x1 <= page.x1 and page.y0 <= box.y0 < box.y1 <= page.y1
    assert not any(box.overlaps(other) for box, other in itertools.combinations(boxes, 2))


def test_pixels_are_those_that_were_tokenised(folder):
    store, tokenizer = TokenStore(folder / "store"), get_tokenizer("patch")
    clip = read_clip(store, 0, frames=3, stride=4)
    assert clip.start == (15 - 9) / 2 and clip.titles == ["0.60 s", "1.40 s", "2.20 s"]
    frames, same = original_frames(folder / "videos/a.mp4", clip, store.meta, tokenizer)
    assert frames.shape == (3, 32, 32, 3) and same == 1
    ids = tokenizer.encode(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    assert (ids == clip.tokens.numpy()).all()
    with pytest.raises(UsageError, match=r"one\.mp4 ends before 2\.2 s: it is another video"):
        original_frames(folder / "videos/one.mp4", clip, store.meta, tokenizer)
    grey = write_video(folder / "grey.mp4", range(0, 4000, 40))
    with pytest.raises(UsageError, match=r"grey\.mp4 is not 'a\.mp4' of the store"):
        original_frames(grey, clip, store.meta, tokenizer)
    with pytest.raises(UsageError, match="does not say how its frames '0' were cut"):
        meta = StoreMeta("patch", 8192, 4, 4, 5.0, ("0",))
        original_frames(folder / "videos/a.mp4", clip, meta, tokenizer)


def test_times_of_long_videos_are_whole_seconds(tmp_path, capsys):
    with TokenStoreWriter(tmp_path / "store", StoreMeta("patch", 8192, 2, 2, 0.01)) as writer:
        writer.add("a", np.zeros((1, 60, 2, 2), np.int32))
        writer.finish()
    words = [f"data={tmp_path / 'store'}", "--out"]
    assert cli.main(["visualise", "samples", *words, str(tmp_path / "a.png")]) == 0
    assert re.search(r"^a +- +60 +6000 s$", capsys.readouterr().out, flags=re.M)
    words += [str(tmp_path / "b.png"), "--start", "1234"]
    assert cli.main(["visualise", "masks", *words]) == 0
    assert "video 'a' from 1200 s: 5 frames 100 s apart" in capsys.readouterr().out


def test_even_clips_are_spread_over_videos_and_time(folder):
    store = TokenStore(folder / "store")
    clips = even_clips(store, frames=5, most=9)
    assert clips.shape == (3 + 3 + 1, 5, 4, 4)
    for clip, start in zip(clips[:3], (0, 5, 10), strict=True):
        assert (clip.numpy() == store.read(0, start, start + 5)).all()
    assert (clips[6, 1:] == PAD_TOKEN).all()
    assert len(even_clips(store, frames=2, most=2)) == 2


def test_video_is_found_by_the_end_of_its_path(folder):
    store = TokenStore(folder / "store")
    names = ("a.mp4", "b", "/somewhere/one.mp4")
    assert [find_video(store, name) for name in names] == [0, 1, 2]
    with pytest.raises(UsageError, match="'c' names no video of the store: it has 'c', the store"):
        find_video(store, "c")


@pytest.mark.parametrize(
    ("action", "words", "message"),
    [
        ("masks", ["--name", "c"], "'c' names no video of the store"),
        ("masks", ["--blocks", "-1"], "--blocks -1 must lie in [0, 65,536]"),
        ("masks", ["--ratio", "1.5"], "--ratio 1.5 must lie in [0, 1]"),
        ("masks", ["--seed", "-1"], "--seed -1 must lie in [0, 2^63)"),
        ("masks", ["--start", "9"], "no frame is 9 s into 'a.mp4', which has 15 at 5 per second"),
        ("masks", ["--start", "1e308"], "--start 1e+308 must be a time of the video, in seconds"),
        ("masks", ["--name", ""], "--name is empty: give the name of a video of the store"),
        ("masks", ["--start", "nan"], "--start nan must be a time of the video, in seconds"),
        ("masks", ["clips.frames=40"], "a clip of 40 frames is too long for a picture"),
        ("masks", ["clip=3"], "unknown key 'clip' in clip=3"),
        ("masks", ["--weights", "w.pt"], "the tokenizer 'patch' has no weights"),
        ("samples", ["--videos", "0"], "--videos 0 must lie in [1, 20]"),
        ("samples", ["labels=none.csv"], "labels=none.csv: no such file"),
        ("neighbours", ["--ratio", "0.1,x"], "--ratio 0.1,x: give one to four shares"),
        ("neighbours", ["--ratio", "1"], "--ratio 1: give one to four shares"),
        ("predictions", ["--sample", "0"], "--sample 0 must be positive and finite"),
        ("predictions", ["--blocks", "0"], "--blocks 0 hides no token, so there is none"),
        ("predictions", ["--strategy", "iid", "--ratio", "0"], "--ratio 0 hides no token"),
        ("predictions", ["--name", "one", "--blocks", "1"], "--seed 0 hides no token of this clip"),
        ("predictions", ["device=tpu"], "device=tpu: give auto, cpu or cuda"),
        ("attention", ["--layer", "0"], "layer 0 must lie in [1, 2]"),
    ],
)
def test_wrong_argument_is_one_line(folder, tmp_path, capsys, action, words, message):
    assert _run(folder, action, *words, out=tmp_path / "a.png") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("action", ["predictions", "attention"])
def test_checkpoint_of_another_tokenizer_is_refused(folder, tmp_path, capsys, action):
    assert _run(folder, action, out=tmp_path / "a.png", model="other") == 2
    assert "was trained on tokens of the tokenizer 'dalle'" in capsys.readouterr().err
    assert cli.main(["visualise", action, f"data={folder / 'store'}"]) == 2
    assert "the checkpoint is missing" in capsys.readouterr().err


@pytest.mark.parametrize("action", ACTIONS)
def test_file_is_checked_before_all_work(folder, tmp_path, capsys, action):
    there = tmp_path / "a.png"
    there.write_text("mine")
    assert _run(folder, action, out=there) == 2
    assert "a.png exists already: remove it or name another file" in capsys.readouterr().err
    assert there.read_text() == "mine"
    assert _run(folder, action, out=tmp_path / "a.jpg") == 2
    assert "a.jpg must end in .png" in capsys.readouterr().err
    assert _run(folder, action, out=tmp_path / "no" / "a.png") == 2
    assert "needs the directory" in capsys.readouterr().err


def test_disk_that_fails_leaves_no_file(folder, tmp_path, capsys, monkeypatch):
    from matplotlib.figure import Figure

    def fail(self, path, **_) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(Figure, "savefig", fail)
    assert _run(folder, "masks", out=tmp_path / "a.png") == 1
    assert f"disk full writing {tmp_path / 'a.png'}" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_tokenizer_without_weights_or_decoder_is_a_usage_error(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(dalle, "WIDTH", 16)
    torch.save(dalle.Dvae.encoder().state_dict(), tmp_path / "encoder.pt")
    digest = get_tokenizer("dalle", weights=tmp_path).digest
    with TokenStoreWriter(tmp_path / "s", StoreMeta("dalle", 8192, 2, 2, 2.0, digest=digest)) as w:
        w.add("a", np.zeros((1, 3, 2, 2), np.int32))
        w.finish()
    words = ["visualise", "masks", f"data={tmp_path / 's'}", "--out", str(tmp_path / "a.png")]
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert "the tokenizer 'dalle' needs weights: download https://cdn.openai.com/dall-e/" in error
    words += ["--weights", str(tmp_path)]
    assert cli.main(words) == 2
    assert "no decoder beside the encoder's weights: download" in capsys.readouterr().err
    torch.save(dalle.Dvae.decoder().state_dict(), tmp_path / "decoder.pt")
    assert cli.main(words) == 0
    other = StoreMeta("dalle", 8192, 2, 2, 2.0, digest="0" * 64)
    with pytest.raises(UsageError, match=r"of weights 000000000000, --weights has"):
        open_tokenizer(other, tmp_path)
    with pytest.raises(UsageError, match="which vimpac cannot decode, only patch and dalle"):
        open_tokenizer(StoreMeta("vqgan", 1024, 2, 2, 2.0))
    (tmp_path / "decoder.pt").write_bytes(b"")
    with pytest.raises(VimpacError, match="download it again"):
        open_tokenizer(StoreMeta("dalle", 8192, 2, 2, 2.0), tmp_path)


def test_names_that_no_font_has_are_drawn(tmp_path, capsys):
    store = make_store(tmp_path / "store", height=8)
    meta = TokenStore(store).meta
    with TokenStoreWriter(tmp_path / "odd", meta) as writer:
        writer.add("$x^$\n\u4f60\udcff" + 40 * "y", np.zeros((2, 2, 8, 4), np.int32))
        writer.finish()
    for action in ("samples", "masks"):
        words = [f"data={tmp_path / 'odd'}", "--out", str(tmp_path / f"{action}.png")]
        assert cli.main(["visualise", action, *words]) == 0
    assert r"$x^$\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("nowhere/a.mp4", "No such file or directory"),
        ("labels.csv", "Invalid data found when processing input"),
        ("videos", "Is a directory"),
    ],
)
def test_video_that_cannot_be_read_is_named(folder, tmp_path, capsys, file, reason):
    words = ("--name", "a", "--video", str(folder / file))
    assert _run(folder, "masks", *words, out=tmp_path / "a.png") == 1
    error = f"vimpac: {folder / file} cannot be read: {reason}\n"
    assert capsys.readouterr().err == error and not [*tmp_path.iterdir()]
