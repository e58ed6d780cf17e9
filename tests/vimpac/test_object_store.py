"""A store in object storage gives the clips of the local one, whatever the network does."""

import functools
import http.server
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from vimpac.cli import main
from vimpac.data import object_store
from vimpac.data.object_store import ObjectFiles, tries
from vimpac.data.shard_cache import ShardCache
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.data.upload import upload_store
from vimpac.errors import UsageError, VimpacError

META = StoreMeta("patch", 8192, 2, 3, fps=2.0)
FRAMES = 5  # of each video, 80 bytes, of which each has a shard
SHARD = FRAMES * META.frame_record.itemsize
BIG = 1 << 30


@pytest.fixture
def local(tmp_path) -> Path:
    """A store of eight shards."""
    rng = np.random.default_rng(0)
    with TokenStoreWriter(tmp_path / "store", META, shard_bytes=1) as writer:
        for i in range(8):
            writer.add(f"{i}.mp4", rng.integers(0, 8192, (1, FRAMES, 2, 3)))
        writer.finish()
    return tmp_path / "store"


@pytest.fixture
def quick(monkeypatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_WAIT", 1e-3)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a directory; notes what is read and fails as `faults` says, path by path."""

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.read.append(name)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault == "busy":
            self.send_error(503)
        elif fault == "short":
            size = Path(self.translate_path(self.path)).stat().st_size
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            self.wfile.write(b"x" * (size // 2))
            self.close_connection = True
        elif fault == "reset":
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(local) -> Iterator[http.server.ThreadingHTTPServer]:
    handler = functools.partial(Handler, directory=str(local.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        made.read, made.faults = [], []
        thread = threading.Thread(target=made.serve_forever, daemon=True)
        thread.start()
        made.url = f"http://127.0.0.1:{made.server_port}/store"
        yield made
        made.shutdown()


def _content(store: TokenStore) -> list[bytes]:
    return [store.read(i, 0, FRAMES).tobytes() for i in range(len(store))]


def _shards(cache: Path) -> list[str]:
    return sorted(file.name for file in cache.glob("*/shard-*.bin"))


def test_clips_are_those_of_the_local_store(local, server, tmp_path):
    cache = ShardCache(tmp_path / "cache", BIG)
    store = TokenStore(server.url + "/", cache=cache)
    assert not _shards(cache.folder)  # nothing is read before it is needed
    expected = _content(TokenStore(local))
    assert _content(store) == expected
    assert store.meta == META and [store.name(i) for i in range(8)] == [
        f"{i}.mp4" for i in range(8)
    ]
    reads = [name for name in server.read if name.startswith("shard")]
    assert sorted(reads) == _shards(cache.folder) and len(reads) == 8
    assert _content(pickle.loads(pickle.dumps(store))) == expected
    assert _content(TokenStore(server.url, cache=cache)) == expected
    assert len([name for name in server.read if name.startswith("shard")]) == 8


def test_store_is_uploaded_and_read_from_memory(local, tmp_path):
    url = f"memory://{tmp_path.name}/store"
    written = []
    upload_store(local, url, written.append)
    assert written == ["index.bin", "names.bin", *(f"shard-{i:05d}.bin" for i in range(8))]
    store = TokenStore(url, cache=ShardCache(tmp_path / "cache", BIG))
    assert _content(store) == _content(TokenStore(local))
    with pytest.raises(UsageError, match=r"store exists: remove it or name another URL"):
        upload_store(local, url)


def test_upload_that_was_interrupted_is_continued(local, tmp_path):
    url = f"memory://{tmp_path.name}/again"
    files = fsspec.filesystem("memory")

    def stop(name: str) -> None:
        if name == "shard-00005.bin":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload_store(local, url, stop)
    with pytest.raises(VimpacError, match=r"again/meta\.json does not exist: check the URL"):
        TokenStore(url, cache=ShardCache(tmp_path / "cache", BIG))
    other = tmp_path / "other"
    with TokenStoreWriter(other, META) as writer:
        writer.add("x", np.zeros((1, 1, 2, 3), int))
        writer.finish()
    with pytest.raises(UsageError, match="holds the beginning of another store: remove it"):
        upload_store(other, url)
    written = []
    upload_store(local, url, written.append)
    assert written == [f"shard-{i:05d}.bin" for i in range(5, 8)]
    assert not files.exists(f"{url}/meta.json.partial")
    store = TokenStore(url, cache=ShardCache(tmp_path / "cache", BIG))
    assert _content(store) == _content(TokenStore(local))


def test_upload_of_a_damaged_store_is_refused_before_any_work(local, tmp_path):
    url = f"file://{tmp_path}/new/folder"
    os.truncate(local / "shard-00003.bin", 7)
    with pytest.raises(VimpacError, match=r"shard-00003\.bin has 7 bytes, not 80"):
        upload_store(local, url)
    (local / "shard-00003.bin").unlink()
    with pytest.raises(VimpacError, match=r"shard-00003\.bin is missing"):
        upload_store(local, url)
    assert not (tmp_path / "new").exists()


def test_refusal_is_not_tried_again(local, server):
    url = server.url.replace("/store", "/new")
    with pytest.raises(VimpacError, match=r"/new cannot be read or written: .*501.*'\)$"):
        tries(url, fsspec.filesystem("http").pipe_file, url, b"")  # it knows no PUT


def test_upload_to_a_web_server_is_refused(local, server):
    with pytest.raises(UsageError, match="/new can only be read: give the URL of object storage"):
        upload_store(local, server.url.replace("/store", "/new"))


def test_upload_makes_the_directory_of_a_file_url(local, tmp_path):
    upload_store(local, f"file://{tmp_path}/new/store")
    assert _content(TokenStore(tmp_path / "new" / "store")) == _content(TokenStore(local))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", ["busy", "short", "reset"])
def test_every_third_request_fails(local, server, tmp_path, fault):
    server.faults = [fault if i % 3 == 2 else None for i in range(100)]
    store = TokenStore(server.url, cache=ShardCache(tmp_path / "cache", BIG))
    assert _content(store) == _content(TokenStore(local))
    assert len(server.faults) < 85  # some of them were used
    assert not [*tmp_path.glob("cache/*/.tmp-*")] + [*tmp_path.glob("cache/*/.room-*")]


@pytest.mark.usefixtures("quick")
def test_server_that_keeps_failing_is_one_line(server, tmp_path):
    server.faults = ["busy"] * 100
    cache = ShardCache(tmp_path / "cache", BIG)
    with pytest.raises(VimpacError, match=r"meta\.json cannot be read.*503.*\), tried 5 times$"):
        TokenStore(server.url, cache=cache)
    assert len(server.faults) == 95
    server.faults = []
    with pytest.raises(VimpacError, match=r"nothing/meta\.json does not exist"):
        TokenStore(server.url.replace("store", "nothing"), cache=cache)
    with pytest.raises(UsageError, match="nothing://x/meta.json: Protocol not known: nothing"):
        TokenStore("nothing://x", cache=cache)
    with pytest.raises(
        UsageError, match=r"is a URL: give cache=ShardCache\(DIRECTORY, BYTES\), too"
    ):
        TokenStore(server.url)
    for more in ("?token=x", "/?token=x", "#part"):  # which would come before the files' names
        with pytest.raises(UsageError, match="a store is a folder"):
            TokenStore(server.url + more, cache=cache)
    for other in ("dir://x", "zip://x"):
        with pytest.raises(VimpacError, match=f"{other}/meta.json cannot be opened"):
            TokenStore(other, cache=cache)


def test_old_shards_make_room(local, server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 3 * SHARD)
    store = TokenStore(server.url, cache=cache)
    for i in (0, 1, 2, 0, 3, 4):
        TokenStore(server.url, cache=cache).read(i, 0, 1)  # opens the shard, so it is used again
        assert len(_shards(cache.folder)) <= 3
    assert _shards(cache.folder) == ["shard-00000.bin", "shard-00003.bin", "shard-00004.bin"]
    assert _content(store) == _content(TokenStore(local))
    assert len(_shards(cache.folder)) == 3
    maps = Path("/proc/self/maps").read_text()
    assert maps.count(f"{cache.folder}") - maps.count("index.bin") - maps.count("names.bin") <= 9
    with pytest.raises(UsageError, match="is too small for http.*raise cache_gb"):
        TokenStore(server.url, cache=ShardCache(tmp_path / "small", SHARD - 1))


def test_processes_share_one_cache_and_one_download(local, server, tmp_path):
    """Four processes read all clips at once; then with a cache of two shards only."""
    source = """
import sys
from pathlib import Path
from vimpac.data.shard_cache import ShardCache
from vimpac.data.store import TokenStore
store = TokenStore(sys.argv[1], cache=ShardCache(Path(sys.argv[2]), int(sys.argv[3])))
order = [(i + 3 * int(sys.argv[4])) % 8 for i in range(8)]
clips = {i: store.read(i, 0, 5).tobytes() for i in order}
sys.stdout.buffer.write(b"".join(clips[i] for i in range(8)))
"""
    for limit in (BIG, 2 * SHARD):
        server.read.clear()
        arguments = [server.url, str(tmp_path / str(limit)), str(limit)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", source, *arguments, str(i)], stdout=subprocess.PIPE
            )
            for i in range(4)
        ]
        outputs = [process.communicate()[0] for process in processes]
        assert outputs == 4 * [b"".join(_content(TokenStore(local)))]
        if limit == BIG:
            assert len([name for name in server.read if name.startswith("shard")]) == 8
        assert len(_shards(tmp_path / str(limit))) <= limit // SHARD


def test_room_that_a_killed_process_kept_is_freed(local, server, tmp_path):
    cache = ShardCache(tmp_path / "cache", 2 * SHARD)
    store = TokenStore(server.url, cache=cache)
    files = ObjectFiles(server.url, cache)
    room = files.path / ".room-shard-00007.bin"
    room.touch()
    os.truncate(room, 2 * SHARD)
    (files.path / ".tmp-shard-00007.bin").write_bytes(b"x")
    assert _content(store) == _content(TokenStore(local))
    assert not room.exists()


def test_object_that_has_changed_is_refused(local, server, tmp_path):
    cache = ShardCache(tmp_path / "cache", SHARD)
    store = TokenStore(server.url, cache=cache)
    store.read(3, 0, 1)
    store.read(4, 0, 1)
    shard = local / "shard-00003.bin"
    os.utime(shard, (1, 1))
    with pytest.raises(VimpacError, match=r"shard-00003\.bin has changed since it was first read"):
        store.read(3, 0, 1)
    (local / "shard-00005.bin").write_bytes(b"123")
    with pytest.raises(VimpacError, match=r"shard-00005\.bin has 3 bytes, not 80: upload it again"):
        store.read(5, 0, 1)
    damaged = bytearray((local / "shard-00006.bin").read_bytes())
    damaged[0] ^= 1
    (local / "shard-00006.bin").write_bytes(damaged)
    with pytest.raises(VimpacError, match=r"store/shard-00006\.bin: corrupt frame .checksum"):
        store.read(6, 0, 1)


def test_package_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert main(["store", "info", "s3://bucket/x"]) == 1
    assert "s3://bucket/x/meta.json needs another package (Install s3fs" in capsys.readouterr().err
