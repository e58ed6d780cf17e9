"""CutMix pastes boxes of tokens, and labels have exactly the share of what is pasted."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vimpac import PAD_TOKEN, VideoClassifier, Vimpac
from vimpac.config import FinetuneConfig
from vimpac.errors import UsageError
from vimpac.settings import load_config
from vimpac.train.cutmix import CutMix
from vimpac.train.distributed import World
from vimpac.train.finetune_step import FinetuneStep

pytestmark = pytest.mark.usefixtures("one_thread")

CPU, GRID, CLASSES = torch.device("cpu"), (3, 4, 5), 64


def _mix(probability: float = 1.0, seed: int = 0) -> CutMix:
    return CutMix(probability, CLASSES, seed, CPU)


def _clips(count: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Clips that show their own class in every token."""
    classes = torch.arange(first, first + count)
    clips = classes.int().view(-1, 1, 1, 1).expand(-1, *GRID).contiguous()
    return clips, classes


def test_weights_sum_to_one_and_are_the_pasted_share_exactly():
    clips, classes = _clips(CLASSES)
    mixed, weights = _mix()(clips, classes, 0)
    assert mixed.dtype == clips.dtype and weights.dtype == torch.float32
    assert torch.equal(weights.sum(1), torch.ones(CLASSES))
    shares = []
    for i in range(CLASSES):
        other = (i + 1) % CLASSES
        pasted = (mixed[i] == other).float().mean()
        assert {*mixed[i].unique().tolist()} <= {i, other}
        assert weights[i, other] == pasted and weights[i, i] == 1 - pasted
        shares.append(pasted.item())
    assert 0 < min(shares) < 0.05 and max(shares) > 0.4


def test_what_is_pasted_is_a_box():
    mixed, _ = _mix()(*_clips(CLASSES), 0)
    for i, clip in enumerate(mixed):
        pasted = clip != i
        sides = [pasted.movedim(d, 0).flatten(1).any(1) for d in range(3)]
        assert pasted.any()
        assert torch.equal(pasted, torch.einsum("t,h,w->thw", *(side.int() for side in sides)) > 0)
        for side in sides:
            assert (side.int().diff().abs().sum() + side[0] + side[-1]) == 2  # one stretch


def test_share_of_clips_get_a_box_and_others_are_unchanged():
    clips, classes = _clips(CLASSES)
    changed = 0
    for first in range(0, 16 * CLASSES, CLASSES):
        mixed, weights = _mix(0.25)(clips, classes, first)
        same = (mixed == clips).flatten(1).all(1)
        assert torch.equal(weights[same], F.one_hot(classes, CLASSES)[same].float())
        changed += int((~same).sum())
    assert abs(changed / (16 * CLASSES) - 0.25) < 5 * (0.25 * 0.75 / 16 / CLASSES) ** 0.5


def test_padding_stays_where_it_is_and_does_not_count():
    clips, classes = _clips(CLASSES)
    frames = 1 + torch.arange(CLASSES) % 3
    padded = torch.arange(3) >= frames[:, None]
    clips[padded] = PAD_TOKEN
    mixed, weights = _mix()(clips, classes, 0)
    assert torch.equal(mixed == PAD_TOKEN, padded[:, :, None, None].expand_as(mixed))
    for i in range(CLASSES):
        other = (i + 1) % CLASSES
        assert weights[i, other] == (mixed[i, : frames[i]] == other).float().mean()
    assert torch.equal(weights.sum(1), torch.ones(CLASSES))


def test_boxes_follow_from_the_seed_and_the_number_of_the_clip():
    whole = _mix(0.7)(*_clips(8), 100)[0]
    for first in range(0, 8, 4):  # two micro-batches, or two processes
        clips, classes = _clips(4, first)
        part = _mix(0.7)(clips, classes, torch.tensor(100 + first))[0]
        pasted = whole[first : first + 4] != clips
        assert torch.equal(part != clips, pasted)
        assert torch.equal(part[:3], whole[first : first + 3])  # the last one's partner differs
    assert not torch.equal(_mix(0.7, seed=1)(*_clips(8), 100)[0], whole)
    assert not torch.equal(_mix(0.7)(*_clips(8), 108)[0], whole)


def _step(model: VideoClassifier) -> FinetuneStep:
    words = ["batch=8", "batch.micro=4", "precision=fp32", "cutmix=1", "seed=3"]
    config = load_config(FinetuneConfig, None, words)
    return FinetuneStep(model, config, World(CPU), has_padding=False)


def _classifier() -> VideoClassifier:
    torch.manual_seed(0)
    model = VideoClassifier(Vimpac.from_preset("tiny", grid=GRID, dropout=0.0).encoder, CLASSES)
    torch.nn.init.normal_(model.classifier.weight)
    return model


def test_loss_is_the_mean_of_both_labels_losses_by_their_shares():
    model, parts = _classifier(), [_clips(4), _clips(4, first=4)]
    loss, _ = _step(model).gradients([parts], 40)
    found = model.classifier.weight.grad.clone()
    model.zero_grad()
    expected = torch.zeros(())
    for number, (clips, classes) in enumerate(parts):
        mixed, weights = _mix(seed=3)(clips, classes, 40 + 4 * number)
        others = classes.roll(-1)
        share, logits = weights[torch.arange(4), others], model(mixed)
        losses = (1 - share) * F.cross_entropy(logits, classes, reduction="none")
        losses = losses + share * F.cross_entropy(logits, others, reduction="none")
        expected = expected + losses.mean() / 2
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, model.classifier.weight.grad)


def test_accuracy_is_that_of_what_most_of_a_clip_shows(monkeypatch):
    model = _classifier()
    step, bias = _step(model), model.classifier.bias

    def count(clips: Tensor, seed: Tensor) -> Tensor:
        shown = F.one_hot(clips.long(), CLASSES).sum((1, 2, 3)).float()
        return (shown if right else -shown) + bias  # bias is zero, and has a gradient

    monkeypatch.setattr(step, "logits", count)
    for right in (True, False):
        _, accuracy = step.gradients([[_clips(4), _clips(4, first=4)]], 40)
        assert accuracy == right


def test_clip_without_another_one_in_its_micro_batch_is_refused():
    config = load_config(FinetuneConfig, None, ["batch=4", "batch.micro=1", "cutmix=0.5"])
    with pytest.raises(UsageError, match="cutmix=0.5 pastes from another video .*: raise batch"):
        config.check()
    config = load_config(FinetuneConfig, None, ["batch=4", "cutmix=0.5"])
    config.check(2)
    with pytest.raises(UsageError, match="cutmix=0.5 pastes from another video"):
        config.check(4)
