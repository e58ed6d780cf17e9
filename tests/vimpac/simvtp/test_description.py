"""Models on disk that say nonsense of themselves, or whose weights are of another kind."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from vimpac.errors import VimpacError
from vimpac.simvtp.frames import VideoFiles
from vimpac.simvtp.retrieval import Retriever

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("text", "length", "16", "length='16' must be a whole number"),
        ("text", "length", 2, "text.length=2 must be at least 3"),
        ("text", "pool", "some", "pool='some' must be all or words"),
        ("text", "padding", 100, "padding=100 must be less than vocabulary="),
        ("loss", "temperature", 0, "temperature=0 must be positive"),
        ("words", "content", ["red"], "it has 6 words, its network"),
        ("words", "content", 5, "the vocabulary of the checkpoint is damaged"),
        ("words", "kind", "vocab.txt", "the vocabulary of the checkpoint is damaged"),
    ],
)
def test_description_that_says_nonsense_is_a_damaged_model(
    checkpoint, tmp_path, part, name, value, message
):
    for file in ("model.json", "model.safetensors"):
        (tmp_path / file).write_bytes((checkpoint / file).read_bytes())
    description = json.loads((tmp_path / "model.json").read_text())
    description[part][name] = value
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(VimpacError, match=f"is damaged .*{message}"):
        Retriever(tmp_path, device="cpu")


def test_weights_in_half_precision_become_fp32_and_those_of_nan_are_refused(
    checkpoint, shapes, tmp_path
):
    tensors = load_file(checkpoint / "model.safetensors")
    for name, factor in (("half", 1.0), ("nan", math.nan)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_bytes((checkpoint / "model.json").read_bytes())
        halves = {key: tensor.half() * factor for key, tensor in tensors.items()}
        save_file(halves, tmp_path / name / "model.safetensors")
    files = VideoFiles.find(f"{shapes}/videos/0.mkv")
    assert Retriever(tmp_path / "half", device="cpu").index(files).features.dtype == torch.float32
    with pytest.raises(VimpacError, match="features of a video are not finite"):
        Retriever(tmp_path / "nan", device="cpu").index(files)
