"""The readers that are timed give the clips they should, and their table says which is how fast."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_read
import readers
import report_read

from vimpac.data.store import TokenStore

VIDEOS = 40
OURS = [name for name, (of, _) in readers.READERS.items() if of in ("store", "lmdb")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store and a database of the same videos."""
    folder = tmp_path_factory.mktemp("stores")
    for name in ("store", "lmdb"):
        (folder / name).mkdir()
        readers.WRITERS[name](folder / name, VIDEOS)
    return folder


def test_store_is_whole(folder):
    store = TokenStore(folder / "store")
    assert len(store) == VIDEOS and store.name(39) == "folder/video0000039.mp4"
    assert [*store.verify()] == [None] * VIDEOS


@pytest.mark.parametrize("name", OURS)
def test_reader_gives_the_clips(folder, name):
    of, open_ = readers.READERS[name]
    bench_read.check(name, open_(folder / of), VIDEOS)


def test_other_clips_are_not_timed(folder):
    reader = readers.READERS["TokenStore.read"][1](folder / "store")
    with pytest.raises(AssertionError, match="LMDB: another clip"):
        bench_read.check("LMDB", lambda videos, starts: reader(videos, np.subtract(1, starts)), 40)


def test_table_compares_with_the_faster_map():
    rows = [
        {"impl": impl, "clips_per_s": rate, "private_mib": 0.25, "peak_mib": 1.5, "opening_s": 0.02}
        for impl, rate in (("np.memmap", 1e5), ("np.memmap, np.asarray", 4e5), ("MDS", 5e4))
    ]
    environment = {"device": "a CPU", "numpy": "2", "date": "today"}
    lines = report_read.read_table(
        {"read": {"9 videos": {"environment": environment, "rows": rows}}}
    )
    assert lines[0] == "9 videos, a CPU, numpy 2, today:\n"
    assert lines[3:] == [
        "| np.memmap | 100,000 | 0.25x | 0.2 | 1.5 | 0.020 |",
        "| np.memmap, np.asarray | 400,000 | 1x | 0.2 | 1.5 | 0.020 |",
        "| MDS | 50,000 | 0.12x | 0.2 | 1.5 | 0.020 |",
    ]
    assert report_read.read_table({}) == []
