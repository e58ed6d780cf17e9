"""What a table of labels may look like, and what is wrong with one, line by line."""

import numpy as np
import pytest

from vimpac.data.labels import read_labels
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError

NAMES = ("a.mp4", "b,c.mp4", "d.mp4", "e.mp4", " f.mp4", 'g"h.mp4', "i\nj.mp4")
PLAIN = ["video,class,split", "a.mp4,x,train", "d.mp4,y,train", "e.mp4,x,test"]
EXPECTED = {"train": ([0, 2], [0, 1]), "test": ([3], [0])}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TokenStore:
    path = tmp_path_factory.mktemp("labels") / "store"
    with TokenStoreWriter(path, StoreMeta("patch", 8192, 1, 1, 2.0)) as writer:
        for name in NAMES:
            writer.add(name, np.zeros((1, 1, 1, 1), int))
        writer.finish()
    return TokenStore(path)


@pytest.fixture
def read(store, tmp_path):
    """Reads a text as the labels of the store: classes, and (videos, classes) of every split."""

    def read(text: str | bytes) -> tuple[list[str], dict]:
        file = tmp_path / "labels.csv"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        classes, splits = read_labels(str(file), store)
        return classes, {name: (split.videos, split.classes) for name, split in splits.items()}

    return read


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines,
        lambda lines: [line.replace(",", " , ") for line in lines],
        lambda lines: [line.replace(",", ";") for line in lines],
        lambda lines: [line.replace(",", "\t") for line in lines],
        lambda lines: [f'"{line}"'.replace(",", '","') for line in lines],
        lambda lines: [line + "\r" for line in lines],
        lambda lines: ["\ufeff" + lines[0].title(), *lines[1:]],
        lambda lines: [line + ",3" if i else line + ",n" for i, line in enumerate(lines)],
        lambda lines: [",".join(reversed(line.split(","))) for line in lines],
        lambda lines: [lines[0], "", *lines[1:], ",,", "  "],
        lambda lines: [*lines, lines[1], lines[2]],  # the same again
        lambda lines: [*lines, "elsewhere.mp4,z,train", "elsewhere.mp4,y,test"],
    ],
    ids="plain spaces semicolons tabs quotes cr excel more order blank again others".split(),
)
def test_table_is_read_however_it_was_saved(read, change):
    assert read("\n".join(change(PLAIN)) + "\n") == (["x", "y"], EXPECTED)


def test_any_name_of_a_video_can_be_labelled(read):
    lines = [*PLAIN, '"b,c.mp4",x,test', " f.mp4,y,test", '"g""h.mp4",x,test', '"i\nj.mp4",y,test']
    assert read("\n".join(lines))[1]["test"] == ([1, 3, 4, 5, 6], [0, 0, 1, 0, 1])


@pytest.mark.parametrize("name", ["val", "Val", "validation"])
def test_validation_split_is_optional(read, name):
    lines = [*PLAIN, f'"b,c.mp4",y,{name}']
    assert read("\n".join(lines))[1] == {**EXPECTED, "val": ([1], [1])}


def test_videos_without_a_line_or_with_another_split_are_left_out(read):
    lines = [*PLAIN, '"b,c.mp4",,unused', " f.mp4,x,", '"g""h.mp4",,']  # and one has no line
    assert read("\n".join(lines)) == (["x", "y"], EXPECTED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["a.mp4,,train"], "line 2: 'a.mp4' has no class"),
        (["a.mp4,  ,train"], "line 2: 'a.mp4' has no class"),
        ([*PLAIN[1:], '"b,c.mp4",,val'], r"line 5: 'b,c.mp4' has no class"),
        ([*PLAIN[1:], '"b,c.mp4",z,val'], "line 5: class 'z' of 'b,c.mp4' is in no training"),
        ([*PLAIN[1:], "a.mp4,y,train"], "line 5: 'a.mp4' is of train and class 'y', in line 2 of"),
        ([*PLAIN[1:], "a.mp4,x,test"], "line 5: 'a.mp4' is of test and class 'x', in line 2 of tr"),
        (["a.mp4,x", *PLAIN[2:]], "line 2: 2 fields, not 3"),
        (["a.mp4,x,train,", *PLAIN[2:]], "line 2: 4 fields, not 3"),
        (["b,c.mp4,x,train", *PLAIN[2:]], "line 2: 4 fields, not 3; a field with ',' in it needs"),
        (['a.mp4,"x,train', *PLAIN[2:]], "line 2: is a quote there that is not closed"),
        ([PLAIN[1], 'd.mp4,"y,train', 'e.mp4,"x",test'], "line 3: is a quote there"),
        ([PLAIN[1], 'd.mp4,"y,train', 'e.mp4,x",test'], "line 3: .*goes on to line 4"),
        ([PLAIN[1], '"d.mp4,y,train', 'e.mp4",x,test'], "line 3: .*goes on to line 4"),
        ([PLAIN[1], 'd.mp4,"y"y,train'], "line 3: is a quote there"),
        (['a.mp4,"' + 200_000 * "x"], "line 2: is a quote there"),
        (["A.mp4,x,train"], "names no video of the store: it has 'A.mp4', the store 'a.mp4'"),
        ([], "names no video of the store"),
        (PLAIN[1:3], "no video of .* has the split 'test', only 'train'"),
        ([PLAIN[3]], "class 'x' of 'e.mp4' is in no training video"),
    ],
)
def test_wrong_line_is_named(read, change, message):
    with pytest.raises(UsageError, match=f"labels.csv.*{message}") as error:
        read("\n".join([PLAIN[0], *change]) + "\n")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must begin with the line video,class,split"),
        (b"video class split\n", "must begin with the line"),
        (b"video,class,split,class\n", "has two columns 'class'"),
        ("\n".join(PLAIN).encode("utf-16"), "is not UTF-8"),
        ("\n".join(PLAIN).encode("utf-16-le"), "holds NUL bytes"),
        (b"video,class,split\n\xe9.mp4,x,train\n", "is not UTF-8"),
    ],
)
def test_file_that_is_no_table_is_refused(read, data, message):
    with pytest.raises(UsageError, match=f"labels.csv {message}"):
        read(data)


@pytest.mark.parametrize("path", ["", "none.csv", ".", "s3://bucket/labels.csv"])
def test_path_that_is_no_file_is_named(store, path):
    with pytest.raises(UsageError, match=f"labels={path}|{path} is a URL"):
        read_labels(path, store)


def test_video_whose_name_is_not_utf8_is_left_out(tmp_path):
    with TokenStoreWriter(tmp_path / "s", StoreMeta("patch", 8192, 1, 1, 2.0)) as writer:
        for name in ("\udcff.mp4", "a.mp4", "b.mp4"):
            writer.add(name, np.zeros((1, 1, 1, 1), int))
        writer.finish()
    file = tmp_path / "labels.csv"
    file.write_text("video,class,split\na.mp4,x,train\nb.mp4,x,test\n")
    assert read_labels(str(file), TokenStore(tmp_path / "s"))[1]["train"].videos == [1]
