"""The benchmark of SimVTP's step: its baseline computes our losses, and its rows are right."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import bench_simvtp
import interleaved
import released_simvtp

from vimpac.simvtp import NetworkConfig, SimVTP, TextConfig

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORK = NetworkConfig(
    frames=4,
    size=64,
    width=32,
    layers=2,
    heads=2,
    mlp_width=64,
    decoder_width=16,
    decoder_layers=2,
    decoder_heads=2,
    decoder_mlp_width=32,
    vocabulary=40,
    text_positions=12,
)
CASE = bench_simvtp.Case("tiny", NETWORK, pairs=4, words=10)


@pytest.mark.parametrize("sdpa", [False, True], ids=["probabilities", "SDPA"])
def test_released_step_of_the_benchmark_computes_our_losses_and_gradients(sdpa):
    torch.manual_seed(0)
    model = SimVTP(NETWORK, TextConfig(dropout=0.0)).double()
    batch = bench_simvtp.make_batch(CASE, model, "cpu")
    video, mask, masked_ids, attention, labels, negatives = batch.released
    released = released_simvtp.ReleasedSimVTP(model, sdpa=sdpa)(*batch.released)
    ours = model(video, mask, batch.ids, attention, masked_ids, labels, negatives)
    parts = ours.pixel_loss, ours.word_loss, ours.contrastive_loss, ours.match_loss
    torch.testing.assert_close(released, torch.stack(parts))
    parameters = dict(model.named_parameters())
    for theirs, mine in zip(released, parts, strict=True):
        wanted = [
            torch.autograd.grad(
                loss, [*parameters.values()], retain_graph=True, materialize_grads=True
            )
            for loss in (theirs, mine)
        ]
        for name, *pair in zip(parameters, *wanted, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-9, msg=name)


def test_a_candidate_that_learns_something_else_is_not_timed():
    torch.manual_seed(0)
    model = SimVTP(NETWORK, TextConfig(dropout=0.0))
    batch = bench_simvtp.make_batch(CASE, model, "cpu")
    right = bench_simvtp.make_step("released", CASE, model, batch)

    def wrong() -> torch.Tensor:
        losses = right()
        model.match_head.bias.grad += 1e-3
        return losses

    bench_simvtp.check_agreement({"right": right}, model, batch)
    with pytest.raises(AssertionError, match="wrong: gradient of match_head.bias"):
        bench_simvtp.check_agreement({"wrong": wrong}, model, batch)


def test_a_pair_costs_what_the_sum_of_its_products_does():
    """Of the base model, forward and backward; calculated by hand in GFLOP of a forward pass."""
    visible, words, masked = 160, 24, 16.5  # rows of a clip, of a text, and masked words
    encoder = [12 * (24 * rows * 768**2 + 4 * rows**2 * 768) for rows in (184, 184, 160, 24)]
    decoder = 4 * (24 * 1568 * 384**2 + 4 * 1568**2 * 384) + 2 * 1408 * 384 * 1536
    heads = 2 * masked * 768 * 30_522 + 2 * visible * 768 * 384 + 2 * visible * 1536 * 768
    expected = 3 * (sum(encoder) + decoder + heads)
    assert expected / 3e9 == pytest.approx(137.4, rel=2e-3)
    found = bench_simvtp.step_flops(bench_simvtp.BASE, 1, words, masked)
    assert found == pytest.approx(expected, rel=1e-2)  # which counts rows that no loss reads
    assert found < expected


def test_rows_compare_every_candidate_with_the_released_step(monkeypatch):
    x, recorded = torch.ones(8, 8), []
    product = interleaved.Ceiling(lambda: x @ x, 2 * 8**3 / 1e9)
    monkeypatch.setitem(interleaved.CEILINGS, "gemm_tflop_per_s", lambda device: product)
    bench = SimpleNamespace(
        device="cpu",
        full=False,
        wanted=lambda names: ([n for n in names if "compile" not in n], {"compiled": "slow"}),
        record=lambda *arguments: recorded.append(arguments),
    )
    timed = bench_simvtp.time_case(bench, CASE)
    rows = {row.impl: row for row in timed.rows}
    assert [*rows] == [name for name in bench_simvtp.NAMES if "compile" not in name]
    for row in rows.values():
        assert row.pairs_per_s == pytest.approx(4e3 / row.step_ms)
        assert row.ratio == pytest.approx(rows["released"].step_ms / row.step_ms)
        assert row.mfu_percent > 0
    assert 0 < rows["ours"].peak_mib < rows["released"].peak_mib
    for name in ("released", "ours, eager pixels", "ours"):
        parts = rows[name].phases
        missing = {"masks"} if name == "released" else set()
        assert {phase for phase, ms in parts.items() if not ms} == missing
    assert recorded[0][:3] == ("simvtp", "tiny B=4", timed)
