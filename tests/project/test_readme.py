"""What the README and docs/ say can be run, and what they name is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import vimpac_kernels
from tests.vimpac.runs import make_store
from vimpac import cli
from vimpac.config import FinetuneConfig, PretrainConfig
from vimpac.settings import load_config
from vimpac.simvtp.run_config import SimVTPConfig, SimVTPFinetuneConfig

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs/training.md").read_text(encoding="utf-8")
TOKENIZING = (ROOT / "docs/tokenizing.md").read_text(encoding="utf-8")
EVALUATION = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
SIMVTP = (ROOT / "docs/simvtp.md").read_text(encoding="utf-8")
VISUALISE = (ROOT / "docs/visualise.md").read_text(encoding="utf-8")
CONFIGS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "simvtp pretrain": SimVTPConfig,
    "simvtp finetune": SimVTPFinetuneConfig,
}


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def _commands() -> list[str]:
    """The arguments of every `vimpac` in a block of commands."""
    lines = "\n".join(
        _blocks(README + TRAINING + TOKENIZING + EVALUATION + SIMVTP + VISUALISE, "bash")
    ).replace("\\\n", " ")
    return re.findall(r"(?:^|&& | -m )vimpac (.+)", lines, flags=re.M)


def test_oldest_triton_is_the_one_that_pip_asks_for() -> None:
    asked = re.findall(r'"triton>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    told = re.findall(r"Triton \((\d+\.\d+) or newer", README)
    told += re.findall(r"Triton (\d+\.\d+), the oldest", (ROOT / "CONTRIBUTING.md").read_text())
    assert len(asked) == 1 and told == 2 * asked


def test_first_example_runs() -> None:
    (example,) = _blocks(README, "python")
    names: dict = {}
    exec(example, names)
    assert names["y"].shape == names["x"].shape


def test_example_of_a_simvtp_model_runs() -> None:
    (example,) = (block for block in _blocks(SIMVTP, "python") if "from_preset" in block)
    names: dict = {}
    exec(example, names)
    assert names["output"].loss.isfinite() and names["cosines"].shape == (2, 2)


def test_example_of_reading_a_store_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_store(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    (example,) = (block for block in _blocks(TOKENIZING, "python") if "TokenStore" in block)
    names: dict = {}
    exec(example, names)
    assert names["frames"].shape == (2, 4, 4) and names["clips"].shape == (2, 5, 4, 4)
    assert (names["clips"][0, :2] == names["frames"]).all()


def test_example_of_copying_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    (example,) = _blocks(VISUALISE, "python")
    exec(example, {})
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "block",
        "iid",
    ]


def test_actions_of_the_docs_are_those_that_there_are() -> None:
    from vimpac.commands.visualise import ACTIONS

    assert re.findall(r"^\| `(\w+)` \|", VISUALISE, flags=re.M) == [*ACTIONS]


@pytest.mark.parametrize("command", _commands())
def test_commands_are_understood(command: str) -> None:
    words = shlex.split(command, comments=True)
    args = cli._parse(cli._parser(words[0]), words)
    kind = CONFIGS.get(" ".join(words[: 2 if words[0] == "simvtp" else 1]))
    if kind is not None:
        load_config(kind, args.config, args.overrides).check()


def test_settings_of_the_docs_exist() -> None:
    settings = re.findall(r"^\| `(\S+)=(\S+?)`", TRAINING, flags=re.M)
    assert len(settings) == 5
    for key, value in settings:
        load_config(PretrainConfig, None, [f"{key}={value.replace('N', '2')}"])
    options = re.findall(r"^\| `(\S+=\S+?)`", EVALUATION, flags=re.M)
    assert len(options) == 6
    load_config(FinetuneConfig, None, options).check()


@pytest.mark.parametrize("folder", ["", "docs/"])
def test_links_lead_somewhere(folder: str) -> None:
    pages = [README] if not folder else [TRAINING, TOKENIZING, EVALUATION, SIMVTP, VISUALISE]
    for target in re.findall(r"\]\(([^)#:]+)\)", "".join(pages)):
        assert (ROOT / folder / target).exists(), target


def test_claims_of_simvtp_name_tests_that_exist() -> None:
    named = {*re.findall(r"`(test_\w+)`", SIMVTP)}
    files = (ROOT / "tests/vimpac/simvtp").glob("test_*.py")
    there = {*re.findall(r"^def (test_\w+)", "".join(f.read_text() for f in files), flags=re.M)}
    assert len(named) == 7 and named <= there


def test_annotations_of_the_docs_are_the_ones_that_are_read() -> None:
    from vimpac.data.annotations.datasets import DATASETS

    told = re.findall(r"`(\w+):", EVALUATION)
    assert {*DATASETS} <= {*told, "kinetics600", "kinetics700"}


def test_every_op_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .*(?:bf16|int16)", README, flags=re.M)
    assert sorted(rows) == sorted(vimpac_kernels.OPS)


def test_numbers_of_tokenizing_are_those_of_the_code() -> None:
    from vimpac.commands.made_store import MAX_SKIPPED
    from vimpac.data import clock, tokenize_workers, video, workers

    for words in (
        f"by more than {clock.JITTER} frames, or runs too far ahead",
        f"clocks start again, more than {clock.LONGEST_GAP} seconds",
        f"up to {'an hour' if clock.LONGEST_FREEZE == 3600 else clock.LONGEST_FREEZE}",
        f"at most {'a tenth' if video.MOST_DAMAGED == 0.1 else video.MOST_DAMAGED} of its pictures",
        f"({MAX_SKIPPED:g} by default",
        f"up to {tokenize_workers.AHEAD} videos for every worker",
        f"take {workers.MOST_WAITING >> 20} MiB at most",
        f"tried {'three' if tokenize_workers.MOST_TRIES == 3 else 0} times",
    ):
        assert words in TOKENIZING
