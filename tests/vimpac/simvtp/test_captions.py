"""Tables of captions in every format, what is wrong with one, and which files they mean."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from vimpac.errors import UsageError
from vimpac.simvtp.captions import (
    Captioned,
    Choices,
    match_videos,
    read_captions,
    read_choices,
)

OURS = 'video,caption,split\na.mp4,"a man, who ""cooks""",train\nb/c.mp4,füße,Validation\n'
OURS_READ = [
    Captioned("a.mp4", ('a man, who "cooks"',), "train"),
    Captioned("b/c.mp4", ("füße",), "val"),
]
WEBVID = (
    "videoid,contentUrl,duration,page_dir,name\n7,https://x/7.mp4,PT00H00M11S,0_5,A dog  runs\n"
)
JSFUSION = "key,vid_key,video_id,sentence\nret0,msr9,video9,a dog\nret1,msr8,video8,a cat\n"
JSFUSION_NAME = "MSRVTT_JSFUSION_test.csv"
SENTENCES = {
    "videos": [
        {"video_id": "video1", "split": "validate"},
        {"video_id": "video2", "split": "test"},
    ],
    "sentences": [
        {"video_id": "video2", "caption": "a cat", "sen_id": 0},
        {"video_id": "video1", "caption": "a dog", "sen_id": 1},
        {"video_id": "video2", "caption": "a cat", "sen_id": 2},  # as in the data set
    ],
}


@pytest.fixture
def write(tmp_path):
    """Writes a table, under a name that says nothing."""

    def write(content: str | bytes | dict | list, name: str = "file") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content) if isinstance(content, dict | list) else content
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


@pytest.fixture
def zipped(write, tmp_path):
    """MSR-VTT as the zip of Frozen in Time has it: five videos with three captions each."""
    rows = [(f"video{i % 5}", f"caption {i // 5} of {i % 5}") for i in range(15)]
    annotations = [{"image_id": v, "caption": c, "id": i} for i, (v, c) in enumerate(rows)]
    write({"annotations": annotations, "info": {}}, "annotation/MSR_VTT.json")
    lists = {
        "train_list_jsfusion": "video1\nvideo0\nvideo4\n",
        "val_list_jsfusion": "video3\nvideo2\n",
        "train_list_miech": "video0\n",
        "test_list_miech": "video4\n",
        "jsfusion_val_caption_idx": "video2 1\nvideo3 2\n",
    }
    for name, text in lists.items():
        write(text, f"high-quality/structured-symlinks/{name}.txt")
    return tmp_path


def test_our_table_is_read_with_commas_quotes_and_splits(write):
    assert read_captions(write(OURS)) == read_captions(write(OURS), "column") == OURS_READ


@pytest.mark.parametrize(
    "text",
    [OURS.replace("\n", "\r\n"), "\ufeff" + OURS, OURS.replace("video,", "VIDEO ,") + ",,\n"],
    ids=["cr", "mark", "header"],
)
def test_table_is_read_however_it_was_saved(write, text):
    assert read_captions(write(text)) == OURS_READ


def test_captions_of_one_video_come_together_in_the_order_of_the_table(write):
    found = read_captions(write("video,caption\nb,2\na,1\nb,1\n"))
    assert found == [Captioned("b", ("2", "1")), Captioned("a", ("1",))]
    assert [video.place for video in found] == ["line 2", "line 3"]


def test_webvid_names_the_file_below_its_directory(write):
    assert read_captions(write(WEBVID)) == [Captioned("0_5/7.mp4", ("A dog runs",))]


def test_jsfusion_table_is_of_test_videos(write):
    videos = read_captions(write(JSFUSION))
    assert videos == [
        Captioned("video9", ("a dog",), "test"),
        Captioned("video8", ("a cat",), "test"),
    ]


def test_object_of_paths_has_a_caption_or_several(write):
    path = write({"/d/video7.mp4": "a man\ncooks", "/d/video8.mp4": ["a", "b"]})
    assert read_captions(path) == [
        Captioned("/d/video7.mp4", ("a man cooks",)),
        Captioned("/d/video8.mp4", ("a", "b")),
    ]


@pytest.mark.parametrize("split", ["", "full"])
def test_sentences_have_the_splits_of_their_videos(write, split):
    assert read_captions(write(SENTENCES), split) == [
        Captioned("video2", ("a cat", "a cat"), "test"),
        Captioned("video1", ("a dog",), "val"),
    ]


def test_1k_a_has_all_captions_in_training_and_the_chosen_one_in_test(zipped):
    for path in (zipped, zipped / "annotation" / "MSR_VTT.json"):
        videos = {video.video: video for video in read_captions(str(path), "1k-A")}
        splits = [videos[f"video{i}"].split for i in range(5)]
        assert splits == ["train", "train", "test", "test", "train"]
        assert videos["video0"].captions == tuple(f"caption {k} of 0" for k in range(3))
        assert videos["video2"].captions == ("caption 1 of 2",)
        assert videos["video3"].captions == ("caption 2 of 3",)


def test_chosen_captions_may_be_an_array_in_the_order_of_the_list(zipped):
    lists = zipped / "high-quality" / "structured-symlinks"
    expected = read_captions(str(zipped), "1k-A")
    (lists / "jsfusion_val_caption_idx.txt").unlink()
    np.save(lists / "jsfusion_val_caption_idx.npy", np.array([2, 1]))
    assert read_captions(str(zipped), "1k-A") == expected


def test_pickle_is_never_read_but_its_conversion_is_told(zipped):
    class Trap:
        def __reduce__(self):
            return Path.touch, (zipped / "trapped",)

    lists = zipped / "high-quality" / "structured-symlinks"
    (lists / "jsfusion_val_caption_idx.txt").unlink()
    (lists / "jsfusion_val_caption_idx.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError, match=r"is a pickle.*python -c .*> .*caption_idx\.txt$"):
        read_captions(str(zipped), "1k-A")
    (lists / "jsfusion_val_caption_idx.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError, match="no array of numbers"):
        read_captions(str(zipped), "1k-A")
    assert not (zipped / "trapped").exists()


@pytest.fixture
def tables(write, tmp_path):
    """MSR-VTT as CLIP4Clip has it; the test's captions need not be those of the JSON."""
    videos = [{"video_id": f"video{i}", "split": "train"} for i in range(4)]
    sentences = [{"video_id": f"video{i % 4}", "caption": f"caption {i}"} for i in range(8)]
    write({"videos": videos, "sentences": sentences}, "MSRVTT_data.json")
    write("video_id\nvideo2\nvideo0\n", "MSRVTT_train.9k.csv")
    write("video_id\nvideo2\n", "MSRVTT_train.7k.csv")
    write('key,vid_key,video_id,sentence\nret0,m,video3,"a dog, a cat"\n', JSFUSION_NAME)
    return tmp_path


@pytest.mark.parametrize("name", ["", "MSRVTT_data.json"])
def test_1k_a_may_be_two_tables(tables, name):
    assert read_captions(str(tables / name), "1k-A") == [
        Captioned("video0", ("caption 0", "caption 4"), "train"),
        Captioned("video1", ("caption 1", "caption 5"), ""),
        Captioned("video2", ("caption 2", "caption 6"), "train"),
        Captioned("video3", ("a dog, a cat",), "test"),
    ]


def test_table_of_the_test_serves_beside_the_lists_of_the_zip_in_place_of_the_pickle(zipped, write):
    expected = read_captions(str(zipped), "1k-A")
    write("x", "high-quality/structured-symlinks/jsfusion_val_caption_idx.txt")
    rows = "".join(f",,{one.video},{one.captions[0]}\n" for one in expected if one.split == "test")
    write("key,vid_key,video_id,sentence\n" + rows, f"annotation/{JSFUSION_NAME}")
    assert read_captions(str(zipped), "1k-A") == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (JSFUSION_NAME, None, f"split=1k-A needs {JSFUSION_NAME} or val_list_jsfusion.txt: put"),
        (JSFUSION_NAME, "video_id\nvideo3\n", f"{JSFUSION_NAME} begins with 'video_id', which"),
        (JSFUSION_NAME, JSFUSION, f"{JSFUSION_NAME}, line 2: 'video9' has no caption in .*data"),
        ("MSRVTT_train.9k.csv", "video2\n", "9k.csv must begin with the line video_id"),
        ("MSRVTT_train.9k.csv", "video_id\nvideo3\n", "line 2: 'video3' is listed already: .*9k"),
    ],
    ids=["absent", "other", "foreign", "header", "twice"],
)
def test_wrong_table_of_a_division_is_named(tables, write, name, text, message):
    (tables / name).unlink()
    if text is not None:
        write(text, name)
    with pytest.raises(UsageError, match=message):
        read_captions(str(tables), "1k-A")


def test_1k_b_tests_the_first_caption_and_leaves_other_videos_without_split(zipped):
    videos = {video.video: video for video in read_captions(str(zipped), "1k-B")}
    assert videos["video4"] == Captioned("video4", ("caption 0 of 4",), "test")
    assert (videos["video0"].split, videos["video1"].split) == ("train", "")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("", "split= is missing: .* has lists of 1k-A, 1k-B$"),
        ("1k-C", "split=1k-C: .*MSR_VTT.json has no such split: give 1k-A, 1k-B, full$"),
        (
            "full",
            "split=full needs train_list_full.txt, and val_list_full.txt, and test_list_full.txt: "
            "put them beside .*MSR_VTT.json, or into high-quality/structured-symlinks there$",
        ),
    ],
)
def test_wrong_split_names_those_that_exist_and_their_lists(zipped, split, message):
    with pytest.raises(UsageError, match=message):
        read_captions(str(zipped), split)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("val_list_jsfusion", "video3\nvideo9\n", "line 2: 'video9' has no caption"),
        ("val_list_jsfusion", "video3\nvideo4\n", "line 2: 'video4' is listed already: .*train"),
        ("jsfusion_val_caption_idx", "video2 1\n", "no line for the test video 'video3'"),
        ("jsfusion_val_caption_idx", "video2 1\nvideo3 3\n", "'video3' has no caption 3, only 3"),
        ("jsfusion_val_caption_idx", "video2 one\n", "line 1: 'video2 one' is not 'VIDEO NUMBER'"),
    ],
)
def test_wrong_list_is_named(zipped, write, name, text, message):
    write(text, f"high-quality/structured-symlinks/{name}.txt")
    with pytest.raises(UsageError, match=message):
        read_captions(str(zipped), "1k-A")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na,3\n", r"begins with 'path,label'.*video,caption\[,split\] or videoid,cont"),
        ("", "begins with ''"),
        ("video,caption\n", "has no captions$"),
        ("video,caption\na, \n", "line 2: the caption of 'a' is empty"),
        ("video,caption\n,x\n", "line 2 names no video"),
        ("video,caption\na,x\nb,y\na, x\n", "line 4: 'a' has this caption already, in line 2: 'x'"),
        (
            "video,caption,split\na,x,train\na,y,test\n",
            "line 3: 'a' is in the split 'test', in line",
        ),
        ("video,caption,split\na,x,dev\n", "line 2: the split 'dev' must be train, val, test"),
        ("video,caption\na,one, two\n", "line 2: 3 fields, not 2; a field with ',' in it needs"),
        ('video,caption\na,"x\nb,y\n', "line 2: is a quote there that is not closed"),
        ("x" * 200_000, "does not begin with the names of columns"),
        ("video,caption\na,fü\n".encode("latin-1"), "is not UTF-8: save it as UTF-8"),
        ("{", "line 1 is not JSON"),
        (["a.mp4"], 'holds a list.*give CSV.*or JSON: {"path.mp4": "caption"'),
        ({}, "has no captions"),
        ({"a.mp4": 3}, "entry 1: 'a.mp4' has no text as its caption"),
        ({"a.mp4": {"caption": "x"}}, "entry 1: 'a.mp4' has no text as its caption"),
        ({"a.mp4": "x\ud800"}, "entry 1 has characters that are no text: .'a.mp4', 'x.+ud800'.$"),
        ({"a\n.mp4": "x"}, "entry 1 has characters that are no text"),
        ({"a.mp4": []}, "entry 1: 'a.mp4' has no caption"),
        ({"a.mp4": ["x", ""]}, "entry 1, caption 2: the caption of 'a.mp4' is empty"),
        ('{"a.mp4": "x", "a.mp4": "y"}', "has 'a.mp4' twice in one object"),
        ({"annotations": ["x"]}, "'annotations' 1 is no object"),
        ({"annotations": [{"image_id": 3}]}, "'annotations' 1 needs a text 'image_id'"),
        (
            SENTENCES | {"sentences": SENTENCES["sentences"][:1]},
            "'video1' of its videos has no cap",
        ),
    ],
)
def test_wrong_file_gets_one_line(write, content, message):
    with pytest.raises(UsageError, match=message) as error:
        read_captions(write(content))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        (OURS, "1k-A", "split=1k-A: .* has its own in the column 'split'; leave split= out"),
        (WEBVID, "column", "split=column: .* has no column 'split'"),
        ({"a.mp4": "x"}, "1k-A", "has no splits; leave split= out"),
        (
            SENTENCES,
            "1k-A",
            "split=1k-A needs MSRVTT_train.9k.csv or train_list_jsfusion.txt, and "
            "MSRVTT_JSFUSION_test.csv or val_list_jsfusion.txt: put them beside .*file, or into",
        ),
    ],
)
def test_split_that_a_file_has_not_is_refused(write, content, split, message):
    with pytest.raises(UsageError, match=message):
        read_captions(write(content), split)


def test_directory_without_captions_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match="has no MSR_VTT.json or .*MSR_VTT.json or MSRVTT_data.json: give a file"
    ):
        read_captions(str(tmp_path))


def test_choices_have_their_captions_and_the_place_of_the_right_one(write):
    path = write("video,caption_1,caption_2,caption_3,answer\na,x,y,z,2\na,x,z,y,1\n")
    assert read_choices(path) == [
        Choices("a", ("x", "y", "z"), 2),
        Choices("a", ("x", "z", "y"), 1),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video,caption\na,x\n", "must begin with the line video,caption_1,caption_2,answer"),
        (
            "video,caption_1,caption_3,answer\n",
            "must begin with the line video,caption_1,caption_2",
        ),
        ("video,caption_1,caption_2,answer\n", "has no questions"),
        ("video,caption_1,caption_2,answer\na,x,y,2\n", "line 2: the answer .* 0 to 1, not '2'"),
        ("video,caption_1,caption_2,answer\na,x,,0\n", "line 2: caption_2 of 'a' is empty"),
        ("video,caption_1,caption_2,answer\na,x y,x  y,0\n", "line 2: 'x y' is twice among .* 'a'"),
        ("video,caption_1,caption_2,answer\na,x,y,0\na,x,y,0\n", "line 3: .*question in line 2"),
    ],
)
def test_wrong_choices_are_named(write, text, message):
    with pytest.raises(UsageError, match=message):
        read_choices(write(text))


VIDEOS = ["all/video1.mp4", "all/video2.mp4", "all/video3.mp4"]


def test_videos_match_by_the_ends_of_their_paths_in_the_order_of_the_table():
    captioned = [Captioned("/d/all/video3.avi", ("x",)), Captioned("video1", ("y",))]
    matched = match_videos(captioned, VIDEOS, source="t.csv", missing="skip")
    assert (matched.captioned, matched.files) == (captioned, [2, 0])
    assert matched.notes == [
        "1 of 3 video files have no caption in t.csv, the first is 'all/video2.mp4'"
    ]


def test_missing_counterparts_are_counted_and_the_first_is_named():
    captioned = [Captioned(f"video{i}", ("x",)) for i in (2, 3, 5, 4)]
    with pytest.raises(
        UsageError,
        match="2 of 4 videos of t.csv have no video file, the first is 'video5'; 1 of 3 video "
        "files have no caption in t.csv, the first is 'all/video1.mp4'; missing=skip",
    ):
        match_videos(captioned, VIDEOS, source="t.csv")
    assert match_videos(captioned, VIDEOS, source="t.csv", missing="skip").files == [1, 2]


@pytest.mark.parametrize(
    ("names", "more", "message"),
    [
        (
            ["x/all/video1", "video1.avi"],
            [],
            "line 1: 'video1.avi' and 'x/all/video1' of line 0 may both be",
        ),
        (
            ["video1"],
            ["x/video1.mkv"],
            "'video1' may be 'all/video1.mp4' or 'x/video1.mkv' of the v",
        ),
        (
            ["y"],
            [],
            "t.csv names no video of the video files: it has 'y', the video files 'all/vid",
        ),
    ],
    ids=["two-rows", "two-files", "foreign"],
)
def test_ambiguous_or_foreign_names_are_refused(names, more, message):
    captioned = [Captioned(name, ("c",), place=f"line {i}") for i, name in enumerate(names)]
    files = [*VIDEOS, *more]
    with pytest.raises(UsageError, match=message):
        match_videos(captioned, files, source="t.csv", missing="skip")
