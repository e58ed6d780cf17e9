"""The annotations of data sets: every format, and what is wrong with one, line by line."""

import itertools

import pytest

from tests.vimpac.annotation_trees import (
    CLASSES,
    DIVING48,
    HMDB51,
    KINETICS,
    ROWS,
    SSV2,
    TREES,
    UCF101,
    write_files,
)
from vimpac.data.annotations.datasets import Source, parse_source, read_source
from vimpac.errors import UsageError


def _read(text: str) -> tuple[list[tuple[str, str, str]], list[str] | None]:
    """(video, class, split) of every row, and the classes."""
    source = parse_source(text)
    assert source is not None
    found = read_source(source)
    return [(row.video, row.class_name, row.split) for row in found.rows], found.classes


@pytest.mark.parametrize("dataset", TREES)
def test_videos_and_classes_are_read(dataset, tmp_path):
    folder = write_files(tmp_path / "a:b", TREES[dataset])
    assert _read(f"{dataset}:{folder}") == (ROWS[dataset], CLASSES[dataset])


@pytest.mark.parametrize(
    ("dataset", "below"),
    [
        ("ucf101", "ucfTrainTestlist"),
        ("hmdb51", "testTrainMulti_7030_splits"),
        ("ssv2", "labels"),
        ("diving48", "annotations"),
        ("kinetics400", "annotations"),
    ],
)
def test_directory_of_the_whole_data_set_is_enough(dataset, below, tmp_path):
    write_files(tmp_path / below, TREES[dataset])
    assert _read(f"{dataset}:{tmp_path}") == (ROWS[dataset], CLASSES[dataset])


def test_split_is_chosen_by_its_number(tmp_path):
    ucf101, hmdb51 = write_files(tmp_path / "ucf", UCF101), write_files(tmp_path / "hmdb", HMDB51)
    assert _read(f"ucf101:{ucf101}:1") == _read(f"ucf101:{ucf101}")
    assert [split for _, _, split in _read(f"ucf101:{ucf101}:2")[0]] == ["train", "test"]
    assert [split for _, _, split in _read(f"hmdb51:{hmdb51}:2")[0]] == ["test", "", "", "train"]
    with pytest.raises(UsageError, match="trainlist03.txt: no such file"):
        _read(f"ucf101:{ucf101}:3")
    with pytest.raises(UsageError, match=r"holds no file \*_test_split3.txt"):
        _read(f"hmdb51:{hmdb51}:3")
    for split in (0, 4):
        with pytest.raises(UsageError, match=f"ucf101 has the splits 1 to 3, no split {split}"):
            _read(f"ucf101:{ucf101}:{split}")
    with pytest.raises(UsageError, match="ssv2 has one split, no split 2"):
        read_source(Source("ssv2", str(tmp_path), 2))


def test_older_names_of_files_are_known(tmp_path):
    older = {f"something-something-v2-{name}": text for name, text in SSV2.items()}
    assert _read(f"ssv2:{write_files(tmp_path / 's', older)}") == (ROWS["ssv2"], CLASSES["ssv2"])
    older = {f"kinetics_{name}": text for name, text in KINETICS.items()}
    found = _read(f"kinetics400:{write_files(tmp_path / 'k', older)}")
    assert found == (ROWS["kinetics400"], CLASSES["kinetics400"])
    older = {
        name.replace("_V2", ""): text for name, text in DIVING48.items() if "in.json" not in name
    }
    older["Diving48_train.json"] = DIVING48["Diving48_train.json"]
    rows, _ = _read(f"diving48:{write_files(tmp_path / 'd', older)}")
    assert rows[0] == ("-aB3dE5_00012", "Front Dive", "train")


@pytest.mark.parametrize("separator", [" ", ",", ";", "\t", ", "])
def test_lists_of_other_projects_are_read(separator, tmp_path):
    lines = ["/data/tap dancing/a,b.mp4", '"clip 3.mp4"', "1/0002"]
    text = "".join(f"{path}{separator}{2 * i}\n" for i, path in enumerate(lines))
    write_files(
        tmp_path,
        {"train.csv": text, "val.txt": f"x.webm{separator}1\r\n", "names": "d\nc\nb\na\ne"},
    )
    videos = ["/data/tap dancing/a,b.mp4", "clip 3.mp4", "1/0002", "x.webm"]
    splits = ["train", "train", "train", "test"]
    lists = f"list:{tmp_path}/train.csv,{tmp_path}/val.txt"
    rows, classes = _read(lists)
    assert rows == list(zip(videos, "0241", splits, strict=True)) and classes == [*"01234"]
    rows, classes = _read(f"{lists},{tmp_path}/names")
    assert rows == list(zip(videos, "dbec", splits, strict=True)) and classes == [*"dcbae"]


@pytest.mark.parametrize(
    ("dataset", "file", "text", "message"),
    [
        ("ucf101", "classInd.txt", "1 Archery\n\nYoYo\n", "line 3: 'YoYo' is not 'NUMBER CLASS'"),
        ("ucf101", "classInd.txt", "0 Archery\n1 YoYo\n", ": no class has the label 2"),
        ("ucf101", "classInd.txt", "1 A\n1 B\n", "line 2: label 1 is of class 'B', in line 1 of"),
        ("ucf101", "classInd.txt", "1 A\n2 A\n", "line 2: class 'A' has the label 2, in line 1 1"),
        ("ucf101", "testlist01.txt", "v_Archery_g01_c07.avi 1", "line 1: 'v_Archery.*' is not 'CL"),
        ("ucf101", "testlist01.txt", "\nX/v_X.avi\n", "line 2: class 'X' is not in .*classInd.txt"),
        ("ucf101", "trainlist01.txt", "YoYo/v.avi 2", "line 1: class 'YoYo' is 2, in .* 3"),
        ("hmdb51", "wave_test_split1.txt", "a.avi 1\nb.avi 3\n", "line 2: 'b.avi 3' is not 'VIDEO"),
        ("hmdb51", "wave_test_split1.txt", "a.avi", "line 1: 'a.avi' is not 'VIDEO.avi CODE'"),
        ("ssv2", "labels.json", "[]", " must hold an object"),
        ("ssv2", "labels.json", '{"A": "0",\n"B" 1}', ", line 2 is not JSON"),
        ("ssv2", "labels.json", '{"A": "x"}', ", entry 1: 'x' is no label of 'A'"),
        ("ssv2", "labels.json", '{"A": 0, "B": 2}', ": no class has the label 1"),
        ("ssv2", "train.json", "{}", " must hold a list"),
        ("ssv2", "train.json", "[[1]]", ", entry 1 is no object"),
        ("ssv2", "train.json", '[{"id": "1"}]', ", entry 1: it needs an 'id' and a 'template'"),
        (
            "ssv2",
            "train.json",
            '[{"id": "1", "template": "A [b]"}]',
            ", entry 1: class 'A b' is not",
        ),
        ("ssv2", "train.json", "[" * 100_000, " is not JSON"),
        ("diving48", "Diving48_vocab.json", "{}", " must hold a list"),
        ("diving48", "Diving48_vocab.json", '[["A"], "B"]', ", entry 2 must be a list of words"),
        (
            "diving48",
            "Diving48_vocab.json",
            '[["A"], ["A"]]',
            ", entry 2: class 'A' has the label 1",
        ),
        (
            "diving48",
            "Diving48_V2_test.json",
            '[{"vid_name": "a"}]',
            ", entry 1: it needs a 'vid_n",
        ),
        (
            "diving48",
            "Diving48_V2_test.json",
            '[{"vid_name": "a", "label": 3}]',
            ", entry 1: .*vocab.json has no entry for the label 3",
        ),
        (
            "kinetics400",
            "train.csv",
            "youtube_id,time_start,time_end\n",
            " must begin with the line",
        ),
        ("kinetics400", "train.csv", "train/a.mp4 3\n", " looks like a plain list.*: give list:tr"),
        (
            "kinetics400",
            "val.csv",
            KINETICS["val.csv"] + "val,x,0,a,b\n",
            "line 3: it needs a label",
        ),
        ("kinetics400", "val.csv", KINETICS["val.csv"] + "val,9,nan,a,b\n", "line 3: it needs a l"),
        ("kinetics400", "val.csv", KINETICS["val.csv"] + "val,9,a,b\n", "line 3: 4 fields, not 5"),
        (
            "kinetics400",
            "validate.csv",
            "",
            "must hold one file.*, it has val.csv and validate.csv",
        ),
    ],
)
def test_wrong_line_is_named(dataset, file, text, message, tmp_path):
    folder = write_files(tmp_path, {**TREES[dataset], file: text})
    with pytest.raises(UsageError, match=message) as error:
        _read(f"{dataset}:{folder}")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("train", "names", "message"),
    [
        ("a.mp4 0\nb.mp4\n", "x", "train.csv, line 2: 'b.mp4' is no path and class number"),
        ("a.mp4 -1\n", "x", "line 1: 'a.mp4 -1' is no path and class number"),
        ("12\n", "x", "line 1: '12' is no path"),
        (f"a.mp4 {10**8}\n", "x", "line 1: .* is no path and class number"),
        ("a.mp4 0\nb.mp4 1\n", "x", "train.csv, line 2: .*names has no line for the class 1"),
        ("a.mp4 0\n", "x\ny\nx", "names, line 3: class 'x' has the label 2, in line 1 0"),
        ("\n", "x", "train.csv is empty"),
        (KINETICS["train.csv"], "x", "line 1: .*; it looks like Kinetics: give kinetics400:DIR"),
    ],
)
def test_wrong_line_of_a_list_is_named(train, names, message, tmp_path):
    write_files(tmp_path, {"train.csv": train, "test.csv": "t.mp4 0\n", "names": names})
    with pytest.raises(UsageError, match=message):
        _read(f"list:{tmp_path}/train.csv,{tmp_path}/test.csv,{tmp_path}/names")


@pytest.mark.parametrize(("named", "given"), [*itertools.permutations(TREES, 2)])
def test_annotations_of_another_data_set_are_recognised(named, given, tmp_path):
    folder = write_files(tmp_path, TREES[given])
    message = f"{folder} holds no annotations of {named}, such as .*: it looks like {given}"
    with pytest.raises(UsageError, match=message):
        _read(f"{named}:{folder}")


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("ucf101", "classInd.txt"),
        ("ucf101", "trainlist01.txt"),
        ("ucf101", "testlist01.txt"),
        ("ssv2", "labels.json"),
        ("ssv2", "train.json"),
        ("ssv2", "validation.json"),
        ("diving48", "Diving48_vocab.json"),
        ("diving48", "Diving48_V2_test.json"),
        ("kinetics400", "train.csv"),
        ("kinetics400", "val.csv"),
    ],
)
def test_absent_file_is_named(dataset, file, tmp_path):
    (write_files(tmp_path, TREES[dataset]) / file).unlink()
    with pytest.raises(UsageError, match=file):
        _read(f"{dataset}:{tmp_path}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ucf101:{}/none:1", "ucf101:.*/none: no such directory"),
        ("ucf101:{}/classInd.txt", "classInd.txt: is a file: name its directory"),
        ("ucf101:", "a path is empty"),
        ("ssv2:{}/none:1", "ssv2:.*/none:1: no such directory"),
        ("list:{}/train.csv", "must be list:train.csv,test.csv or list:"),
        ("list:{0}/none,{0}/test.csv", "/none: no such file"),
    ],
)
def test_absent_place_is_named(text, message, tmp_path):
    write_files(tmp_path, UCF101)
    with pytest.raises(UsageError, match=message):
        _read(text.format(tmp_path))


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("ucf101:/a:1", Source("ucf101", "/a", 1)),
        ("hmdb51:a:b:12", Source("hmdb51", "a:b", 12)),
        ("ucf101:1", Source("ucf101", "1")),
        ("ssv2:/a:1", Source("ssv2", "/a:1")),
        ("list:a,b", Source("list", "a,b")),
        ("labels.csv", None),
        ("a/ucf101:b", None),
        ("ucf101", None),
    ],
)
def test_source_is_told_from_a_path(text, source):
    assert parse_source(text) == source
