"""Two encoders fine-tuned for search: the released parameters, exact division, exact resume."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vimpac.checkpoints.training_state import load_checkpoint
from vimpac.cli import main
from vimpac.data.random import words
from vimpac.errors import UsageError
from vimpac.simvtp import SimVTP, load_simvtp
from vimpac.simvtp.clips import FinetuningClip, PretrainingClip, random_resized_crop
from vimpac.simvtp.description import read_any, read_simvtp
from vimpac.simvtp.dual import DualEncoder
from vimpac.simvtp.dual_step import DualStep
from vimpac.simvtp.finetune import finetune
from vimpac.simvtp.objective import contrastive_loss
from vimpac.simvtp.pretrain import pretrain
from vimpac.simvtp.run_config import SpreadClipConfig
from vimpac.train.distributed import World
from vimpac.train.log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


def test_encoders_have_the_released_parameters():
    with torch.device("meta"):
        dual = DualEncoder(SimVTP.from_preset("base").config)
    assert sum(p.numel() for p in dual.parameters()) == 195_111_168


def test_both_encoders_begin_as_the_pre_trained_one(checkpoint):
    model = load_simvtp(checkpoint).eval()
    dual = DualEncoder.of(model, fresh_norm=False).eval()
    video = torch.randint(0, 256, (2, 8, 48, 48, 3), dtype=torch.uint8)
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    with torch.no_grad():
        assert torch.equal(dual.embed_video(video), model.embed_video(video))
        assert torch.equal(dual.embed_text(ids, ids != 0), model.embed_text(ids, ids != 0))
        fresh = DualEncoder.of(model).eval()
        seen, read = fresh(video, ids, ids != 0)
    assert bool((fresh.video.last_norm.weight == 1).all())
    torch.testing.assert_close(F.normalize(seen, dim=1), fresh.embed_video(video))
    torch.testing.assert_close(F.normalize(read, dim=1), fresh.embed_text(ids, ids != 0))


def _gradients(config, checkpoint):
    """Loss and gradients of one update of two groups of four pairs."""
    torch.manual_seed(0)
    model = DualEncoder.of(load_simvtp(checkpoint))
    model.words.dropout = 0.0
    video = torch.randint(0, 256, (8, 8, 48, 48, 3), dtype=torch.uint8)
    ids = torch.randint(5, 20, (8, 6))
    ids[:, 0], ids[:, -1] = 2, 3
    step = DualStep(model, config, 0, World(torch.device("cpu")))
    rows = [slice(i, i + step.micro) for i in range(0, 8, step.micro)]
    per_group = len(rows) // 2
    groups = [[(video[r], ids[r]) for r in rows[i : i + per_group]] for i in (0, per_group)]
    loss = step.gradients(groups, 16)
    return loss, {n: p.grad for n, p in model.named_parameters()}, (model, video, ids)


def test_micro_batches_give_the_gradients_of_one_batch(make_tuning, checkpoint, tmp_path):
    settings = ("drop_path=0.5",)
    whole = _gradients(make_tuning(tmp_path, "batch.micro=4", *settings), checkpoint)
    parts = _gradients(make_tuning(tmp_path, "batch.micro=1", *settings), checkpoint)
    torch.testing.assert_close(parts[0], whole[0])
    for name, gradient in parts[1].items():
        torch.testing.assert_close(gradient, whole[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_update_is_the_mean_contrastive_loss_of_its_groups(make_tuning, checkpoint, tmp_path):
    config = make_tuning(tmp_path, "batch.micro=4", "drop_path=0")
    loss, found, (model, video, ids) = _gradients(config, checkpoint)
    model.zero_grad()
    seen, read = model(video, ids, ids != 0)
    halves = zip(read.split(4), seen.split(4), strict=True)
    expected = sum(contrastive_loss(text, of, 0.05) for text, of in halves) / 2
    expected.backward()
    torch.testing.assert_close(loss[0], expected.detach())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_resumed_run_equals_one_that_was_never_stopped(make_tuning, checkpoint, tmp_path):
    whole = finetune(make_tuning(tmp_path / "whole"), checkpoint, quiet=True)
    config, count = make_tuning(tmp_path / "stopped"), iter(range(10))
    finetune(config, checkpoint, stop=lambda: next(count) == 3, quiet=True)
    again = finetune(config, checkpoint, resume="auto", quiet=True)
    logs = [
        [(r["step"], r.get("loss")) for r in read_log(result.out / "log.jsonl")]
        for result in (whole, again)
    ]
    assert logs[0] == logs[1]
    ours, theirs = load_checkpoint(again.checkpoint), load_checkpoint(whole.checkpoint)
    assert all(torch.equal(ours.tensors[name], x) for name, x in theirs.tensors.items())
    with pytest.raises(UsageError, match=r"its text\.pool is all, not words"):
        finetune(make_tuning(whole.out, "text.pool=words"), checkpoint, resume="auto", quiet=True)


def test_runs_of_the_two_kinds_do_not_continue_each_other(
    make_tuning, checkpoint, make_run, tmp_path
):
    tuned = finetune(make_tuning(tmp_path / "a", "optim.steps=1"), checkpoint, quiet=True)
    with pytest.raises(UsageError, match="holds a simvtp_dual, no pre-trained model of SimVTP"):
        pretrain(make_run(tmp_path / "b"), resume=str(tuned.checkpoint), quiet=True)
    with pytest.raises(UsageError, match="holds a simvtp, no fine-tuned model of SimVTP"):
        config = make_tuning(tmp_path / "c")
        finetune(config, checkpoint, resume=str(checkpoint), quiet=True)


def test_fine_tuned_model_is_searched_but_matches_nothing(
    shapes, checkpoint, tuning_words, tmp_path, capsys
):
    words = ["simvtp", "finetune", str(checkpoint), *tuning_words(tmp_path / "a")]
    assert main(words) == 0
    (result,) = [line for line in capsys.readouterr().out.splitlines() if "step-00000006" in line]
    tuned = result.partition(": ")[2]
    assert read_any(tuned)[1].kind == "simvtp_dual"
    test = ["simvtp", "retrieve", tuned, "--videos", f"{shapes}/videos", "--device", "cpu"]
    test += ["--clips", "1", "--crops", "1", "--workers", "0"]
    assert main([*test, "--data", f"{shapes}/captions.csv"]) == 0
    assert "4 queries" in capsys.readouterr().out
    assert main([*test, "--query", "a red disk", "--rerank", "3"]) == 2
    assert "has no joint encoder" in capsys.readouterr().err
    assert isinstance(load_simvtp(tuned), DualEncoder)
    with pytest.raises(UsageError, match="holds a fine-tuned model"):
        read_simvtp(tuned)


def test_wrong_settings_are_named(make_tuning, checkpoint, tmp_path, capsys):
    for setting, message in (
        ("batch.contrastive=1", "no other video"),
        ("clips.scale=[1.0, 0.5]", "the first must not be the larger"),
        ("text.length=2", "at least 3"),
        ("clips.strength=11", "must not exceed 10"),
        ("clips.strength=nan", "clips.strength"),
        ("clips.augment=16", "clips.augment=16 must not exceed 15"),
    ):
        with pytest.raises(UsageError, match=message):
            make_tuning(tmp_path, "batch.micro=1", setting).check()
    with pytest.raises(UsageError, match="more than the 32 positions of the model: lower it"):
        finetune(make_tuning(tmp_path / "b", "text.length=40"), checkpoint, quiet=True)
    assert main(["simvtp", "finetune", "data=a.csv"]) == 2
    assert "give the pre-trained model" in capsys.readouterr().err
    assert main(["simvtp", "finetune", "--config", "msrvtt", "--show"]) == 0


PLAIN = {"augment": 0, "erase": 0.0}  # what changes no frame


class Numbered:
    """A video whose frames are of one colour, their number, and 8 x 16 pixels."""

    def num_frames(self, video: int) -> int:
        return 40

    def read(self, video: int, numbers) -> np.ndarray:
        last = np.minimum([*numbers], 39).astype(np.uint8)
        return np.broadcast_to(last[:, None, None, None], (len(last), 8, 16, 3)).copy()


@pytest.mark.parametrize("seed", range(3))
def test_clips_are_spread_over_their_window(seed):
    spread = FinetuningClip(4, 8, SpreadClipConfig(window=31, scale=(0.5, 1.0), **PLAIN))
    draws = words(1, seed, 0, spread.draws)
    tuned = spread(Numbered(), 0, draws)
    first = int(tuned[0, 0, 0, 0])
    assert tuned[:, 4, 4, 0].tolist() == [first, first + 10, first + 20, first + 30]
    assert first <= 40 - 31
    trained = PretrainingClip(4, 8, 3)(Numbered(), 0, draws[:3])
    first = int(trained[0, 0, 0, 0])
    assert trained[:, 4, 4, 0].tolist() == [first + 3 * i for i in range(4)]
    short = PretrainingClip(4, 8, 20)(Numbered(), 0, draws[:3])
    assert short[:, 4, 4, 0].tolist() == [0, 20, 39, 39]


def test_random_crops_cover_the_shares_of_the_picture_that_are_asked_for():
    column = np.arange(64, dtype=np.uint8) * 4
    picture = np.broadcast_to(column[None, None, :, None], (1, 64, 64, 3)).copy()
    widths = []
    for seed in range(200):
        crop = random_resized_crop(picture, 16, (0.25, 0.25), words(1, seed, 0, 4))
        assert crop.shape == (1, 16, 16, 3)
        widths.append((int(crop[0, 8, -1, 0]) - int(crop[0, 8, 0, 0])) / 4)
    low, high = 32 * (3 / 4) ** 0.5, 32 * (4 / 3) ** 0.5
    assert low - 4 < min(widths) < low + 3
    assert high - 4 < max(widths) < high + 3


def test_mirrored_clips_are_the_share_that_is_asked_for():
    class Ramp(Numbered):
        def read(self, video: int, numbers) -> np.ndarray:
            ramp = np.arange(16, dtype=np.uint8)[None, None, :, None] * 8
            return np.broadcast_to(ramp, (len(numbers), 8, 16, 3)).copy()

    draw = FinetuningClip(2, 8, SpreadClipConfig(window=4, scale=(1.0, 1.0), flip=0.25, **PLAIN))
    clips = [draw(Ramp(), 0, words(1, seed, 0, draw.draws)) for seed in range(200)]
    mirrored = sum(int(clip[0, 0, 0, 0]) > int(clip[0, 0, -1, 0]) for clip in clips)
    assert 30 < mirrored < 70
