"""Which videos a command line names: files, directories of them, and lists of both."""

from __future__ import annotations

import os
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vimpac.errors import UsageError, VimpacError
from vimpac.paths import local_path

SUFFIXES = frozenset(
    ".3g2 .3gp .amv .asf .avi .divx .dv .f4v .flv .gif .h264 .hevc .ivf .m2t .m2ts .m2v .m4v .mjpeg"
    " .mjpg .mkv .mov .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .nut .ogm .ogv .qt .rm .rmvb .ts .vob"
    " .webm .wmv .wtv .y4m".split()
)
_MOST_ENDINGS = 5  # that are named one by one

Video = tuple[str, Path]  # its name in the store, its file


def find_videos(
    arguments: Sequence[str],
    listed: str | None = None,
    *,
    report: Callable[[str], None] = lambda line: None,
) -> list[Video]:
    """Lists the videos that a command line names.

    Links are followed. One that leads nowhere is among the videos, as a file of a list that does
    not exist is: such a video is found unreadable in its turn, and does not stop the others.

    Args:
        arguments: Files, and directories that are searched for video files. A video is named by
            its path below the given directory, or by its file's name.
        listed: A file of such arguments, one on each line; "-" reads the standard input. A video
            is named by its path as it stands there.
        report: Takes a line about what was passed over.

    Returns:
        (name, path) in a fixed order.

    Raises:
        UsageError: An argument is a URL, or nothing of the list exists.
        VimpacError: An argument does not exist or holds no video, or two videos have one name.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        path = local_path(argument)
        if os.path.isdir(path):
            _add(found, _search(path, report))
        elif os.path.isfile(path) or os.path.islink(path):
            _add(found, [(path.name, path)])
        else:
            absence = "is no regular file" if os.path.lexists(path) else "does not exist"
            raise VimpacError(f"{path} {absence}")
    if listed is not None:
        for line in _read_list(listed):
            path = local_path(line)
            videos = _search(path, report) if os.path.isdir(path) else [("", path)]
            _add(found, [(path.joinpath(name).as_posix(), file) for name, file in videos])
    return list(found.items())


def _add(found: dict[str, Path], videos: Sequence[Video]) -> None:
    """Adds videos; one that is there already, under the same name, counts once."""
    for name, file in videos:
        other = found.setdefault(name, file)
        if os.path.realpath(other) != os.path.realpath(file):
            raise VimpacError(
                f"{other} and {file} would both be named '{name}': give the directory above both "
                "instead, or a --list of them, which names videos by their paths"
            )


def _read_list(file: str) -> list[str]:
    """The lines of a list; NUL ends them where there is one, as `find -print0` has it."""
    data = sys.stdin.buffer.read() if file == "-" else local_path(file).read_bytes()
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\0" if b"\0" in data else b"\n")
    paths = [os.fsdecode(line.removesuffix(b"\r")) for line in lines if line.strip()]
    paths = [path if os.path.lexists(path) else path.strip() for path in paths]
    if not any(map(os.path.exists, paths)):
        first = f": '{paths[0]}' is the first line" if paths else ""
        raise UsageError(
            f"--list {file} names nothing that exists{first}; it holds one path on each line, "
            "relative to the current directory"
        )
    return paths


def _search(top: Path, report: Callable[[str], None]) -> list[Video]:
    """The videos below a directory, sorted; says what else is there."""
    passed: Counter[str] = Counter()
    videos = sorted(_walk(top, passed, report), key=lambda file: file.relative_to(top))
    if not videos:
        but = f", but {_count(passed)}" if passed else ""
        raise VimpacError(f"{top} holds no video file ({' '.join(sorted(SUFFIXES))}){but}")
    if passed:
        report(f"{top}: passed over {_count(passed)}")
    return [(file.relative_to(top).as_posix(), file) for file in videos]


def _count(passed: Counter[str]) -> str:
    """Such as "12 files: 10 .jpg, 2 .txt"."""
    common = passed.most_common(_MOST_ENDINGS)
    parts = [f"{number} {ending}" for ending, number in common]
    rest = passed.total() - sum(number for _, number in common)
    if rest:
        parts.append(f"{rest} others")
    return f"{passed.total()} file{'s' * (passed.total() > 1)}: {', '.join(parts)}"


def _walk(top: Path, passed: Counter[str], report: Callable[[str], None]) -> Iterator[Path]:
    """Video files below a directory; each directory once, and by its own path if it has one here.

    Args:
        top: The directory.
        passed: Takes the endings of other files.
        report: Takes a line about a directory that cannot be read.
    """
    folders, links = deque([top]), deque[Path]()
    seen = set()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                content = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            report(f"passed over {folder}: {error.strerror}")
            continue
        for entry in content:
            path, link = folder / entry.name, entry.is_symlink()
            if entry.name.startswith("."):  # also what macOS leaves beside a video: ._clip.mp4
                passed["hidden"] += 1
            elif os.path.isdir(path) if link else entry.is_dir():
                (links if link else folders).append(path)
            elif link and not os.path.exists(path) and path.suffix.lower() not in SUFFIXES:
                report(f"passed over {path}: a link to {os.readlink(path)}, which does not exist")
            elif os.path.exists(path) and not os.path.isfile(path):
                passed["no regular file"] += 1
            elif path.suffix.lower() in SUFFIXES:
                yield path
            else:
                passed[path.suffix.lower() or "without ending"] += 1
