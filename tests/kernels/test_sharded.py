"""Ops of DTensors on two ranks: batches that are sharded, parameters that are replicated."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.placement_types import _StridedShard

from vimpac_kernels import (
    AxialAttention,
    TiedLinearCrossEntropy,
    axial_attention,
    bias_gelu,
    dropout_add_layer_norm,
    embed_tokens,
    linear_cross_entropy,
    mask_tokens,
    tubelet_embed,
    tubelet_mse,
)

RANKS = 2
GRID = (1, 2, 3)
IDS = torch.arange(18).view(3, *GRID) % 5
VIDEO = torch.arange(288).view(3, 2, 4, 4, 3).to(torch.uint8)
Arguments = dict[str, Any]


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _embed(positions_0: Tensor, positions_1: Tensor, positions_2: Tensor, **options: Any) -> Tensor:
    return embed_tokens(positions=(positions_0, positions_1, positions_2), **options)


# Op, what is split over ranks, unevenly (two rows and one), what is not, options
CASES: dict[str, tuple[Callable[..., Any], Arguments, Arguments, Arguments]] = {
    "axial_attention": (
        axial_attention,
        {"qkv": _draw(3, 7, 3, 2, 8), "key_padding_mask": IDS == 2},
        {"bias": _draw(3, 2, 8)},
        {"grid": GRID, "axes": "H|W"},
    ),
    "axial_attention, bias in qkv": (
        axial_attention,
        {"qkv": _draw(3, 6, 3, 1, 8)},
        {"bias": _draw(3, 1, 8)},
        {"grid": GRID, "axes": "HW", "bias_in_qkv": True},
    ),
    "bias_gelu": (bias_gelu, {"x": _draw(3, 4, 16)}, {"bias": _draw(16)}, {}),
    "dropout_add_layer_norm": (
        dropout_add_layer_norm,
        {"x": _draw(3, 4, 16), "residual": _draw(3, 4, 16)},
        {"weight": _draw(16), "bias": _draw(16), "linear_bias": _draw(16)},
        {},
    ),
    "dropout_add_layer_norm, two readers": (
        dropout_add_layer_norm,
        {"x": _draw(3, 16), "residual": _draw(3, 16)},
        {"weight": _draw(16), "bias": _draw(16)},
        {"readers": 2},
    ),
    "embed_tokens": (
        _embed,
        {"tokens": IDS},
        {
            **{"embedding": _draw(5, 16), "positions_0": _draw(1, 16), "positions_1": _draw(2, 16)},
            **{"positions_2": _draw(3, 16), "weight": _draw(16), "bias": _draw(16)},
            "cls": _draw(16),
        },
        {},
    ),
    **{
        f"linear_cross_entropy, {reduction}": (
            linear_cross_entropy,
            {"input": _draw(3, 6, 16), "target": IDS.flatten(1)},
            {"linear_weight": _draw(5, 16), "linear_bias": _draw(5)},
            {"reduction": reduction, "ignore_index": 3, "return_stats": True},
        )
        for reduction in ("mean", "sum", "none")
    },
    "tubelet_embed": (
        tubelet_embed,
        {"video": VIDEO, "tubelets": IDS.flatten(1).int() % 4},
        {"weight": _draw(16, 3, 2, 2, 2) / 24, "bias": _draw(16)},
        {"positions": _draw(4, 16)},
    ),
    "tubelet_mse": (
        tubelet_mse,
        {
            "pred": _draw(3, 2, 12),
            "video": torch.arange(3 * 4 * 6 * 3).view(3, 1, 4, 6, 3).square().byte(),
            "tubelets": IDS.flatten(1)[:, ::3].int(),
        },
        {},
        {"tubelet": (1, 2)},
    ),
}


def _outputs(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


def _run(name: str, rows: Arguments, shared: Arguments, **more: Any) -> dict[str, Tensor]:
    """Every output, and every gradient of the sum of squares of those that are real numbers."""
    function, _, _, options = CASES[name]
    given = rows | shared
    leaves = {n: t.requires_grad_() for n, t in given.items() if t.is_floating_point()}
    outputs = _outputs(function(**given, **options, **more))
    loss = sum(y.square().sum() for y in outputs if y.requires_grad)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    results = {f"output {i}": y for i, y in enumerate(outputs)}
    return results | {f"d{n}": g for n, g in zip(leaves, gradients, strict=True)}


def _clones(tensors: Arguments) -> Arguments:
    return {name: t.clone() for name, t in tensors.items()}


def _as_dtensors(tensors: Arguments, mesh: DeviceMesh, placement: Any) -> Arguments:
    placements = [placement] * mesh.ndim
    return {n: distribute_tensor(t.clone(), mesh, placements) for n, t in tensors.items()}


def _check_case(name: str, mesh: DeviceMesh, placement: Any, impl: str) -> None:
    _, rows, shared, _ = CASES[name]
    expected = _run(name, _clones(rows), _clones(shared), impl=impl)
    given = _as_dtensors(rows, mesh, placement), _as_dtensors(shared, mesh, Replicate())
    actual = _run(name, *given, impl=impl)
    for key, value in expected.items():
        assert isinstance(actual[key], DTensor), (name, key)
        torch.testing.assert_close(
            actual[key].full_tensor(), value, msg=lambda m, k=key: f"{name}, {k}: {m}"
        )


def _every_op_is_the_one_of_a_single_rank(mesh: DeviceMesh) -> None:
    plane = init_device_mesh("cpu", (1, RANKS))
    for name in CASES:
        _check_case(name, plane, Shard(0), "auto")
        for impl in ("auto", "reference"):
            _check_case(name, mesh, Shard(0), impl)
            _check_case(name, mesh, Replicate(), impl)


def _results_keep_the_placements_of_the_batch(mesh: DeviceMesh) -> None:
    x, b = _as_dtensors({"x": _draw(3, 16)}, mesh, Shard(0))["x"], _draw(16)
    bias = distribute_tensor(b, mesh, [Replicate()]).requires_grad_()
    y = bias_gelu(x, bias)
    assert y.placements == (Shard(0),) and y.shape == (3, 16)
    assert y.to_local().shape == (2 if mesh.get_rank() == 0 else 1, 16)
    (gradient,) = torch.autograd.grad(y.sum(), bias)
    assert gradient.placements == (Partial(),)


def _layers_train_as_on_one_rank(mesh: DeviceMesh) -> None:
    torch.manual_seed(0)
    layer, embedding = AxialAttention(16, 2, "H|W"), nn.Embedding(5, 16)
    head = TiedLinearCrossEntropy(embedding)
    x, target = _draw(4, 7, 16), torch.arange(24).view(4, 6) % 5  # F.linear wants even shards

    modules = nn.ModuleList((layer, embedding, head))
    before = copy.deepcopy(modules.state_dict())

    def train(x: Tensor, target: Tensor) -> list[Tensor]:
        optimizer = torch.optim.AdamW(modules.parameters(), lr=0.1, eps=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            head(layer(x, GRID)[:, 1:], target).loss.backward()
            nn.utils.clip_grad_norm_(modules.parameters(), 0.1)
            optimizer.step()
        return list(modules.state_dict().values())

    expected = copy.deepcopy(train(x, target))
    modules.load_state_dict(before)
    for module in modules:
        distribute_module(module, mesh)
    shards = _as_dtensors({"x": x, "target": target}, mesh, Shard(0))
    for actual, value in zip(train(**shards), expected, strict=True):
        assert actual.placements == (Replicate(),)
        torch.testing.assert_close(actual.full_tensor(), value)


def _dropout_follows_the_seed_where_rows_are_whole(mesh: DeviceMesh) -> None:
    name = "dropout_add_layer_norm"
    _, rows, shared, _ = CASES[name]
    dropped = {"dropout_p": 0.5, "seed": 3}
    expected = _run(name, _clones(rows), _clones(shared), **dropped)
    whole = [_as_dtensors(t, mesh, Replicate()) for t in (rows, shared)]
    for key, value in _run(name, *whole, **dropped).items():
        torch.testing.assert_close(value.full_tensor(), expected[key])
    for split, options in ((Shard(0), dropped), (Replicate(), {"dropout_p": 0.5})):
        given = _as_dtensors(rows, mesh, split) | _as_dtensors(shared, mesh, Replicate())
        with pytest.raises(RuntimeError, match="dropout_add_layer_norm: dropout of DTensors needs"):
            dropout_add_layer_norm(**given, **options)


def _other_placements_are_refused(mesh: DeviceMesh) -> None:
    def put(t: Tensor, placement: Any) -> DTensor:
        return distribute_tensor(t, mesh, [placement])

    x, bias, ids = _draw(4, 16), _draw(16), torch.arange(4)
    with pytest.raises(ValueError, match="bias_gelu: inputs may be sharded along .* the batch"):
        bias_gelu(put(x, Shard(1)), put(bias, Replicate()))
    with pytest.raises(ValueError, match="bias_gelu: inputs may be sharded along .* the batch"):
        bias_gelu(put(bias, Shard(0)), put(bias, Replicate()))
    strided = DTensor.from_local(x, mesh, [_StridedShard(0, split_factor=2)], run_check=False)
    with pytest.raises(ValueError, match="bias_gelu: inputs may be sharded along .* the batch"):
        bias_gelu(strided, put(bias, Replicate()))
    with pytest.raises(ValueError, match="bias_gelu: bias must be replicated, got .*fully_shard"):
        bias_gelu(put(x, Replicate()), put(bias, Shard(0)))
    with pytest.raises(TypeError, match="bias_gelu: bias must be a DTensor"):
        bias_gelu(put(x, Shard(0)), bias)
    with pytest.raises(TypeError, match="x must be a tensor"):
        bias_gelu(3, put(bias, Replicate()))
    with pytest.raises(RuntimeError, match="linear_cross_entropy: positions and count number"):
        linear_cross_entropy(
            put(x, Shard(0)), put(x, Replicate()), put(ids, Shard(0)), positions=ids.int()
        )
    with pytest.raises(ValueError, match="positions must be replicated"):
        linear_cross_entropy(
            *(put(t, Replicate()) for t in (x, x, ids)), positions=put(ids.int(), Shard(0))
        )
    with pytest.raises(TypeError, match="mask_tokens: tokens must not be a DTensor"):
        mask_tokens(put(IDS, Shard(0)), mask_token=1)


CHECKS = [
    *(_every_op_is_the_one_of_a_single_rank, _results_keep_the_placements_of_the_batch),
    *(_layers_train_as_on_one_rank, _dropout_follows_the_seed_where_rows_are_whole),
    _other_placements_are_refused,
]


def _rank(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    _check_all()
    gc.collect()  # no tensor may hold the process group when it is destroyed
    dist.destroy_process_group()


def _check_all() -> None:
    mesh = init_device_mesh("cpu", (RANKS,))
    for check in CHECKS:
        check(mesh)


def test_two_ranks_of_dtensors_compute_what_one_computes(tmp_path: Path) -> None:
    """All of `CHECKS` above, in one pair of processes."""
    mp.spawn(_rank, (str(tmp_path / "store"),), nprocs=RANKS)


def test_an_op_of_plain_tensors_asks_nothing_of_the_module_of_dtensors() -> None:
    name = "torch.distributed.tensor"
    code = (
        "import sys, torch, vimpac_kernels as k; "
        f"k.bias_gelu(torch.ones(2, 8), torch.ones(8)); sys.exit('{name}' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
