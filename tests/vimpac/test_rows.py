"""The paper's tables as runs: every row runs, and what runs found stands beside its numbers."""

import json
import shutil

import pytest

from tests.vimpac.runs import make_labelled, make_store
from vimpac import cli, load_model
from vimpac.config import FinetuneConfig, PretrainConfig
from vimpac.paper_results import counted
from vimpac.paper_rows import NUMBERS, find_row, paper_tables
from vimpac.presets import config_names
from vimpac.settings import load_config, to_yaml
from vimpac.train.log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = {name: row for table in paper_tables().values() for name, row in table.rows.items()}
DISTINCT = {row.pretraining: name for name, row in reversed(ROWS.items()) if row.pretraining}
SMALL = (
    "model.name=tiny",
    "model.dropout=0.1",
    "clips.workers=0",
    "batch.micro=2",
    "optim.steps=2",
    "run.log_every=1",
    "run.tensorboard=false",
    "device=cpu",
    "precision=fp32",
)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Stores of the same videos whose maps stand for 128 and 256 pixels."""
    folder = tmp_path_factory.mktemp("stores")
    return {
        128: make_store(folder / "s128", height=4, frames=12),
        256: make_store(folder / "s256", height=6, frames=12),
    }


def _pretrain(row: str, store, out, *more: str) -> int:
    words = [f"data={store}", f"out={out}", *SMALL, *more]
    return cli.main(["pretrain", "--row", row, *words])


def test_every_row_has_its_numbers_and_legal_settings():
    datasets = {name.split("/")[0] for name in config_names("finetune")}
    for row in ROWS.values():
        assert {*row.paper} <= {*NUMBERS, *datasets} and (row.paper or row.note or row.continues)
        for dataset in row.datasets:
            config = row.finetune_config(dataset)
            load_config(FinetuneConfig, config, row.finetune_words()).check()
        if row.pretrain is not None:
            load_config(PretrainConfig, row.config, row.pretrain_words()).check()
    assert [*paper_tables()] == "t2 t4 t6 t7 t8 t9 t10 t11 t12 t13 t14 t16 g3 c1".split()


@pytest.mark.parametrize("name", sorted(DISTINCT.values()))
def test_row_runs(stores, tmp_path, name):
    row = find_row(name)
    config = load_config(PretrainConfig, row.config, row.pretrain_words())
    told_apart = config.batch.contrastive // 32  # 2 to 16 videos, of 64 to 512
    batch = [f"batch.contrastive={told_apart}", f"batch.videos={max(4, told_apart)}"]
    more = [] if config.run.until is None else ["run.until=0.1", "optim.epochs=1"]
    assert _pretrain(name, stores[row.pixels], tmp_path / "run", *batch, *more) == 0
    records = read_log(tmp_path / "run" / "log.jsonl")
    assert records and all(record["loss"] > 0 for record in records)


@pytest.mark.parametrize(
    ("row", "words", "grid"),
    [
        ("t8.block128", ["clips.frames=2"], (2, 4, 4)),
        ("t14.10x128", [], (10, 4, 4)),
        ("t7.scratch", ["clips.frames=2"], (2, 4, 4)),
    ],
)
def test_row_is_fine_tuned(tmp_path, row, words, grid):
    """With the settings of the row, which what is given beside it changes."""
    folder = make_labelled(tmp_path)
    start = "tiny" if find_row(row).pretrain is None else str(folder / "model")
    config = ["--config", find_row(row).finetune_config("ucf101"), "--row", row]
    paths = [f"data={folder / 'store'}", f"labels={folder / 'labels.csv'}", f"out={tmp_path / 'o'}"]
    few = ["batch=4", "clips.workers=0", "optim.steps=2", "device=cpu", "run.tensorboard=false"]
    assert cli.main(["finetune", start, *config, *paths, *few, *words]) == 0
    (checkpoint,) = (tmp_path / "o" / "checkpoints").iterdir()
    assert json.loads((checkpoint / "model.json").read_text())["config"]["grid"] == [*grid]


def test_two_stages_are_one_schedule(stores, tmp_path, capsys):
    """Table 4: the second stage goes on with larger maps, and the rate with the same schedule."""
    whole, stages = tmp_path / "whole", tmp_path / "stages"
    words = [w for w in SMALL if "steps" not in w]
    words += ["optim.epochs=3", "batch.videos=4", "batch.contrastive=4", "run.save_every=100"]

    def run(config, store, out, *more):
        return cli.main(
            ["pretrain", "--config", config, *words, f"data={store}", f"out={out}", *more]
        )

    assert run("large_half", stores[128], whole) == 0
    assert run("large_half", stores[128], stages, "run.until=2") == 0
    assert run("large_half_256", stores[256], stages, "--resume", "auto") == 0
    assert "the token map is 6 x 4, it was 4 x 4" in " ".join(capsys.readouterr().err.split())
    logs = [read_log(out / "log.jsonl") for out in (whole, stages)]
    assert [r["step"] for r in logs[1]] == [r["step"] for r in logs[0]] == [*range(1, 13)]
    assert [r["lr"] for r in logs[1]] == [r["lr"] for r in logs[0]]
    assert [r["loss"] for r in logs[1][:8]] == [r["loss"] for r in logs[0][:8]]
    assert logs[1][8]["loss"] < logs[1][0]["loss"]
    assert load_model(stages / "checkpoints" / "step-00000012").encoder.grid == (5, 6, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("renamed", "video 0 is 'other', in {} '0'"),
        ("longer", "17, not 16; {new} goes on with 'one more'"),
        ("gone", "their names differ"),
    ],
)
def test_second_stage_on_other_videos_names_the_first(tmp_path, capsys, change, message):
    from vimpac.data.store import TokenStore, TokenStoreWriter

    first, second = make_store(tmp_path / "s128"), tmp_path / "s256"
    store = TokenStore(make_store(tmp_path / "copied"))
    with TokenStoreWriter(second, store.meta) as writer:
        names = [store.name(i) for i in range(len(store))]
        if change != "longer":
            names[0] = "other"
        for i, name in enumerate(names):
            writer.add(name, _tokens(store, i))
        if change == "longer":
            writer.add("one more", _tokens(store, 0))
        writer.finish()
    words = ["--config", "tiny", *SMALL, "clips.frames=2", f"out={tmp_path / 'run'}"]
    assert cli.main(["pretrain", *words, f"data={first}"]) == 0
    if change == "gone":
        shutil.rmtree(first)
    more = ["optim.steps=4", "--resume", "auto"]
    assert cli.main(["pretrain", *words, f"data={second}", *more]) == 2
    said = capsys.readouterr().err
    assert f"its videos are not those of {second}: {message.format(first, new=second)}" in said


def test_store_that_has_become_another_one_is_not_compared_with(tmp_path, capsys):
    from vimpac.data.store import TokenStore

    meta = TokenStore(make_store(tmp_path / "made")).meta
    for name, videos in (("a", "12"), ("b", "34"), ("both", "1234")):
        _write_store(tmp_path / name, meta, videos)
    words = ["--config", "tiny", *SMALL, "clips.frames=2", "batch.videos=4", "batch.contrastive=4"]
    first, both = f"{tmp_path / 'a'},{tmp_path / 'b'}", tmp_path / "both"
    command = ["pretrain", *words, f"out={tmp_path / 'run'}"]
    assert cli.main([*command, f"data={first}"]) == 0
    more = [*command, f"data={both}", "optim.steps=4", "--resume", "auto"]
    assert cli.main(more) == 2
    error = f"those of {both}, but divided among stores in another way: give data={first}"
    assert error in capsys.readouterr().err
    shutil.rmtree(tmp_path / "a")
    _write_store(tmp_path / "a", meta, "56")
    assert cli.main(more) == 2
    assert f"its videos are not those of {both}: their names differ" in capsys.readouterr().err


def _write_store(path, meta, names):
    """A store of videos with names of one letter."""
    import numpy as np

    from vimpac.data.store import TokenStoreWriter

    with TokenStoreWriter(path, meta) as writer:
        for name in names:
            writer.add(name, np.full((len(meta.variants), 6, 4, 4), int(name)))
        writer.finish()


def _tokens(store, i):
    import numpy as np

    frames, variants = store.num_frames(i), range(len(store.meta.variants))
    return np.stack([store.read(i, 0, frames, variant) for variant in variants])


def test_tables_show_the_paper_beside_the_runs(stores, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    batch = ("batch.contrastive=2", "batch.videos=4", "run.until=0.2", "optim.epochs=1")
    assert _pretrain("t8.block128", stores[128], run, *batch) == 0
    assert (
        cli.main(["pretrain", "--config", "tiny", *SMALL, f"data={stores[128]}", f"out={other}"])
        == 0
    )
    accuracy = 100 * read_log(run / "log.jsonl")[-1]["mask_accuracy"]
    capsys.readouterr()
    assert cli.main(["rows", "t8", "--runs", str(run), str(other)]) == 0
    said = capsys.readouterr()
    lines = [" ".join(line.split()) for line in said.out.splitlines()]
    assert lines[2] == "row settings mask accuracy % ucf101 %"
    assert lines[3] == f"t8.block128 loss.alpha=0 17.6 / {accuracy:.1f} 68.3 / -"
    assert lines[-1] == (
        f"{run} (t8.block128): optim.epochs=1.0, optim.steps=2, run.until=0.2, model.name=tiny, "
        "batch.videos=4, batch.contrastive=2, tokens of patch, 32 x 32 pixels"
    )
    assert said.err == f"vimpac: left out, as they have no row: {other}\n"
    assert cli.main(["rows", "--runs", str(run)]) == 0
    out = capsys.readouterr().out
    titles = [line for line in out.splitlines() if line.startswith("Table")]
    assert [title.partition(":")[0] for title in titles] == [
        "Table 7",
        "Table 8",
        "Tables 9 and 15",
        "Table 16",
    ]
    assert f"t16.0    loss.alpha=0    17.6 / {accuracy:.1f}" in out


def test_fine_tuned_rows_are_averaged_over_runs(tmp_path, capsys):
    folder = make_labelled(tmp_path)
    for seed in (0, 1):
        words = [f"data={folder / 'store'}", f"labels={folder / 'labels.csv'}", f"seed={seed}"]
        words += ["batch=4", "clips.frames=2", "clips.workers=0", "optim.steps=2", "device=cpu"]
        words += [f"out={tmp_path / str(seed)}", "run.tensorboard=false", "--row", "t8.block128"]
        command = ["finetune", str(folder / "model"), "--config", "ucf101/analysis", *words]
        assert cli.main(command) == 0
    logs = [read_log(tmp_path / str(seed) / "log.jsonl")[-1] for seed in (0, 1)]
    mean = 50 * sum(log["test_video_accuracy"] for log in logs)
    capsys.readouterr()
    assert cli.main(["rows", "t8", "--runs", *(str(tmp_path / str(s)) for s in (0, 1))]) == 0
    out = capsys.readouterr().out
    assert "labels %" in out and f"68.3 / -  - / {mean:.1f} (2)" in " ".join(out.split(" "))
    assert out.endswith(
        f"{tmp_path / '1'} (t8.block128): clips.frames=2, optim.steps=2, batch.videos=4, tokens of "
        "patch, 32 x 32 pixels\n"
    )
    twice = [str(tmp_path / "0"), f"{tmp_path}/1/../0", str(tmp_path / "1")]  # is once
    assert cli.main(["rows", "t8", "--runs", *twice]) == 0
    assert capsys.readouterr().out == out


def _write_run(path, words, record):
    """A fine-tuning of t8.block128 that found `record`."""
    path.mkdir()
    row = find_row("t8.block128")
    settings = load_config(FinetuneConfig, "ucf101/analysis", [*row.finetune_words(), *words])
    (path / "config.yaml").write_text(to_yaml(settings))
    (path / "log.jsonl").write_text(json.dumps({"step": 1, **record}) + "\n")


def test_table_of_labels_may_have_any_name(tmp_path, capsys):
    """Its accuracy is not taken for another number; that of a data set has its remarks."""
    for name in ("mask_accuracy", "ucf101"):
        words = [f"labels={name}.csv", "optim.steps=3"]
        _write_run(tmp_path / name, words, {"test_video_accuracy": 0.5})
    paths = [str(tmp_path / name) for name in ("mask_accuracy", "ucf101")]
    assert cli.main(["rows", "t8", "--runs", *paths]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == "row settings mask accuracy % ucf101 % labels mask_accuracy %"
    assert lines[3] == "t8.block128 loss.alpha=0 17.6 / - 68.3 / 50.0 - / 50.0"
    assert lines[-1] == f"{paths[1]} (t8.block128): optim.steps=3"


def test_tokens_of_another_rate_are_remarked(stores, tmp_path, capsys):
    words = ["batch.contrastive=2", "batch.videos=4", "clips.frame_stride=2"]
    assert _pretrain("t8.block128", stores[128], tmp_path / "run", *words) == 0
    capsys.readouterr()
    assert cli.main(["rows", "t8", "--runs", str(tmp_path / "run")]) == 0
    assert "clips.frame_stride=2" in (out := capsys.readouterr().out)
    assert out.endswith("tokens of patch, 32 x 32 pixels, 1 frames per second\n")


def test_numbers_that_need_no_run_are_counted():
    assert counted(find_row("t2.5x16-5"), "masked") == pytest.approx(14.5, abs=0.3)
    assert counted(find_row("t13.t_h_w"), "parameters") == pytest.approx(35.751936)
    assert counted(find_row("t8.iid128"), "mask_accuracy") is None


def test_commands_of_a_table_are_those_of_its_rows(capsys):
    """Two rows of one pre-training have it once, and Table 1 is that of the two stages."""
    assert cli.main(["rows", "t1", "--commands"]) == 0
    assert "vimpac pretrain --row t4.first data=howto100m-128" in capsys.readouterr().out
    assert cli.main(["rows", "t14", "--commands"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("vimpac pretrain") for line in lines) == 4
    assert (
        'vimpac finetune "$(ls -d runs/t14.5x128/checkpoints/step-* | tail -n 1)" --row '
        "t14.5x128-large data=ucf101-256 labels=ucf101:annotations/ucf101:1 "
        "out=runs/t14.5x128-large-ucf101"
    ) in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rows", "t3"], "there is no table 't3': the tables are t2, t4, t6"),
        (["rows", "--runs", "nowhere"], "--runs nowhere: no such directory"),
        (["rows", "--runs", "."], "--runs: none of them was made by --row"),
        (["rows", "t8", "--commands", "--runs", "."], "give one of them"),
        (["rows", "--commands"], "--commands needs a table, such as t8"),
        (["pretrain", "--row", "t8.iid"], "--row t8.iid: no such row; the rows of t8 are t8.block"),
        (["pretrain", "--row", "iid"], "--row iid: no such row; `vimpac rows` lists the tables"),
        (["pretrain", "--row", "t7.scratch"], "use it with `vimpac finetune small`"),
        (
            ["finetune", "x", "--row", "t8.iid128", "labels=a.csv"],
            "give --config, too, such as --config ucf101/analysis",
        ),
        (
            ["finetune", "x", "--row", "t8.iid128", "labels=ucf101:y", "labels=a.csv"],
            "labels=a.csv names no data set of the paper",
        ),
        (
            ["finetune", "runs/a", "--row", "t7.scratch", "labels=ucf101:y"],
            "--row t7.scratch is trained from scratch: name a network, such as small, not runs/a",
        ),
        (
            ["finetune", "small", "--row", "t8.iid128", "labels=ucf101:y"],
            "--row t8.iid128 is fine-tuned, not trained from scratch: name a checkpoint",
        ),
        (
            ["finetune", "x", "--row", "t8.iid128", "labels=ucf101:y", "--probe", "linear"],
            "--row t8.iid128 trains all weights: leave --probe linear out",
        ),
        (["pretrain", "data=x", "row=t8.iid"], "--row t8.iid: no such row; the rows of t8 are"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_simvtp_has_no_rows(capsys, command):
    assert cli.main(["simvtp", command, "--row", "t8.iid128", "--show"]) == 2
    assert "unrecognized arguments: --row" in capsys.readouterr().err


def test_what_is_given_beside_a_row_counts_more(capsys):
    assert cli.main(["pretrain", "--row", "t8.iid128", "mask.ratio=0.5", "--show"]) == 0
    shown = capsys.readouterr().out
    assert "ratio: 0.5 " in shown and "strategy: iid " in shown and "alpha: 0.0" in shown
    assert "out: runs/t8.iid128" in shown and "row: t8.iid128" in shown


@pytest.mark.parametrize(
    ("config", "log", "message"),
    [
        ("row: t8.nothing", "", "config.yaml: --row t8.nothing: no such row; the rows of t8 are"),
        ("row: t8.block128", None, "is no run: "),
        ("row: [", "", "is no run: while parsing a flow node expected the node content"),
        ("row: t7.scratch", "", "config.yaml: --row t7.scratch has no pre-training"),
        (
            "row: t8.block128\nlabels: x.csv",
            '{"test_video_accuracy": "0.5"}',
            "no run of this version of vimpac: TypeError('x is no number')",
        ),
        ("row: t8.block128", '{"step": 1, "mask_loss": 1}\n', "no run of this version of vimpac"),
    ],
)
def test_damaged_run_is_one_line(tmp_path, capsys, config, log, message):
    (tmp_path / "config.yaml").write_text(config + "\n")
    if log is not None:
        (tmp_path / "log.jsonl").write_text(log)
    assert cli.main(["rows", "t8", "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_run_that_has_not_begun_is_remarked(tmp_path, capsys):
    run = tmp_path / "a\nb"
    run.mkdir()
    (run / "config.yaml").write_text("row: t8.block128\n")
    (run / "log.jsonl").write_text("")
    assert cli.main(["rows", "t8", "--runs", str(run)]) == 0
    line = f"{tmp_path}/a\\nb (t8.block128): no step is in its log"
    assert line in capsys.readouterr().out.splitlines()
