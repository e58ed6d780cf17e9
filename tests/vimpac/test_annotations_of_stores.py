"""The annotations of a data set and the videos of a store: which means which, and the command."""

import json
import os

import numpy as np
import pytest

from tests.vimpac.annotation_trees import CLASSES, ROWS, TREES, UCF101, write_files
from vimpac import cli
from vimpac.config import FinetuneConfig
from vimpac.data.annotations.datasets import DATASETS, Counts, note_on_counts
from vimpac.data.labels import read_labels
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError
from vimpac.settings import load_config


@pytest.fixture
def make_store(tmp_path):
    """Makes a store of videos with these names."""

    def make_store(*names: str) -> TokenStore:
        with TokenStoreWriter(tmp_path / "store", StoreMeta("patch", 8192, 1, 1, 2.0)) as writer:
            for name in names:
                writer.add(name, np.zeros((1, 1, 1, 1), int))
            writer.finish()
        return TokenStore(tmp_path / "store")

    return make_store


def test_setting_takes_data_sets_and_refuses_urls():
    for text in ("ucf101:/a:1", "list:/a,/b", "labels.csv", "/a"):
        assert load_config(FinetuneConfig, None, [f"labels={text}"]).labels == text
    for text in ("ucf101:s3://a:1", "list:/a,s3://b", "s3://a", "ucf102:/a"):
        with pytest.raises(UsageError, match="labels=.* must be a CSV file .* no URL"):
            load_config(FinetuneConfig, None, [f"labels={text}"])


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ("ucf101", ["UCF/Archery/v_Archery_g08_c02.mkv", "v_Archery_g01_c07"]),
        ("ucf101", ["Archery/v_Archery_g08_c02", "Archery/v_Archery_g01_c07.avi"]),
        ("hmdb51", ["wave/Kid_#1!_wave_u_cm.avi", "(Big)_&_[Small]_wave_u_cm.MP4"]),
        ("ssv2", ["90001.webm", "videos/90003.webm"]),
        ("diving48", ["rgb/-aB3dE5_00012.mp4", "rgb/_x0000000_00001.mp4"]),
        (
            "kinetics400",
            ["tap_dancing/abCDefGH123_000014_000024.mp4", "xyCDefGH123_001000_001010.mp4"],
        ),
        (
            "kinetics400",
            ["abCDefGH123_000014_000024.mp4", "val/tap dancing/xyCDefGH123_001000_001010.mkv"],
        ),
    ],
)
def test_videos_of_a_store_are_found_by_other_names(dataset, names, make_store, tmp_path):
    folder = write_files(tmp_path / "a", TREES[dataset])
    store = make_store("another.mp4", *names)
    classes, splits = read_labels(f"{dataset}:{folder}", store)
    assert classes == CLASSES[dataset]  # also those of which the store has no video
    assert splits["train"].videos == [1] and splits["test"].videos == [2]
    assert (
        splits["train"].classes == splits["test"].classes == [classes.index(ROWS[dataset][-1][1])]
    )


def test_names_without_overlap_are_shown(make_store, tmp_path):
    write_files(tmp_path, UCF101)
    shown = ".*".join(video for video, _, _ in ROWS["ucf101"])
    message = f"names no video of the store: it has '{shown}', the store 'a', 'b', 'c'$"
    with pytest.raises(UsageError, match=message):
        read_labels(f"ucf101:{tmp_path}", make_store(*"abcd"))


@pytest.mark.parametrize(
    ("names", "lines", "expected"),
    [
        (["a/1.mp4", "b/1.mp4"], ["a/1.mp4,x,train", "b/1.mp4,x,test"], [0, 1]),
        (["a/1.mp4", "b/1.mp4"], ["b/1,x,train", "a/1,x,test"], [1, 0]),
        (["1.mp4", "2.mp4"], ["1.mp4,x,train", "1,y,test", "2.mp4,x,test"], [0, 1]),
        (["1.mp4", "1.webm"], ["1.webm,x,train", "1.mp4,x,test"], [1, 0]),
        (["v1.0", "v1.1"], ["v1.0,x,train", "v1.1,x,test"], [0, 1]),
        (["v1.0.mp4", "v1.1.mp4"], ["v1.0,x,train", "v1.1,x,test"], [0, 1]),
        (["1.mp4", "2.mp4"], ["a/1.mp4,x,train", "b/1,x,train", "2,x,test"], [0, 1]),
        (["c/1.mp4", "2", "3"], ["a/1.mp4,y,train", "2,x,train", "3,x,test"], [1, 2]),
    ],
)
def test_nearest_name_wins(names, lines, expected, make_store, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["video,class,split", *lines]))
    _, splits = read_labels(str(table), make_store(*names))
    assert [*splits["train"].videos, *splits["test"].videos] == expected


@pytest.mark.parametrize(
    ("names", "lines", "message"),
    [
        (
            ["a/1.mp4", "b/1.mp4"],
            ["1.mp4,x,train"],
            "line 2: '1.mp4' may be 'a/1.mp4' or 'b/1.mp4'",
        ),
        (["1.mp4", "1.avi"], ["1,x,train"], "line 2: '1' may be '1.mp4' or '1.avi' of the store"),
        (
            ["1.mp4"],
            ["a/1.mp4,x,train", "b/1.mp4,y,train"],
            "line 3: 'b/1.mp4' is of train and class 'y', in line 2 'a/1.mp4' of train and class "
            "'x'; both may be '1.mp4' of the store",
        ),
        (
            ["1.mp4"],
            ["1,x,train", "1.avi,x,test"],
            "line 3: '1.avi' is of test .* in line 2 '1' of",
        ),
    ],
)
def test_ambiguous_name_is_an_error(names, lines, message, make_store, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["video,class,split", *lines]))
    with pytest.raises(UsageError, match=message):
        read_labels(str(table), make_store(*names))


def test_directory_without_its_data_set_is_told(make_store, tmp_path):
    folder = write_files(tmp_path / "a", UCF101)
    with pytest.raises(UsageError, match=f"no such file; give labels=ucf101:{folder}$"):
        read_labels(str(folder), make_store("a"))


def test_class_without_a_training_video_is_an_error(make_store, tmp_path):
    lines = "Archery/v_1.avi\nYoYo/v_2.avi\n"
    write_files(tmp_path, {**UCF101, "testlist01.txt": lines})
    message = "testlist01.txt, line 2: class 'YoYo' of 'YoYo/v_2.avi' is in no training video"
    with pytest.raises(UsageError, match=message):
        read_labels(f"ucf101:{tmp_path}", make_store("v_Archery_g08_c02.avi", "v_2.avi"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a,x,train,0", "b,x,test,1"], "line 3: class 'x' has the label 1, in line 2 0"),
        (["a,x,train,0", "b,y,test,0"], "line 3: label 0 is of class 'y', in line 2 of 'x'"),
        (["a,x,train,0", ",y,,2", "b,x,test,0"], ": no class has the label 1: labels count from"),
        (["a,x,train,0", "b,x,test,"], "line 3: the label of class 'x' must be .* not ''"),
        (["a,x,train,1.0"], "line 2: the label of class 'x' must be .* not '1.0'"),
        (["a,x,train,-1"], "line 2: the label of class 'x' must be .* not '-1'"),
        ([f"a,x,train,{'9' * 5000}"], "line 2: the label of class 'x' must be"),
    ],
)
def test_contradicting_labels_of_a_table_are_named(lines, message, make_store, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["video,class,split,label", *lines]))
    with pytest.raises(UsageError, match=f"labels.csv.*{message}"):
        read_labels(str(table), make_store("a", "b"))


@pytest.mark.parametrize("dataset", TREES)
def test_written_table_says_what_the_annotations_say(dataset, make_store, tmp_path, capsys):
    folder, table = write_files(tmp_path / "a", TREES[dataset]), tmp_path / "labels.csv"
    store = make_store(*(video for video, _, _ in ROWS[dataset]))
    assert cli.main(["labels", dataset, str(folder), "--out", str(table)]) == 0
    assert read_labels(str(table), store) == read_labels(f"{dataset}:{folder}", store)
    assert read_labels(str(table), store)[0] == CLASSES[dataset]
    number = [sum(split == name for _, _, split in ROWS[dataset]) for name in ("train", "test")]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{table}: {Counts(*number, len(CLASSES[dataset]))}")
    assert said[1:] == [f"the paper (Table 5) has {DATASETS[dataset].counts}"]


def test_command_says_what_a_store_lacks(make_store, tmp_path, capsys):
    folder = write_files(tmp_path / "a", TREES["hmdb51"])
    names = [
        "x/wave/Kid_#1!_wave_u_cm.avi",
        "Two_men_shake_hands_f.avi",
        "other.avi",
        "another.avi",
    ]
    words = [
        "labels",
        "hmdb51",
        str(folder),
        "--split",
        "1",
        "--data",
        str(make_store(*names).path),
    ]
    assert cli.main([*words, "--out", str(tmp_path / "labels.csv")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("2 train, 1 test, 2 classes, 1 unused")
    assert said[-1].endswith(
        "store: 1 of 2 train, 0 of 1 test (66.7% missing); 2 of its videos have no line"
    )


def test_command_reads_lists(tmp_path, capsys):
    write_files(tmp_path, {"train": "a.mp4 1\na.mp4 1\n", "test": "b.mp4;0\n", "names": "x\ny\n"})
    words = [
        "labels",
        "list",
        ",".join(f"{tmp_path}/{name}" for name in ("train", "test", "names")),
    ]
    assert cli.main([*words, "--out", str(tmp_path / "labels.csv")]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/labels.csv: 1 train, 1 test, 2 classes\n"
    text = (tmp_path / "labels.csv").read_text()
    assert text == "video,class,split,label\na.mp4,y,train,1\nb.mp4,x,test,0\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ucf101", "{}", "--out", "{}/classInd.txt"], "classInd.txt exists already"),
        (["ucf101", "{}", "--out", "s3://a/b"], "s3://a/b is a URL"),
        (["ucf101", "s3://a", "--out", "{}/new"], "s3://a is a URL"),
        (["ucf101", "{}", "--split", "4", "--out", "{}/new"], "splits 1 to 3, no split 4"),
        (["hmdb51", "{}", "--out", "{}/new"], "it looks like ucf101"),
        (["list", "{0}/a,{0}/b", "--split", "1", "--out", "{}/new"], "list has one split"),
        (["ucf101", "{}", "--data", "{}/store", "--out", "{}/new"], "the store 'x', 'y'"),
        (["ucf101", "{}", "--out", "{}/none/new"], "none: No such directory"),
        (["list", "{0}/twice,{0}/twice", "--out", "{}/new"], "line 2: 'a' is of train and class"),
    ],
)
def test_command_refuses_wrong_input_and_writes_nothing(
    words, message, make_store, tmp_path, capsys
):
    write_files(tmp_path, {**UCF101, "twice": "a 0\na 1\n"})
    make_store("x", "y")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["labels", *(word.format(tmp_path) for word in words)]) in (1, 2)
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("bad", ["\ud800", "two\nlines", "two\rlines", "nul\0"])
def test_name_that_no_table_can_hold_is_refused(bad, tmp_path, capsys):
    index = {f"Tilting {bad} [something]": "0"}
    entry = [{"id": "1", "template": f"Tilting {bad} [something]"}]
    texts = {"labels": index, "train": entry, "validation": entry}
    write_files(tmp_path, {f"{name}.json": json.dumps(value) for name, value in texts.items()})
    out = tmp_path / "labels.csv"
    assert cli.main(["labels", "ssv2", str(tmp_path), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "is no name of a class: it must be a line of text" in error and error.count("\n") == 1
    plain = {"labels": {"x": 0}, "train": [{"id": bad, "template": "x"}], "validation": []}
    write_files(tmp_path, {f"{name}.json": json.dumps(value) for name, value in plain.items()})
    assert cli.main(["labels", "ssv2", str(tmp_path), "--out", str(out)]) == 2
    assert "train.json, entry 1: '" in capsys.readouterr().err and not out.exists()


def test_class_of_a_file_whose_name_is_no_text_is_refused(tmp_path, capsys):
    file = tmp_path / os.fsdecode(b"\xff_test_split1.txt")
    file.write_text("a.avi 1\nb.avi 2\n")
    out = tmp_path / "labels.csv"
    assert cli.main(["labels", "hmdb51", str(tmp_path), "--out", str(out)]) == 2
    assert "'\\udcff' is no name of a class" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    ("dataset", "split", "found", "message"),
    [
        ("ucf101", 1, (9, 4, 2), "these are the counts in the paper (Table 5)"),
        ("ucf101", 1, (8, 4, 2), "the paper (Table 5) has 9 train, 4 test, 2 classes"),
        ("ucf101", 2, (8, 5, 2), "the paper (Table 5) has 9 train, 4 test, 2 classes in split 1"),
        ("diving48", 1, (9, 4, 2), "these are the counts of V2 in the paper (Table 5)"),
        ("diving48", 1, (8, 4, 2), "the paper (Table 5) has 9 train, 4 test, 2 classes"),
        (
            "diving48",
            1,
            (10, 4, 2),
            "the paper (Table 5) has 9 train, 4 test, 2 classes: more than V2 has, so this is V1, "
            "whose labels differ",
        ),
    ],
)
def test_counts_are_compared_with_the_paper(dataset, split, found, message):
    assert note_on_counts(dataset, split, Counts(*found), Counts(9, 4, 2)) == message
    assert note_on_counts(dataset, split, Counts(*found), None) == ""
