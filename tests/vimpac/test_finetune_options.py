"""What fine-tuning can do beyond the paper: each option is what its definition says."""

import pytest
import torch

from vimpac import VideoClassifier, Vimpac
from vimpac.config import FinetuneConfig
from vimpac.settings import load_config
from vimpac.train.distributed import World
from vimpac.train.finetune_step import FinetuneStep

pytestmark = pytest.mark.usefixtures("one_thread")

WORLD = World(torch.device("cpu"))


def _classifier() -> VideoClassifier:
    """Three classes that it tells apart, without dropout."""
    torch.manual_seed(0)
    model = VideoClassifier(Vimpac.from_preset("tiny", grid=(2, 4, 4), dropout=0.0).encoder, 3)
    torch.nn.init.normal_(model.classifier.weight)
    return model


def _step(model: VideoClassifier, *words: str) -> FinetuneStep:
    config = load_config(
        FinetuneConfig, None, ["batch=4", "batch.micro=2", "precision=fp32", *words]
    )
    return FinetuneStep(model, config, WORLD, has_padding=False)


def test_label_smoothing_divides_its_share_among_all_classes():
    model, clips = _classifier(), torch.randint(8192, (4, 2, 4, 4))
    classes = torch.tensor([0, 1, 2, 0])
    parts = [(clips[i : i + 2], classes[i : i + 2]) for i in (0, 2)]
    loss, _ = _step(model, "label_smoothing=0.3").gradients([parts], 0)
    found = model.classifier.weight.grad.clone()
    model.zero_grad()
    targets = 0.7 * torch.nn.functional.one_hot(classes, 3) + 0.1
    expected = -(targets * model(clips).log_softmax(-1)).sum(-1).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(found, model.classifier.weight.grad)
