"""The attentive probe: a query that reads a frozen encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.vimpac.runs import ON_TWO_RANKS, make_labelled, run_process
from vimpac import PAD_TOKEN, Vimpac, load_classifier
from vimpac.checkpoints.model_dir import load_encoder, read_description
from vimpac.config import FinetuneConfig
from vimpac.errors import UsageError
from vimpac.eval.evaluate import evaluate
from vimpac.model.attentive import AttentiveClassifier
from vimpac.settings import load_config
from vimpac.train.finetune import finetune
from vimpac.train.log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = (2, 4, 4)
SETTINGS = (
    "clips.frames=2",
    "clips.workers=0",
    "precision=fp32",
    "device=cpu",
    "test_clips=2",
    "batch=4",
    "optim.steps=30",
    "run.log_every=1",
    "run.tensorboard=false",
)


@pytest.fixture
def model() -> AttentiveClassifier:
    torch.manual_seed(0)
    model = AttentiveClassifier(Vimpac.from_preset("tiny", grid=GRID).encoder, 3)
    torch.nn.init.normal_(model.classifier.weight)
    torch.nn.init.normal_(model.norm.weight, 1.0, 0.2)
    return model.double().eval()


def _by_hand(model: AttentiveClassifier, hidden: torch.Tensor) -> torch.Tensor:
    """Of the states (S, D) of one clip, without those of padding."""
    D, N = hidden.shape[1], model.heads
    states = F.layer_norm(hidden, (D,), model.norm.weight, model.norm.bias, 1e-12)
    key, value = model.to_key_value(states).chunk(2, -1)
    query, read = model.to_query(model.query), []
    for head in range(N):
        own = slice(head * D // N, (head + 1) * D // N)
        scores = key[:, own] @ query[own] / (D // N) ** 0.5
        read.append(scores.softmax(0) @ value[:, own])
    pooled = model.query + model.out(torch.cat(read))
    return model.classifier(pooled + model.mlp(pooled))


def test_query_reads_all_real_tokens(model):
    tokens = torch.randint(8192, (2, *GRID))
    tokens[1, 1] = PAD_TOKEN
    hidden = model.encoder(tokens)
    expected = torch.stack([_by_hand(model, hidden[0]), _by_hand(model, hidden[1, :17])])
    torch.testing.assert_close(model(tokens), expected, rtol=1e-9, atol=1e-9)
    full = model(tokens[:1], has_padding=False)
    torch.testing.assert_close(full, expected[:1], rtol=1e-9, atol=1e-9)


def test_only_the_probe_learns_and_nothing_is_dropped(model):
    model = model.float().train()
    assert not model.encoder.training and model.mlp.training
    tokens = torch.randint(8192, (2, *GRID))
    first, second = model(tokens), model(tokens)
    assert torch.equal(first, second)
    first.sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("encoder."), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("data"))


def _words(folder: Path, out: Path, *more: str) -> list[str]:
    data = [f"data={folder / 'store'}", f"labels={folder / 'labels.csv'}", f"out={out}"]
    return [*SETTINGS, *data, *more]


def _run(folder: Path, out: Path, *more: str, **options):
    config = load_config(FinetuneConfig, None, _words(folder, out, *more))
    return finetune(config, folder / "model", probe="attentive", quiet=True, **options)


def test_probe_learns_is_saved_and_resumes_bit_for_bit(folder, tmp_path):
    result = _run(folder, tmp_path / "whole", "run.save_every=100")
    assert result.video_accuracy == 1.0
    saved = load_file(result.checkpoint / "model.safetensors")
    for name, tensor in load_encoder(folder / "model")[0].state_dict().items():
        assert torch.equal(saved[f"encoder.{name}"], tensor), name
    assert read_description(result.checkpoint).kind == "attentive_classifier"
    loaded, classes = load_classifier(result.checkpoint)
    assert isinstance(loaded, AttentiveClassifier) and classes == ["a", "b"]
    assert not loaded.training and not loaded.encoder.token_embedding.weight.requires_grad

    steps = iter(range(100))
    _run(folder, tmp_path / "parts", stop=lambda: next(steps) == 7)
    again = _run(folder, tmp_path / "parts", resume="auto")
    for name, tensor in load_file(again.checkpoint / "model.safetensors").items():
        assert torch.equal(saved[name], tensor), name
    records = [r for r in read_log(tmp_path / "whole" / "log.jsonl") if "lr" in r]
    assert max(record["lr"] for record in records) == pytest.approx(1e-3)


def test_probe_is_evaluated_and_starts_a_finetuning(folder, tmp_path):
    saved = _run(folder, tmp_path / "probe").checkpoint
    settings = {"device": "cpu", "precision": "fp32", "workers": 0, "clips": 2}
    report = evaluate(saved, folder / "store", folder / "labels.csv", **settings)
    assert report.best.top1 == 1.0
    encoder, _ = load_encoder(saved)
    assert encoder.training and all(p.requires_grad for p in encoder.parameters())
    settings = load_config(FinetuneConfig, None, _words(folder, tmp_path / "more"))
    assert finetune(settings, saved, quiet=True).video_accuracy >= 0
    settings = load_config(FinetuneConfig, None, _words(folder, tmp_path / "other"))
    with pytest.raises(UsageError, match="its kind is attentive_classifier: give the --probe"):
        finetune(settings, saved, resume=str(saved))


def test_two_ranks_equal_one(folder, tmp_path):
    more = ("batch.micro=2", "optim.lr=1e-4", "optim.steps=5")
    _run(folder, tmp_path / "one", *more)
    words = ["-m", "vimpac", "finetune", str(folder / "model"), "--probe", "attentive"]
    run_process(*ON_TWO_RANKS, *words, *_words(folder, tmp_path / "two", *more))
    losses = [
        [r["loss"] for r in read_log(tmp_path / run / "log.jsonl") if "loss" in r]
        for run in ("one", "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
