"""`vimpac tokenize --dask`: workers that are lost, commands that are stopped, the same store."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import distributed
import psutil
import pytest

from tests.vimpac.videos import write_video
from vimpac.cli import main
from vimpac.data.store import TokenStore

VIMPAC = [sys.executable, "-m", "vimpac", "tokenize", "--list", "l.txt", "--size=32"]


@pytest.fixture
def listed(tmp_path, monkeypatch) -> Iterator[Path]:
    """A list of six videos and a file that is none, in the current directory."""
    monkeypatch.chdir(tmp_path)
    for i in range(6):
        write_video(tmp_path / f"{i}.mp4", range(0, 1000 + 300 * i, 100))
    (tmp_path / "none.mp4").touch()
    (tmp_path / "l.txt").write_text("0.mp4\n1.mp4\nnone.mp4\n2.mp4\n3.mp4\n4.mp4\n5.mp4\n")
    yield tmp_path
    gc.collect()  # a client that found no scheduler, which Dask must not meet while it holds a lock


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.LocalCluster]:
    """A scheduler and a worker in a process of its own."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as made:
        yield made


def _content(path: str) -> list[tuple[str, bytes]]:
    store = TokenStore(path)
    assert list(store.verify()) == [None] * len(store)
    assert [name for name, _ in store.skipped] == ["none.mp4"]
    numbers = range(len(store))
    return [(store.name(i), store.read(i, 0, store.num_frames(i)).tobytes()) for i in numbers]


def _wait_for(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)


def _begun(folder: Path, lines: int) -> bool:
    journals = folder.glob("s.parts/*.partial/journal.jsonl")
    return any(journal.read_bytes().count(b"\n") >= lines for journal in journals)


def test_part_of_a_worker_that_is_killed_is_continued(listed):
    command = [*VIMPAC, "--out=s", "--fps=25", "--dask=local:2", "--parts=2"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _wait_for(lambda: _begun(listed, 2))
    workers = [
        child
        for child in psutil.Process(process.pid).children()
        if len(child.children())  # one that makes a part
    ]
    workers[0].kill()
    _, printed = process.communicate()
    assert process.returncode == 0, printed
    assert not Path("s.parts").exists()
    assert main([*VIMPAC[3:], "--out=whole", "--fps=25", "--workers=0"]) == 0
    assert _content("s") == _content("whole")


def test_command_that_is_stopped_takes_its_tasks_along(listed, cluster):
    command = [*VIMPAC, "--out=s", "--fps=25", f"--dask={cluster.scheduler_address}", "--parts=3"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for(lambda: _begun(listed, 2))
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    nanny = cluster.workers[0]
    _wait_for(lambda: not psutil.Process(nanny.pid).children())
    assert main([*command[3:]]) == 0
    assert main([*VIMPAC[3:], "--out=whole", "--fps=25", "--workers=0"]) == 0
    assert _content("s") == _content("whole")
    assert main([*command[3:]]) == 0  # it is there


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--dask=local:0"], 2, "--dask local:0: give the number of workers, such as local:4"),
        (["--dask=local"], 2, "--dask local: give the number of workers"),
        (["--dask="], 1, "no scheduler answers there"),
        (["--dask=nowhere"], 1, "--dask nowhere: no scheduler answers there"),
        (["--dask=tcp://127.0.0.1:1"], 1, "no scheduler answers there"),
        (["--dask=local:1", "--part=0/1"], 2, "give one of the two"),
        (["--parts=2"], 2, "--parts 2 needs --dask"),
        (["--dask=local:1", "--parts=0"], 2, "--parts must be positive"),
        (["--dask=local:1", "--tokenizer=dalle"], 2, "download https://"),
    ],
)
def test_wrong_arguments_are_one_line(listed, capsys, flags, code, words):
    assert main([*VIMPAC[3:], "--out=s", *flags]) == code
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not Path("s").exists() and not Path("s.parts").exists()


def test_part_that_fails_is_named(listed, cluster, capsys):
    command = [*VIMPAC[3:], "--out=s", f"--dask={cluster.scheduler_address}", "--parts=2"]
    part = listed / "s.parts" / "part-00001"
    assert main([*VIMPAC[3:], "--out=s", "--part=1/2", "--fps=4"]) == 0
    assert main(command) == 2
    assert "part-00001" in capsys.readouterr().err.splitlines()[-1]
    assert part.is_dir() and not Path("s").exists()
    os.rename(part, listed / "other")
    assert main(command) == 0
    assert len(_content("s")) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_whole_group_is_one_line(listed, number):
    """As of Ctrl-C on a terminal, while the workers start."""
    process = subprocess.Popen(
        [*VIMPAC, "--out=s", "--fps=200", "--dask=local:2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    here = psutil.Process(process.pid)
    _wait_for(lambda: len(here.children()) > 1)  # multiprocessing has one of its own
    children = here.children(recursive=True)
    os.killpg(process.pid, number)
    _, printed = process.communicate()
    lines = [line for line in printed.splitlines() if line and "tokenizing" not in line]
    assert (process.returncode, lines) == (130, ["vimpac: interrupted"])
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_cluster_without_workers_and_one_whose_scheduler_ends(listed, capsys):
    """No number of parts without workers; with --parts it says that it waits."""
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as empty:
        address = f"--dask={empty.scheduler_address}"
        assert main([*VIMPAC[3:], "--out=s", address]) == 2
        assert "has no workers yet: start them first, or give --parts N" in capsys.readouterr().err
        command = [*VIMPAC, "--out=s", "--parts=3", "--dask"]
        process = subprocess.Popen(
            [*command, empty.scheduler_address], stderr=subprocess.PIPE, text=True
        )
        assert "has no workers: waiting for some" in process.stderr.readline()
    _, printed = process.communicate()
    assert process.returncode == 1
    assert "the scheduler of the Dask cluster is gone" in printed.splitlines()[-1]
    assert "Traceback" not in printed and not Path("s").exists()
    assert main([*command[3:], "local:1"]) == 0
    assert len(_content("s")) == 6
