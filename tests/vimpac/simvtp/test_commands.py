"""`vimpac simvtp` and what is behind its actions: search, features, pictures."""

import json

import numpy as np
import pytest
import torch

from vimpac.cli import main
from vimpac.simvtp.captioned_shapes import write_video
from vimpac.simvtp.description import load_simvtp
from vimpac.simvtp.frames import VideoFiles
from vimpac.simvtp.predictions import fill_in
from vimpac.simvtp.released import export_released, is_videomae, load_videomae
from vimpac.simvtp.retrieval import Retriever
from vimpac.simvtp.views import VideoViews, read_views

pytestmark = pytest.mark.usefixtures("one_thread")

ONE_VIEW = ("--clips", "1", "--crops", "1", "--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def retriever(checkpoint) -> Retriever:
    return Retriever(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def gallery(retriever, shapes):
    return retriever.index(VideoFiles.find(f"{shapes}/videos"), matching=True)


def run(capsys, *words: object) -> tuple[int, str, str]:
    """The exit code of `vimpac simvtp ...`, and what it printed."""
    code = main(["simvtp", *map(str, words)])
    return code, *capsys.readouterr()


def test_views_are_evenly_spaced_windows_of_a_video(tmp_path):
    """A video whose frames tell their number by their grey level."""
    numbered = np.arange(40, dtype=np.uint8)[:, None, None, None] * 6
    write_video(tmp_path / "numbered.mkv", np.broadcast_to(numbered, (40, 16, 32, 3)).copy())
    files = VideoFiles.find(str(tmp_path))
    views = VideoViews(files, [0], frames=4, step=2, size=8, clips=3, crops=2)
    pixels, reason = views[0]
    assert (reason, pixels.shape) == ("", (6, 4, 8, 8, 3))
    levels = pixels[:, :, 4, 4, 0].float().div(6).round().int()
    expected = [[0, 2, 4, 6], [16, 18, 20, 22], [32, 34, 36, 38]]
    assert levels[::2].tolist() == expected
    assert torch.equal(pixels[::2], pixels[1::2])  # a crop of a picture of one colour


@pytest.mark.parametrize(("workers", "started"), [(0, 0), (1, 1), (200, 2)])
def test_no_more_processes_read_than_there_are_videos(
    retriever, shapes, monkeypatch, workers, started
):
    numbers = []

    def load(views, num_workers, **_):
        numbers.append(num_workers)
        return [views[place] for place in range(len(views))]

    monkeypatch.setattr("vimpac.simvtp.views.DataLoader", load)
    files = VideoFiles.find(f"{shapes}/videos")
    assert len([*read_views(retriever.views(files, [3, 4]), workers)]) == 2
    assert numbers == [started]


def test_features_of_a_video_are_the_mean_of_those_of_its_views(retriever, shapes):
    files = VideoFiles.find(f"{shapes}/videos")
    found = retriever.index(files, [3], clips=2, crops=1).features[0]
    views, _ = retriever.views(files, [3], clips=2)[0]
    with torch.no_grad():
        alone = torch.cat([retriever.model.embed_video(view[None]) for view in views])
    expected = torch.nn.functional.normalize(alone.mean(0), dim=0)
    torch.testing.assert_close(found, expected)


def test_padding_of_a_batch_changes_no_feature_of_a_text(retriever):
    captions = ["a red square moves left", "a disk", "another caption, number 1"] * 30
    together = retriever.embed_captions(captions, batch=64)
    apart = retriever.embed_captions(captions, batch=7)
    torch.testing.assert_close(together, apart)


def test_unreadable_videos_are_left_out_and_named(retriever, shapes, tmp_path):
    for name in ("1.mkv", "2.mkv"):
        (tmp_path / name).write_bytes((shapes / "videos" / name).read_bytes())
    (tmp_path / "0.mkv").write_bytes(b"no video")
    gallery = retriever.index(VideoFiles.find(str(tmp_path)))
    assert gallery.names == ["1.mkv", "2.mkv"]
    ((name, reason),) = gallery.unreadable
    assert name == "0.mkv" and reason


def test_matching_is_that_of_the_training_s_joint_pass(retriever, gallery):
    """The log-probability of label 1 by the joint encoder over visible tubelets."""
    model = retriever.model
    scores = retriever.match("a red square moves left", gallery, [2, 5])
    length = 7  # [CLS], five words, [SEP]
    ids, attention = retriever.words.encode(["a red square moves left"], 16)
    assert ids.shape == (1, length)
    with torch.no_grad():
        text = model.encoder.words(ids).expand(2, -1, -1)
        joint, _ = model.encoder(gallery.seen[[2, 5]], text, attention.expand(2, -1))
        expected = model.match_head(joint.mean(1)).log_softmax(1)[:, 1]
    torch.testing.assert_close(scores, expected)
    assert gallery.seen.shape[1] == model.config.grid[0] * 9  # of 36 cells 27 are hidden


def test_reranking_orders_the_best_by_match_and_leaves_the_others(retriever, gallery):
    captions = ["a red square moves left", "a blue disk moves up"]
    similarity = retriever.embed_captions(captions) @ gallery.features.T
    reranked = retriever.rerank(similarity, captions, gallery, 5)
    for row, caption in enumerate(captions):
        best = similarity[row].topk(5).indices
        order = reranked[row].argsort(descending=True)
        assert {*order[:5].tolist()} == {*best.tolist()}
        matched = retriever.match(caption, gallery, order[:5].tolist())
        assert torch.equal(matched, matched.sort(descending=True).values)
        others = similarity[row].argsort(descending=True)[5:]
        assert torch.equal(order[5:], others)


def test_query_prints_the_best_videos(checkpoint, retriever, shapes, capsys):
    code, out, _ = run(
        capsys, "retrieve", checkpoint, "--videos", shapes / "videos", *ONE_VIEW,
        "--query", "a red square moves left", "--top", "3",
    )  # fmt: skip
    gallery = retriever.index(VideoFiles.find(f"{shapes}/videos"))
    expected = retriever.search("a red square moves left", gallery, 3)
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        [f"{score:.4f}", name] for name, score in expected
    ]


def test_reranked_query_prints_cosine_and_match(checkpoint, retriever, gallery, shapes, capsys):
    query = "a red square moves left"
    code, out, _ = run(
        capsys, "retrieve", checkpoint, "--videos", shapes / "videos", *ONE_VIEW,
        "--query", query, "--rerank", "3",
    )  # fmt: skip
    cosine = dict(retriever.search(query, gallery, 3))
    places = [gallery.names.index(name) for name in cosine]
    match = dict(zip(cosine, retriever.match(query, gallery, places).exp().tolist(), strict=True))
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [
        [f"{cosine[name]:.4f}", f"{match[name]:.4f}", name]
        for name in sorted(cosine, key=lambda name: -match[name])
    ]


def test_retrieval_is_tested_by_a_table_of_captions(checkpoint, shapes, tmp_path, capsys):
    code, out, _ = run(
        capsys, "retrieve", checkpoint, "--videos", shapes / "videos", *ONE_VIEW,
        "--data", shapes / "captions.csv", "--part", "train", "--dual-softmax", "--rerank", "3",
        "--json", tmp_path / "found.json",
    )  # fmt: skip
    assert code == 0
    assert "text to video" in out and "14 queries" in out and "chance" in out
    facts = json.loads((tmp_path / "found.json").read_text())
    assert (facts["videos"], facts["captions"], facts["rerank"]) == (12, 14, 3)
    assert (facts["part"], facts["split"], facts["temperature"]) == ("train", "", 0.05)
    assert facts["video_to_text"]["queries"] == 12
    assert 1 <= facts["text_to_video"]["mean"] <= 12


def test_multiple_choice_takes_the_caption_that_is_most_alike(
    checkpoint, retriever, gallery, shapes, tmp_path, capsys
):
    rows, right = ["video,caption_1,caption_2,answer"], 0
    for number, name in enumerate(gallery.names[:6]):
        captions = "a red square moves left", "a blue disk moves up"
        best = int((retriever.embed_captions(captions) @ gallery.features[number]).argmax())
        rows.append(f"{name},{captions[0]},{captions[1]},{number % 2}")
        right += best == number % 2
    (tmp_path / "choices.csv").write_text("\n".join(rows) + "\n")
    code, out, _ = run(
        capsys, "retrieve", checkpoint, "--videos", shapes / "videos", *ONE_VIEW,
        "--choices", tmp_path / "choices.csv",
    )  # fmt: skip
    assert code == 0
    assert out.splitlines()[-1] == f"{right / 6:.1%} of 6 questions right; chance 50.0%"
    assert "video files" not in out  # nothing is asked about the others


@pytest.mark.parametrize(
    ("option", "table", "message"),
    [
        ("--choices", "video,caption_1,caption_2,answer\n0.mkv,a,b,0\nx.mkv,a,b,0\n", "1 of 2 vi"),
        ("--data", "video,caption\n0.mkv,a\nx.mkv,b\n", "1 of 2 videos"),
        ("--data", "video,caption\n0.mkv,a\n", "15 of 16 video files have no caption"),
    ],
)
def test_missing_counterparts_tell_the_option_that_leaves_them_out(
    checkpoint, shapes, tmp_path, capsys, option, table, message
):
    (tmp_path / "table.csv").write_text(table)
    asked = option, tmp_path / "table.csv", "--videos", shapes / "videos"
    code, _, error = run(capsys, "retrieve", checkpoint, *asked, *ONE_VIEW)
    assert code == 2 and message in error and "; --missing skip leaves them out" in error


def test_features_are_written_with_names(checkpoint, retriever, gallery, shapes, tmp_path, capsys):
    out = tmp_path / "a.npz"
    videos = "--videos", shapes / "videos", *ONE_VIEW
    assert run(capsys, "embed", checkpoint, *videos, "--out", out)[0] == 0
    with np.load(out) as file:
        assert file["names"].tolist() == gallery.names
        torch.testing.assert_close(torch.from_numpy(file["features"]), gallery.features)
    code, _, error = run(capsys, "embed", checkpoint, *videos, "--out", out)
    assert code == 2 and "exists already" in error
    (tmp_path / "texts.txt").write_text("a red square\n\nmoves left\n")
    texts = "--texts", tmp_path / "texts.txt", "--out", tmp_path / "b.npz"
    assert run(capsys, "embed", checkpoint, *texts)[0] == 0
    with np.load(tmp_path / "b.npz") as file:
        assert file["names"].tolist() == ["a red square", "moves left"]
        expected = retriever.embed_captions(["a red square", "moves left"])
        torch.testing.assert_close(torch.from_numpy(file["features"]), expected)


def test_what_is_seen_stays_and_what_is_masked_is_filled_in(retriever, shapes):
    files = VideoFiles.find(f"{shapes}/videos")
    clip, _ = retriever.views(files, [0])[0]
    filled = fill_in(
        retriever.model,
        retriever.words,
        clip,
        ["a red square moves left"],
        [[1, 4]],
        masked_cells=retriever.masked_cells,
    )
    grey = (filled.masked_frames == 128).all(-1)  # (1, T, S, S)
    cells = grey.view(1, 8, 6, 8, 6, 8).all(5).all(3)
    assert cells.sum((1, 2, 3)).tolist() == [8 * 27]
    seen = ~grey
    assert torch.equal(filled.rebuilt_frames[seen], clip[seen])
    assert not torch.equal(filled.rebuilt_frames[grey], clip[grey])
    assert filled.words == [["a", "red", "square", "moves", "left"]]
    assert filled.hidden == [[False, True, False, False, True]]
    assert len(filled.predicted[0]) == 5


def test_picture_shows_frames_and_words(checkpoint, shapes, tmp_path, capsys):
    out = tmp_path / "filled.png"
    code, text, _ = run(
        capsys, "visualise", checkpoint, shapes / "videos" / "0.mkv", "--device", "cpu",
        "--caption", "a red square moves left", "--out", out, "--seed", "3",
    )  # fmt: skip
    assert code == 0
    assert text.splitlines()[-1] == str(out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_words_that_the_model_cannot_see_are_counted(checkpoint, shapes, tmp_path, capsys):
    code, text, error = run(
        capsys, "visualise", checkpoint, shapes / "videos" / "0.mkv", "--device", "cpu",
        "--caption", "a purple square " + "moves left " * 20, "--out", tmp_path / "filled.png",
    )  # fmt: skip
    assert code == 0
    assert "does not know 1 of 43 words" in error
    assert "is cut after 14 of 43 words" in error
    assert len(text.splitlines()) == 14 + 1


def test_video_part_converts_to_videomae(checkpoint, tmp_path, capsys):
    file = tmp_path / "videomae.pth"
    assert main(["convert", str(checkpoint), str(file), "--back", "--videomae"]) == 0
    state = torch.load(file)
    assert is_videomae(state) and not [name for name in state if "text" in name]
    again = load_simvtp(checkpoint)
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)
    load_videomae(again, state)
    for name, tensor in load_simvtp(checkpoint).state_dict().items():
        filled = not name.startswith(("encoder.words", "word_head", "match_head"))
        assert torch.equal(again.state_dict()[name], tensor if filled else 0 * tensor), name
    capsys.readouterr()
    assert main(["convert", str(file), str(tmp_path / "a")]) == 2
    assert "start from it with `vimpac simvtp pretrain init=" in capsys.readouterr().err
    assert main(["convert", str(file), str(tmp_path / "a"), "--videomae"]) == 2
    assert "--videomae needs --back" in capsys.readouterr().err


def test_released_checkpoint_converts_both_ways(checkpoint, tmp_path, capsys):
    model = load_simvtp(checkpoint)
    torch.save({"model": export_released(model)}, tmp_path / "released.pt")
    sizes = "--frames", "8", "--size", "48", "--heads", "2", "--decoder-heads", "2"
    source, out, back = tmp_path / "released.pt", tmp_path / "model", tmp_path / "back"
    assert main(["convert", str(source), str(out), *sizes]) == 0
    assert "SimVTP, 1 layers x 32, 2 heads, 8 frames of 48 pixels" in capsys.readouterr().out
    again = load_simvtp(out)
    assert again.config == model.config
    assert main(["convert", str(out), str(back), "--back"]) == 0
    assert f"read it again with {' '.join(sizes)}\n" in capsys.readouterr().out
    for name, tensor in torch.load(back).items():
        assert torch.equal(tensor, export_released(model)[name]), name
    assert main(["convert", str(source), str(tmp_path / "b"), "--frames", "7"]) == 1
    assert "frames=7 must be a multiple of tubelet=2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("retrieve", "{c}", "--videos", "v"), "give one of --query TEXT, --data CAPTIONS"),
        (("retrieve", "{c}", "--query", "a"), "--videos is missing"),
        (("retrieve", "{c}", "--query", "a", "--videos", "v", "--clips", "0"), "--clips 0 must"),
        (
            ("embed", "{c}", "--videos", "v", "--out", "a.npz", "--clips", "34"),
            "--clips 34 x --crops 3 are 102 views of a video, which must be at most 100",
        ),
        (("retrieve", "{c}", "--query", "", "--videos", "{v}"), "--query '' has no word that"),
        (("retrieve", "{c}", "--query", "zz", "--videos", "{v}"), "'zz' has no word that the"),
        (("retrieve", "{c}", "--data", "a", "--part", "tset"), "--part tset must be train, val"),
        (("embed", "{c}", "--videos", "v", "--out", "absent/a.npz"), "needs the directory absent"),
        (("visualise", "{c}", "{v}", "--caption", "a", "--out", "a.jpg"), "must end in .png"),
        (("visualise", "{c}", ".", "--caption", "a"), ". is a directory: name one video file"),
        (("embed", "{c}", "--out", "a.npz"), "give one of --videos and --texts"),
        (("embed", "{c}", "--videos", "v", "--out", "a.txt"), "must end in .npz"),
        (("visualise", "{c}", "absent.mp4", "--caption", "a"), "absent.mp4"),
        (("visualise", "absent", "{v}", "--caption", "a"), "absent is no model"),
        (("visualise", "{c}", "{v}", "--caption", "!?"), "--caption '!?' has no word"),
    ],
)
def test_wrong_arguments_are_named(checkpoint, shapes, capsys, words, message):
    words = [word.format(c=checkpoint, v=shapes / "videos" / "0.mkv") for word in words]
    code, _, error = run(capsys, *words)
    assert code in (1, 2) and message in error


@pytest.mark.parametrize(
    ("words", "unused"),
    [
        (
            ("retrieve", "c", "--query", "a"),
            ("--split 1k-A", "--part test", "--missing skip", "--dual-softmax", "--json a.json"),
        ),
        (("retrieve", "c", "--data", "a"), ("--top 5",)),
        (
            ("retrieve", "c", "--choices", "a"),
            ("--top 5", "--split 1k-A", "--part test", "--dual-softmax", "--rerank 2"),
        ),
        (
            ("embed", "c", "--out", "a.npz", "--texts", "a"),
            ("--clips 3", "--crops 3", "--workers 2"),
        ),
    ],
)
def test_option_that_would_change_nothing_is_refused(capsys, words, unused):
    for option in unused:
        code, _, error = run(capsys, *words, *option.split())
        assert code == 2 and f"{option.split()[0]} does not apply to {words[-2]}" in error


def test_every_action_explains_itself(capsys):
    from vimpac.commands.simvtp import ACTIONS

    for action in ("", *ACTIONS):
        assert main(["simvtp", *[action] * bool(action), "--help"]) == 0
        assert "usage: vimpac simvtp" in capsys.readouterr().out


def test_demo_leaves_its_picture_and_says_what_it_found(tmp_path, monkeypatch):
    from vimpac.simvtp import demo

    monkeypatch.setattr(demo, "VIDEOS", 32)
    monkeypatch.setattr(demo, "steps_within", lambda *_, most: 2)
    said: list[str] = []
    outcome = demo.run_demo(tmp_path / "demo", seconds=1, say=said.append)
    assert outcome.picture.read_bytes().startswith(b"\x89PNG")
    assert len(said) == 3
    assert outcome.right.keys() == {"colour", "shape", "direction"}
    assert outcome.retrieval.text_to_video.queries == 64
    assert any("chance 1.6%" in line for line in demo.lines(outcome))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(Exception, match="holds other files"):
        demo.run_demo(tmp_path / "other", seconds=1)


def test_the_wrong_video_of_the_demo_has_other_words_only():
    from vimpac.simvtp.captioned_shapes import CLASSES, other_classes

    for classes, other in zip(CLASSES, other_classes(), strict=True):
        assert not {*classes} & {*CLASSES[other]}
