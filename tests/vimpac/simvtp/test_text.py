"""Captions to ids and back, by the built-in vocabulary and by the tokenizers of a user."""

import hashlib
import sys

import pytest
import torch
from tokenizers import Tokenizer, processors

from vimpac.cli import EXTRAS
from vimpac.errors import UsageError, VimpacError
from vimpac.simvtp.text import (
    SPECIAL,
    SpecialTokens,
    TokenizersVocabulary,
    WordVocabulary,
    make_words,
    split_words,
)

CAPTIONS = ("A man cooks.", "a dog, a man; a MASK", "A red dog")
BERT = ["[PAD]", "a", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "man", "cook", "##s", "mask", "[", "]"]
BERT_SPECIAL = SpecialTokens(pad=0, unk=2, cls=3, sep=4, mask=5)


@pytest.fixture
def built_in():
    return WordVocabulary.of(CAPTIONS)


@pytest.fixture
def vocab_txt(tmp_path):
    path = tmp_path / "words"
    path.write_text("\n".join(BERT) + "\n")
    return TokenizersVocabulary.read(path)


@pytest.fixture
def tokenizer_json(tmp_path, vocab_txt):
    """The same tokenizer as a file that cuts, pads, adds a template and reads "[MASK]" in texts."""
    tokenizer = Tokenizer.from_str(vocab_txt._tokenizer.to_str())
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
    )
    path = tmp_path / "tokenizer"
    path.write_text(tokenizer.to_str())
    return TokenizersVocabulary.read(path)


@pytest.fixture(params=["built_in", "vocab_txt", "tokenizer_json"])
def words(request):
    return request.getfixturevalue(request.param)


def test_words_are_letters_and_digits_of_any_script_in_lower_case():
    caption = "Don't  RUN-2 5km!_x Füße cafe\u0301 日本 हिन्दी ①"
    assert split_words(caption) == [
        *("don", "t", "run", "2", "5km", "x", "füße", "café", "日本", "हिन्दी", "1")
    ]


def test_vocabulary_is_sorted_by_frequency_then_alphabet(built_in):
    expected = [*SPECIAL, "a", "dog", "man", "cooks", "mask", "red"]
    assert built_in.words(range(built_in.size)) == expected
    assert built_in.special == SpecialTokens(0, 1, 2, 3, 4)


def test_size_leaves_the_rarest_words_out():
    vocabulary = WordVocabulary.of(CAPTIONS, size=7)
    assert vocabulary.size == 7
    ids, _ = vocabulary.encode(["a dog and a man"], 9)
    assert vocabulary.words(ids[0]) == ["[CLS]", "a", "dog", "[UNK]", "a", "[UNK]", "[SEP]"]


def test_vocabulary_needs_a_word():
    with pytest.raises(UsageError, match="the captions have no word"):
        WordVocabulary.of(["...", ""])
    with pytest.raises(ValueError, match="size=5 must be more than the 5 special tokens"):
        WordVocabulary.of(CAPTIONS, size=5)


def test_batch_is_padded_to_its_longest_caption(built_in):
    ids, attention = built_in.encode(["a man", "", "a red dog"], 8)
    assert (ids.dtype, attention.dtype) == (torch.int32, torch.bool)
    assert ids.tolist() == [[2, 5, 7, 3, 0], [2, 3, 0, 0, 0], [2, 5, 10, 6, 3]]
    assert attention.int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]


def test_batch_is_padded_to_a_length(words):
    ids, attention = words.encode(["a man"], 8, pad_to=7)
    special = words.special
    assert ids.tolist()[0][4:] == [special.pad] * 3
    assert attention.tolist() == [[True] * 4 + [False] * 3]
    with pytest.raises(ValueError, match="pad_to=3 is less than a caption's 4 ids"):
        words.encode(["a man"], 8, pad_to=3)


def test_long_caption_is_cut_and_keeps_its_ends(words):
    captions = ["a man a man a", "a man a", "a"]
    ids, _ = words.encode(captions, 5)
    assert words.words(ids[0]) == ["[CLS]", "a", "man", "a", "[SEP]"]
    with pytest.raises(ValueError, match="length=2 must be at least 3"):
        words.encode(captions, 2)


def test_caption_is_never_a_special_token(words):
    ids, _ = words.encode(["[MASK] [PAD] a"], 16)
    inner = {*ids[0, 1:-1].tolist()}
    assert not inner & {getattr(words.special, name) for name in ("pad", "cls", "sep", "mask")}
    assert "mask" in words.words(ids[0])


def test_bert_words_are_cut_into_pieces(vocab_txt, tokenizer_json):
    for words in (vocab_txt, tokenizer_json):
        assert (words.special, words.size) == (BERT_SPECIAL, len(BERT))
        ids, _ = words.encode(["A mán COOKS!"], 16)
        assert words.words(ids[0]) == ["[CLS]", "a", "man", "cook", "##s", "[UNK]", "[SEP]"]


def test_checkpoint_restores_the_vocabulary(words):
    restored = make_words(words.to_json())
    assert (restored.size, restored.special, restored.digest) == (
        *(words.size, words.special, words.digest),
    )
    for one, other in zip(restored.encode(CAPTIONS, 9), words.encode(CAPTIONS, 9), strict=True):
        assert torch.equal(one, other)
    assert words.digest == hashlib.sha256(words.to_json().encode()).hexdigest()
    assert words.digest != WordVocabulary.of(["other"]).digest


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"kind": "words"}', '{"kind": "x", "content": []}'),
        *('{"kind": "words", "content": [[1]]}', '{"kind": "words", "content": ["a", "a"]}'),
    ],
)
def test_damaged_vocabulary_is_refused(text):
    with pytest.raises(VimpacError, match="the vocabulary of the checkpoint is damaged"):
        make_words(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n".join(BERT[:5]), r"file has no \[MASK\]: it must have \[PAD\] \[UNK\] \[CLS\]"),
        ("\n".join([*BERT, "a"]), "file, line 13: 'a' is in line 2, too"),
        ("[PAD]\n\na", "file, line 2 is empty"),
        ("", "file, line 1 is empty"),
        ("{}", "file is no tokenizer.json: "),
        (b"[PAD]\n\xff", "file is not UTF-8"),
    ],
)
def test_wrong_file_is_named(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError, match=message):
        TokenizersVocabulary.read(path)


def test_only_the_user_files_need_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert WordVocabulary.of(CAPTIONS).size == 11
    with pytest.raises(ModuleNotFoundError) as error:
        TokenizersVocabulary("vocab.txt", "\n".join(BERT))
    assert EXTRAS[error.value.name] == "vimpac-kernels[text]"
