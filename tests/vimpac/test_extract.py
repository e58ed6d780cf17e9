"""`vimpac extract` and `vimpac.extract` give the features of every video of a store."""

import gc
import importlib.util
import json
import os
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import vimpac
from tests.vimpac.runs import ON_TWO_RANKS, run_process
from vimpac import VideoClassifier, VideoTokenEncoder, Vimpac, cli, load_model, save_model
from vimpac.checkpoints.description import DataFacts
from vimpac.data.store import TokenStore, TokenStoreWriter
from vimpac.data.store_format import StoreMeta
from vimpac.errors import UsageError, VimpacError
from vimpac.eval.feature_files import FeatureTable, write_features
from vimpac.tokens import PAD_TOKEN

pytestmark = pytest.mark.usefixtures("one_thread")

CROPS = ("1x-topleft", "1x-center", "1x-center-flip")
NAMES = [os.fsdecode(name) for name in (b"b.mp4", b"sub/a.mp4", "ü, \n.mp4".encode(), b"\xff.mp4")]
LENGTHS = (1, 9, 4, 3)
HERE = dict(device="cpu", precision="fp32", workers=0)
WORDS = ["device=cpu", "precision=fp32", "workers=0"]


def write_store(path: Path, *, fps: float = 2.0, tokenizer: str = "patch", side: int = 4) -> Path:
    """Four videos, two shorter than a clip, whose names are not in the order of the alphabet."""
    rng = np.random.default_rng(0)
    with TokenStoreWriter(path, StoreMeta(tokenizer, 8192, side, side, fps, CROPS)) as writer:
        for name, frames in zip(NAMES, LENGTHS, strict=True):
            writer.add(name, rng.integers(0, 8192, (3, frames, side, side)))
        writer.finish()
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A store and a model of clips of two frames, one between them."""
    path = tmp_path_factory.mktemp("data")
    write_store(path / "store")
    torch.manual_seed(0)
    model = Vimpac.from_preset("tiny", grid=(2, 4, 4))
    save_model(model, path / "model", data=DataFacts("patch", "", 2.0, 2, 4, 4, CROPS))
    return path


def _clip(store: Path, video: int, start: int, crop: int) -> torch.Tensor:
    """A clip of two frames, (1, 2, H, W), read by hand."""
    stored = TokenStore(store)
    clip = torch.full((1, 2, stored.meta.height, stored.meta.width), PAD_TOKEN)
    frames = stored.read(video, start, min(start + 3, LENGTHS[video]), crop)[::2]
    clip[0, : len(frames)] = torch.from_numpy(frames.astype(np.int64))
    return clip


@pytest.fixture(scope="module")
def by_hand(folder) -> torch.Tensor:
    """[CLS] of two clips of two crops of every video, (4, 4, D)."""
    encoder = load_model(folder / "model").encoder.eval()
    places = [(crop, end) for crop in (0, 1) for end in (0, 1)]
    with torch.no_grad():
        return torch.stack(
            [
                torch.cat(
                    [
                        encoder.cls(_clip(folder / "store", video, end * max(frames - 3, 0), crop))
                        for crop, end in places
                    ]
                )
                for video, frames in enumerate(LENGTHS)
            ]
        )


@pytest.mark.parametrize(("batch", "workers"), [(1, 0), (3, 0), (32, 2)])
def test_features_are_the_encoders_cls_in_the_order_of_the_store(folder, by_hand, batch, workers):
    options = {**HERE, "batch": batch, "workers": workers, "clips": 2}
    found = [*vimpac.extract(folder / "model", folder / "store", per_clip=True, **options)]
    assert [name for name, _ in found] == NAMES
    assert all(feature.dtype == torch.float32 for _, feature in found)
    torch.testing.assert_close(torch.stack([x for _, x in found]), by_hand)
    means = dict(vimpac.extract(folder / "model", folder / "store", **options))
    torch.testing.assert_close(torch.stack([means[name] for name in NAMES]), by_hand.mean(1))


def test_mean_is_over_the_tokens_that_are_not_padding(folder):
    encoder = load_model(folder / "model").encoder.eval()
    found = dict(
        vimpac.extract(folder / "model", folder / "store", pool="mean", clips=1, crops="center",
                       **HERE)
    )  # fmt: skip
    with torch.no_grad():
        for video, start, rows in ((0, 0, 16), (1, 3, 32)):
            states = encoder(_clip(folder / "store", video, start, 1))[0, 1 : 1 + rows]
            torch.testing.assert_close(found[NAMES[video]], states.mean(0))


def test_encoder_and_classifier_serve_as_the_pretrained_model_does(folder, by_hand, tmp_path):
    encoder = load_model(folder / "model").encoder
    classifier = VideoClassifier(encoder, 2)
    save_model(classifier, tmp_path / "model", classes=["a", "b"])
    for model in (encoder, tmp_path / "model"):
        found = dict(vimpac.extract(model, folder / "store", clips=2, frame_stride=2, **HERE))
        torch.testing.assert_close(found[NAMES[1]], by_hand[1].mean(0))
    write_store(tmp_path / "large", side=6)
    with pytest.raises(UsageError, match=r"clips \(2, 4, 4\), those of .* are \(2, 6, 6\)"):
        vimpac.extract(encoder, tmp_path / "large", **HERE)


def test_no_more_than_a_batch_is_computed_ahead_and_nothing_is_kept(folder, monkeypatch):
    """One video at a time: 1, 7, 2 and 1 views of one crop."""
    alive: list[weakref.ref] = []
    calls = [0]
    real = VideoTokenEncoder.cls

    def count(self: VideoTokenEncoder, tokens: torch.Tensor, **more: bool) -> torch.Tensor:
        found = real(self, tokens, **more)
        calls[0] += 1
        alive.append(weakref.ref(found))
        return found

    monkeypatch.setattr(VideoTokenEncoder, "cls", count)
    options = {**HERE, "batch": 2, "clips": 7, "crops": "center"}
    done = []
    for _ in vimpac.extract(folder / "model", folder / "store", **options):
        gc.collect()
        done.append(calls[0])
        assert sum(one() is not None for one in alive) <= 1
    assert done == [1, 4, 5, 6]


def test_time_between_frames_is_that_of_training_or_is_told(folder, by_hand, tmp_path):
    write_store(tmp_path / "fast", fps=4.0)
    said: list[str] = []
    options = {**HERE, "clips": 2, "per_clip": True, "say": said.append}
    found = dict(vimpac.extract(folder / "model", tmp_path / "fast", frame_stride=2, **options))
    torch.testing.assert_close(found[NAMES[1]], by_hand[1])
    assert said == [
        f"{folder / 'model'} was trained on frames 1 s apart (2 frames per second, stride 2), "
        "these are 0.5 s apart (4 frames per second, stride 2)"
    ]
    said.clear()
    same = dict(vimpac.extract(folder / "model", tmp_path / "fast", **options))
    encoder = load_model(folder / "model").encoder.eval()
    stored = TokenStore(tmp_path / "fast").read(1, 4, 9, 1)[::4].astype(np.int64)
    with torch.no_grad():
        torch.testing.assert_close(
            same[NAMES[1]][3], encoder.cls(torch.from_numpy(stored)[None])[0]
        )
    assert said == []


def test_positions_are_interpolated_to_another_shape_which_is_told(folder, tmp_path):
    write_store(tmp_path / "large", side=6)
    said: list[str] = []
    found = dict(
        vimpac.extract(
            folder / "model", tmp_path / "large", clips=1, frames=3, say=said.append, **HERE
        )
    )
    assert found[NAMES[0]].isfinite().all() and len(found) == 4
    assert said == [
        f"clips have 3 frames, {folder / 'model'} has 2: positions are interpolated",
        f"the token map is 6 x 6, {folder / 'model'} has 4 x 4: positions are interpolated",
    ]


def _run(folder: Path, out: Path, *more: str) -> int:
    words = [str(folder / "model"), f"data={folder / 'store'}", "--clips", "2", "--out", str(out)]
    return cli.main(["extract", *words, *WORDS, *more])


def _read_npz(path: Path) -> tuple[list[str], np.ndarray, np.ndarray | None, list[str]]:
    with np.load(path) as arrays:  # which refuses pickles
        names, more = arrays["names"], "clips" in arrays
        assert names.dtype.kind == "U"
        variants = arrays["variants"].tolist() if more else []
        return names.tolist(), arrays["features"], arrays["clips"] if more else None, variants


def _read_safetensors(path: Path) -> tuple[list[str], np.ndarray, np.ndarray | None, list[str]]:
    with safe_open(path, "np") as file:
        names = file.get_tensor("names").tobytes().split(b"\0")
        clips = file.get_tensor("clips") if "clips" in file.keys() else None
        variants = json.loads(file.metadata()["variants"])
        return [os.fsdecode(name) for name in names], file.get_tensor("features"), clips, variants


READERS = {".npz": _read_npz, ".safetensors": _read_safetensors}


@pytest.mark.parametrize("suffix", READERS)
def test_file_holds_names_and_features(folder, by_hand, tmp_path, capsys, suffix):
    out = tmp_path / f"f{suffix}"
    assert _run(folder, out) == 0
    assert capsys.readouterr().out == f"{out}: 4 x {by_hand.shape[-1]}\n"
    names, features, clips, _ = READERS[suffix](out)
    assert names == NAMES and features.dtype == np.float32 and clips is None
    np.testing.assert_allclose(features, by_hand.mean(1), atol=1e-5)


@pytest.mark.parametrize("suffix", READERS)
def test_file_says_which_clip_a_view_is(folder, by_hand, tmp_path, suffix):
    assert _run(folder, tmp_path / f"f{suffix}", "--per-clip") == 0
    names, features, clips, variants = READERS[suffix](tmp_path / f"f{suffix}")
    assert names == NAMES and clips.dtype == np.int32 and variants == [*CROPS]
    np.testing.assert_allclose(features, by_hand, atol=1e-5)
    assert clips[1].tolist() == [[0, 0], [6, 0], [0, 1], [6, 1]]
    assert clips[3].tolist() == [[0, 0], [0, 0], [0, 1], [0, 1]]


@pytest.mark.skipif(not importlib.util.find_spec("pyarrow"), reason="pyarrow is not installed")
def test_parquet_file_has_a_row_per_video_or_per_view(folder, by_hand, tmp_path, monkeypatch):
    from pyarrow import parquet

    monkeypatch.setattr("vimpac.eval.feature_files.ROW_GROUP", 3)
    for words in ((), ("--per-clip",)):
        out = tmp_path / f"{len(words)}.parquet"
        assert _run(folder, out, *words) == 0
        table = parquet.read_table(out)
        names = [os.fsdecode(name) for name in table["name"].to_pylist()]  # one is no text
        features = np.array(table["features"].to_pylist(), np.float32)
        if words:
            assert names == [name for name in NAMES for _ in range(4)]
            np.testing.assert_allclose(features, by_hand.flatten(0, 1), atol=1e-5)
            assert table["start"].to_pylist()[4:8] == [0, 6, 0, 6]
            assert table["crop"].to_pylist()[4:8] == ["1x-topleft"] * 2 + ["1x-center"] * 2
        else:
            assert names == NAMES and parquet.ParquetFile(out).num_row_groups == 2
            np.testing.assert_allclose(features, by_hand.mean(1), atol=1e-5)


def test_parquet_names_are_texts_where_they_can_be(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    table = FeatureTable(2, ["ü", "b"].__getitem__, 3, None, lambda place: np.zeros((1, 2)), ["x"])
    write_features(tmp_path / "f.parquet", table, iter(np.ones((2, 3), np.float32)))
    assert parquet.read_table(tmp_path / "f.parquet")["name"].to_pylist() == ["ü", "b"]


def test_missing_pyarrow_is_one_line_before_the_work(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delattr("vimpac.eval.extract.Featurizer")
    assert _run(folder, tmp_path / "f.parquet") == 1
    assert "'pyarrow': pip install 'vimpac-kernels[parquet]'" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_writer_holds_one_feature_at_a_time(tmp_path, suffix):
    alive: list[weakref.ref] = []

    class Row(np.ndarray):  # to which a weak reference can point
        pass

    def rows():
        for i in range(50):
            row = np.full(8, i, np.float32).view(Row)
            alive.append(weakref.ref(row))
            yield row
            del row
            assert sum(one() is not None for one in alive) <= 1

    table = FeatureTable(50, str, 8, None, lambda place: np.zeros((1, 2)), ["x"])
    write_features(tmp_path / f"f{suffix}", table, rows())
    names, features, *_ = READERS[suffix](tmp_path / f"f{suffix}")
    assert names == [*map(str, range(50))]
    assert (features == np.arange(50)[:, None]).all()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_interrupted_run_leaves_no_file(folder, tmp_path, monkeypatch, capsys, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    real, calls = VideoTokenEncoder.cls, [0]

    def interrupt(self: VideoTokenEncoder, tokens: torch.Tensor, **more: bool) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return real(self, tokens, **more)

    monkeypatch.setattr(VideoTokenEncoder, "cls", interrupt)
    assert _run(folder, tmp_path / f"f{suffix}", "batch=2") == 130
    assert [*tmp_path.iterdir()] == []


def test_two_ranks_write_the_file_of_one(folder, by_hand, tmp_path):
    words = ["-m", "vimpac", "extract", str(folder / "model"), f"data={folder / 'store'}", *WORDS]
    run_process(
        *ON_TWO_RANKS, *words, "--clips", "2", "--per-clip", "--out", str(tmp_path / "f.npz")
    )
    names, features, *_ = _read_npz(tmp_path / "f.npz")
    assert names == NAMES
    np.testing.assert_allclose(features, by_hand, atol=1e-5)


def test_damaged_video_ends_the_run_or_is_left_out(folder, tmp_path, capsys):
    store = write_store(tmp_path / "store")
    shard = store / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[5] ^= 1  # in the first video
    shard.write_bytes(data)
    words = [f"data={store}", "batch=2"]
    assert _run(folder, tmp_path / "f.npz", *words) == 1
    error = capsys.readouterr().err
    assert "leave such videos out with clips.skip_damaged=true" in error
    assert not (tmp_path / "f.npz").exists()
    assert _run(folder, tmp_path / "f.npz", *words, "clips.skip_damaged=true") == 0
    assert "1 of 4 videos are damaged and left out: 'b.mp4'" in capsys.readouterr().err
    assert _read_npz(tmp_path / "f.npz")[0] == NAMES[1:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clips", "0"], "--clips 0: give a positive number"),
        (["--clips", "1,2"], "--clips 1,2: give one number"),
        (["--crops", "left"], "--crops=left: the store has no variant 'left'"),
        (["data="], "data= is missing"),
        (["labels=x.csv"], "features need no labels"),
        (["batch=0"], "batch=0 must be positive"),
        (["clips.frames=0"], "clips.frames=0 must lie in [1, 65,536]"),
        (["clips.size=3"], "unknown key 'clips.size'"),
        (["device=tpu"], "device=tpu: give auto, cpu or cuda"),
        (["other"], "'other' is not of the form key=value"),
    ],
)
def test_wrong_argument_is_one_line(folder, tmp_path, capsys, words, message):
    assert _run(folder, tmp_path / "f.npz", *words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "f.npz").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("old.npz", "old.npz exists: remove it or name another file"),
        ("f.csv", "f.csv must end in one of .npz, .safetensors, .parquet"),
        ("f", "f must end in one of"),
        ("none/f.npz", "f.npz: there is no directory"),
    ],
)
def test_file_that_exists_or_is_of_no_kind_is_refused(folder, tmp_path, capsys, name, message):
    (tmp_path / "old.npz").write_text("mine")
    assert _run(folder, tmp_path / name) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (tmp_path / "old.npz").read_text() == "mine" and len([*tmp_path.iterdir()]) == 1


def test_checkpoint_is_needed_once(folder, tmp_path, capsys):
    out = str(tmp_path / "f.npz")
    for words, message in (
        ([f"data={folder / 'store'}"], "the checkpoint is missing"),
        (["a", "b"], "'b' is a second checkpoint"),
        ([str(folder)], "is no model: it has no model.safetensors"),
    ):
        assert cli.main(["extract", *words, f"data={folder / 'store'}", "--out", out]) == 2
        assert message in capsys.readouterr().err


def test_store_of_another_tokenizer_or_rate_is_refused(folder, tmp_path):
    write_store(tmp_path / "other", tokenizer="other")
    with pytest.raises(UsageError, match="tokens of the tokenizer 'patch', .* 'other'"):
        vimpac.extract(folder / "model", tmp_path / "other", **HERE)
    write_store(tmp_path / "slow", fps=0.7)
    with pytest.raises(UsageError, match="frames 1 s apart, .* tokenise at 1 frames per second"):
        vimpac.extract(folder / "model", tmp_path / "slow", **HERE)


@pytest.mark.parametrize(
    "options", [{"pool": "max"}, {"clips": 0}, {"batch": 0}, {"frames": -1}, {"precision": "fp8"}]
)
def test_wrong_option_is_refused_at_once(folder, options):
    with pytest.raises(VimpacError, match=next(iter(options))):
        vimpac.extract(folder / "model", folder / "store", **{**HERE, **options})
