"""Classifiers that are fitted to features: the optimum, and the weight decay that serves it."""

import torch

from vimpac.eval.probes import DECAYS, choose_decay, fit_linear


def test_linear_fit_is_the_regularised_optimum():
    generator = torch.Generator().manual_seed(0)
    x = 3 + 5 * torch.randn(200, 4, generator=generator)
    labels = (x[:, 0] + torch.randn(200, generator=generator) > 3).long()
    weight, bias = fit_linear(x, labels, 2, 0.1)
    scaled = (weight * x.double().std(0)).requires_grad_()
    offset = (bias + weight @ x.double().mean(0)).requires_grad_()
    logits = (x.double() - x.double().mean(0)) / x.double().std(0) @ scaled.T + offset
    loss = torch.nn.functional.cross_entropy(logits, labels) + 0.05 * scaled.square().sum()
    loss.backward()
    assert scaled.grad.abs().max() < 1e-4 and offset.grad.abs().max() < 1e-4


def test_sweep_chooses_the_decay_that_a_held_out_tenth_prefers():
    """Of labels that are noise but for one direction, a large decay keeps the direction."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, 40, generator=generator)
    labels = (x[:, :, 0].mean(1) > 0).long()
    decay = choose_decay(x, labels, 2)
    assert decay in DECAYS and decay > DECAYS[0]
    assert choose_decay(torch.zeros(9, 1, 2), torch.zeros(9, dtype=torch.int64), 2) == DECAYS[-1]
