"""Frames that workers decode are encoded in batches across videos, and the ids are the same."""

import dataclasses
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.vimpac.videos import write_moving
from vimpac.data.encoder import SharedEncoder, VideoIds
from vimpac.data.journal import Tries
from vimpac.data.tokenize import TokenizeSettings, tokenize_videos
from vimpac.data.tokenize_workers import outcomes
from vimpac.data.variants import parse_variants
from vimpac.data.workers import Workers
from vimpac.data.writer import TokenStoreWriter
from vimpac.errors import VimpacError
from vimpac.tokenizers.patch import PatchTokenizer

BATCH = 8


class _Watched(PatchTokenizer):
    """Notes the size of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def encode(self, frames: np.ndarray) -> np.ndarray:
        self.batches.append(len(frames))
        return super().encode(frames)


def _frames(rng, variants, frames):
    return rng.integers(0, 256, (variants, frames, 3, 16, 16), np.uint8)


def _ids(frames):
    """Frames (variants, F, 3, S, S), encoded one by one."""
    tokenizer = PatchTokenizer()
    return np.stack([[tokenizer.encode(f[None])[0] for f in variant] for variant in frames])


def test_batches_run_across_videos_and_have_one_size():
    rng = np.random.default_rng(0)
    tokenizer = _Watched()
    encoder = SharedEncoder(tokenizer, BATCH)
    videos = [VideoIds() for _ in range(3)]
    chunks = [(0, 1), (1, 3), (0, 7), (2, 2), (1, 1), (0, 2)]  # (video, frames), two variants
    sent: list[list[np.ndarray]] = [[], [], []]
    for video, number in chunks:
        sent[video].append(_frames(rng, 2, number))
        assert encoder.add(videos[video], sent[video][-1]) == 2 * number * 2 * 2 * 4
    encoder.flush()
    encoder.close()
    assert tokenizer.batches == [8, 8, 8, 8]
    for video, frames in zip(videos, sent, strict=True):
        assert video.is_complete
        np.testing.assert_array_equal(video.whole(), _ids(np.concatenate(frames, 1)))


def test_frames_that_wait_for_a_slow_tokenizer_are_bounded():
    """Three batches: one is computed, one is next, and the third waits for room."""
    may_go = threading.Event()

    class Slow(PatchTokenizer):
        def encode(self, frames: np.ndarray) -> np.ndarray:
            assert may_go.wait(60)
            return super().encode(frames)

    encoder, video, added = SharedEncoder(Slow(), BATCH), VideoIds(), []

    def add():
        for i in range(6):
            encoder.add(video, _frames(np.random.default_rng(i), 1, BATCH))
            added.append(i)

    thread = threading.Thread(target=add)
    thread.start()
    thread.join(1.0)
    assert added == [0, 1]
    may_go.set()
    thread.join(60)
    encoder.flush()
    encoder.close()
    assert video.is_complete and video.whole().shape == (1, 6 * BATCH, 2, 2)


class _Broken(PatchTokenizer):
    def encode(self, frames: np.ndarray) -> np.ndarray:
        raise RuntimeError("CUDA error: unspecified launch failure\nmore lines")


@pytest.fixture
def videos(tmp_path) -> list[tuple[str, Path]]:
    """Five videos, of which one cannot be read."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for i, frames in enumerate((50, 200, 25, 75)):
        write_moving(folder / f"{i}.mp4", "mpeg4", frames=frames)
    (folder / "1b.mp4").touch()
    return [(file.name, file) for file in sorted(folder.iterdir())]


SETTINGS = TokenizeSettings(fps=12, size=32, variants=parse_variants("1x-topleft,1x-center-flip"))
ELSEWHERE = dataclasses.replace(SETTINGS, device="cuda")


@pytest.mark.parametrize("workers", [1, 2])
def test_store_is_the_same_wherever_it_is_encoded(videos, tmp_path, monkeypatch, workers):
    tokenize_videos(videos, tmp_path / "here", SETTINGS)
    tokenizer = _Watched()
    monkeypatch.setattr(TokenizeSettings, "make_tokenizer", lambda _: tokenizer)
    monkeypatch.setattr("vimpac.data.tokenize.device_batch", lambda size: BATCH)
    lines: list[str] = []
    out = tmp_path / "elsewhere"
    tokenize_videos(videos, out, ELSEWHERE, workers=workers, speed=lines.append)
    for file in (tmp_path / "here").iterdir():
        assert file.read_bytes() == (out / file.name).read_bytes(), file.name
    assert tokenizer.batches == [BATCH] * (2 * (24 + 96 + 12 + 36) // BATCH)
    assert re.search(r" worker.*: decode .*send .*; writer: encode .*write .*idle", lines[0])


def test_tokenizer_that_fails_ends_the_run_and_blames_no_video(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(TokenizeSettings, "make_tokenizer", lambda _: _Broken())
    monkeypatch.setattr("vimpac.data.tokenize.device_batch", lambda size: BATCH)
    with pytest.raises(VimpacError, match=r"the device failed \(CUDA error: unspecified launch f"):
        tokenize_videos(videos, tmp_path / "store", ELSEWHERE, workers=2)
    with TokenStoreWriter(tmp_path / "store", SETTINGS.meta(PatchTokenizer())) as writer:
        assert not writer.entries and not writer.journal.tries


def _send_and_end(path, *, note, alive, lap, send):
    """Sends three frames; the first time the process ends after two of them."""
    first = not path.exists()
    path.touch()
    for i in range(3):
        if first and i == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        send(np.full((1, 1, 3, 16, 16), 100 + 20 * i, np.uint8))
    return np.empty(0, np.int32)


def _make_work():
    return _send_and_end


def test_video_whose_worker_ends_halfway_is_sent_again(tmp_path):
    encoder = SharedEncoder(PatchTokenizer(), BATCH)
    names = [(name, tmp_path / name) for name in "ab"]
    (tmp_path / "b").touch()
    found = outcomes(names, _make_work, workers=1, timeout=60.0, record=Tries(), encoder=encoder)
    grey = [np.full((1, 1, 3, 16, 16), 100 + 20 * i, np.uint8) for i in range(3)]
    for outcome in found:
        np.testing.assert_array_equal(outcome.tokens, _ids(np.concatenate(grey, 1)))


def _send_much(argument, alive, send):
    for _ in range(argument):
        send(bytes(1 << 20))
    return "done"


def _make_sender():
    return _send_much


def test_worker_that_waits_to_send_does_not_hang():
    """The other side takes three times as long as a task may be without progress."""
    taken: list[int] = []

    def slowly(content: bytes) -> int:
        if not taken:
            time.sleep(3.0)
        taken.append(len(content))
        return 0

    workers = Workers(_make_sender, 1, 1.0)
    try:
        assert workers.start(5, part=slowly)() == "done"
        assert taken == [1 << 20] * 5
    finally:
        workers.close()
