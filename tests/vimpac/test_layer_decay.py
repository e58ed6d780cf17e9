"""Layers that stand lower learn at a lower rate, by the names that a real classifier has."""

import pytest
import torch

from vimpac import VideoClassifier, Vimpac
from vimpac.config import FinetuneConfig
from vimpac.errors import UsageError
from vimpac.model.config import LAYOUTS
from vimpac.settings import load_config
from vimpac.train.optim import make_optimizer, update
from vimpac.train_config import FinetuneOptimConfig

DECAY = 0.5


def _classifier(**settings) -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(
        Vimpac.from_preset("tiny", grid=(2, 4, 4), **settings).encoder, num_classes=3
    )


def _step(model: VideoClassifier, config: FinetuneOptimConfig, lr: float = 1e-3) -> dict:
    """The rate of every parameter, by its name, after an update with gradients of one."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer(model, config)
    update(model, optimizer, config, torch.tensor(lr))
    rates = {p: float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    return {name: rates[parameter] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rate_of_layer_i_is_lr_times_decay_to_the_layers_above_it(layout, norm):
    model = _classifier(layout=layout, norm=norm, layers=3, heads=6)
    rates = _step(model, FinetuneOptimConfig(layer_decay=DECAY), lr=1.0)
    expected = {"classifier": 1.0, "encoder.final_norm": 1.0}
    expected |= {f"encoder.layers.{i}.": DECAY ** (3 - i) for i in range(3)}
    below = ("cls_token", "token_embedding", "positions", "embedding_norm")
    expected |= {f"encoder.{name}": DECAY**4 for name in below}
    for name, rate in rates.items():
        (match,) = [part for part in expected if name.startswith(part)]
        assert rate == expected[match], name
    assert {*rates.values()} == {DECAY**n for n in (0, 1, 2, 3, 4)}


def test_update_moves_a_parameter_by_its_own_rate():
    """AdamW's first step is the rate, against the sign of the gradient."""
    model = _classifier()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    config = FinetuneOptimConfig(layer_decay=DECAY, weight_decay=0.0, max_grad_norm=0.0)
    for name, rate in _step(model, config).items():
        moved = before[name] - model.get_parameter(name)
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=1e-7)


def test_without_decay_there_are_the_two_groups_of_a_pretraining():
    optimizer = make_optimizer(_classifier(), FinetuneOptimConfig())
    assert len(optimizer.param_groups) == 2
    assert all("lr_scale" not in group for group in optimizer.param_groups)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("decays", [(1.0, DECAY), (DECAY, 1.0)], ids=["on", "off"])
def test_moments_stay_with_their_parameters_when_it_is_turned(norm, decays):
    model = _classifier(norm=norm)
    before, after = (make_optimizer(model, FinetuneOptimConfig(layer_decay=d)) for d in decays)
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, i + 1.0)
    before.step()
    groups = after.state_dict()["param_groups"]  # as a resumed run loads it
    after.load_state_dict({**before.state_dict(), "param_groups": groups})
    for parameter in model.parameters():
        assert torch.equal(after.state[parameter]["exp_avg"], before.state[parameter]["exp_avg"])
    assert len({x["exp_avg"].flatten()[0].item() for x in after.state.values()}) == len(after.state)


def test_parameter_of_unknown_place_is_refused():
    model = _classifier()
    model.encoder.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"no layer of the parameter encoder\.adapter\.weight: "):
        make_optimizer(model, FinetuneOptimConfig(layer_decay=DECAY))


@pytest.mark.parametrize("word", ["0", "1.1", "-0.5"])
def test_decay_out_of_range_is_refused(word):
    with pytest.raises(UsageError, match=r"optim\.layer_decay=.* must lie in \(0, 1\]"):
        load_config(FinetuneConfig, None, [f"optim.layer_decay={word}"])
