"""A short form of benchmarks/fuzz_videos.py, which tries hundreds of damaged and odd videos."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import fuzz_videos


@pytest.mark.parametrize("seed", [1])
def test_every_damaged_or_odd_video_is_tokenised_or_listed(tmp_path, seed):
    store, made = fuzz_videos.run(tmp_path, 40, seed)
    assert len(store) >= 10 and len(store.skipped) >= 10, "the mixture tests too little"
    assert len(made) == 40
