"""MSR-VTT: its JSON in two forms, and the lists that divide its videos.

The zip of Frozen in Time has `annotation/MSR_VTT.json` and, in `high-quality/structured-symlinks`,
the lists of three divisions: 1k-A (JSFusion), 1k-B (Miech) and full. The first release has
`videos`, each with its split, and `sentences`; CLIP4Clip's copy of it, `MSRVTT_data.json`, comes
with 1k-A as two tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vimpac.data.annotations.files import read_csv, read_lines, whole_number
from vimpac.errors import UsageError
from vimpac.simvtp.captions.captioned import Captioned, Entry, collect, split_name
from vimpac.simvtp.captions.tables import read_table

# Of a division: the files that may list a split; the first that is there counts.
_LISTS: dict[str, dict[str, tuple[str, ...]]] = {
    "1k-A": {
        "train": ("MSRVTT_train.9k.csv", "train_list_jsfusion.txt"),
        "test": ("MSRVTT_JSFUSION_test.csv", "val_list_jsfusion.txt"),
    },
    "1k-B": {"train": ("train_list_miech.txt",), "test": ("test_list_miech.txt",)},
    "full": {
        "train": ("train_list_full.txt",),
        "val": ("val_list_full.txt",),
        "test": ("test_list_full.txt",),
    },
}
_FOLDERS = (".", "high-quality/structured-symlinks", "../high-quality/structured-symlinks")
_CHOSEN = "jsfusion_val_caption_idx"  # which caption of each video of val_list_jsfusion.txt is used


def is_msrvtt(content: Any) -> bool:
    """Whether a JSON file holds MSR-VTT."""
    return isinstance(content, dict) and any(
        isinstance(content.get(key), list) for key in ("annotations", "sentences")
    )


def read_msrvtt(file: Path, content: dict[str, Any], split: str) -> list[Captioned]:
    """Reads the captions, and which split each video is in.

    Args:
        file: The JSON file; the lists are beside it, or where the zip has them.
        content: What it holds.
        split: A division whose lists are there, or empty. "full" is also the file's own.

    Raises:
        UsageError: An entry or a list is wrong, or there is no such division.
    """
    if split and split not in _LISTS:
        raise UsageError(f"split={split}: {file} has no such split: give {', '.join(_LISTS)}")
    own = _own_splits(file, content)
    lists = {division: _find_lists(file, division) for division in _LISTS}
    divisions = [division for division, found in lists.items() if found]
    if not split and divisions and not own:
        raise UsageError(f"split= is missing: {file} has lists of {', '.join(divisions)}")
    if split == "full" and own and not lists["full"]:
        split = ""  # as the file says
    if split:
        _check_lists(file, split, lists[split])
    captioned = collect(_entries(file, content, own), file, repeats=True)
    without = own.keys() - {video.video for video in captioned}
    if without:
        raise UsageError(f"{file}: '{min(without)}' of its videos has no caption")
    return _divide(captioned, file, split, lists[split]) if split else captioned


def _own_splits(file: Path, content: dict[str, Any]) -> dict[str, str]:
    """The split of each video, if the file says so."""
    splits = {}
    for place, entry in _objects(file, content, "videos"):
        video, split = _text(file, place, entry, "video_id"), entry.get("split")
        if split is not None:
            splits[video] = split_name(str(split), f"{file}, {place}")
    return splits


def _entries(file: Path, content: dict[str, Any], own: dict[str, str]) -> Iterator[Entry]:
    """The captions of either form."""
    key, name = (
        ("annotations", "image_id") if "annotations" in content else ("sentences", "video_id")
    )
    for place, entry in _objects(file, content, key):
        video, caption = (_text(file, place, entry, field) for field in (name, "caption"))
        yield Entry(video, caption, own.get(video, ""), place)


def _objects(file: Path, content: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of one list of the file; nothing if it has none."""
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise UsageError(f"{file}: its '{key}' must be a list of objects")
    for number, entry in enumerate(entries, start=1):
        place = f"'{key}' {number}"
        if not isinstance(entry, dict):
            raise UsageError(f"{file}, {place} is no object")
        yield place, entry


def _text(file: Path, place: str, entry: dict[str, Any], key: str) -> str:
    text = entry.get(key)
    if not isinstance(text, str):
        raise UsageError(f"{file}, {place} needs a text '{key}'")
    return text


def _find_lists(file: Path, division: str) -> dict[str, Path]:
    """The list of every split of a division that has one."""
    found: dict[str, Path] = {}
    for split, names in _LISTS[division].items():
        places = (file.parent / folder / name for name in names for folder in _FOLDERS)
        there = next((place for place in places if place.is_file()), None)
        if there:
            found[split] = there
    return found


def _check_lists(file: Path, division: str, lists: Container[str]) -> None:
    """Raises UsageError that names the lists of a division which are not there."""
    absent = [" or ".join(names) for split, names in _LISTS[division].items() if split not in lists]
    if absent:
        raise UsageError(
            f"split={division} needs {', and '.join(absent)}: put them beside {file}, or into "
            f"{_FOLDERS[1]} there"
        )


def _divide(
    captioned: list[Captioned], file: Path, division: str, lists: dict[str, Path]
) -> list[Captioned]:
    """The videos with their splits; one that no list names is in none."""
    known = {video.video: video.captions for video in captioned}
    splits = _read_lists(lists, known, file)
    tested = [video for video, split in splits.items() if split == "test"]
    chosen = {} if division == "full" else _choose(division, lists["test"], tested, known)
    return [
        dataclasses.replace(
            video,
            captions=chosen.get(video.video, video.captions),
            split=splits.get(video.video, ""),
        )
        for video in captioned
    ]


def _read_lists(lists: dict[str, Path], known: Container[str], file: Path) -> dict[str, str]:
    """The split of every video of the lists; `known` are the videos that `file` has."""
    splits, places = {}, dict[str, str]()
    for split, path in lists.items():
        for place, video in _read_videos(path):
            where = f"{path}, {place}"
            if video not in known:
                raise UsageError(f"{where}: '{video}' has no caption in {file}")
            if video in places:
                raise UsageError(f"{where}: '{video}' is listed already: {places[video]}")
            splits[video], places[video] = split, where
    return splits


def _read_videos(file: Path) -> Iterator[tuple[str, str]]:
    """(place, video) of a list: a table, or a video on every line."""
    if file.suffix == ".csv":
        return ((place, row["video_id"]) for place, row in read_csv(file, ["video_id"]))
    return read_lines(file)


def _choose(
    division: str, file: Path, tested: list[str], known: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The caption of each test video of a list: 1k-B uses the first one."""
    if file.suffix == ".csv":
        return {video.video: video.captions for video in read_table(file, "")}
    chosen = division == "1k-A"
    places = _read_chosen(file.parent, tested) if chosen else dict.fromkeys(tested, 0)
    for video, place in places.items():
        if place >= len(known[video]):
            raise UsageError(
                f"{file.parent / _CHOSEN}: '{video}' has no caption {place}, only "
                f"{len(known[video])}"
            )
    return {video: known[video][place : place + 1] for video, place in places.items()}


def _read_chosen(folder: Path, videos: list[str]) -> dict[str, int]:
    """Which caption of each test video is used, from 0. A pickle is not read: it may run code."""
    text, array, pickle = (folder / f"{_CHOSEN}.{suffix}" for suffix in ("txt", "npy", "pkl"))
    if text.is_file():
        chosen = {}
        for place, line in read_lines(text):
            video, _, index = line.rpartition(" ")
            number = whole_number(index)
            if number is None:
                raise UsageError(f"{text}, {place}: '{line}' is not 'VIDEO NUMBER'")
            chosen[video.strip()] = number
        missing = next((video for video in videos if video not in chosen), None)
        if missing is not None:
            raise UsageError(f"{text} has no line for the test video '{missing}'")
        return {video: chosen[video] for video in videos}
    if array.is_file():
        return dict(zip(videos, _read_array(array, len(videos)), strict=True))
    if not pickle.is_file():
        raise UsageError(
            f"{text}: no such file; a line of it is a test video of 1k-A, a space, and which of "
            f"its captions is used, from 0; or give {_LISTS['1k-A']['test'][0]} in its place"
        )
    raise UsageError(
        f"{pickle} is a pickle, which can run any code: if you trust it, write it as text with "
        f"python -c \"import pickle; [print(*x) for x in pickle.load(open('{pickle}', 'rb'))"
        f'.items()]" > {text}'
    )


def _read_array(file: Path, count: int) -> list[int]:
    """Whole numbers from 0, in the order of the list of test videos."""
    try:
        numbers = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UsageError(f"{file} is no array of numbers: {error}") from None
    whole = isinstance(numbers, np.ndarray) and numbers.dtype.kind in "iu"
    if not whole or numbers.shape != (count,) or (numbers < 0).any():
        raise UsageError(f"{file} must be {count} whole numbers from 0, one for each test video")
    return numbers.tolist()
