"""The contrastive loss: its formula, its chance level, and independence of the number of ranks."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vimpac import info_nce
from vimpac.model.contrastive import BatchNorm

VIDEOS, DIM, RANKS = 4, 6, 2


def _features(seed: int = 0) -> torch.Tensor:
    """(2, VIDEOS, DIM): both views."""
    return torch.randn(2, VIDEOS, DIM, generator=torch.Generator().manual_seed(seed))


def test_loss_is_the_formula():
    z = torch.nn.functional.normalize(_features().double().flatten(0, 1), dim=-1)
    expected = 0.0
    for i in range(2 * VIDEOS):
        scores = [(z[i] @ z[j] / 0.2).exp() for j in range(2 * VIDEOS) if j != i]
        positive = (z[i] @ z[(i + VIDEOS) % (2 * VIDEOS)] / 0.2).exp()
        expected -= (positive / sum(scores)).log() / VIDEOS
    ours = info_nce(_features().flatten(0, 1), temperature=0.2)
    torch.testing.assert_close(ours, (0.2 * expected).float())


@pytest.mark.parametrize("videos", [2, 64])
def test_equal_features_give_chance(videos):
    loss = info_nce(torch.ones(2 * videos, DIM))
    assert loss.item() == pytest.approx(0.4 * math.log(2 * videos - 1), rel=1e-5)


def test_scale_of_features_is_immaterial():
    features = _features().flatten(0, 1)
    torch.testing.assert_close(info_nce(features), info_nce(1000 * features))


def test_contrastive_batch_is_the_mean_over_its_parts():
    features = _features()
    parts = [info_nce(features[:, i : i + 2].flatten(0, 1)) for i in (0, 2)]
    whole = info_nce(features.flatten(0, 1), contrastive_batch=2)
    torch.testing.assert_close(whole, torch.stack(parts).mean())


def test_softmax_is_fp32_under_autocast():
    features = _features().flatten(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(features)
    assert torch.equal(loss, info_nce(features))


@pytest.mark.parametrize("batch", [3, 8, 0])
def test_rejects_a_contrastive_batch_that_does_not_divide(batch):
    with pytest.raises(ValueError, match=f"contrastive_batch={batch} must divide the 4 videos"):
        info_nce(_features().flatten(0, 1), contrastive_batch=batch)


def test_rejects_an_odd_number_of_rows():
    with pytest.raises(ValueError, match="2B"):
        info_nce(torch.ones(3, DIM))


def _network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(DIM, DIM), BatchNorm(DIM), torch.nn.Linear(DIM, DIM, bias=False)
    )


def _run(rows: torch.Tensor, contrastive_batch: int | None) -> dict[str, torch.Tensor]:
    """Loss, BatchNorm statistics and gradients of one rank's (2B, DIM) rows."""
    network = _network()
    loss = info_nce(network(rows), contrastive_batch=contrastive_batch)
    loss.backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    return {
        "loss": loss.detach(),
        **network.state_dict(),
        **{"d" + k: v for k, v in gradients.items()},
    }


def _rank(rank: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    share = VIDEOS // RANKS
    rows = _features()[:, rank * share : (rank + 1) * share].flatten(0, 1)
    results = {}
    for batch in (None, 2):
        result = _run(rows, batch)
        for name in result:
            if name == "loss" or name.startswith("d"):  # what DDP and the log do
                dist.all_reduce(result[name])
                result[name] /= RANKS
        results[batch] = result
    torch.save(results, f"{out}.{rank}")
    dist.destroy_process_group()


def test_two_ranks_compute_what_one_computes(tmp_path):
    out = str(tmp_path / "result")
    mp.spawn(_rank, (str(tmp_path / "store"), out), nprocs=RANKS)
    for batch in (None, 2):
        expected = _run(_features().flatten(0, 1), batch)
        for rank in range(RANKS):
            result = torch.load(f"{out}.{rank}")[batch]
            assert result.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(result[name], value, msg=lambda m, n=name: f"{n}: {m}")
