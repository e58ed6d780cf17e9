"""What the README says can be run, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import vimpac_kernels
from vimpac import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_first_example_runs() -> None:
    (example,) = _blocks("python")
    names: dict = {}
    exec(example, names)
    assert names["y"].shape == names["x"].shape


def test_commands_exist() -> None:
    commands = re.findall(r"(?:^|&& |-m )vimpac (\w+)", "\n".join(_blocks("bash")), flags=re.M)
    assert set(commands) >= {"demo", "tokenize", "pretrain"}
    assert set(commands) <= set(cli.COMMANDS)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()


def test_every_op_has_its_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .*(?:bf16|int16)", README, flags=re.M)
    assert sorted(rows) == sorted(vimpac_kernels._library.OPS)
