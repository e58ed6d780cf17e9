"""The configurations that come with the package: vimpac/configs/<command>/<name>.yaml."""

from __future__ import annotations

from pathlib import Path

from vimpac.errors import UsageError
from vimpac.paths import local_path

CONFIGS = Path(__file__).with_name("configs")


def config_names(command: str) -> list[str]:
    """Names of the configurations of a command, such as `small` or `ucf101/analysis`."""
    folder = CONFIGS / command
    files = (file.relative_to(folder).with_suffix("") for file in folder.rglob("*.yaml"))
    return sorted(file.as_posix() for file in files)


def config_help(command: str) -> str:
    """What `--config` of a command takes."""
    names = config_names(command)
    return f"{', '.join(names)}, or a YAML file" if names else "a YAML file"


def read_config(command: str, source: str) -> str:
    """Reads a configuration.

    Args:
        command: For which it is to be.
        source: One of `config_names(command)`, with or without `<command>/` before, or a file.

    Returns:
        YAML.

    Raises:
        UsageError: There is no such configuration, or it is no text.
    """
    names, name = config_names(command), source.removeprefix(f"{command}/")
    file = CONFIGS / command / f"{name}.yaml" if name in names else local_path(source)
    if not file.is_file():
        others = [path.name for path in CONFIGS.iterdir() if source in config_names(path.name)]
        reason = f"it belongs to `vimpac {others[0]}`" if others else "no such file"
        there = f"there are {', '.join(names)}" if names else "give a YAML file"
        raise UsageError(f"--config {source}: {reason}; {there}")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--config {source} is no YAML: {error}") from error
