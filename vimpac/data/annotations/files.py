"""Reads the files of annotations: text, tables and JSON. Every error names the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from vimpac.errors import UsageError

_SAVE = "save it as UTF-8, which Excel calls 'CSV UTF-8'"
_QUOTE = "is a quote there that is not closed?"


def read_text(file: Path) -> str:
    """A file's text, its lines ended by newlines alone.

    Raises:
        UsageError: There is no such file, or it is no UTF-8 text.
    """
    if not file.is_file():
        raise UsageError(f"{file}: no such file")
    try:
        text = file.read_text(encoding="utf-8-sig")  # Excel begins it with a mark
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8: {_SAVE} ({error})") from None
    if "\0" in text:
        raise UsageError(f"{file} holds NUL bytes: {_SAVE}")
    return text


def whole_number(text: str) -> int | None:
    """The number that a text is, from 0 and of up to nine digits; else None."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def read_lines(file: Path) -> Iterator[tuple[str, str]]:
    """(place, line without spaces around it) of every line that is not empty."""
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            yield f"line {number}", line.strip()


def read_entries(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of a JSON file that is a list of objects."""
    entries = read_json(file)
    if not isinstance(entries, list):
        raise UsageError(f"{file} must hold a list of objects")
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            raise UsageError(f"{file}, entry {number} is no object: {json.dumps(entry)[:60]}")
        yield f"entry {number}", entry


def read_json(file: Path, *, unique_keys: bool = False) -> Any:
    """What a JSON file holds.

    Args:
        file: The file.
        unique_keys: Whether a key that comes twice in an object is an error; else the last counts.

    Raises:
        UsageError: There is no such file, it is no JSON, or a key comes twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise UsageError(f"{file} has '{key}' twice in one object")
            found[key] = value
        return found

    text = read_text(file)
    try:
        return json.loads(text, object_pairs_hook=unique if unique_keys else None)
    except json.JSONDecodeError as error:
        raise UsageError(f"{file}, line {error.lineno} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # an endless number, endless brackets
        raise UsageError(f"{file} is not JSON: {error}") from None


def read_csv(
    file: Path, columns: Sequence[str], optional: Sequence[str] = (), names: Container[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """Reads a table that begins with the names of its columns.

    Args:
        file: The table; commas, semicolons or tabs separate its fields.
        columns: Those that it must have, in any order.
        optional: Others that are read.
        names: Fields that are left as they are; others lose the spaces around them.

    Yields:
        (place, field of every such column) of every line but the first and empty ones.

    Raises:
        UsageError: There is no such file, or it is no such table.
    """
    text = read_text(file)
    header, delimiter = _header(file, text, columns, optional)
    places = {name: header.index(name) for name in (*columns, *optional) if name in header}
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    end = 0
    try:
        for fields in reader:
            begin, end = end + 1, reader.line_num
            if begin == 1 or not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise UsageError(
                    f"{file}, line {begin}: {len(fields)} fields, not {len(header)}; a field with "
                    f"'{delimiter}' in it needs quotes"
                )
            row = {name: fields[place] for name, place in places.items()}
            row = {name: field if field in names else field.strip() for name, field in row.items()}
            if any("\n" in field and field not in names for field in row.values()):
                raise UsageError(f"{file}, line {begin}: {_QUOTE} (a field goes on to line {end})")
            yield f"line {begin}", row
    except csv.Error as error:
        raise UsageError(f"{file}, line {end + 1}: {_QUOTE} ({error})") from None


def headers(file: Path, text: str) -> Iterator[tuple[str, list[str]]]:
    """(separator, names of the columns in lower case) as a table may be meant.

    Raises:
        UsageError: The first line is no header.
    """
    line = text.partition("\n")[:1]
    try:
        for delimiter in ",;\t":
            names = next(csv.reader(line, delimiter=delimiter), [])
            yield delimiter, [name.strip().lower() for name in names]
    except csv.Error as error:
        raise UsageError(f"{file} does not begin with the names of columns ({error})") from None


def _header(
    file: Path, text: str, columns: Sequence[str], optional: Sequence[str]
) -> tuple[list[str], str]:
    """The columns' names, and what separates them: as Excel has it, it depends on the country."""
    for delimiter, header in headers(file, text):
        if {*columns} <= {*header}:
            twice = [name for name in (*columns, *optional) if header.count(name) > 1]
            if twice:
                raise UsageError(f"{file} has two columns '{twice[0]}'")
            return header, delimiter
    raise UsageError(f"{file} must begin with the line {','.join(columns)}")
