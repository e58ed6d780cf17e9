"""Retrieval metrics, against similarities whose ranks are known."""

import math

import pytest
import torch

from vimpac.simvtp.ranks import Recall, dual_softmax, judge, rank_of


def _one_to_one(similarity):
    similarity = torch.tensor(similarity, dtype=torch.float64)
    return judge(similarity, torch.arange(len(similarity)))


def test_perfect_similarities_rank_first():
    found = _one_to_one([[3.0, 0, 1], [0, 2, 1], [1, 0, 2]])
    for recall in (found.text_to_video, found.video_to_text):
        assert (recall.r1, recall.median, recall.mean, recall.queries) == (1, 1, 1, 3)


def test_reversed_similarities_rank_last():
    found = _one_to_one([[0.0, 1, 2], [2, 0, 1], [1, 2, 0]])
    assert (found.text_to_video.r1, found.text_to_video.mean) == (0, 3)
    assert found.video_to_text.median == 3


def test_both_directions_are_ranked_by_their_own():
    # Every text finds its video first, but the first text is also the best of every video.
    found = _one_to_one([[9.0, 8, 8], [0, 1, 0], [0, 0, 1]])
    assert found.text_to_video.r1 == 1
    assert found.video_to_text.r1 == pytest.approx(1 / 3)
    assert found.video_to_text.mean == pytest.approx((1 + 2 + 2) / 3)


def test_a_model_that_says_the_same_of_everything_ranks_in_the_middle():
    found = _one_to_one(torch.zeros(5, 5).tolist())
    assert (found.text_to_video.mean, found.text_to_video.r1) == (3, 0)


def test_ties_are_expected_places():
    scores = torch.tensor([[1.0, 1.0, 0.0, 2.0], [1.0, 1.0, 1.0, 0.0]])
    right = torch.tensor([[True, False, False, False], [False, False, True, False]])
    assert rank_of(scores, right).tolist() == [2.5, 2.0]


def test_the_best_of_several_captions_counts_for_a_video():
    similarity = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.0, 0.4]])
    found = judge(similarity, torch.tensor([0, 0, 1, 1]))
    assert found.text_to_video.queries == 4
    assert found.text_to_video.r1 == pytest.approx(3 / 4)  # all but the first text
    assert found.video_to_text.queries == 2
    assert found.video_to_text.r1 == pytest.approx(1 / 2)  # video 1 is nearest to the first text


def test_a_video_without_a_caption_is_an_answer_but_no_query():
    similarity = torch.tensor([[0.5, 0.1, 0.9], [0.1, 0.8, 0.2]])
    found = judge(similarity, torch.tensor([0, 1]))
    assert found.text_to_video.mean == 1.5
    assert found.video_to_text.queries == 2


def test_recall_is_the_share_of_ranks_up_to_k():
    recall = Recall.of(torch.tensor([1.0, 2, 5, 6, 10, 11, 50, 51]))
    assert (recall.r1, recall.r5, recall.r10, recall.r50) == (1 / 8, 3 / 8, 5 / 8, 7 / 8)
    assert (recall.median, recall.mean) == (8, 136 / 8)
    assert recall.geometric_mean == pytest.approx((1 / 8 * 3 / 8 * 5 / 8) ** (1 / 3))


def test_dual_softmax_takes_from_answers_that_all_queries_find():
    similarity = torch.tensor([[0.9, 0.8], [0.9, 0.1]])  # both texts find video 0
    to_video, to_text = dual_softmax(similarity, 0.05)
    assert judge(similarity, torch.tensor([1, 0])).text_to_video.r1 == 0.5
    assert judge(to_video, torch.tensor([1, 0])).text_to_video.r1 == 1
    expected = 0.8 * math.exp(16) / (math.exp(16) + math.exp(2))
    assert float(to_video[0, 1]) == pytest.approx(expected)
    assert float(to_text[0, 1]) == pytest.approx(0.8 * math.exp(16) / (math.exp(16) + math.exp(18)))


@pytest.mark.parametrize("temperature", [1.0, 0.05, 0.01])
def test_dual_softmax_ranks_positive_similarities_as_published(temperature):
    torch.manual_seed(0)
    similarity = torch.rand(50, 40)
    exact = similarity.double()
    published = [exact * (exact / temperature).softmax(direction) for direction in (0, 1)]
    for found, expected in zip(dual_softmax(similarity, temperature), published, strict=True):
        assert torch.equal(found, expected)
        assert (found > 0).all()  # of fp32, many products are 0 at the last temperature


@pytest.mark.parametrize("temperature", [1.0, 0.05, 1e-9])
def test_dual_softmax_ranks_the_more_alike_first_whatever_the_sign(temperature):
    first = torch.tensor([[-0.1, -0.9], [-0.5, -0.1]])
    to_video, to_text = dual_softmax(first, 0.05)
    assert to_video.argmax(1).tolist() == [0, 1] and to_text.argmax(0).tolist() == [0, 1]
    row = torch.tensor([0.9, 0.2, 0.0, -0.2, -0.9])
    same = torch.stack((row, row))  # every answer has half of every softmax
    to_video, _ = dual_softmax(same, temperature)
    assert to_video[0].argsort(descending=True).tolist() == [0, 1, 2, 3, 4]
    assert to_video.isfinite().all()
    _, to_text = dual_softmax(same.T.contiguous(), temperature)
    assert to_text[:, 0].argsort(descending=True).tolist() == [0, 1, 2, 3, 4]
    assert to_text.isfinite().all()


def test_dual_softmax_takes_from_negative_answers_that_all_queries_find():
    similarity = torch.tensor([[-0.2, -0.2], [-0.1, -0.9]])  # the second text finds video 0
    to_video, _ = dual_softmax(similarity, 0.05)
    assert to_video[0].argmax() == 1


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ValueError, match="finite"):
        judge(torch.tensor([[math.nan]]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"videos must be \(2,\)"):
        judge(torch.zeros(2, 2), torch.tensor([0]))
