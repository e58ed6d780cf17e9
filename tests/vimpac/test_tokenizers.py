"""Tokenizers give ids below their vocabulary, the same everywhere, and pictures back."""

import hashlib
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vimpac.data.frames import frames_at
from vimpac.data.sample_videos import sample_videos
from vimpac.data.variants import Variant, make_variants
from vimpac.errors import UsageError, VimpacError
from vimpac.tokenizers import dalle, get_tokenizer

FIRST_IDS = [3584, 3584, 3680, 3584]
# SHA-256 of the ids, int64, of synthetic frames, and of the picture of all ids. They were computed
# by the first implementation, in torch.
IDS_OF_NOISE = "7703d3a5e0986109"
IDS_OF_WAVES = "acdb2f5482a8e244"
PICTURE = "999e71fdec959af4"


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Real frames (F, 3, 128, 128)."""
    clips = [
        make_variants(f, 128, [Variant()]) for clip in sample_videos() for f in frames_at(clip, 1)
    ]
    return np.concatenate(clips)


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def test_patch_code_keeps_more_than_the_patch_means(frames):
    tokenizer = get_tokenizer("patch")
    ids = tokenizer.encode(frames)
    assert ids.shape == (len(frames), 16, 16)
    assert ids.dtype == np.int32
    assert 0 <= ids.min() and ids.max() < 8192
    painted = tokenizer.decode(ids)
    assert painted.shape == frames.shape and painted.dtype == np.uint8
    grey = frames.mean(1)
    means = grey.reshape(-1, 16, 8, 16, 8).mean((2, 4)).repeat(8, 1).repeat(8, 2)
    assert _psnr(painted.mean(1), grey) > _psnr(means, grey)
    assert _psnr(painted, frames) > 22


def test_every_patch_id_survives_its_own_picture():
    """Pictures of mid-grey ids, far from clipping, encode to the same id."""
    tokenizer = get_tokenizer("patch")
    ids = np.arange(8192).reshape(1, 64, 128)
    again = tokenizer.encode(tokenizer.decode(ids))
    middle = ((ids >> 9) >= 5) & ((ids >> 9) <= 10) & (((ids >> 4) & 31) < 17)
    faint = (ids & 15) < 9
    assert (again == ids)[middle & faint].all()


def test_patch_ids_do_not_depend_on_the_batch(frames):
    tokenizer = get_tokenizer("patch")
    single = np.concatenate([tokenizer.encode(frame[None]) for frame in frames])
    np.testing.assert_array_equal(tokenizer.encode(frames), single)


def test_patch_code_is_fixed_for_all_time():
    tokenizer = get_tokenizer("patch")
    ramp = np.arange(3 * 16 * 16).reshape(1, 3, 16, 16) * 37 % 251
    assert tokenizer.encode(ramp.astype(np.uint8)).flatten().tolist() == FIRST_IDS
    noise = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), np.uint8)
    assert _digest(tokenizer.encode(noise).astype("<i8")) == IDS_OF_NOISE
    y, x = np.mgrid[:64, :64]
    waves = [
        [128 + 100 * np.sin(x / (5 + i) + c) + y * (i + 1) // 2 for c in range(3)] for i in range(4)
    ]
    assert (
        _digest(tokenizer.encode(np.clip(waves, 0, 255).astype(np.uint8)).astype("<i8"))
        == IDS_OF_WAVES
    )
    assert _digest(tokenizer.decode(np.arange(8192).reshape(1, 64, 128))) == PICTURE


def test_frames_survive_the_pixel_tokenizer(frames):
    tokenizer = get_tokenizer("pixels")
    levels = tokenizer.encode(frames)
    np.testing.assert_array_equal(levels[3, 5, 7], frames[3, :, 5, 7])
    assert levels.shape == (len(frames), 128, 128, 3) and levels.dtype == np.uint8
    np.testing.assert_array_equal(tokenizer.decode(levels), frames)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (np.zeros((1, 3, 16, 16)), TypeError),
        (np.zeros((1, 3, 12, 16), np.uint8), ValueError),
        (np.zeros((1, 1, 16, 16), np.uint8), ValueError),
    ],
)
def test_rejects_bad_frames(bad, error):
    with pytest.raises(error, match="frames"):
        get_tokenizer("patch").encode(bad)


def test_rejects_ids_out_of_range():
    with pytest.raises(ValueError, match=r"not in \[0, 8192\)"):
        get_tokenizer("patch").decode(np.full((1, 2, 2), 8192))


def test_what_a_tokenizer_has_not_is_a_usage_error():
    with pytest.raises(UsageError, match="one of patch, dalle"):
        get_tokenizer("vqgan")
    with pytest.raises(UsageError, match="no weights"):
        get_tokenizer("patch", weights="x.pt")
    with pytest.raises(UsageError, match="'patch' computes on the CPU: leave --device out"):
        get_tokenizer("patch", device="cuda")
    with pytest.raises(UsageError, match="'patch' computes with integers: leave --dtype out"):
        get_tokenizer("patch", dtype="float16")
    with pytest.raises(UsageError, match="--dtype half must be one of float32, float16, bfloat16"):
        get_tokenizer("dalle", weights="x.pt", dtype="half")


@pytest.fixture(scope="module")
def halves() -> dict[str, dalle.Dvae]:
    """Encoder and decoder of the real architecture, random weights."""
    torch.manual_seed(0)
    return {"encoder": dalle.Dvae.encoder(), "decoder": dalle.Dvae.decoder()}


def test_dalle_encoder_has_the_published_names_and_sizes(halves):
    state = halves["encoder"].state_dict()
    assert sum(value.numel() for value in state.values()) == 53_786_240
    assert state["blocks.input.w"].shape == (256, 3, 7, 7)
    assert state["blocks.group_1.block_1.res_path.conv_4.w"].shape == (256, 64, 1, 1)
    assert state["blocks.group_2.block_1.id_path.w"].shape == (512, 256, 1, 1)
    assert state["blocks.group_4.block_2.res_path.conv_1.b"].shape == (512,)
    assert state["blocks.output.conv.w"].shape == (8192, 2048, 1, 1)
    assert "blocks.group_1.block_1.id_path.w" not in state
    decoder = halves["decoder"].state_dict()
    assert decoder["blocks.input.w"].shape == (128, 8192, 1, 1)
    assert decoder["blocks.group_1.block_1.res_path.conv_1.w"].shape == (512, 128, 1, 1)
    assert decoder["blocks.output.conv.w"].shape == (6, 256, 1, 1)


def _published(module: nn.Module) -> nn.Module:
    """The module with the class names that the published files have, to pickle it whole."""
    names = {
        "Dvae": ("dall_e.encoder", "Encoder"),
        "Block": ("dall_e.encoder", "EncoderBlock"),
        "Convolution": ("dall_e.utils", "Conv2d"),
    }
    for child in module.modules():
        if type(child).__name__ in names:
            package, name = names[type(child).__name__]
            home = sys.modules.setdefault(package, types.ModuleType(package))
            if not hasattr(home, name):
                setattr(home, name, type(name, (nn.Module,), {"__module__": package}))
            child.__class__ = getattr(home, name)
    return module


@pytest.fixture
def published_names(monkeypatch):
    """Forgets the stand-ins of `_published` afterwards."""
    for package in ("dall_e", "dall_e.encoder", "dall_e.utils"):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))


def _save(model: dalle.Dvae, path, form: str) -> None:
    if form == "safetensors":
        save_file(model.state_dict(), path)
    elif form == "pt":
        torch.save(model.state_dict(), path)
    else:
        other = dalle.Dvae.encoder()
        other.load_state_dict(model.state_dict())
        torch.save(_published(other), path)


@pytest.mark.parametrize("form", ["safetensors", "pt", "pkl"])
def test_dalle_encoder_loads_every_form_of_file(tmp_path, halves, published_names, form):
    path = tmp_path / f"encoder.{form}"
    _save(halves["encoder"], path, form)
    for package in ("dall_e.encoder", "dall_e.utils"):
        del sys.modules[package]
    tokenizer = get_tokenizer("dalle", weights=path)
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    with torch.no_grad():
        logits = halves["encoder"](0.8 * (images / 255) + 0.1)
    np.testing.assert_array_equal(tokenizer.encode(images.numpy()), logits.argmax(1))
    assert len(tokenizer.digest) == 64
    with pytest.raises(UsageError, match="device 'none' cannot be used"):
        get_tokenizer("dalle", weights=path, device="none")


@pytest.fixture
def narrow(tmp_path, monkeypatch) -> dalle.Dvae:
    """An encoder of few channels, which is saved as `encoder.pt`."""
    monkeypatch.setattr(dalle, "WIDTH", 16)
    torch.manual_seed(0)
    encoder = dalle.Dvae.encoder()
    _save(encoder, tmp_path / "encoder.pt", "pt")
    return encoder


@pytest.mark.parametrize("dtype", dalle.DTYPES)
def test_convolutions_but_the_last_compute_in_the_dtype(tmp_path, narrow, monkeypatch, dtype):
    """As they do in the published code on a GPU, with float16."""
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = narrow(0.8 * (images / 255) + 0.1).argmax(1).numpy()
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    convolve = nn.functional.conv2d

    def note(x, w, b, **more):
        seen.append((x.dtype, w.dtype))
        return convolve(x, w, b, **more)

    monkeypatch.setattr(nn.functional, "conv2d", note)
    tokenizer = get_tokenizer("dalle", weights=tmp_path, dtype=dtype)
    found = tokenizer.encode(images.numpy())
    assert (found != expected).mean() <= (0 if dtype == "float32" else 0.1)
    low = getattr(torch, dtype)
    assert set(seen[:-1]) == {(low, low)} and seen[-1] == (torch.float32, torch.float32)
    assert tokenizer.compute == ("" if dtype == "float32" else f"{dtype} on cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", dalle.DTYPES)
def test_ids_on_a_gpu_do_not_depend_on_the_batch(tmp_path, halves, frames, dtype):
    _save(halves["encoder"], tmp_path / "encoder.pt", "pt")
    tokenizer = get_tokenizer("dalle", weights=tmp_path, device="cuda", dtype=dtype)
    single = np.concatenate([tokenizer.encode(frame[None]) for frame in frames])
    np.testing.assert_array_equal(tokenizer.encode(frames), single)


def test_dalle_decoder_paints_from_a_directory(tmp_path, halves):
    for half, model in halves.items():
        _save(model, tmp_path / f"{half}.safetensors", "safetensors")
    tokenizer = get_tokenizer("dalle", weights=tmp_path)
    ids = torch.randint(0, 8192, (1, 2, 3))
    with torch.no_grad():
        onehot = nn.functional.one_hot(ids, 8192).permute(0, 3, 1, 2).float()
        pixels = (halves["decoder"](onehot)[:, :3].sigmoid() - 0.1) / 0.8
    expected = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    np.testing.assert_array_equal(tokenizer.decode(ids.numpy()), expected)
    (tmp_path / "decoder.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no decoder.*decoder\.pkl"):
        get_tokenizer("dalle", weights=tmp_path).decode(ids.numpy())


class Evil:
    """Would write a file if it were unpickled."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_weights_files_never_run_code(tmp_path):
    path = tmp_path / "encoder.pkl"
    for save in (torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))):
        save(Evil(tmp_path / "ran"), path)
        with pytest.raises(VimpacError, match=r"encoder\.pkl cannot be read"):
            get_tokenizer("dalle", weights=path)
    assert not (tmp_path / "ran").exists()


def test_absent_or_wrong_weights_say_where_to_get_them(tmp_path):
    with pytest.raises(UsageError, match=r"https://.*encoder\.pkl.*--weights"):
        get_tokenizer("dalle")
    with pytest.raises(VimpacError, match="does not exist: download"):
        get_tokenizer("dalle", weights=tmp_path)
    torch.save({"w": torch.zeros(1)}, tmp_path / "encoder.pt")
    with pytest.raises(VimpacError, match=r"encoder\.pt is no DALL-E encoder"):
        get_tokenizer("dalle", weights=tmp_path)
    (tmp_path / "e.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(VimpacError, match=r"e\.safetensors is corrupt"):
        get_tokenizer("dalle", weights=tmp_path / "e.safetensors")
