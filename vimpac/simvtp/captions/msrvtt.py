"""MSR-VTT: its JSON in two forms, and the lists that divide its videos.

The zip of Frozen in Time has `annotation/MSR_VTT.json` and, in `high-quality/structured-symlinks`,
the lists of three divisions: 1k-A (JSFusion), 1k-B (Miech) and full. The first release has
`videos`, each with its split, and `sentences`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vimpac.data.annotations.files import read_lines, whole_number
from vimpac.errors import UsageError
from vimpac.simvtp.captions.captioned import Captioned, Entry, collect, split_name

_LISTS = {  # of a division: the file of every split
    "1k-A": {"train": "train_list_jsfusion.txt", "test": "val_list_jsfusion.txt"},
    "1k-B": {"train": "train_list_miech.txt", "test": "test_list_miech.txt"},
    "full": {
        "train": "train_list_full.txt",
        "val": "val_list_full.txt",
        "test": "test_list_full.txt",
    },
}
_FOLDERS = (".", "high-quality/structured-symlinks", "../high-quality/structured-symlinks")
_CHOSEN = "jsfusion_val_caption_idx"  # which caption of each test video of 1k-A is used


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
    own = _own_splits(file, content)
    folder, divisions = _find_lists(file)
    legal = dict.fromkeys([*divisions, *["full"] * bool(own)])
    if split and split not in legal:
        some = f"only {', '.join(legal)}" if legal else f"nor a list such as {_list('1k-A')}"
        raise UsageError(f"split={split}: {file} has no such split, {some}")
    if not split and divisions and not own:
        raise UsageError(f"split= is missing: {file} has the splits {', '.join(divisions)}")
    captioned = collect(_entries(file, content, own), file, repeats=True)
    without = own.keys() - {video.video for video in captioned}
    if without:
        raise UsageError(f"{file}: '{min(without)}' of its videos has no caption")
    return _divide(captioned, file, folder, split) if split in divisions else captioned


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


def _list(division: str) -> str:
    return _LISTS[division]["train"]


def _find_lists(file: Path) -> tuple[Path, list[str]]:
    """The directory of the lists, and the divisions of which it has any."""
    for name in _FOLDERS:
        folder = file.parent / name
        found = [
            division
            for division, lists in _LISTS.items()
            if any((folder / name).is_file() for name in lists.values())
        ]
        if found:
            return folder, found
    return file.parent, []


def _divide(captioned: list[Captioned], file: Path, folder: Path, division: str) -> list[Captioned]:
    """The videos with their splits; one that no list names is in none."""
    splits = _read_lists(folder, division, {video.video for video in captioned}, file)
    tested = [name for name, split in splits.items() if split == "test"]
    chosen: dict[str, int] = {}
    if division == "1k-A":
        chosen = _read_chosen(folder, tested)
    elif division == "1k-B":
        chosen = dict.fromkeys(tested, 0)  # its tests use the first one
    divided = []
    for video in captioned:
        place, captions = chosen.get(video.video), video.captions
        if place is not None:
            if place >= len(captions):
                raise UsageError(
                    f"{folder / _CHOSEN}: '{video.video}' has no caption {place}, only "
                    f"{len(captions)}"
                )
            captions = captions[place : place + 1]
        split = splits.get(video.video, "")
        divided.append(dataclasses.replace(video, captions=captions, split=split))
    return divided


def _read_lists(folder: Path, division: str, known: Container[str], file: Path) -> dict[str, str]:
    """The split of every video of the lists; `known` are the videos that `file` has."""
    splits, places = {}, dict[str, str]()
    for split, name in _LISTS[division].items():
        for place, video in read_lines(folder / name):
            where = f"{folder / name}, {place}"
            if video not in known:
                raise UsageError(f"{where}: '{video}' has no caption in {file}")
            if video in places:
                raise UsageError(f"{where}: '{video}' is listed already: {places[video]}")
            splits[video], places[video] = split, where
    return splits


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
            "its captions is used, from 0"
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
