"""The captions of videos, in the formats in which data sets of them come."""

from __future__ import annotations

from pathlib import Path

from vimpac.data.annotations.files import read_json, read_text
from vimpac.errors import UsageError
from vimpac.paths import local_path
from vimpac.simvtp.captions.captioned import Captioned
from vimpac.simvtp.captions.choices import Choices, read_choices
from vimpac.simvtp.captions.match import Matched, match_videos
from vimpac.simvtp.captions.msrvtt import is_msrvtt, read_msrvtt
from vimpac.simvtp.captions.paths import read_paths
from vimpac.simvtp.captions.tables import FORMATS, read_table

__all__ = ["Captioned", "Choices", "Matched", "match_videos", "read_captions", "read_choices"]

_MSRVTT = (  # in the directory of the data set
    "MSR_VTT.json",
    "annotation/MSR_VTT.json",
    "MSRVTT_data.json",
)


def read_captions(path: str, split: str = "") -> list[Captioned]:
    """Reads the captions of videos. What the file holds tells its format, not its name.

    Args:
        path: A CSV file with the columns `video,caption[,split]`, of WebVid
            (`videoid,contentUrl,duration,page_dir,name`) or of MSR-VTT's test
            (`key,vid_key,video_id,sentence`); a JSON file `{"path.mp4": "caption"}`, whose values
            may be lists of captions, or MSR-VTT's, with `annotations` or with `videos` and
            `sentences`; or the directory of MSR-VTT.
        split: How MSR-VTT is divided: "1k-A", "1k-B" or "full", by the lists beside its JSON
            which docs/simvtp.md names. In 1k-A and 1k-B a test video has one caption. Empty, or
            "column": as the file says.

    Returns:
        One for each video, in the order of the file.

    Raises:
        UsageError: There is no such file, it is none of these, an entry is wrong or comes twice, a
            video has no caption, or there is no such split.
    """
    file = local_path(path)
    if file.is_dir():
        file = _of_directory(file)
    if not read_text(file).lstrip().startswith(("{", "[")):
        return read_table(file, split)
    content = read_json(file, unique_keys=True)
    if is_msrvtt(content):
        return read_msrvtt(file, content, split)
    if split:
        raise UsageError(f"split={split}: {file} has no splits; leave split= out")
    return read_paths(file, content)


def _of_directory(folder: Path) -> Path:
    for name in _MSRVTT:
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"{folder} has no {' or '.join(_MSRVTT)}: give a file of captions: {FORMATS}")
