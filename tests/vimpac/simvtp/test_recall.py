"""Runs that are tested while they train: the numbers are those of the model's own features."""

import shutil
import subprocess

import pytest
import torch

from tests.vimpac.runs import ENVIRONMENT, ON_TWO_RANKS
from vimpac.errors import UsageError, VimpacError
from vimpac.simvtp.finetune import finetune
from vimpac.simvtp.pairs import open_parts, pick_part
from vimpac.simvtp.pretrain import pretrain
from vimpac.simvtp.ranks import judge
from vimpac.simvtp.recall_test import RecallTest
from vimpac.simvtp.retrieval import Retriever
from vimpac.train.distributed import World
from vimpac.train.log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")


def found(out) -> list[tuple[float, float]]:
    """Step and R@1 of every test of a run."""
    name = "test_text_to_video_r1"
    return [(r["step"], r[name]) for r in read_log(out / "log.jsonl") if name in r]


def without(shapes, folder, lost) -> list[str]:
    """Settings of a copy of the shapes in which some videos are unreadable."""
    shutil.copytree(shapes, folder)
    for number in lost:
        (folder / "videos" / f"{number}.mkv").write_bytes(b"no video")
    return [f"data={folder}/captions.csv", f"videos={folder}/videos"]


def expected(checkpoint, shapes) -> tuple[float, float]:
    """R@1 from text to video and the reverse, of the videos of test."""
    retriever = Retriever(checkpoint, device="cpu")
    pairs = pick_part(open_parts(f"{shapes}/captions.csv", f"{shapes}/videos"), "test", "data")
    gallery = retriever.index(pairs.files, pairs.numbers)
    similarity = retriever.embed_captions(pairs.captions) @ gallery.features.T
    result = judge(similarity, torch.arange(len(pairs)))
    return result.text_to_video.r1, result.video_to_text.r1


def test_fine_tuning_is_tested_on_its_way_and_the_best_is_kept(
    shapes, checkpoint, make_tuning, tmp_path, capsys
):
    out = tmp_path / "a"
    more = "optim.steps=3", "run.evaluate_every=0.6", "run.keep_best=true"
    config = make_tuning(out, *more)
    result = finetune(config, checkpoint)
    assert [step for step, _ in found(out)] == [1, 2, 3]  # an epoch is 12 / 8 updates
    assert found(out)[-1][1] == expected(result.checkpoint, shapes)[0]
    assert result.record["test_video_to_text_r1"] == expected(result.checkpoint, shapes)[1]
    best = max(share for _, share in found(out))
    assert expected(out / "best", shapes)[0] == best
    (first,) = [step for step, share in found(out)[::-1] if share == best][-1:]
    assert f"step {first} is the best so far: {out / 'best'}" in capsys.readouterr().err


def test_pre_training_is_tested_at_its_end(checkpoint, shapes):
    ((step, share),) = found(checkpoint.parents[1])
    assert (step, share) == (6, expected(checkpoint, shapes)[0])


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_sharded_run_finds_what_one_process_finds(
    kind, make_run, make_tuning, tuning_words, checkpoint, tmp_path
):
    alone, out = tmp_path / "alone", tmp_path / "ranks"
    more = ["precision=fp32", "optim.steps=2", "run.evaluate_every=0.6"]
    if kind == "pretrain":
        pretrain(make_run(alone, *more), quiet=True)
        start, words = [], [*_as_words(make_run(out, *more))]
    else:
        finetune(make_tuning(alone, *more), checkpoint, quiet=True)
        start, words = [str(checkpoint)], tuning_words(out, *more)
    command = [*ON_TWO_RANKS, "-m", "vimpac", "simvtp", kind, *start, *words, "parallel=fsdp"]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    assert len(found(out)) == 2
    assert found(out) == found(alone)
    for name in ("loss", "grad_norm"):
        ours, theirs = (
            [record[name] for record in read_log(of / "log.jsonl") if name in record]
            for of in (out, alone)
        )
        assert ours == pytest.approx(theirs, rel=1e-4), name


def _as_words(config) -> list[str]:
    """The settings of a run as a command line has them."""
    from vimpac.settings import to_yaml

    path = f"{config.out}.yaml"
    with open(path, "w") as file:
        file.write(to_yaml(config))
    return ["--config", path]


class OneOf(World):
    """A process of several, which meets no other."""

    def sum(self, values):
        return values


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_processes_divide_the_videos_whatever_their_number(checkpoint, shapes, tmp_path, size):
    without(shapes, tmp_path / "shapes", [13])  # one of test
    parts = open_parts(f"{tmp_path}/shapes/captions.csv", f"{tmp_path}/shapes/videos")
    retriever = Retriever(checkpoint, device="cpu")
    rows, calls = [], []
    for rank in range(size):
        test = RecallTest(
            parts,
            retriever.words,
            retriever.model.config,
            step=1,
            length=16,
            batch=3,
            workers=0,
            out=str(tmp_path),
            precision="fp32",
            world=OneOf(torch.device("cpu"), rank, size),
        )
        rows.append(test._embed_videos(parts["test"], retriever.model))
        calls.append(len(test._own(len(parts["test"]))))
    features, readable = (sum(of) for of in zip(*rows, strict=True))
    assert len({*calls}) == 1  # as a sharded model needs it
    assert readable.tolist() == [1, 0, 1, 1]
    gallery = retriever.index(parts["test"].files, parts["test"].numbers)
    torch.testing.assert_close(features[[0, 2, 3]], gallery.features, rtol=1e-5, atol=1e-6)


def test_videos_of_which_none_can_be_read_end_a_run_before_it_trains(
    checkpoint, make_tuning, shapes, tmp_path
):
    settings = without(shapes, tmp_path / "shapes", range(12, 16))
    config = make_tuning(tmp_path / "a", *settings, "optim.steps=1")
    with pytest.raises(VimpacError, match="none of the 4 videos of 'test' can be read"):
        finetune(config, checkpoint, quiet=True)
    assert not [*tmp_path.glob("a/**/step-*")] and not (tmp_path / "a" / "log.jsonl").exists()


def test_videos_that_a_test_cannot_read_are_counted_and_named(
    checkpoint, make_tuning, shapes, tmp_path, capsys
):
    settings = without(shapes, tmp_path / "shapes", [12, 15])
    result = finetune(make_tuning(tmp_path / "a", *settings, "optim.steps=1"), checkpoint)
    assert result.record["test_unreadable"] == 2
    assert "test unreadable 2" in capsys.readouterr().err
    named = (result.out / "unreadable.txt").read_text().splitlines()
    assert [line.partition(":")[0] for line in named] == ["12.mkv", "15.mkv"]


@pytest.mark.parametrize("setting", ["run.keep_best=true", "run.evaluate_every=1"])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_asking_for_a_test_without_videos_for_it_is_an_error(
    kind, setting, make_run, make_tuning, checkpoint, shapes, tmp_path
):
    lines = (shapes / "captions.csv").read_text().splitlines()
    data = tmp_path / "train.csv"
    data.write_text("\n".join(line for line in lines if not line.endswith("test")))
    settings = f"data={data}", "missing=skip", setting
    with pytest.raises(UsageError, match=r"needs a test, and .*train\.csv has no video in val"):
        if kind == "pretrain":
            pretrain(make_run(tmp_path / "a", *settings), quiet=True)
        else:
            finetune(make_tuning(tmp_path / "a", *settings), checkpoint, quiet=True)


def test_captions_without_a_word_are_an_error_only_if_all_are(
    checkpoint, make_tuning, tmp_path, capsys
):
    data = tmp_path / "captions.csv"
    data.write_text("video,caption\n0.mkv,a red disk\n1.mkv,!!!\n2.mkv,?\n3.mkv,...\n")
    settings = f"data={data}", "missing=skip", "optim.steps=1"
    finetune(make_tuning(tmp_path / "a", *settings), checkpoint)
    assert "3 of 4 captions have no word" in capsys.readouterr().err
    data.write_text("video,caption\n0.mkv,!!!\n1.mkv,?\n")
    with pytest.raises(UsageError, match="none of 2 captions has a word, as '!!!' has none"):
        finetune(make_tuning(tmp_path / "b", *settings), checkpoint, quiet=True)
