"""Videos tokenised in parts, by any number of processes, are the store of a single one."""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.vimpac.videos import write_video
from vimpac.cli import main
from vimpac.commands.part_arguments import which_part
from vimpac.data.parts import divide, make_plan
from vimpac.data.store import TokenStore
from vimpac.errors import UsageError

VIMPAC = [sys.executable, "-m", "vimpac"]


@pytest.fixture
def listed(tmp_path, monkeypatch) -> Path:
    """A list of six videos and a file that is none, in the current directory."""
    monkeypatch.chdir(tmp_path)
    lengths = (1000, 2600, 500, 3000, 700, 1200)
    for i, length in enumerate(lengths):
        write_video(tmp_path / f"{i}.mp4", range(0, length, 100))
    (tmp_path / "none.mp4").touch()
    names = ["0.mp4", "1.mp4", "none.mp4", "2.mp4", "3.mp4", "4.mp4", "5.mp4"]
    (tmp_path / "l.txt").write_text("\n".join(names) + "\n")
    return tmp_path / "l.txt"


def _tokenize(*more: str) -> list[str]:
    return ["tokenize", "--list", "l.txt", "--size=32", "--workers=0", *more]


def _videos(path: str) -> list[tuple[str, bytes]]:
    store = TokenStore(path)
    assert list(store.verify()) == [None] * len(store)
    return [
        (store.name(i), store.read(i, 0, store.num_frames(i)).tobytes()) for i in range(len(store))
    ]


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_merged_parts_are_the_whole_store(listed, capsys, parts):
    assert main(_tokenize("--out=whole")) == 0
    for part in range(parts):
        assert main(_tokenize("--out=s", f"--part={part}/{parts}")) == 0
    capsys.readouterr()
    assert main(["store", "merge", "s.parts", "--out=s"]) == 0
    printed = capsys.readouterr()
    assert "s: 6 videos, 20 frames, 10 s" in printed.out
    assert "1 of 7 videos could not be read:\n  none.mp4: " in printed.err
    assert _videos("s") == _videos("whole")
    ours, whole = Path("s"), Path("whole")
    assert (ours / "names.bin").read_bytes() == (whole / "names.bin").read_bytes()
    if parts == 1:
        assert {f.name: f.read_bytes() for f in ours.iterdir()} == {
            f.name: f.read_bytes() for f in whole.iterdir()
        }
    shutil.rmtree("s.parts")
    assert main(["store", "verify", "s"]) == 0


def test_processes_that_start_together_and_one_that_is_killed(listed):
    """Three parts at once, kill -9 of the second, the same command again, merge, verify."""
    commands = [[*VIMPAC, *_tokenize("--out=s", f"--part={i}/3", "--fps=25")] for i in range(3)]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    journal = Path("s.parts/part-00001.partial/journal.jsonl")
    while processes[1].poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") > 1:  # a video was begun
            processes[1].send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert [process.wait() for process in processes] == [0, -signal.SIGKILL, 0]
    merge = [*VIMPAC, "store", "merge", *sorted(glob.glob("s.parts/*")), "--out=s"]
    failed = subprocess.run(merge, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "missing or unfinished: s.parts/part-00001: run" in failed.stderr
    assert not Path("s").exists()
    assert subprocess.run(commands[1], stdout=subprocess.DEVNULL).returncode == 0
    assert main(["store", "merge", *sorted(glob.glob("s.parts/*")), "--out=s"]) == 0
    assert main(["store", "verify", "s"]) == 0
    assert main(_tokenize("--out=whole", "--fps=25")) == 0
    assert _videos("s") == _videos("whole")


def test_parts_keep_to_the_first_plan(listed, tmp_path, capsys, monkeypatch):
    assert main(_tokenize("--out=s", "--part=0/2")) == 0
    assert main(_tokenize("--out=s", "--part=0/3")) == 2
    error = "s.parts was begun in 2 parts, not 3: give --part I/2, or --parts 2 with --dask"
    assert error in capsys.readouterr().err
    (tmp_path / "0.mp4").unlink()  # a file that has gone changes no part
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # nor does another current directory
    command = ["tokenize", "--list=../l.txt", "--size=32", "--workers=0", "--out=../s"]
    assert main([*command, "--part=1/2"]) == 0
    assert main(["store", "merge", "../s.parts", "--out=../s"]) == 0
    assert [name for name, _ in _videos("../s")] == [f"{i}.mp4" for i in range(6)]
    monkeypatch.chdir(tmp_path)
    shutil.rmtree("s")
    listed.write_text("1.mp4\n2.mp4\n")
    assert main(_tokenize("--out=s", "--part=1/2")) == 2
    assert "begun with other videos, or the list has changed" in capsys.readouterr().err


def test_part_whose_videos_are_all_unreadable_is_finished(listed, capsys):
    listed.write_text("none.mp4\n0.mp4\n")
    for part in ("0/2", "1/2"):
        assert main(_tokenize("--out=s", f"--part={part}")) == 0
    assert main(_tokenize("--out=s", "--part=0/2", "--max-skipped=50")) == 1
    assert main(["store", "merge", "s.parts", "--out=s"]) == 0
    assert TokenStore("s").skipped[0][0] == "none.mp4"
    shutil.rmtree("s")
    assert main(["store", "merge", "s.parts", "--out=s", "--max-skipped=10"]) == 1
    assert "s holds the others" in capsys.readouterr().err
    assert main(["store", "merge", "s.parts", "--out=s", "--max-skipped=50"]) == 0  # the same again
    assert capsys.readouterr().out == "s: 1 video, 2 frames, 1 s\n"
    assert main(["store", "merge", "s.parts/part-00001", "--allow-missing", "--out=s"]) == 2
    assert "s exists: remove it or name another output" in capsys.readouterr().err
    shutil.rmtree("s")
    assert main(["store", "merge", "s.parts/part-00000", "--allow-missing", "--out=s"]) == 1
    assert "would hold no video" in capsys.readouterr().err
    assert not Path("s").exists() and not [*Path().glob(".*")]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--part=2/2"], "2 of 2, but parts are numbered from 0"),
        (["--part=0"], "give I/N, such as 0/8"),
        (["--part=x/2"], "give I/N, such as 0/8"),
        (["--part=0/8"], "8 parts of 7 videos"),
        (["--part=auto"], "no task of a SLURM array"),
        (["--part=0/2", "--list=-"], "--list - can be read once only"),
    ],
)
def test_wrong_parts_are_one_line(listed, capsys, monkeypatch, flags, words):
    for name in ("SLURM_ARRAY_TASK_ID", "AWS_BATCH_JOB_ARRAY_INDEX", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    assert main(_tokenize("--out=s", *flags)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not Path("s.parts").exists()


def test_schedulers_say_the_part():
    def slurm(task: int, first: int, last: int, count: int) -> dict[str, str]:
        names = ("ID", "MIN", "MAX", "COUNT")
        values = map(str, (task, first, last, count))
        return {f"SLURM_ARRAY_TASK_{n}": v for n, v in zip(names, values, strict=True)}

    batch = {"AWS_BATCH_JOB_ARRAY_INDEX": "4", "AWS_BATCH_JOB_ARRAY_SIZE": "10"}
    assert which_part("auto", slurm(3, 0, 7, 8)) == (3, 8)
    assert which_part("auto/8", slurm(3, 3, 3, 1)) == (3, 8)  # one task that is run again
    assert which_part("auto", batch) == (4, 10)
    assert which_part("auto/6", {"JOB_COMPLETION_INDEX": "5"}) == (5, 6)
    assert which_part("5/6", {}) == (5, 6)
    for environ in (slurm(3, 3, 3, 1), slurm(3, 1, 8, 8), {"JOB_COMPLETION_INDEX": "5"}):
        with pytest.raises(UsageError, match="give auto/N"):
            which_part("auto", environ)
    with pytest.raises(UsageError, match="8 of 8, but parts are numbered from 0"):
        which_part("auto/8", slurm(8, 1, 8, 8))


def test_parts_have_about_the_same_weight():
    rng = np.random.default_rng(0)
    for count, parts in ((1, 1), (5, 5), (100, 7), (1000, 64)):
        weights = rng.lognormal(10, 1, count).astype(int).tolist()
        cuts = divide(weights, parts)
        assert cuts[0] == 0 and cuts[-1] == count and len(cuts) == parts + 1
        assert all(start < stop for start, stop in zip(cuts[:-1], cuts[1:], strict=True))
        sums = [sum(weights[a:b]) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
        assert max(sums) <= sum(weights) / parts + max(weights)
    assert divide([0, 0, 0, 0], 2) == [0, 2, 4]
    assert divide([0, 0, 900, 0], 2) == [0, 2, 4]


def test_damaged_plan_is_named(listed, capsys):
    assert main(_tokenize("--out=s", "--part=0/2")) == 0
    plan, videos = (Path("s.parts/.plan", name) for name in ("plan.json", "videos.jsonl"))
    capsys.readouterr()
    whole, lines = json.loads(plan.read_text()), videos.read_bytes()
    stop = whole["starts"][2]
    wrong: list[object] = [{"parts": 2}, [], {**whole, "sizes": [3, 0]}, {**whole, "sizes": [7]}]
    wrong += [{**whole, "starts": starts} for starts in ([0, 0, stop], [9, 50, stop], [0, stop])]
    plans = [("{", lines), *((json.dumps(values), lines) for values in wrong)]
    plans += [
        (json.dumps(whole), text)
        for text in (b"", lines[:-9], b"x" * stop, lines.replace(b"[", b"{"), lines[9:], None)
    ]
    for text, content in plans:
        plan.write_text(text)
        videos.unlink(missing_ok=True)
        if content is not None:
            videos.write_bytes(content)
        assert main(_tokenize("--out=s", "--part=1/2")) == 1
        error = capsys.readouterr().err
        assert f"{os.path.realpath('s.parts')}/.plan is damaged: remove" in error
        assert error.count("\n") == 1
    assert not Path("s.parts/part-00001.partial").exists()


def test_part_of_another_plan_is_not_merged(listed, capsys):
    for part in (0, 1):
        assert main(_tokenize("--out=s", f"--part={part}/2")) == 0
    shutil.rmtree("s.parts/part-00001")
    assert main(["tokenize", "4.mp4", "--size=32", "--workers=0", "--out=s.parts/part-00001"]) == 0
    capsys.readouterr()
    for parts in (["s.parts"], ["s.parts/part-00000", "s.parts/part-00001"]):
        assert main(["store", "merge", *parts, "--out=s"]) == 1
        assert "part-00001 is not the part that was planned" in capsys.readouterr().err
    assert not Path("s").exists()


def test_directory_may_be_written_in_other_ways(listed, tmp_path, capsys, monkeypatch):
    for folder in ("videos", "elsewhere/videos"):
        os.makedirs(folder)
        shutil.copy("0.mp4", f"{folder}/a.mp4")
        shutil.copy("1.mp4", f"{folder}/b.mp4")
    command = ["tokenize", "--size=32", "--workers=0", f"--out={tmp_path / 's'}"]
    assert main([*command, "videos", "--part=0/2"]) == 0
    for same in ("videos/", "./videos", str(tmp_path / "videos")):
        assert main([*command, same, "--part=1/2"]) == 0
    monkeypatch.chdir("elsewhere")
    capsys.readouterr()
    assert main([*command, "videos", "--part=1/2"]) == 2  # another one of this name
    assert "begun with other videos" in capsys.readouterr().err


def test_process_that_waits_for_a_plan_outlives_one_that_cannot_make_it(tmp_path):
    """The first process removes the folder that it made, whose lock the second waits for."""
    out, video = tmp_path / "s", ("v", tmp_path / "v")
    waiting = threading.Thread(target=lambda: plans.append(make_plan(out, 1, {}, lambda: [video])))
    plans = []

    def fail() -> list:
        waiting.start()
        time.sleep(0.3)
        raise UsageError("no videos")

    with pytest.raises(UsageError, match="no videos"):
        make_plan(out, 1, {}, fail)
    waiting.join()
    assert [plan.sizes for plan in plans] == [(1,)]
