"""The `vimpac` command: finds the subcommand, runs it, turns expected errors into one line.

A subcommand is one row of `COMMANDS` and one module with `add_parser(subparsers)` and
`run(args) -> int`. Only the module of the command that was asked for is imported, so
`vimpac --help` is quick and a missing optional package breaks its own command only.

Exit codes: 0 success, 1 failure, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from pathlib import Path
from typing import Any

from vimpac.errors import VimpacError
from vimpac.paths import on_one_line

COMMANDS: dict[str, tuple[str, str]] = {  # name: (module, the line `vimpac --help` shows)
    "tokenize": ("vimpac.commands.tokenize", "make a token store of video files"),
    "frames": ("vimpac.commands.frames", "make a store of the frames of video files"),
    "store": ("vimpac.commands.store", "look at, check or convert stores"),
    "labels": ("vimpac.commands.labels", "write labels.csv of a data set's annotations"),
    "pretrain": ("vimpac.commands.pretrain", "pre-train on a token store"),
    "finetune": ("vimpac.commands.finetune", "train a video classifier on a pre-trained encoder"),
    "evaluate": ("vimpac.commands.evaluate", "test a video classifier"),
    "predict": ("vimpac.commands.predict", "classify video files"),
    "extract": ("vimpac.commands.extract", "write the features of videos into a file"),
    "knn": ("vimpac.commands.knn", "test a model by the nearest neighbours of its features"),
    "visualise": ("vimpac.commands.visualise", "draw masks, videos, predictions and attention"),
    "rows": ("vimpac.commands.rows", "the paper's tables as runs, with its numbers beside ours"),
    "simvtp": ("vimpac.commands.simvtp", "pre-train on videos and their captions"),
    "demo": ("vimpac.commands.demo", "see it work on two real videos, in a minute or two"),
    "doctor": ("vimpac.commands.doctor", "what runs on this machine, and why"),
    "convert": ("vimpac.commands.convert", "convert a released checkpoint"),
}

EXTRAS = {  # optional package: what installs it
    "av": "vimpac-kernels[video]",
    "rich": "vimpac-kernels[video]",
    "yaml": "vimpac-kernels[train]",
    "safetensors": "vimpac-kernels[train]",
    "tensorboard": "vimpac-kernels[train]",
    "matplotlib": "vimpac-kernels[train]",
    "skvideo": "vimpac-kernels[demo]",
    "pyarrow": "vimpac-kernels[parquet]",
    "tokenizers": "vimpac-kernels[text]",
    "fsspec": "vimpac-kernels[cloud]",
    "distributed": "vimpac-kernels[cluster]",
    "huggingface_hub": "vimpac-kernels[hub]",
    "lmdb": "lmdb",
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command line.

    Args:
        argv: The arguments after the program's name; None reads `sys.argv`.

    Returns:
        The exit code.
    """
    argv = [_file_word(word) for word in (sys.argv[1:] if argv is None else argv)]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may have what the terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        name = next((a for a in argv if not a.startswith("-")), None)
        args = _parse(_parser(name), argv)
        return importlib.import_module(COMMANDS[args.command][0]).run(args)
    except VimpacError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _fail(f"this needs the package '{package}': pip install '{EXTRAS[package]}'", 1)
    except BrokenPipeError:
        # The reader (`| head`) has gone; a second write at interpreter exit would complain.
        sys.stdout = None
        return 1
    except OSError as error:
        return _fail(_describe(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except SystemExit as stop:  # argparse: --help or a wrong argument
        return stop.code if isinstance(stop.code, int) else 1


def _file_word(word: str) -> str:
    """A word that would be read as an option, though it is the name of a file: -clip.mp4."""
    is_file = word.startswith("-") and Path(word).suffix and os.path.lexists(word)
    return f"./{word}" if is_file else word


def _parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parses the arguments; settings may also follow an option, where argparse stops."""
    args, rest = parser.parse_known_args(argv)
    if any(word.startswith("-") for word in rest) or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


class _Version(argparse.Action):
    """argparse's "version", which looks the version up only if it is asked for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata  # takes longer to import than all that `--help` needs

        try:
            version = metadata.version("vimpac-kernels")
        except metadata.PackageNotFoundError:
            version = "of a source tree that is not installed"
        print(f"vimpac {version}")
        parser.exit()


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """The parser with the chosen subcommand in full and the others by name only."""
    parser = argparse.ArgumentParser(prog="vimpac", description="VIMPAC video pre-training.")
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    # deepspeed and torch.distributed.launch give it, and set LOCAL_RANK, which is read.
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, line) in COMMANDS.items():
        if name == chosen:
            importlib.import_module(module).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=line)
    return parser


def _describe(error: OSError) -> str:
    """One line for an error of the operating system."""
    where = f" writing {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full{where}: free some space and run the same command again"
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)


def _fail(message: str, code: int) -> int:
    print(on_one_line(f"vimpac: {message}"), file=sys.stderr)
    return code
