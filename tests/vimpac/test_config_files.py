"""Configuration files say every setting once, and the package's belong to a command."""

import dataclasses
import re

import pytest
import yaml

from tests.vimpac.runs import make_store
from vimpac import PRESETS, cli, load_classifier, load_model
from vimpac.config import FinetuneConfig, PretrainConfig
from vimpac.data.store import TokenStore
from vimpac.errors import UsageError
from vimpac.presets import config_names
from vimpac.settings import load_config, to_yaml

COMMANDS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}


@pytest.fixture
def load(tmp_path):
    """Loads a text as a configuration file."""

    def load(text: str, kind: type = PretrainConfig):
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        return load_config(kind, str(file))

    return load


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("optim: {lr: 1}\nseed: 1\noptim: {eps: 1}", "optim", (1, 3)),
        ("optim:\n  lr: 1\nrun:\n  keep: 1\noptim:\n  lr: 1\n", "optim", (1, 5)),
        ("seed: 1\nseed: 1", "seed", (1, 2)),
        ("optim:\n  lr: 1\n  eps: 1\n  lr: 1", "optim.lr", (2, 4)),
        ("optim: {lr: 1}\n\noptim.lr: 1", "optim.lr", (1, 3)),
        ("'seed': 1\nseed: 2", "seed", (1, 2)),
    ],
)
def test_key_that_stands_twice_is_named_with_its_lines(load, text, key, lines):
    words = f"mine.yaml has '{key}' in line {lines[0]} and again in line {lines[1]}: keep one"
    with pytest.raises(UsageError, match=words):
        load(text)


@pytest.mark.parametrize("null", ["null", "~", "NULL", ""])
@pytest.mark.parametrize("key", ["out", "data", "device", "precision", "run.tensorboard", "seed"])
def test_null_is_no_value_of_a_setting_that_has_none(load, key, null):
    with pytest.raises(UsageError, match=f"mine.yaml, line 2: {key} must be .*, not null"):
        load(f"# a comment\n{key}: {null}")


@pytest.mark.parametrize("null", ["null", "~", "NULL", ""])
def test_null_is_a_value_of_an_optional_setting_and_of_a_section(load, null):
    config = load(f"mask: {{noise: {null}}}\noptim: {null}\nclips:\n  variant: {null}\n")
    assert config == PretrainConfig()


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}"])
def test_empty_file_changes_nothing(load, text):
    assert load(text) == PretrainConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim:\n  lr: 1\n  lrate: 1", "unknown key 'optim.lrate' in .*mine.yaml, line 3"),
        ("[1, 2]", "must hold keys and values"),
        ("a", "must hold keys and values"),
        ("? [a, b]\n: 1", "line 1: a key must be a text"),
        ("optim: [1]", "'optim' .*section with the keys"),
        ("optim: &x {lr: *x}", "is no YAML|optim.lr must be a number"),
        ("a: 1\n---\nb: 2", "is no YAML.*single document"),
        ("a:\tb: c", "is no YAML"),
        ("seed: [1, {a: 2}]", "seed must be a whole number"),
        ("<<: {seed: 1}", "unknown key '<<.seed'"),
    ],
)
def test_wrong_file_is_one_line_that_says_where(load, text, message):
    with pytest.raises(UsageError, match=f"mine.yaml.*({message})|({message})") as error:
        load(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_setting_is_shown_with_its_meaning_and_legal_values(command, capsys, tmp_path):
    kind = COMMANDS[command]
    assert cli.main([command, "--show", "optim.lr=0.5", "out=a # b"]) == 0
    shown = capsys.readouterr().out
    for line in shown.splitlines():
        key, value, comment = re.fullmatch(r" *([\w.]+):(.*?)  # (.*)", line).groups()
        assert re.fullmatch(r".{3,} \(.+\)", comment) or not value.strip(), line
    (tmp_path / "shown.yaml").write_text(shown)
    config = load_config(kind, str(tmp_path / "shown.yaml"))
    assert config == load_config(kind, None, ["optim.lr=0.5", "out=a # b"])
    plain = [line.partition("  #")[0].rstrip() for line in shown.splitlines()]
    assert to_yaml(config).splitlines() == plain
    assert "bf16 or fp32" in shown and "must be positive" in shown


def test_sizes_of_a_model_are_shown_by_name():
    name = {field.name: field for field in dataclasses.fields(PretrainConfig().model)}["name"]
    assert all(preset in name.metadata["doc"] for preset in PRESETS)


@pytest.mark.parametrize(
    "text",
    ["a: b", "#", " x ", "[1]", "new\nline", "null", "", "'", '"', "\udcff", "é", "1e5", "T,H|W"],
)
def test_any_text_survives_the_file(text, tmp_path):
    config = dataclasses.replace(PretrainConfig(), device=text)
    for comments in (False, True):
        (tmp_path / "config.yaml").write_text(to_yaml(config, comments=comments))
        assert load_config(PretrainConfig, str(tmp_path / "config.yaml")) == config
        assert yaml.safe_load(to_yaml(config, comments=comments))["device"] == text


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://x", "file:///x", "https://x/y"])
def test_url_is_no_value_of_a_path(url, load, capsys):
    for kind, key in (
        (PretrainConfig, "cache"),
        (PretrainConfig, "out"),
        (FinetuneConfig, "labels"),
    ):
        with pytest.raises(UsageError, match=f"{key}={url} must "):
            load(f"{key}: {url}", kind)
        with pytest.raises(UsageError, match=f"{key}={url} must "):
            kind(**{key: url}).check()
    assert cli.main(["pretrain", "--config", url]) == 2
    assert f"{url} is a URL" in capsys.readouterr().err


URL = "s3://bucket/x"


@pytest.mark.parametrize(
    "words",
    [
        ["tokenize", URL, "--out", "store"],
        ["tokenize", "--list", URL, "--out", "store"],
        ["tokenize", "v.mp4", "--out", URL],
        ["tokenize", "v.mp4", "--out", "store", "--tokenizer", "dalle", "--weights", URL],
        ["store", "merge", URL, "--out", "new"],
        ["store", "add", "store", URL],
        ["store", "upload", URL, URL],
        ["store", "convert", URL, "--out", "store"],
        ["store", "convert", "lmdb", "--out", URL],
        ["pretrain", "--config", URL],
        ["pretrain", f"data={URL}"],
        ["pretrain", "data=store", f"out={URL}"],
        ["pretrain", "data=store", "device=cpu", "--resume", URL],
        ["finetune", URL, "data=store", "labels=labels.csv", "device=cpu"],
        ["finetune", "model", "data=store", f"labels={URL}"],
        ["convert", URL, "out"],
        ["convert", "released.pt", URL],
        ["demo", "--out", URL],
        ["demo", URL],
    ],
)
def test_command_refuses_a_url_and_writes_nothing(words, tmp_path, monkeypatch, capsys):
    make_store(tmp_path / "store")
    (tmp_path / "v.mp4").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    assert "s3:/" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("call", [load_model, load_classifier, TokenStore])
def test_function_refuses_a_url(call):
    with pytest.raises(UsageError, match=f"{URL} is a URL"):
        call(URL)


@pytest.mark.parametrize("text", ["", " "])
def test_run_needs_a_directory(text):
    with pytest.raises(UsageError, match="out= *must name a directory"):
        load_config(PretrainConfig, None, [f"out={text}"])


def test_configurations_belong_to_a_command(capsys):
    assert config_names("pretrain") == ["base", "large_half", "large_half_256", "small", "tiny"]
    for command, kind in COMMANDS.items():
        assert cli.main([command, "--help"]) == 0
        help_text = " ".join(capsys.readouterr().out.split())
        for name in config_names("pretrain"):
            assert (f" {name}," in help_text) == (name in config_names(command))
        for name in config_names(command):
            load_config(kind, name).check()
    assert cli.main(["finetune", "--config", "small", "--show"]) == 2
    assert "--config small: it belongs to `vimpac pretrain`" in capsys.readouterr().err


def test_finetune_says_that_the_checkpoint_is_missing(capsys):
    assert cli.main(["finetune", "data=store", "labels=labels.csv"]) == 2
    assert "the checkpoint is missing" in capsys.readouterr().err
