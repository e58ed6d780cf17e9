"""Captions to ids: by the words of the training captions, or by a tokenizer of the user's.

A checkpoint holds all of its vocabulary, so it needs no other file: `make_words(words.to_json())`
is the same as `words`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimpac.data.annotations.files import read_text
from vimpac.errors import UsageError, VimpacError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SHORTEST = 3  # ids of a caption: [CLS], a word, [SEP]
_CHUNK = 10_000  # captions whose ids are in memory at once
_LONGEST_WORD = 100  # letters; longer ones are [UNK], as in BERT


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """The ids of the tokens that are no words."""

    pad: int = 0
    unk: int = 1
    cls: int = 2
    sep: int = 3
    mask: int = 4


class Words(ABC):
    """A vocabulary, and how a caption is cut into its words.

    Attributes:
        size: Ids are below it.
        special: The ids of the special tokens.
    """

    size: int
    special: SpecialTokens

    def encode(
        self, captions: Sequence[str], length: int, *, pad_to: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Makes a batch: `[CLS] words [SEP]`, then padding. A caption is never a special token.

        Args:
            captions: B texts.
            length: The most ids of a caption; of a longer one the last words are cut off.
            pad_to: The length L of the batch; None: that of its longest caption.

        Returns:
            ids (B, L) int32, and attention (B, L) bool, false where ids are padding.

        Raises:
            TypeError: `captions` is one text, whose letters would be captions.
            ValueError: `length` leaves no room for a word, or `pad_to` none for the captions.
        """
        if isinstance(captions, str):
            raise TypeError(f"captions must be a list of texts, not the text {captions!r:.80}")
        if length < SHORTEST:
            raise ValueError(f"{length=} must be at least {SHORTEST}: [CLS], a word and [SEP]")
        rows = [
            [self.special.cls, *ids[: length - 2], self.special.sep]
            for ids in self.word_ids(captions)
        ]
        longest = max(map(len, rows), default=0)
        width = longest if pad_to is None else pad_to
        if width < longest:
            raise ValueError(f"{pad_to=} is less than a caption's {longest} ids")
        ids = torch.full((len(rows), width), self.special.pad, dtype=torch.int32)
        attention = torch.zeros((len(rows), width), dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int32)
            attention[i, : len(row)] = True
        return ids, attention

    def lengths(self, captions: Sequence[str]) -> Iterator[int]:
        """Ids of each caption, [CLS] and [SEP] included, of which few are in memory at once."""
        for start in range(0, len(captions), _CHUNK):
            yield from (len(ids) + 2 for ids in self.word_ids(captions[start : start + _CHUNK]))

    @property
    def digest(self) -> str:
        """SHA-256 of the vocabulary, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @abstractmethod
    def word_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """The ids of the words of each caption, without special tokens but [UNK]."""

    @abstractmethod
    def words(self, ids: Iterable[int] | Tensor) -> list[str]:
        """The word, or part of one, that each id stands for; special tokens as in `SPECIAL`.

        Args:
            ids: (L,) of a caption, as `encode` makes them.
        """

    @abstractmethod
    def to_json(self) -> str:
        """All of it, as `make_words` reads it."""


class WordVocabulary(Words):
    """Words of letters and digits in lower case, which the special tokens precede.

    Args:
        words: Without the special tokens; a word's id is its place here + 5.
    """

    special = SpecialTokens()

    def __init__(self, words: Sequence[str]) -> None:
        self._all = (*SPECIAL, *words)
        self._ids = {word: i for i, word in enumerate(self._all)}
        self.size = len(self._all)

    @classmethod
    def of(cls, captions: Iterable[str], size: int | None = None) -> WordVocabulary:
        """The vocabulary of the words of some captions: frequent ones first, then by alphabet.

        Args:
            captions: Those of training.
            size: The most ids, special tokens included; rarer words become [UNK].

        Raises:
            ValueError: `size` leaves no room for a word.
            UsageError: The captions have no word.
        """
        if size is not None and size <= len(SPECIAL):
            raise ValueError(f"{size=} must be more than the {len(SPECIAL)} special tokens")
        counts = Counter(word for caption in captions for word in split_words(caption))
        if not counts:
            raise UsageError("the captions have no word: nothing in them is a letter or a digit")
        words = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(words if size is None else words[: size - len(SPECIAL)])

    def word_ids(self, captions: Sequence[str]) -> list[list[int]]:
        unknown = self.special.unk
        return [[self._ids.get(w, unknown) for w in split_words(text)] for text in captions]

    def words(self, ids: Iterable[int] | Tensor) -> list[str]:
        return [self._all[int(i)] for i in ids]

    def to_json(self) -> str:
        return json.dumps({"kind": "words", "content": self._all[len(SPECIAL) :]})


class TokenizersVocabulary(Words):
    """A tokenizer of the package `tokenizers`, such as BERT's.

    Args:
        kind: "vocab.txt": one word on each line, its id is the line's number from 0; captions are
            cut into its words as by BERT in lower case. "tokenizer.json": as the file says, without
            its truncation, padding and template.
        content: Of the file.
        name: What it is called in messages.

    Raises:
        UsageError: It is no such file, or it lacks one of `SPECIAL`.
        ModuleNotFoundError: `tokenizers` is not installed.
    """

    def __init__(self, kind: str, content: str, name: str = "the vocabulary") -> None:
        self._kind, self._content = kind, content
        make = _make_bert if kind == "vocab.txt" else _make_tokenizer
        self._tokenizer: Any = make(content, name)
        ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        missing = [token for token in SPECIAL if token not in ids]
        if missing:
            raise UsageError(
                f"{name} has no {', '.join(missing)}: it must have {' '.join(SPECIAL)}"
            )
        self.special = SpecialTokens(*(ids[token] for token in SPECIAL))
        self.size = max(ids.values()) + 1

    @classmethod
    def read(cls, file: Path) -> TokenizersVocabulary:
        """Reads a vocab.txt or a tokenizer.json; what it holds tells which, not its name."""
        content = read_text(file)
        kind = "tokenizer.json" if content.lstrip().startswith("{") else "vocab.txt"
        return cls(kind, content, str(file))

    def word_ids(self, captions: Sequence[str]) -> list[list[int]]:
        # One by one: a batch starts threads, and then the workers of a loader cannot be forked.
        encode = self._tokenizer.encode
        return [encode(text, add_special_tokens=False).ids for text in captions]

    def words(self, ids: Iterable[int] | Tensor) -> list[str]:
        return [self._tokenizer.id_to_token(int(i)) or SPECIAL[1] for i in ids]

    def to_json(self) -> str:
        return json.dumps({"kind": self._kind, "content": self._content})


def make_words(text: str) -> Words:
    """The vocabulary of a checkpoint.

    Args:
        text: What `Words.to_json` returned.

    Raises:
        VimpacError: It is something else.
        ModuleNotFoundError: It needs `tokenizers`, which is not installed.
    """
    try:
        stored = json.loads(text)
        kind, content = stored["kind"], stored["content"]
    except (ValueError, TypeError, KeyError):
        kind, content = None, None
    if kind == "words" and isinstance(content, list):
        texts = all(isinstance(word, str) for word in content)
        if texts and len({*SPECIAL, *content}) == len(SPECIAL) + len(content):
            return WordVocabulary(content)
    if kind in ("vocab.txt", "tokenizer.json") and isinstance(content, str):
        return TokenizersVocabulary(kind, content)
    raise VimpacError("the vocabulary of the checkpoint is damaged, or of a newer version")


class _Separators(dict[int, int]):
    """For `str.translate`: letters, digits and the marks on them stay, all else becomes a space."""

    def __missing__(self, code: int) -> int:
        char = chr(code)
        stays = char.isalnum() or unicodedata.category(char).startswith("M")
        return self.setdefault(code, code if stays else ord(" "))


_SEPARATORS = _Separators()


def split_words(caption: str) -> list[str]:
    """The words of letters and digits of any script, in lower case, in their usual form (NFKC)."""
    return unicodedata.normalize("NFKC", caption).lower().translate(_SEPARATORS).split()


def _make_bert(content: str, name: str) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    lines = content.removesuffix("\n").split("\n")
    ids: dict[str, int] = {}
    for i, word in enumerate(lines):
        if not word:
            raise UsageError(f"{name}, line {i + 1} is empty: a vocabulary has one word on each")
        if ids.setdefault(word, i) != i:
            raise UsageError(f"{name}, line {i + 1}: '{word}' is in line {ids[word] + 1}, too")
    model = models.WordPiece(ids, unk_token=SPECIAL[1], max_input_chars_per_word=_LONGEST_WORD)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _make_tokenizer(content: str, name: str) -> Any:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the package raises no other
        raise UsageError(f"{name} is no tokenizer.json: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # "[MASK]" in a caption is text
    return tokenizer
