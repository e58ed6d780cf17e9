"""What a `Retriever` computes and refuses, and what the commands make of it."""

import argparse

import pytest
import torch

from vimpac.simvtp import search
from vimpac.simvtp.ranks import rank_of
from vimpac.simvtp.retrieval import Gallery, Retriever
from vimpac.simvtp.text import WordVocabulary

SURE = [-25.0, -20.0, -1e-8, -1e-9]  # log-probabilities; of the last three exp is 0 or 1 in fp32


class Sure(Retriever):
    """Four videos that match any text by `SURE`."""

    def __init__(self) -> None:
        self.words = WordVocabulary(["red"])

    def embed_captions(self, captions, batch=64):
        return torch.tensor([[1.0 if "red" in caption else 0.5, 0.0] for caption in captions])

    def match(self, caption, gallery, places):
        return torch.tensor(SURE)[[*places]]


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
    args = argparse.Namespace(choices=str(table), videos="v", missing="skip")
    lines, facts = search.test_choices(args)
    assert facts == {"questions": len(questions), "choices": 3, "accuracy": accuracy}
    assert lines[-1] == f"{accuracy:.1%} of {len(questions)} questions right; chance 33.3%"
