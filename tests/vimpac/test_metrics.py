"""Scores of a test and their intervals."""

import numpy as np
import pytest
import torch
from PIL import Image

from vimpac.eval.metrics import mean_class_accuracy, top_k, wilson
from vimpac.eval.report import Report, score
from vimpac.pictures.confusion import draw_confusion, worst_pairs


@pytest.mark.parametrize(("right", "number"), [(0, 10), (10, 10), (5, 10), (1008, 1530), (1, 1)])
def test_interval_holds_the_shares_that_the_score_test_accepts(right, number):
    """Its ends p are where the share seen is 1.96 standard deviations of p away from p."""
    low, high = wilson(right, number)
    assert 0 <= low <= right / number <= high <= 1
    for end in {low, high} - {0.0, 1.0}:
        deviation = (end * (1 - end) / number) ** 0.5
        assert abs(right / number - end) == pytest.approx(1.959964 * deviation, rel=1e-5)
    assert (low == 0) == (right == 0) and (high == 1) == (right == number)


def test_interval_of_hmdb51_is_2_4_points():
    low, high = wilson(1008, 1530)
    assert 0.045 < high - low < 0.049


def test_top_k_of_fewer_classes_is_all():
    scores = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([1, 0])
    assert top_k(scores, labels, 1).tolist() == [False, False]
    assert top_k(scores, labels, 2).tolist() == [True, False]
    assert top_k(scores, labels, 5).all()


def test_mean_of_classes_weighs_classes_alike_and_leaves_out_those_without_videos():
    scores = torch.eye(4)[[0, 0, 0, 1, 0]]
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert mean_class_accuracy(scores, labels) == pytest.approx(0.75)


def test_report_counts_every_class():
    probabilities = torch.eye(3)[[0, 1, 1, 2, 0]]
    labels = torch.tensor([0, 1, 0, 2, 2])
    report = Report(["a", "b", "c"], [*"vwxyz"], labels, probabilities, [])
    assert report.confusion().tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    rows = report.per_class()
    assert [(row["class"], row["videos"], row["top1"]) for row in rows] == [
        ("a", 2, 0.5),
        ("b", 1, 1.0),
        ("c", 2, 0.5),
    ]
    scores = score(probabilities, labels, 3, [6, 15, 15])
    assert (scores.top1, scores.top5, scores.clip_top1) == (0.6, 1.0, 0.4)


def test_worst_pairs_come_first():
    counts = torch.tensor([[5, 2, 0], [3, 9, 1], [2, 0, 4]])
    assert worst_pairs(counts) == [(1, 0, 3), (0, 1, 2), (2, 0, 2), (1, 2, 1)]
    assert worst_pairs(counts, most=1) == [(1, 0, 3)]
    assert worst_pairs(torch.eye(3, dtype=torch.int64)) == []


@pytest.mark.parametrize("classes", [2, 30, 101])
def test_picture_shows_the_share_of_every_pair(tmp_path, classes):
    """A perfect classifier has as many dark cells as classes, one that guesses has none."""
    names = [f"$class {i}" * (1 + 3 * (i % 2)) for i in range(classes)]
    dark = []
    for counts in (3 * torch.eye(classes), torch.ones(classes, classes)):
        draw_confusion(counts.long(), names, tmp_path / "confusion.png")
        pixels = np.asarray(Image.open(tmp_path / "confusion.png").convert("RGB"))
        dark.append((pixels == (8, 48, 107)).all(-1).sum())  # of a share of 1
    assert dark[0] > dark[1] + 500


def test_letters_that_the_font_has_not_are_drawn_without_a_word(tmp_path, recwarn):
    draw_confusion(torch.eye(2).long(), ["\u65e5\u672c", "b"], tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").is_file() and not recwarn.list
