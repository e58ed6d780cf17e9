"""The `vimpac` command turns expected errors into one line and an exit code."""

import errno
import importlib.metadata
import re
import subprocess
import sys
import types

import pytest

from vimpac import cli
from vimpac.errors import UsageError, VimpacError


def _command(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> None:
    """Installs a command `try` that raises `error`, or returns 0."""

    def run(args: object) -> int:
        if error is not None:
            raise error
        return 0

    module = types.ModuleType("fake_command")
    vars(module).update(add_parser=lambda subparsers: subparsers.add_parser("try"), run=run)
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setitem(cli.COMMANDS, "try", ("fake_command", "a command"))


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (None, 0, ""),
        (VimpacError("shard-0.bin is corrupt"), 1, "shard-0.bin is corrupt"),
        (UsageError("--fps must be positive"), 2, "--fps must be positive"),
        (ModuleNotFoundError("no av", name="av.video"), 1, "pip install 'vimpac-kernels[video]'"),
        (OSError(errno.ENOSPC, "No space left", "/x/shard"), 1, "disk full writing /x/shard"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 1, "/x: No such file"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_expected_error_is_one_line_and_a_code(monkeypatch, capsys, error, code, words):
    _command(monkeypatch, error)
    assert cli.main(["try"]) == code
    stderr = capsys.readouterr().err
    assert words in stderr
    assert stderr.count("\n") == (1 if words else 0)


def test_unexpected_error_keeps_its_traceback(monkeypatch):
    _command(monkeypatch, ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        cli.main(["try"])


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["try", "--no-such-flag"]])
def test_wrong_usage_exits_with_2(monkeypatch, argv):
    _command(monkeypatch, None)
    assert cli.main(argv) == 2


def test_module_runs_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "vimpac", "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "usage: vimpac" in result.stdout


def test_help_imports_no_torch():
    code = "import sys, vimpac.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version_imports_no_torch(capsys):
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"vimpac \d+\.\d+\S*\n", capsys.readouterr().out)
    code = "import sys, vimpac.cli as c; c.main(['--version']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version_of_a_tree_that_is_not_installed(monkeypatch, capsys):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert cli.main(["--version"]) == 0
    assert "not installed" in capsys.readouterr().out


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_names_no_default_that_is_none(command, capsys):
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "usage: vimpac" in shown
    assert "default: None" not in shown and "default: []" not in shown


def test_settings_may_stand_on_both_sides_of_an_option(capsys):
    assert cli.main(["pretrain", "optim.lr=1", "--show", "seed=7"]) == 0
    shown = capsys.readouterr().out
    assert "lr: 1.0" in shown and "seed: 7" in shown
    assert cli.main(["pretrain", "--show", "seed=7", "--resmue", "auto"]) == 2
    assert cli.main(["doctor", "seed=7"]) == 2
    assert capsys.readouterr().err.count("unrecognized arguments") == 2
