"""What the CUDA kernel of mask_tokens alone can get wrong: blocks waiting on each other, limits."""

import pytest
import torch

from tests.emulator import build
from vimpac_kernels import mask_tokens
from vimpac_kernels.ops.mask_tokens.limit import shared_bytes, shared_limit
from vimpac_kernels.ops.mask_tokens.operators import mask_tokens_fwd
from vimpac_kernels.runtime import registry

pytestmark = pytest.mark.impls("cuda")
PLANS = {
    "block": {"num_blocks": 3, "noise": (0.5, 0.25, 0.25), "noise_unit": "block"},
    "iid": {"ratio": 0.3, "noise": (0.8, 0.1, 0.1), "pad_token": 3, "row_offset": 1},
    "tube": {"ratio": 0.4, "clip_offset": 7},
}


def equal(a, b):
    return all(torch.equal(x.cpu(), y.cpu()) for x, y in zip(a, b, strict=True))


@pytest.mark.sanitize
@pytest.mark.parametrize("grid", [(2, 4, 6), (3, 5, 7)], ids=["aligned", "ragged"])
@pytest.mark.parametrize("strategy", PLANS)
def test_bits_match_reference(strategy, grid, impl):
    tokens = torch.randint(0, 10, (3, *grid))
    plan = {"mask_token": 99, "strategy": strategy, "vocab_size": 50, "seed": 5, **PLANS[strategy]}
    actual = mask_tokens(tokens.to(impl.device), impl=impl.name, **plan)
    assert equal(actual, mask_tokens(tokens, impl="reference", **plan))


def test_more_clips_than_a_look_back_window(impl):
    tokens = torch.randint(0, 10, (100, 1, 3, 5))
    plan = {"mask_token": 99, "seed": 2**40 + 1}
    if impl.emulated:  # blocks of several threads of the system wait for each other
        build.set_schedule(registry.extension("cuda"), seed=7, workers=4)
    actual = mask_tokens(tokens.to(impl.device), impl=impl.name, **plan)
    assert equal(actual, mask_tokens(tokens, impl="reference", **plan))


def test_a_clip_beyond_shared_memory_goes_elsewhere(impl):
    most = shared_limit(torch.device(impl.device))
    cells = (most - 48) // 16 * 16 * 4  # iid: a byte of shared memory for four tokens
    options = {"mask_token": 1, "strategy": "iid", "ratio": 0.5, "seed": 1}
    for T, name in ((cells, impl.name), (cells + 1, "auto")):
        tokens = torch.zeros(1, T, 1, 1, dtype=torch.int16)
        expected = mask_tokens(tokens, impl="reference", **options)
        assert equal(mask_tokens(tokens.to(impl.device), impl=name, **options), expected)
    with pytest.raises(RuntimeError, match=f"bytes of shared memory, a block has {most}"):
        mask_tokens(tokens.to(impl.device), impl=impl.name, **options)


@pytest.mark.parametrize("strategy", PLANS)
def test_counts_shared_memory_as_the_kernel_does(strategy, impl):
    """The operator, which leaves it to the kernel to refuse what is too large."""
    tokens = torch.zeros(1, 3, 1000, 777, dtype=torch.int16, device=impl.device)
    plan = {"mask_token": 99, "num_blocks": 5, "ratio": 0.0, "max_block": [2, 500, 388]}
    plan |= {"pad_token": None, "noise": (), "noise_unit": "token", "vocab_size": 50}
    plan |= {"row_offset": 0, "clip_offset": 0} | PLANS[strategy]
    seed, offset = (torch.tensor(n, device=impl.device) for n in (5, plan.pop("clip_offset")))
    needed = shared_bytes(tokens.shape, strategy, plan["num_blocks"])
    with pytest.raises(RuntimeError, match=f"need {needed} bytes of shared memory"):
        mask_tokens_fwd(tokens, seed, offset, strategy=strategy, impl=impl.name, **plan)


def test_graph_replays_draw_from_the_seed_they_find(impl):
    if impl.emulated:
        pytest.skip("CUDA graphs need a device")
    tokens = torch.randint(0, 10, (4, 5, 16, 16), device=impl.device)
    seed = torch.tensor(1, device=impl.device)
    mask_tokens(tokens, mask_token=99, seed=seed, impl=impl.name)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = mask_tokens(tokens, mask_token=99, seed=seed, impl=impl.name)
    for value in (11, 12):
        seed.fill_(value)
        graph.replay()
        expected = mask_tokens(tokens.cpu(), mask_token=99, seed=value, impl="reference")
        assert equal(captured, expected)
