"""The pages of the documentation, their blocks of code, and the command lines in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

DIRECTIVES = {"eval-rst", "include", "toctree"}  # of Sphinx, without code


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Args:
        place: Its page and line, for messages.
        language: The word behind the fence; "" is what a command prints, or a file.
        text: What is in it.
    """

    place: str
    language: str
    text: str


def name_of(page: Path) -> str:
    """A page as messages and test ids have it."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, without directives of Sphinx.

    Raises:
        ValueError: Code stands in a block of another kind, which would not be found.
    """
    found = []
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        line = (token.map or [0])[0] + 1
        directive = re.match(r"\{(.*?)\}", token.info)
        if token.type == "code_block" or (directive and directive[1] not in DIRECTIVES):
            raise ValueError(f"{name_of(page)}:{line}: put code between ``` and ```")
        if token.type == "fence" and not directive:
            found.append(Block(f"{name_of(page)}:{line}", token.info.strip(), token.content))
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a block, each as its words; comments are left out."""
    lines = text.replace("\\\n", " ").splitlines()
    each = [part for line in lines if not line.startswith("#") for part in line.split(" && ")]
    return [words for part in each if (words := shlex.split(part, comments=True))]


def vimpac_words(words: list[str]) -> list[str] | None:
    """The arguments of vimpac in a command, which torchrun or srun may start; else None."""
    if words[0] == "vimpac":
        return words[1:]
    if "-m" in words and words[words.index("-m") + 1] == "vimpac":
        return words[words.index("-m") + 2 :]
    return None


def links(page: Path) -> list[str]:
    """The targets of links and pictures of a page that are not on the web."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"\w+:", target)]
