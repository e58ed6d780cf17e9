"""Training on a store with a URL is training on the local one, however small the cache is."""

import functools
import http.server
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.vimpac.runs import SETTINGS, finetune_program, make_labelled
from vimpac import evaluate, extract
from vimpac.cli import main
from vimpac.data.fetch_ahead import fetch_ahead
from vimpac.data.sampler import ResumableSampler, Windows
from vimpac.data.shard_cache import ShardCache
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.data.upload import upload_store
from vimpac.train.log import read_log

RUN = ["pretrain", "--config", "tiny", *SETTINGS, "optim.steps=6", "run.save_every=3"]


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves a directory."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path, monkeypatch) -> Iterator[str]:
    """Of the store `store` in the current directory, sixteen videos in sixteen shards."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    meta = StoreMeta("patch", 8192, 4, 4, fps=2.0)
    with TokenStoreWriter("store", meta, shard_bytes=1) as writer:
        for video in range(16):
            writer.add(str(video), 100 * video + rng.integers(0, 10, (1, 6, 4, 4)))
        writer.finish()
    handler = functools.partial(Silent, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/store"
        server.shutdown()


def _losses(out: str) -> list[float]:
    return [record["loss"] for record in read_log(Path(out) / "log.jsonl") if "loss" in record]


@pytest.mark.parametrize("workers", [0, 2])
def test_losses_are_those_of_the_local_store(url, workers):
    more = [f"clips.workers={workers}"]
    assert main([*RUN, "data=store", "out=local", *more]) == 0
    assert main([*RUN, f"data={url}", "cache=c", "out=remote", *more]) == 0
    assert _losses("local") == _losses("remote") and len(_losses("local")) == 6


def test_windows_need_a_part_of_the_cache_and_resume(url):
    """A cache of four of the sixteen shards, in windows of two, stopped after three steps."""
    gigabytes = 4 * 6 * (4 * 4 * 2 + 4) / 1e9
    remote = [f"data={url}", "cache=c", f"cache_gb={gigabytes:.12f}", "clips.window=2"]
    assert main([*RUN, "data=store", "out=local", "clips.window=2", "clips.workers=0"]) == 0
    assert main([*RUN, *remote, "out=remote", "run.until=0.75", "clips.workers=0"]) == 0
    assert len(_losses("remote")) < 6
    assert main([*RUN, *remote, "out=remote", "clips.workers=0", "--resume", "auto"]) == 0
    assert _losses("local") == _losses("remote")
    assert len([*Path("c").glob("*/shard-*.bin")]) <= 4


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "is a URL: give cache=DIRECTORY on a local disk, too"),
        (["cache=c", "cache_gb=1e-6"], " GB: give clips.window=2 or less, or cache_gb=0.1"),
        (["cache=c", "cache_gb=1e-6", "clips.window=3"], "two windows of 3 shards of http"),
        (["cache=c", "cache_gb=1e-7"], "a cache of 1e-07 GB is too small for http"),
        (["cache=s3://x"], "cache=s3://x must be a path on this machine"),
    ],
)
def test_wrong_caches_are_one_line(url, capsys, more, words):
    assert main([*RUN, f"data={url}", "out=run", *more]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_window_of_more_shards_than_there_are(url):
    """It is all of them: no more than an epoch is looked at ahead."""
    more = ["clips.window=1000000000", "clips.workers=0"]
    assert main([*RUN, "data=store", "out=local", *more]) == 0
    assert main([*RUN, f"data={url}", "cache=c", "out=remote", *more]) == 0
    assert _losses("local") == _losses("remote") and len(_losses("local")) == 6


def test_same_url_written_in_two_ways_is_one_store(url, capsys):
    assert main([*RUN, f"data={url},{url}/", "cache=c", "out=run"]) == 2
    assert f"{url}/ is given twice" in capsys.readouterr().err


def test_position_of_other_windows_is_refused(url, capsys):
    assert main([*RUN, "data=store", "out=run", "clips.window=2", "run.until=0.75"]) == 0
    capsys.readouterr()
    assert main([*RUN, "data=store", "out=run", "clips.window=4", "--resume", "auto"]) != 0
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search("it was made with clips.window=2 of the shards .*, not 4 of the shards", error)


def test_shards_of_the_next_window_come_while_one_is_read(url, tmp_path):
    cache = ShardCache(tmp_path / "c", 1 << 30)
    store = TokenStore(url, cache=cache)
    windows = Windows(store.shards, 4)
    sampler = ResumableSampler(16, global_batch=4, windows=windows)
    samples = iter(fetch_ahead(sampler, store, windows))
    expected = [sample for sample, _ in zip(sampler, range(40), strict=False)]
    read = [next(samples)]
    for _ in range(500):
        there = {file.name for file in cache.folder.glob("*/shard-*.bin")}
        if len(there) == 5:  # a window, and the first shard of the next
            break
        time.sleep(0.01)
    assert there == {f"shard-{video:05d}.bin" for _, video in expected[:5]}
    read += [next(samples) for _ in range(39)]
    assert read == expected
    samples.close()
    local = TokenStore("store")
    assert fetch_ahead(sampler, local, windows) is sampler
    assert fetch_ahead(sampler, store, None) is sampler


def test_features_and_tests_of_a_store_with_a_url(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_labelled(tmp_path)
    assert main(finetune_program(tmp_path, tmp_path / "run")[3:]) == 0
    classifier = tmp_path / "run" / "checkpoints" / "step-00000012"
    url = f"memory://{tmp_path.name}/store"
    upload_store(Path("store"), url)
    remote = {"cache": "c", "workers": 0, "device": "cpu", "precision": "fp32"}
    local = {**remote, "cache": ""}
    features = [
        dict(extract("model", "store", **local)),
        dict(extract("model", url, **remote)),
    ]
    assert [*features[0]] == [*features[1]] and len(features[0]) == 12
    for name, feature in features[0].items():
        assert torch.equal(feature, features[1][name])
    reports = [
        evaluate(classifier, data, "labels.csv", **where)
        for data, where in (("store", local), (url, remote))
    ]
    assert torch.equal(reports[0].probabilities, reports[1].probabilities)
    words = [f"data={url}", "labels=labels.csv", "cache=c", "workers=0", "device=cpu"]
    assert main(["evaluate", str(classifier), *words]) == 0
    assert main(["knn", "model", *words, "-k", "1"]) == 0


def test_store_commands_take_urls(url, capsys):
    assert main(["store", "info", url]) == 0
    assert "videos     16, 0 skipped" in capsys.readouterr().out
    assert main(["store", "verify", url, "--cache", "c"]) == 0
    assert f"{url}: 16 of 16 videos are intact" in capsys.readouterr().out
    assert len([*Path("c").glob("*/shard-*.bin")]) == 16
    assert main(["store", "upload", "store", "elsewhere"]) == 2
    assert "elsewhere is no URL, such as s3://bucket/store" in capsys.readouterr().err
    assert main(["store", "upload", "store", "memory://bucket/copy"]) == 0
    assert "memory://bucket/copy: uploaded" in capsys.readouterr().out
    assert main(["store", "verify", "memory://bucket/copy"]) == 0


def test_windows_are_permuted_and_mixed():
    rng = np.random.default_rng(0)
    shards = np.sort(rng.integers(0, 10, 500))
    windows = Windows(shards, 3)
    sampler = ResumableSampler(500, global_batch=4, seed=7, windows=windows)
    samples = iter(sampler)
    epochs = [np.array([next(samples)[1] for _ in range(500)]) for _ in range(2)]
    for order in epochs:
        assert sorted(order.tolist()) == list(range(500))
        of_window = shards[order]
        changes = [set(part.tolist()) for part in np.split(of_window, _ends(of_window, 3))]
        assert [len(part) for part in changes] == [3, 3, 3, 1]
        assert len({*of_window[:20].tolist()}) == 3  # mixed, not one after the other
    assert epochs[0].tolist() != epochs[1].tolist()
    first = [496, 153, 494, 274, 254, 152, 478, 158]  # the order is fixed for all time
    assert epochs[0][:8].tolist() == first


def _ends(shards: np.ndarray, size: int) -> list[int]:
    """Where a window of so many shards is over and another one begins."""
    ends, seen = [], set()
    for at, shard in enumerate(shards.tolist()):
        if shard not in seen and len(seen) == size:
            ends.append(at)
            seen = set()
        seen.add(shard)
    return ends
