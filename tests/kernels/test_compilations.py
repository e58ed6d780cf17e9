"""Which launches of Triton kernels compile a variant of their own, counted without a GPU."""

import inspect
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import offline_triton  # noqa: E402 (needs that path)

from vimpac_kernels.ops.axial_attention import triton as axial_attention  # noqa: E402
from vimpac_kernels.ops.bias_gelu import triton as bias_gelu  # noqa: E402
from vimpac_kernels.ops.dropout_add_layer_norm import triton as dropout_add_layer_norm  # noqa: E402
from vimpac_kernels.ops.embed_tokens import triton as embed_tokens  # noqa: E402
from vimpac_kernels.ops.linear_cross_entropy import triton as linear_cross_entropy  # noqa: E402
from vimpac_kernels.ops.mask_tokens import triton as mask_tokens  # noqa: E402
from vimpac_kernels.ops.tubelet_embed import triton as tubelet_embed  # noqa: E402
from vimpac_kernels.ops.tubelet_mse import triton as tubelet_mse  # noqa: E402

BATCHES = (1, 2, 3, 16, 33)
GRID = (5, 4, 16)
TOKENS, N, DH, V = 5 * 4 * 16, 2, 32, 8197


@pytest.fixture
def variants(monkeypatch):
    """Kernel -> keys of the variants that its launches would have compiled for an absent GPU."""
    keys = defaultdict(set)

    def note(*, key, fn, **_):
        keys[fn.name].add(key)
        return True  # nothing is compiled, nor launched

    monkeypatch.setattr(triton.runtime.driver, "_active", None)
    offline_triton.offline_driver()
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
    return keys


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def launch(function, **arguments):
    """Calls `function` with those of the arguments that it has."""
    function(**{name: arguments[name] for name in inspect.signature(function).parameters})


def seed_of(B):
    """One of two that were drawn together, the second off 16 bytes."""
    return meta(2, dtype=torch.int64)[B % 2]


def attend(B, grid=GRID, axes=(1, 2), dtype=torch.bfloat16, head_dim=DH):
    S = 1 + grid[0] * grid[1] * grid[2]
    arguments = {
        "dout": meta(B, S, N, head_dim, dtype=dtype),
        "qkv": meta(B, S, 3, N, head_dim, dtype=dtype),
        "key_padding_mask": meta(B, *grid, dtype=torch.bool),
        "seed": seed_of(B),
        "grid": list(grid),
        "axes": axes,
        "scale": 0.2,
        "threshold": 6554,
        "out": meta(B, S, N, head_dim, dtype=dtype),
        "dqkv": meta(B, S, 3, N, head_dim, dtype=dtype),
        "dbias": meta(3, N, head_dim),
    }
    launch(axial_attention.launch_triton_fwd, **arguments)
    launch(axial_attention.launch_triton_bwd, **arguments)


def normalise(B):
    D = N * DH
    rows, row, vector = meta(B, 1 + TOKENS, D), meta(B * (1 + TOKENS)), meta(D)
    arguments = {"seed": seed_of(B), "threshold": 6554, "eps": 1e-12}
    arguments |= dict.fromkeys(
        ("x", "residual", "y", "total", "dy", "dy_other", "dtotal", "dx", "dresidual"), rows
    )
    arguments |= {"mean": row, "rstd": row, "linear_bias": vector, "dlinear_bias": vector}
    arguments |= {"weight": vector, "bias": vector, "dweight": vector, "dbias": vector}
    launch(dropout_add_layer_norm.launch_triton_fwd, **arguments)
    launch(dropout_add_layer_norm.launch_triton_bwd, **arguments)


def embed(B):
    D, vector = N * DH, meta(N * DH)
    arguments = dict.fromkeys(("time", "height", "width"), meta(16, D))
    arguments |= dict.fromkeys(("cls", "weight", "bias"), vector)
    arguments |= dict.fromkeys(("y", "dy"), meta(B, 1 + TOKENS, D))
    arguments |= dict.fromkeys(("mean", "rstd"), meta(B * (1 + TOKENS)))
    arguments |= {"tokens": meta(B, *GRID, dtype=torch.int32), "embedding": meta(V, D)}
    arguments |= {"seed": seed_of(B), "threshold": 6554, "eps": 1e-12}
    arguments |= {"dembedding": meta(V, D), "dvectors": meta(sum(GRID) + 3, D)}
    launch(embed_tokens.launch_triton_fwd, **arguments)
    launch(embed_tokens.launch_triton_bwd, **arguments)


def activate(B):
    rows, vector = meta(B, 1 + TOKENS, 4 * N * DH), meta(4 * N * DH)
    arguments = {"x": rows, "y": rows, "dy": rows, "dx": rows, "bias": vector, "dbias": vector}
    launch(bias_gelu.launch_triton_fwd, **arguments)
    launch(bias_gelu.launch_triton_bwd, **arguments)


def classify(B):
    M = B * TOKENS
    numbers = meta(M, dtype=torch.int32)
    launch(
        linear_cross_entropy.launch_triton_fwd,
        z=meta(min(M, 640), 8256, dtype=torch.bfloat16), V=V, first=M - min(M, 640), bias=meta(V),
        target=numbers, positions=numbers, count=meta(dtype=torch.int32), row_scale=meta(M),
        gradient=True, losses=meta(M), counts=meta(2, dtype=torch.int32), dbias=meta(V),
        ignore_index=-100, label_smoothing=0.1, z_loss=1e-4,
    )  # fmt: skip


def mask(B):
    shape = (B, *GRID)
    tokens, cells = meta(*shape, dtype=torch.int64), meta(*shape, dtype=torch.bool)
    positions, scalar = meta(B * TOKENS, dtype=torch.int32), meta(dtype=torch.int32)
    tensors = {"tokens": tokens, "seed": seed_of(B), "clip_offset": seed_of(B), "inputs": tokens}
    tensors |= {"mask": cells, "positions": positions, "count": scalar}
    plan = dict(zip("BTHW", shape, strict=True)) | {"strategy": 0, "num_blocks": 5, "amount": 0}
    plan |= {"max_block": (3, 2, 8), "mask_token": 99, "has_pad": False, "pad_token": 0, "noise": 2}
    plan |= {"noise_below": (2**31, 2**32 - 1), "vocab_size": 98, "row_offset": 1}
    mask_tokens.launch_triton_fwd(**tensors, **plan)


def embed_tubelets(B):
    """The pass of a forward, of B tubelets of each clip."""
    video, D = meta(B, 4, 32, 48, 3, dtype=torch.uint8), N * DH
    numbers = dict.fromkeys(("scales", "shifts"), (0.02, 0.03, 0.02))
    launch(
        tubelet_embed.launch_triton_fwd,
        video=video, strides=video.stride()[:3], grid=(2, 2, 3), t=2, P=16, V=B, **numbers,
        tubelets=meta(B, B, dtype=torch.int32), positions=meta(12, D), bias=meta(D),
        pixels=meta(B * B, 1536), rows=meta(B, B, D), patches=meta(B * B, 1536, dtype=torch.uint8),
    )  # fmt: skip


def compare(B):
    M, t, P = 10 + B % 2, 2, 16
    rows, scalar = meta(B, M, t * P * P * 3, dtype=torch.bfloat16), meta(2)[B % 2]
    arguments = {"pred": rows, "dpred": rows, "loss": meta(), "dloss": scalar, "t": t, "P": P}
    arguments |= {"video": meta(B, 4, 32, 48, 3, dtype=torch.uint8), "eps": 1e-6}
    arguments |= {"tubelets": meta(B, M, dtype=torch.int32)}
    launch(tubelet_mse.launch_triton_fwd, **arguments)
    launch(tubelet_mse.launch_triton_bwd, **arguments)


def compile_what_the_first_does(variants, calls):
    """Runs the calls; only the first may need variants."""
    calls = iter(calls)
    next(calls)()
    first = {kernel: set(keys) for kernel, keys in variants.items()}
    assert first
    for call in calls:
        call()
    assert variants == first


@pytest.mark.parametrize(
    "run",
    [attend, normalise, embed, activate, classify, mask, embed_tubelets, compare],
)
def test_a_new_batch_size_compiles_nothing(variants, run):
    compile_what_the_first_does(variants, [partial(run, batch) for batch in BATCHES])


def test_a_new_grid_compiles_nothing_where_the_tiles_of_axial_attention_are_alike(variants):
    grids = (5, 16, 16), (10, 16, 16), (3, 16, 15), (1, 13, 16)
    compile_what_the_first_does(variants, [partial(attend, 2, grid) for grid in grids])


@pytest.mark.parametrize("name", axial_attention.TUNING)
def test_launches_read_every_entry_of_the_tuning_table(variants, monkeypatch, name):
    def launch_all():
        for length, dtype in (
            (5, torch.bfloat16),
            (32, torch.bfloat16),
            (40, torch.bfloat16),
            (16, torch.float32),
            (32, torch.float32),
            (40, torch.float32),
        ):
            attend(1, (1, 1, length), (2,), dtype, 64)  # fmt: skip

    launch_all()
    before = {kernel: set(keys) for kernel, keys in variants.items()}
    value = axial_attention.TUNING[name]
    other = {0: 4096, 1: 2, 4096: 8192}.get(value, 2 * value if name == "ROWS" else value // 2)
    monkeypatch.setitem(axial_attention.TUNING, name, other)
    launch_all()
    assert variants != before
