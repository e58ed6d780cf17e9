"""`vimpac tokenize` and `vimpac store`, from files to a checked store, killed or not."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import lmdb
import numpy as np
import pytest

from tests.vimpac.videos import write_video
from vimpac.cli import main
from vimpac.data.sample_videos import sample_videos
from vimpac.data.store import TokenStore
from vimpac.data.tokenize import TokenizeSettings, tokenize_videos
from vimpac.data.tokenize_video import tokenize_video
from vimpac.data.variants import parse_variants
from vimpac.errors import UsageError, VimpacError
from vimpac.tokenizers.patch import PatchTokenizer

SETTINGS = TokenizeSettings(size=32)


def _content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three good videos among a truncated and an empty one."""
    path = tmp_path / "videos"
    path.mkdir()
    for i, length in enumerate((1000, 2600, 500)):
        write_video(path / f"good{i}.mp4", range(0, length, 100))
    data = (path / "good1.mp4").read_bytes()
    (path / "cut.mp4").write_bytes(data[: len(data) // 2])
    (path / "empty.mp4").touch()
    return path


def test_store_holds_the_readable_videos_and_the_reasons(folder, tmp_path, capsys):
    out = tmp_path / "store"
    command = ["tokenize", str(folder), "--out", str(out), "--size=32", "--workers=0"]
    assert main(command) == 1
    assert f"{out} holds the others; if they are enough, raise --max" in capsys.readouterr().err
    assert main([*command, "--max-skipped=40"]) == 0
    printed = capsys.readouterr()
    assert "3 videos, 9 frames" in printed.out
    assert "2 of 5 videos could not be read" in printed.err
    store = TokenStore(out)
    assert [name for name, reason in store.skipped if reason] == ["cut.mp4", "empty.mp4"]
    assert [store.name(i) for i in range(3)] == ["good0.mp4", "good1.mp4", "good2.mp4"]
    assert store.frames.tolist() == [2, 6, 1]
    tokenizer = SETTINGS.make_tokenizer()
    expected = tokenize_video(folder / "good1.mp4", SETTINGS, tokenizer)
    np.testing.assert_array_equal(store.read(1, 0, 6), expected[0])

    before = _content(out)
    assert main([*command, "--max-skipped=40"]) == 0
    assert _content(out) == before
    assert main(["tokenize", str(folder), "--out", str(out), "--size", "64"]) == 2
    assert "name another output" in capsys.readouterr().err


def test_refused_store_says_what_differs(folder, tmp_path):
    videos = [(file.name, file) for file in sorted(folder.iterdir())]
    out = tmp_path / "store"
    tokenize_videos(videos, out, SETTINGS)
    for others, settings, words in (
        (videos, TokenizeSettings(size=64), "height is 4, not 8"),
        (videos, TokenizeSettings(Fraction(3), 32), "fps is 2.0, not 3.0"),
        (videos[:2], SETTINGS, "it has 'good0.mp4'"),
        ([*videos, ("new.mp4", videos[0][1])], SETTINGS, "it lacks 'new.mp4'"),
    ):
        with pytest.raises(UsageError, match=rf"store is another store \({words}\): name another"):
            tokenize_videos(others, out, settings)

    class Stop(Exception):
        pass

    def stop(done, _):
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        tokenize_videos(videos, tmp_path / "begun", SETTINGS, report=stop)
    for others, words in (
        (videos[1:], "where it has 'cut.mp4' there is 'empty.mp4'"),
        (videos[:2], "where it has 'good0.mp4' there is the end"),
    ):
        with pytest.raises(UsageError, match=rf"begun\.partial was begun with other .*{words}"):
            tokenize_videos(others, tmp_path / "begun", SETTINGS)


def test_workers_do_not_change_the_store(folder, tmp_path):
    videos = [(file.name, file) for file in sorted(folder.iterdir())]
    for workers in (1, 2):
        tokenize_videos(videos, tmp_path / str(workers), SETTINGS, workers=workers)
    assert _content(tmp_path / "1") == _content(tmp_path / "2")


@pytest.mark.parametrize(
    ("flags", "expected"), [([], 4), (["--device=cuda"], 4), (["--device=cuda", "--workers=3"], 3)]
)
def test_workers_are_one_per_cpu(folder, monkeypatch, flags, expected):
    seen = []

    def note(*args: object, workers: int, **more: object) -> None:
        seen.append(workers)
        raise VimpacError

    monkeypatch.setattr("vimpac.data.tokenize.tokenize_videos", note)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7, 9})
    assert main(["tokenize", str(folder), "--out", "unused", *flags]) == 1
    assert seen == [expected]


@pytest.mark.parametrize("workers", [0, 2])
def test_share_of_every_stage_is_printed(folder, tmp_path, capsys, monkeypatch, workers):
    encode = PatchTokenizer.encode

    def encode_slowly(tokenizer, frames):
        time.sleep(1.0)
        return encode(tokenizer, frames)

    monkeypatch.setattr(PatchTokenizer, "encode", encode_slowly)  # not in other processes
    words = ["tokenize", str(folder), "--out", str(tmp_path / "store"), "--max-skipped=40"]
    assert main([*words, "--size=32", f"--workers={workers}"]) == 0
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    line = next(line for line in printed.err.splitlines() if "frames/s" in line)
    assert re.match(r"9 frames in [\d.]+ s: [\d.]+ frames/s; ", line)
    for part in line.split("; ")[1:]:
        shares = {stage: int(share) for stage, share in re.findall(r"(\w+) (\d+) %", part)}
        assert sum(shares.values()) == pytest.approx(100, abs=3)
        if not workers:
            assert set(shares) == {"decode", "resize", "encode", "write", "idle"}
            assert shares["encode"] > 70
    if workers:
        assert re.search(r"; 2 workers: decode .*resize .*encode .*idle .*; writer: write", line)


def test_twelve_variants_of_a_real_clip(tmp_path):
    settings = TokenizeSettings(Fraction(1), 64, parse_variants("finetune"))
    store = tokenize_videos([("bikes", sample_videos()[0])], tmp_path / "store", settings)
    assert len(store.meta.variants) == 12
    read = [store.read(0, 0, 10, variant) for variant in range(12)]
    assert read[0].shape == (10, 8, 8)
    assert len({tokens.tobytes() for tokens in read}) == 12
    settings = TokenizeSettings(Fraction(1), 64, parse_variants("finetune")[7:8])
    alone = tokenize_video(sample_videos()[0], settings, settings.make_tokenizer())
    np.testing.assert_array_equal(read[7], alone[0])


@pytest.mark.parametrize(("workers", "moment"), [(1, 5), (2, 2)])
def test_killed_run_continues_to_the_same_bytes(tmp_path, workers, moment):
    """SIGKILL once the journal has some videos, then the same command to the end."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(8):
        shutil.copyfile(sample_videos()[0], videos / f"{i}.mp4")
    (videos / "3.mp4").write_bytes(b"")
    out = tmp_path / "store"
    command = [sys.executable, "-m", "vimpac", "tokenize", str(videos), "--out", str(out)]
    command += ["--size", "64", "--fps", "12", "--workers", str(workers)]
    journal = tmp_path / "store.partial" / "journal.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") > moment:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    begun = journal.read_bytes().count(b"\n")
    assert moment < begun < 9
    assert main([*command[3:-1], "1"]) == 0
    assert not journal.parent.exists()
    paths = [(file.name, file) for file in sorted(videos.iterdir())]
    tokenize_videos(paths, tmp_path / "whole", TokenizeSettings(Fraction(12), 64))
    assert _content(out) == _content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--fps", "x"], 2, "--fps x is no number"),
        (["--fps", "0"], 2, "fps positive"),
        (["--size", "30"], 2, "multiple of 8"),
        (["--workers", "-1"], 2, "--workers -1 must not be negative"),
        (["--max-skipped", "101"], 2, "--max-skipped 101 must lie in"),
        (["--max-skipped", "nan"], 2, "--max-skipped nan must lie in"),
        (["--video-timeout", "0"], 2, "--video-timeout 0 must be positive"),
        (["--tokenizer", "none"], 2, "unknown tokenizer 'none'"),
        (["--tokenizer", "dalle"], 2, "download https://"),
        (["--device", "cuda"], 2, "'patch' computes on the CPU: leave --device out"),
        (["--dtype", "float16"], 2, "'patch' computes with integers: leave --dtype out"),
        (["--variants", "4"], 2, "unknown variant '4'"),
        (["missing.mp4"], 1, "missing.mp4 does not exist"),
    ],
)
def test_wrong_arguments_are_one_line(folder, tmp_path, capsys, flags, code, words):
    assert main(["tokenize", *flags, str(folder), "--out", str(tmp_path / "store")]) == code
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "store").exists()


def test_only_unreadable_videos_make_no_store(tmp_path, capsys):
    (tmp_path / "v.mp4").touch()
    command = ["tokenize", str(tmp_path / "v.mp4"), "--out", str(tmp_path / "store")]
    assert main(command) == 1
    assert "no video: no input could be read" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    write_video(tmp_path / "v.mp4", range(0, 1000, 100))  # such as a disk that is mounted now
    assert main(command) == 0


def test_full_disk_is_one_line(folder, tmp_path, capsys):
    partial = tmp_path / "store.partial"
    partial.mkdir()
    (partial / "shard-00000.bin").symlink_to("/dev/full")
    code = main(["tokenize", str(folder), "--out", str(tmp_path / "store"), "--workers=0"])
    assert code == 1
    assert not (tmp_path / "store").exists()
    assert "disk full writing" in capsys.readouterr().err


def test_store_commands_show_and_verify(folder, tmp_path, capsys):
    out = tmp_path / "store"
    main(["tokenize", str(folder), "--out", str(out), "--size", "32", "--workers", "0"])
    capsys.readouterr()
    assert main(["store", "info", str(out)]) == 0
    info = capsys.readouterr().out
    assert "videos     3, 2 skipped" in info and "4 x 4 tokens, uint16" in info
    assert main(["store", "verify", str(out)]) == 0
    assert "3 of 3 videos are intact" in capsys.readouterr().out
    with (out / "shard-00000.bin").open("r+b") as shard:
        shard.seek(5)
        shard.write(b"\xff")
    assert main(["store", "verify", str(out)]) == 1
    printed = capsys.readouterr()
    assert "shard-00000.bin: corrupt frame (checksum) in 'good0.mp4': copy" in printed.err
    assert "2 of 3" in printed.out
    assert main(["store", "info", str(tmp_path)]) == 1
    assert "is no token store" in capsys.readouterr().err


def _database(path: Path, videos: dict[str, np.ndarray], settings: dict | None = None) -> Path:
    """Writes the released layout."""
    path.mkdir()
    with lmdb.open(str(path), map_size=1 << 20) as env, env.begin(write=True) as txn:
        for label, (name, tokens) in enumerate(videos.items()):
            value = io.BytesIO()
            np.savez(value, tokens=tokens.astype(np.int16), label=np.array(label, np.int16))
            txn.put(name.encode(), value.getvalue())
    if settings:
        (path / "args.json").write_text(json.dumps(settings))
    return path


def test_released_databases_convert(tmp_path, capsys):
    rng = np.random.default_rng(0)
    crops = ["top", "center"]
    videos = {"b": 3, "a": 5}
    tokens = {c: {n: rng.integers(0, 8192, (f, 4, 4)) for n, f in videos.items()} for c in crops}
    paths = []
    for crop in crops:
        settings = {"fps": 4, "frame_shorter_size": 160, "frame_out_size": 128}
        settings |= {"crop_type": crop, "hflip": False}
        paths.append(str(_database(tmp_path / crop, tokens[crop], settings)))
    assert main(["store", "convert", *paths, "--out", str(tmp_path / "store")]) == 0
    store = TokenStore(tmp_path / "store")
    assert store.meta.variants == ("1.25x-topleft", "1.25x-center")
    assert (store.meta.fps, store.meta.tokenizer) == (4.0, "dalle")
    assert [(store.name(i), store.label(i)) for i in range(2)] == [("a", 1), ("b", 0)]
    for variant, crop in enumerate(crops):
        np.testing.assert_array_equal(store.read(0, 0, 5, variant), tokens[crop]["a"])


@pytest.mark.parametrize(
    ("tokens", "flags", "words"),
    [
        (np.zeros((1, 2, 2)), [], "give --fps"),
        (np.full((1, 2, 2), 9000), ["--fps", "2"], "token id 9000 is not in"),
        (np.zeros((2, 2)), ["--fps", "2"], "tokens (2, 2)"),
    ],
)
def test_bad_databases_are_one_line(tmp_path, capsys, tokens, flags, words):
    path = _database(tmp_path / "db", {"v": tokens})
    assert main(["store", "convert", str(path), "--out", str(tmp_path / "store"), *flags]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("settings", "flags", "words"),
    [
        ("{}", ["--fps", "-1"], "fps=-1.0 of"),
        ("{}", ["--fps", "nan"], "fps=nan of"),
        ('{"fps": "two"}', [], "fps=two of"),
        ('{"fps": 2', [], "args.json is no JSON"),
        ("[2]", [], "args.json holds no keys"),
    ],
)
def test_bad_rates_and_settings_are_one_line(tmp_path, capsys, settings, flags, words):
    path = _database(tmp_path / "db", {"v": np.zeros((1, 2, 2))})
    (path / "args.json").write_text(settings)
    assert main(["store", "convert", str(path), "--out", str(tmp_path / "store"), *flags]) != 0
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_directory_without_database_is_named(tmp_path, capsys):
    assert main(["store", "convert", str(tmp_path), "--out", str(tmp_path / "s")]) == 1
    assert "has no data.mdb" in capsys.readouterr().err
