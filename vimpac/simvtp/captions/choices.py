"""Tables of multiple choice: which of several captions belongs to a video."""

from __future__ import annotations

import dataclasses

from vimpac.data.annotations.files import read_csv, whole_number
from vimpac.errors import UsageError
from vimpac.paths import local_path
from vimpac.simvtp.captions.tables import read_header


@dataclasses.dataclass(frozen=True)
class Choices:
    """A question: the video, its captions, and the place of the right one among them, from 0."""

    video: str
    captions: tuple[str, ...]
    answer: int


def read_choices(path: str) -> list[Choices]:
    """Reads a CSV file with the columns `video,caption_1,...,caption_K,answer`.

    Args:
        path: The file. `answer` counts from 0: 0 is caption_1. A video may have several questions.

    Returns:
        The questions in the order of the file, all with K captions, at least two.

    Raises:
        UsageError: There is no such file, it is no such table, a caption is empty or twice in a
            question, an answer is none of the captions, or a question comes twice.
    """
    file = local_path(path)
    count = sum(name.startswith("caption_") for name in read_header(file))
    columns = [f"caption_{i}" for i in range(1, max(count, 2) + 1)]
    places: dict[Choices, str] = {}
    for place, row in read_csv(file, ["video", *columns, "answer"]):
        where = f"{file}, {place}"
        captions = [" ".join(row[column].split()) for column in columns]
        if not row["video"]:
            raise UsageError(f"{where} names no video")
        if not all(captions):
            raise UsageError(f"{where}: {columns[captions.index('')]} of '{row['video']}' is empty")
        twice = next((one for one in captions if captions.count(one) > 1), None)
        if twice is not None:
            raise UsageError(f"{where}: '{twice}' is twice among the captions of '{row['video']}'")
        answer = whole_number(row["answer"])
        if answer is None or answer >= len(captions):
            raise UsageError(
                f"{where}: the answer must be a whole number from 0 to {len(captions) - 1}, not "
                f"'{row['answer']}'"
            )
        known = places.setdefault(Choices(row["video"], tuple(captions), answer), place)
        if known != place:
            raise UsageError(f"{where}: '{row['video']}' has the same question in {known}")
    if not places:
        raise UsageError(f"{file} has no questions")
    return [*places]
