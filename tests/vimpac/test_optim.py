"""What decays, and one update: AdamW on clipped gradients, with the settings of the run."""

import copy
import math

import pytest
import torch
from torch import nn

from vimpac import Vimpac
from vimpac.train.optim import make_optimizer, parameter_groups, update
from vimpac.train_config import OptimConfig
from vimpac_kernels import AxialAttention


def test_weights_of_linear_layers_and_embeddings_decay_and_nothing_else():
    model = Vimpac.from_preset("tiny", grid=(2, 3, 4))
    weights = {m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    weights |= {m.in_proj_weight for m in model.modules() if isinstance(m, AxialAttention)}
    decaying, others = parameter_groups(model, 0.05)
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.05, 0.0)
    assert {*decaying["params"]} == weights
    assert {*others["params"]} == {*model.parameters()} - weights


@pytest.mark.parametrize("clip", [0.5, 0.0], ids=["clipped", "unclipped"])
def test_update_is_adamw_on_clipped_gradients(clip):
    config = OptimConfig(max_grad_norm=clip, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.3)
    torch.manual_seed(0)
    ours, x = nn.Linear(3, 2), torch.randn(5, 3)
    plain = copy.deepcopy(ours)
    optimizer = make_optimizer(ours, config)
    groups = [{"params": [plain.weight]}, {"params": [plain.bias], "weight_decay": 0.0}]
    expected = torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-2, weight_decay=0.3)
    for lr in (0.1, 0.05):
        for model in (ours, plain):
            model(x).square().sum().backward()
        norm = update(ours, optimizer, config, torch.tensor(lr))
        torch.testing.assert_close(
            norm, nn.utils.clip_grad_norm_(plain.parameters(), clip or math.inf)
        )
        assert norm > 0.5
        for group in expected.param_groups:
            group["lr"] = lr
        expected.step()
        expected.zero_grad()
    torch.testing.assert_close([*ours.parameters()], [*plain.parameters()])
    assert all(p.grad is None for p in ours.parameters())
