"""What a `Retriever` computes and refuses, and what the commands make of it."""

import argparse
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from vimpac.cli import main
from vimpac.simvtp import search
from vimpac.simvtp.predictions import fill_in
from vimpac.simvtp.ranks import rank_of
from vimpac.simvtp.retrieval import Gallery, Retriever
from vimpac.simvtp.text import WordVocabulary

SURE = [-25.0, -20.0, -1e-8, -1e-9]  # log-probabilities; of the last three exp is 0 or 1 in fp32

ONE_VIEW = ("--clips", "1", "--crops", "1", "--workers", "0", "--device", "cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


class Sure(Retriever):
    """Four videos that match any text by `SURE`."""

    def __init__(self) -> None:
        self.words = WordVocabulary(["red"])

    def embed_captions(self, captions, batch=64):
        return torch.tensor([[1.0 if "red" in caption else 0.5, 0.0] for caption in captions])

    def match(self, caption, gallery, places):
        return torch.tensor(SURE)[[*places]]


@pytest.fixture(scope="module")
def retriever(checkpoint) -> Retriever:
    return Retriever(checkpoint, device="cpu")


@pytest.fixture
def sure(monkeypatch) -> Gallery:
    class Files:
        names = [*"abcd"]

    features = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    gallery = Gallery(Files(), [*range(4)], features, torch.empty(4, 1, 1), [])
    monkeypatch.setattr(search, "open_retriever", lambda args: Sure())
    monkeypatch.setattr(search, "open_frames", lambda path: gallery.files)
    monkeypatch.setattr(search, "embed_videos", lambda *_, **__: gallery)
    return gallery


@pytest.mark.parametrize("scale", [1.0, -1e300])
def test_reranking_keeps_every_difference_of_the_match_and_of_the_others(sure, scale):
    similarity = scale * torch.tensor([[0.9, 0.8, 0.7, 0.6]], dtype=torch.float64)
    for best in (1, 2, 3, 4):
        chosen = similarity[0].topk(best).indices.tolist()
        others = similarity[0].argsort(descending=True).tolist()[best:]
        order = sorted(chosen, key=lambda place: -SURE[place]) + others
        found = Sure().rerank(similarity, ["red"], sure, best)
        ranks = rank_of(found.expand(4, 4), torch.eye(4, dtype=torch.bool))
        assert ranks[order].tolist() == [1, 2, 3, 4]


def test_reranking_keeps_ties(sure, monkeypatch):
    monkeypatch.setattr(Sure, "match", lambda *_: torch.tensor([-3.0, -3.0]))
    found = Sure().rerank(torch.tensor([[0.9, 0.1, 0.8, 0.1]]), ["red"], sure, 2)
    ranks = rank_of(found.expand(4, 4), torch.eye(4, dtype=torch.bool))
    assert ranks.tolist() == [1.5, 3.5, 1.5, 3.5]


def test_reranked_query_keeps_every_difference_of_the_match(sure):
    args = argparse.Namespace(query="red", videos="v", rerank=4, top=3)
    found = search.find(args)
    assert [one.name for one in found] == ["d", "c", "b"]
    assert [one.match for one in found] == torch.tensor(SURE).exp().tolist()[:0:-1]


def test_matches_that_are_almost_sure_differ(checkpoint, sure):
    retriever = Retriever(checkpoint, device="cpu")
    head, seen = retriever.model.match_head, torch.zeros(1, 4, retriever.model.config.width)
    torch.nn.init.zeros_(head.weight)
    gallery, found = Gallery(sure.files, [0], sure.features[:1], seen, []), []
    for bias in (18.0, 20.0):
        head.bias.copy_(torch.tensor([0.0, bias]))
        found.append(float(retriever.match("a red square", gallery, [0])))
    assert found == pytest.approx([-1.523e-8, -2.061e-9], rel=1e-3)


@pytest.mark.parametrize(
    ("questions", "accuracy"),
    [
        (["a,it,is,so,0", "b,it,is,so,0"], 0.0),  # ties
        (["a,it is,red,so,1", "b,red,a red,so,0", "c,red,is,so,2", "d,red,is,so,0"], 0.5),
    ],
)
def test_a_caption_that_is_as_much_alike_as_another_is_not_right(
    sure, tmp_path, questions, accuracy
):
    table = tmp_path / "choices.csv"
    table.write_text("\n".join(["video,caption_1,caption_2,caption_3,answer", *questions]))
    asked = {"checkpoint": "c", "precision": "fp32", "missing": "skip", "clips": 2, "crops": 1}
    args = argparse.Namespace(choices=str(table), videos="v", **asked)
    lines, facts = search.test_choices(args)
    found = {"questions": len(questions), "choices": 3, "accuracy": accuracy}
    assert facts == {**asked, "data": str(table), "videos": 4, "unreadable": 0, **found}
    texts = ",".join(question[2:-2] for question in questions).split(",")
    strange = [text for text in texts if "red" not in text]
    assert lines[-2].split(";")[0] == (
        f"note: {len(strange)} of {len(texts)} captions have no word that the model knows, the "
        f"first is '{strange[0]}'"
    )
    assert lines[-1] == f"{accuracy:.1%} of {len(questions)} questions right; chance 33.3%"


@pytest.fixture(scope="module")
def damaged(checkpoint, tmp_path_factory):
    """Two models: one of whose words "red" is NaN, and one that is all NaN but for its features."""
    folder = tmp_path_factory.mktemp("damaged")
    red = 5 + json.loads((checkpoint / "model.json").read_text())["words"]["content"].index("red")
    for name in ("word", "heads"):
        tensors = load_file(checkpoint / "model.safetensors")
        if name == "word":
            tensors["encoder.words.words.weight"][red] = math.nan
        for key in tensors:
            if name == "heads" and not key.startswith("encoder."):
                tensors[key].fill_(math.nan)
        (folder / name).mkdir()
        (folder / name / "model.json").write_bytes((checkpoint / "model.json").read_bytes())
        save_file(tensors, folder / name / "model.safetensors")
    (folder / "captions.csv").write_text("video,caption\n0.mkv,a blue disk\n1.mkv,a red disk\n")
    (folder / "choices.csv").write_text(
        "video,caption_1,caption_2,answer\n0.mkv,a blue disk,a red disk,0\n"
    )
    (folder / "texts.txt").write_text("a blue disk\na red disk\n")
    return folder


SEARCH = ("--videos", "{videos}", *ONE_VIEW, "--missing", "skip")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("retrieve", "{}/word", *SEARCH[:-2], "--query", "a red disk"), "features of a text"),
        (("retrieve", "{}/word", *SEARCH, "--data", "{}/captions.csv"), "features of a text"),
        (("retrieve", "{}/word", *SEARCH, "--choices", "{}/choices.csv"), "features of a text"),
        (("embed", "{}/word", "--texts", "{}/texts.txt", "--out", "{out}.npz"), "features of a t"),
        (
            ("retrieve", "{}/heads", *SEARCH[:-2], "--query", "a disk", "--rerank", "2"),
            "match logits",
        ),
        (
            ("visualise", "{}/heads", "{videos}/0.mkv", "--caption", "a", "--out", "{out}.png"),
            "logits of words",
        ),
    ],
)
def test_outputs_that_are_not_finite_are_one_error(damaged, shapes, tmp_path, capsys, words, what):
    names = {"videos": shapes / "videos", "out": tmp_path / "a"}
    assert main(["simvtp", *[word.format(damaged, **names) for word in words]]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"vimpac: {what}") and said.err.count("\n") == 1
    assert "are not finite: the weights of the model are damaged" in said.err
    assert not said.out and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("text", ["", "!?", "xyzzy"])
def test_text_without_a_known_word_finds_nothing(retriever, sure, text):
    assert retriever.without_words(["a red xyzzy", text]) == [text]
    with pytest.raises(ValueError, match="text='.*' has no word that the model knows"):
        retriever.search(text, sure)


@pytest.mark.parametrize(
    ("captions", "notes"),
    [
        (["red", "RED red"], []),
        (
            ["red", "a red"],
            [
                "note: 1 of 2 captions have some words that the model does not know, the first is "
                "'a red'"
            ],
        ),
        (
            ["", "red"],
            ["note: 1 of 2 captions have no word that the model knows, the first is ''"],
        ),
        (
            ["red xyzzy", "it is", "!?", "a red"],
            [
                "note: 2 of 4 captions have no word that the model knows, the first is 'it is'; "
                "2 of 4 captions have some words that the model does not know, the first is "
                "'red xyzzy'"
            ],
        ),
    ],
)
def test_captions_with_unknown_words_are_counted_in_one_line(captions, notes):
    assert search.notes_on(Sure(), captions) == notes


def test_unknown_words_of_a_query_are_noted(sure, capsys):
    search.find(argparse.Namespace(query="red xyzzy plugh", videos="v", rerank=0, top=1))
    assert capsys.readouterr() == ("", "note: the model does not know 2 of 3 words of --query\n")
    search.find(argparse.Namespace(query="red", videos="v", rerank=0, top=1))
    assert capsys.readouterr() == ("", "")


def test_captions_without_a_known_word_are_counted(checkpoint, shapes, tmp_path, capsys):
    (tmp_path / "captions.csv").write_text(
        "video,caption\n0.mkv,a blue disk\n1.mkv,xyzzy\n2.mkv,!?\n"
    )
    (tmp_path / "texts.txt").write_text("xyzzy\na red disk\n")
    table = ("--data", f"{tmp_path}/captions.csv", "--missing", "skip")
    words = ["simvtp", "retrieve", str(checkpoint), "--videos", f"{shapes}/videos", *ONE_VIEW]
    assert main([*words, *table]) == 0
    assert "note: 2 of 3 captions have no word that the model knows, the first is 'xyzzy'\n" in (
        capsys.readouterr().out
    )
    words = ["simvtp", "embed", str(checkpoint), "--texts", f"{tmp_path}/texts.txt"]
    assert main([*words, "--out", f"{tmp_path}/a.npz"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("note: 1 of 2 captions have no word") and "note" not in said.out


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r, g: r.embed_captions("a red"), TypeError, "list of texts, not the text 'a red'"),
        (lambda r, g: r.embed_captions([]), ValueError, "captions must not be empty"),
        (lambda r, g: r.embed_captions(["a"], batch=0), ValueError, "batch=0 must be positive"),
        (lambda r, g: r.embed_captions(["a"], batch=-1), ValueError, "batch=-1 must be positive"),
        (lambda r, g: r.index(g.files, []), ValueError, "numbers must name a video"),
        (lambda r, g: r.search("red", g, top=0), ValueError, "top=0 must be positive"),
        (lambda r, g: r.search("red", g, top=-1), ValueError, "top=-1 must be positive"),
        (lambda r, g: r.match("red", g, []), ValueError, "places must name a video"),
        (lambda r, g: r.rerank(torch.ones(1, 4), ["a"], g, 0), ValueError, "best=0 must be"),
        (lambda r, g: r.rerank(torch.ones(1, 4), ["a"], g, -1), ValueError, "best=-1 must be"),
        (lambda r, g: r.rerank(torch.ones(2, 4), ["a"], g, 1), ValueError, r"got \(2, 4\)"),
        (lambda r, g: r.rerank(torch.ones(1, 9), ["a"], g, 1), ValueError, r"got \(1, 9\)"),
        (lambda r, g: Retriever("a", precision="fp16"), ValueError, "precision='fp16' must be"),
    ],
)
def test_wrong_arguments_are_named(retriever, sure, call, error, message):
    with pytest.raises(error, match=message):
        call(retriever, sure)


@pytest.mark.parametrize(
    ("captions", "hidden", "message"),
    [
        (["a red disk"], [[-1]], r"hidden\[0\]=\[-1\] must be places of its 3 words"),
        (["a red disk"], [[0, 3]], r"hidden\[0\]=\[0, 3\] must be places of its 3 words"),
        (["red " * 40], [[14]], r"hidden\[0\]=\[14\] must be places of its 14 words"),
        (["a red disk"], [[]], r"hidden\[0\]=\[\] must be places"),
        (["a red disk"], [], "1 clips, 1 captions and 0 hidden"),
        (["a red disk", "a"], [[0], [0]], "1 clips, 2 captions and 2 hidden"),
    ],
)
def test_words_that_are_not_there_cannot_be_masked(retriever, captions, hidden, message):
    video = torch.zeros(1, 8, 48, 48, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        fill_in(retriever.model, retriever.words, video, captions, hidden, masked_cells=27)
