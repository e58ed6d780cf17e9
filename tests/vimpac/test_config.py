"""Presets, files and overrides fill the configuration; everything else is a clear error."""

import dataclasses

import pytest

from vimpac import cli, preset
from vimpac.config import FinetuneConfig, PairBatchConfig, PretrainConfig
from vimpac.errors import UsageError
from vimpac.presets import config_names
from vimpac.settings import load_config, to_yaml
from vimpac.train.optim import lr_at
from vimpac.train_config import OptimConfig

# YAML 1.1 reads other things in them.
TEXTS = ("2024", "20240101_120000", "007", "12:30:45", "1.10", "yes", "off", "0x10", "null", "a=b")


def _load(*overrides: str, source: str | None = None) -> PretrainConfig:
    return load_config(PretrainConfig, source, overrides)


@pytest.mark.parametrize("name", config_names("pretrain"))
def test_every_named_configuration_is_legal_and_survives_yaml(name, tmp_path):
    config = _load(source=name)
    config.check()
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert _load(source=str(file)) == config
    assert config.model.name == name.removesuffix("_256")


@pytest.mark.parametrize(
    ("name", "lr", "warmup", "contrastive"),
    [("small", 1e-3, 0.1, 64), ("base", 1e-3, 0.1, 64), ("large_half", 3e-4, 0.05, 128)],
)
def test_named_configurations_hold_the_numbers_of_the_paper(name, lr, warmup, contrastive):
    config = _load(source=name)
    assert (config.optim.lr, config.optim.warmup) == (lr, warmup)
    assert (config.batch.videos, config.batch.contrastive) == (1024, contrastive)
    assert (config.optim.betas, config.optim.weight_decay) == ((0.9, 0.98), 0.05)
    assert (config.clips.frames, config.mask.blocks) == (5, 5)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("optim.lr=3e-4", 3e-4),  # YAML itself reads this as a text
        ("optim.steps=null", None),
        ("optim.steps=12", 12),
        ("optim.steps=010", 10),
        ("optim.steps=NULL", None),
        ("optim.betas=[0, .5]", (0.0, 0.5)),
        ("run.tensorboard=false", False),
        ("compile=none", "none"),
        ("data=runs/a=b", "runs/a=b"),
        *((f"out={text}", text) for text in TEXTS),
        ("model.norm=pre", "pre"),
        ("model.heads=2", 2),
        ("loss.gamma=0.5", 0.5),
        ("clips.variant=null", None),
        ("model.layout=T,H|W", "T,H|W"),
        ("clips.max_distance=10", 10.0),
    ],
)
def test_override_gets_the_declared_type(word, value):
    target = _load(word)
    for name in word.partition("=")[0].split("."):
        target = getattr(target, name)
    assert target == value
    assert type(target) is type(value)


def test_text_in_a_file_stays_as_it_stands(tmp_path):
    file = tmp_path / "mine.yaml"
    for text in TEXTS:
        quoted = "'null'" if text == "null" else text
        file.write_text(
            f"out: {quoted}\nmodel: {{norm: pre}}\noptim: {{steps: 12, betas: [0.8, 0.9]}}"
        )
        config = _load(source=str(file))
        assert config.out == text and config.model.norm == "pre"
        assert config.optim.steps == 12 and config.optim.betas == (0.8, 0.9)


def test_name_of_a_model_sets_its_sizes_and_nothing_else():
    config = _load("model.heads=6", "model.name=base", source="tiny")
    assert config.model == preset("base", heads=6, dropout=0.0)
    assert _load("model.layout=THW", "model.name=tiny").model == preset("tiny", layout="THW")


def test_batch_of_clips_is_one_number_or_its_parts():
    config = load_config(FinetuneConfig, None, ["batch=8"])
    assert config.batch.videos == 8
    words = ["batch.videos=12", "batch.micro=8"]
    with pytest.raises(UsageError, match="batch.micro=8 must divide the 12"):
        load_config(FinetuneConfig, None, words).check()
    with pytest.raises(UsageError, match="batch.videos=12 does not divide among 5"):
        load_config(FinetuneConfig, None, words[:1]).check(5)


def test_later_words_win_over_the_preset():
    config = _load("optim.lr=1", "optim.lr=2", source="small")
    assert config.optim.lr == 2.0
    assert config.optim.warmup == 0.1


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("optim.lrate=1", "unknown key 'optim.lrate'.*did you mean 'optim.lr'"),
        ("optim.clip=1", "unknown key 'optim.clip'.*it is 'optim.max_grad_norm' now"),
        ("lr=1", "did you mean 'optim.lr'"),
        ("optim.warmpu=1", "did you mean 'optim.warmup'"),
        ("bacth.micro=1", "did you mean 'batch.micro'"),
        ("colour=1", "unknown key 'colour' in colour=1; --show prints all keys"),
        ("model.grid=[1, 2, 3]", "unknown key 'model.grid'"),  # that of the data
        ("optim=1", "a section with the keys optim.lr, "),
        ("optim.lr=fast", "optim.lr must be a number or null, not 'fast'"),
        ("optim.eps=null", "optim.eps must be a number, not 'null'"),
        (f"optim.lr={10**400}", "optim.lr=inf must be finite"),
        ("optim.lr=1:30", "optim.lr must be a number or null, not '1:30'"),  # 90 in YAML 1.1
        ("optim.steps=1:30", "optim.steps must be a whole number or null, not '1:30'"),
        ("mask.noise=" + 3000 * "[", "mask.noise must be"),
        ("optim.steps=1.5", "optim.steps must be a whole number or null, not '1.5'"),
        ("optim.betas=0.9", r"optim.betas must be \[a number, a number\], not '0.9'"),
        ("precision=fp16", "precision must be bf16 or fp32, not 'fp16'"),
        ("run.tensorboard=3", "run.tensorboard must be true or false, not '3'"),
        ("small", "'small' is not of the form key=value"),
    ],
)
def test_wrong_word_is_named_with_its_fix(word, message):
    with pytest.raises(UsageError, match=message):
        _load(word)


@pytest.mark.parametrize(
    ("text", "message"),
    [("optim: {lrate: 1}", "unknown key 'optim.lrate'"), ("a: [", "is no YAML"), ("3", "keys and")],
)
def test_wrong_file_is_named(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=f"mine.yaml.*{message}|{message}.*mine.yaml"):
        _load(source=str(file))


def test_missing_file_lists_the_names():
    with pytest.raises(
        UsageError, match="no such file; there are base, large_half, large_half_256, small, tiny"
    ):
        _load(source="smal")


@pytest.mark.parametrize(
    ("batch", "world", "message"),
    [
        (PairBatchConfig(videos=96, contrastive=64), 1, "batch.videos=96 must be a multiple"),
        (PairBatchConfig(videos=64, contrastive=64), 3, "does not divide among 3 processes"),
        (PairBatchConfig(videos=64, contrastive=64, micro=24), 2, "must divide the 32 videos"),
        (PairBatchConfig(videos=0), 1, "batch.videos=0 must be positive"),
    ],
)
def test_batches_that_do_not_divide_are_refused(batch, world, message):
    with pytest.raises(UsageError, match=message):
        PretrainConfig(batch=batch).check(world)


@pytest.mark.parametrize(
    ("word", "must"),
    [
        ("seed=-1", "lie in"),
        (f"seed={10**400}", "lie in"),  # of which no float is made
        ("clips.workers=-1", "lie in \\[0, 1,024\\]"),
        ("clips.max_distance=-1", "not be negative"),
        ("clips.prefetch=0", "be positive"),
        ("mask.blocks=-1", "lie in"),
        ("mask.blocks=65537", "lie in"),
        ("mask.ratio=1.5", "lie in"),
        ("mask.noise=[1, 1, 1]", "sum to 1"),
        ("mask.noise=[2, -1, 0]", "lie in"),
        ("optim.betas=[0.9, 1]", "lie in"),
        ("loss.alpha=-1", "not be negative"),
        ("model.dropout=1", "lie in"),
    ],
)
def test_number_out_of_range_is_refused(word, must):
    _load("mask.noise=[0.8, 0.1, 0.1]").check()
    with pytest.raises(UsageError, match=f"{word.partition('=')[0]}=.* must {must}"):
        _load(word).check()


def _float_keys(config: object, prefix: str = ""):
    """Dotted keys of the settings that take a number with a fraction."""
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _float_keys(value, f"{key}.")
        elif "float" in field.type:
            yield key


FLOAT_KEYS = [
    (kind, key) for kind in (PretrainConfig, FinetuneConfig) for key in _float_keys(kind())
]


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan", "inf", "nan"])
@pytest.mark.parametrize(
    ("kind", "key"), FLOAT_KEYS, ids=[f"{kind.__name__}-{key}" for kind, key in FLOAT_KEYS]
)
def test_number_that_is_not_finite_is_refused(kind, key, number):
    """In every setting; YAML writes it with a dot, Python without."""
    text = {"optim.betas": f"[0.9, {number}]", "mask.noise": f"[{number}, 0, 1]"}.get(key, number)
    with pytest.raises(UsageError, match=rf"{key}=(-?inf|nan) must be finite"):
        load_config(kind, None, [f"{key}={text}"])


@pytest.mark.parametrize(
    "word",
    [
        *("optim.epochs=1e308", "optim.lr=1e308", "clips.max_distance=1e308"),
        *(f"{key}={10**30}" for key in ("optim.steps", "clips.frames", "clips.frame_stride")),
    ],
)
def test_number_that_nothing_can_compute_with_is_refused(word):
    key, _, number = word.partition("=")
    for kind in (PretrainConfig,) if "distance" in key else (PretrainConfig, FinetuneConfig):
        with pytest.raises(UsageError, match=rf"{key}=\S+ must be within 1,000,000,000 of 0"):
            load_config(kind, None, [word]).check()


def test_command_exits_with_2_for_a_number_that_is_not_finite(capsys, tmp_path):
    words = ["optim.epochs=inf", f"data={tmp_path}", f"out={tmp_path / 'run'}"]
    for command in (["pretrain"], ["finetune", str(tmp_path)]):
        assert cli.main([*command, *words]) == 2
        assert "optim.epochs=inf must be finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "world", "device", "message"),
    [
        ((), 1, "cpu", "graph=true records one CUDA device's step, but this run is on cpu"),
        ((), 2, "cuda", "averaged over 2 processes"),
        (("model.layout=T,HW",), 1, "cuda", "joint axes draw dropout from PyTorch's generator"),
    ],
)
def test_graph_that_cannot_be_recorded_is_refused(words, world, device, message):
    config = _load("graph=true", *words)
    with pytest.raises(UsageError, match=message):
        config.check(world, device)
    _load(*words).check(world, device)
    _load("graph=true", "model.dropout=0", *words).check()


def test_command_prints_the_resolved_configuration(capsys):
    assert cli.main(["pretrain", "--config", "small", "--show", "optim.lr=0.5"]) == 0
    assert "lr: 0.5" in capsys.readouterr().out


def test_command_exits_with_2_for_a_wrong_key(capsys):
    assert cli.main(["pretrain", "--config", "small", "optim.lrr=0.5"]) == 2
    assert "did you mean 'optim.lr'" in capsys.readouterr().err


def test_learning_rate_rises_in_a_line_then_falls_in_a_line():
    config = OptimConfig(lr=1.0, warmup=0.2)
    rates = [lr_at(step, 10, config) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, *(k / 8 for k in range(7, 0, -1))])
    assert lr_at(0, 10, dataclasses.replace(config, warmup=0.0)) == 1.0
