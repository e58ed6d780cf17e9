"""Every block of Python and every command line of the README and of docs/ is run, small.

A page has a directory with small inputs (doc_inputs.py), in which its blocks run in their order.
Settings that make a run small are appended to its command (`SMALLER`). What cannot run here is
named in `NOT_RUN` with the reason, and is checked in another way. A block that is neither fails.
"""

from __future__ import annotations

import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project.doc_inputs import prepare, stand_in
from tests.project.doc_pages import PAGES, ROOT, blocks, commands, name_of, vimpac_words
from vimpac import cli
from vimpac.config import FinetuneConfig, PretrainConfig
from vimpac.settings import load_config
from vimpac.simvtp.run_config import SimVTPConfig, SimVTPFinetuneConfig

CONFIGS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "simvtp pretrain": SimVTPConfig,
    "simvtp finetune": SimVTPFinetuneConfig,
}
LANGUAGES = {"python", "bash", "bibtex", ""}
RUN = (
    *("clips.workers=0", "device=cpu", "precision=fp32", "optim.steps=1"),
    *("run.log_every=1", "run.tensorboard=false"),
)
VIMPAC = (*RUN, "clips.frames=2")
TEST = ("device=cpu", "precision=fp32", "workers=0", "--clips", "2")
SIMVTP = (
    *("model.width=32", "model.layers=1", "model.heads=2", "model.mlp_width=64"),
    *("batch.videos=4", "batch.contrastive=2", "batch.micro=2"),
)
SMALLER = {  # a command, and what is appended to it
    "tokenize": ("--size", "32", "--workers", "0"),
    "pretrain": (
        *(*VIMPAC, "model.name=tiny"),
        *("batch.videos=4", "batch.contrastive=2", "batch.micro=2"),
    ),
    "finetune": (*VIMPAC, "batch.videos=2", "batch.micro=2", "test_clips=1"),
    "evaluate": TEST,
    "extract": TEST,
    "knn": TEST,
    "predict": ("--device", "cpu", "--precision", "fp32", "--clips", "2", "--workers", "0"),
    "simvtp pretrain": (
        *(*RUN, *SIMVTP, "model.decoder_width=16", "model.decoder_heads=2"),
        *("model.decoder_mlp_width=32", "model.size=48", "model.frames=4"),
    ),
    "simvtp finetune": (*RUN, *SIMVTP[4:]),
}
INSTEAD = {  # what is read here in place of an address or a disk
    "s3://bucket": "file://{folder}/bucket",
    "/nvme/vimpac": "{folder}/nvme",
}


def _parses(words: list[str]) -> None:
    """The arguments of vimpac are understood, and its settings fit together."""
    words = vimpac_words(words) or []
    args = cli._parse(cli._parser(words[0]), words)
    kind = CONFIGS.get(" ".join(words[: 2 if words[0] == "simvtp" else 1]))
    if kind is not None:
        load_config(kind, args.config, args.overrides).check()


def _extras_exist(words: list[str]) -> None:
    """What pip is to install is what pyproject.toml or CI installs."""
    known = (ROOT / "pyproject.toml").read_text() + (ROOT / ".ci/run").read_text()
    assert words[1] == "install"
    for word in words[2:]:
        extra = re.fullmatch(r"\.\[(\w+)\]", word)
        assert word == "-e" or (f"\n{extra[1]} = [" if extra else word) in known, word


def _files_exist(words: list[str]) -> None:
    """The scripts and directories among the words are there."""
    named = [word for word in words[1:] if not word.startswith("-") and not word.isdecimal()]
    assert all((ROOT / word).exists() for word in named), named


def _builds_a_wheel(words: list[str]) -> None:
    """The script is there, and the workflow runs the same line."""
    line, workflow = " ".join(words), ROOT / ".github/workflows/wheels.yml"
    assert (ROOT / words[1]).exists() and f"run: {line}\n" in workflow.read_text()


def _has_hooks(words: list[str]) -> None:
    assert (ROOT / ".pre-commit-config.yaml").exists()


def _names_a_host(words: list[str]) -> None:
    assert "$SLURM_JOB_NODELIST" in " ".join(words)


NOT_RUN: dict[str, tuple[str, Callable[[list[str]], None]]] = {
    r"pip install .*": ("installs, which .ci/run does", _extras_exist),
    r"pytest.*": ("runs the tests, or the benchmarks", _files_exist),
    r"pre-commit install": ("changes the repository", _has_hooks),
    r"bash \.ci/run": ("is CI", _files_exist),
    r"bash \.ci/wheel dist": ("builds a release, which a workflow does", _builds_a_wheel),
    r"python benchmarks/learning\.py .*": ("takes 17 minutes", _files_exist),
    r"python benchmarks/report\.py": ("test_docs.py compares what it writes", _files_exist),
    r"vimpac demo": ("trains for a minute; .ci/run and tests/vimpac/test_demo.py run it", _parses),
    r"vimpac simvtp demo .*": ("trains for 90 seconds; test_commands.py runs it", _parses),
    r"vimpac tokenize .*--dask .*": ("needs a cluster; test_cluster.py has one", _parses),
    r"head=\$\(scontrol.*": ("asks SLURM for its hosts", _names_a_host),
}
NOT_RUN_PYTHON = {"dask_jobqueue": "starts jobs of SLURM"}  # a word of the block: why


@pytest.fixture(autouse=True)
def quiet(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a shell: no rank, and sys.argv of no test."""
    monkeypatch.setattr(sys, "argv", ["vimpac"])


def _run_vimpac(words: list[str], folder: Path) -> None:
    """Runs a command line in this process, with what makes it small."""
    known = [" ".join(words[:n]) for n in (2, 1)]
    more = next((SMALLER[name] for name in known if name in SMALLER), ())
    for place, here in INSTEAD.items():
        words = [word.replace(place, here.format(folder=folder)) for word in words]
    for word in words:
        if re.fullmatch(r"runs/[\w.-]+/checkpoints/step-\d+", word):
            stand_in(folder / word)
    if words[0] == "tokenize" or words[:2] == ["store", "merge"]:  # an alternative to the last one
        out = folder / words[words.index("--out") + 1]
        if "--part" not in words or words[-1].startswith("0/"):
            shutil.rmtree(out, ignore_errors=True)
    assert cli.main([*words, *more]) == 0, " ".join(words)


def _run_script(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a script of benchmarks/ in this process, on few videos."""
    assert words[0] == "python" and words[1] == "benchmarks/moving_shapes.py", " ".join(words)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    few = ("--videos", "72")  # so that every class has videos to train on
    monkeypatch.setattr(sys, "argv", [*words[1:], *few])
    runpy.run_path(words[1], run_name="__main__")


def _run(words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = " ".join(words)
    vimpac = vimpac_words(words)
    for pattern, (_, check) in NOT_RUN.items():
        if re.fullmatch(pattern, line):
            check(words)
            return
    if vimpac is None:
        _run_script(words, monkeypatch)
    else:
        _parses(words)
        _run_vimpac(vimpac, folder)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_run_in_their_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blocks(page)
    assert {block.language for block in found} <= LANGUAGES
    prepare(page, tmp_path, monkeypatch)
    names: dict = {"__name__": "page"}
    for block in found:
        if block.language == "python":
            code = compile(block.text, block.place, "exec")
            if not any(word in block.text for word in NOT_RUN_PYTHON):
                exec(code, names)
        elif block.language == "bash":
            for words in commands(block.text):
                _run(words, tmp_path, monkeypatch)


@pytest.mark.parametrize("text", ["    vimpac rows\n", "```{code-block} bash\nvimpac rows\n```\n"])
def test_code_in_a_block_of_another_kind_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{text}")
    monkeypatch.setattr("tests.project.doc_pages.ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"page\.md:3: put code between ``` and ```"):
        blocks(page)


def test_what_is_not_run_is_still_there() -> None:
    lines = [
        " ".join(words)
        for page in PAGES
        for block in blocks(page)
        if block.language == "bash"
        for words in commands(block.text)
    ]
    for pattern in NOT_RUN:
        assert any(re.fullmatch(pattern, line) for line in lines), pattern
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(word in text for word in NOT_RUN_PYTHON)
