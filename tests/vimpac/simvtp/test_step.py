"""The gradients of an update: the same however a batch is divided, and those of the plain model."""

import subprocess
from pathlib import Path

import pytest
import torch

from tests.vimpac.runs import ENVIRONMENT, ON_TWO_RANKS
from vimpac.settings import load_config
from vimpac.simvtp.mismatches import hard_mismatches, random_mismatches
from vimpac.simvtp.model import SimVTP
from vimpac.simvtp.run_config import SimVTPConfig
from vimpac.simvtp.step import METRICS, PairStep
from vimpac.simvtp.text import SpecialTokens
from vimpac.train.distributed import World

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = (
    "model.frames=4",
    "model.size=16",
    "model.patch=4",
    "model.width=32",
    "model.layers=2",
    "model.heads=2",
    "model.mlp_width=64",
    "model.decoder_width=16",
    "model.decoder_mlp_width=32",
    "device=cpu",
    "batch.contrastive=8",
    "batch.videos=16",
)


def make_config(*more: str) -> SimVTPConfig:
    config = load_config(SimVTPConfig, "tiny", [*SETTINGS, *more])
    config.check()
    return config


def make_model(config: SimVTPConfig) -> SimVTP:
    torch.manual_seed(0)
    model = SimVTP(config.model, config.text, config.loss)
    with torch.no_grad():  # so that words and videos differ by more than chance
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.freeze_unused()
    return model


def make_pairs(pairs: int = 16, length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (pairs, 4, 16, 16, 3), generator=g).to(torch.uint8)
    ids = torch.randint(5, 30, (pairs, length), generator=g)
    for i, row in enumerate(ids):
        words = 2 + i % (length - 3)
        row[0], row[words + 1], row[words + 2 :] = 2, 3, 0
    return video, ids.int()


def gradients(config: SimVTPConfig, world: World | None = None, first: int = 16):
    """Metrics and gradients of one update of two groups on this rank."""
    world = world or World(torch.device("cpu"))
    model, (video, ids) = make_model(config), make_pairs()
    step = PairStep(model, config, SpecialTokens(), world)
    groups = []
    for group in range(step.groups):
        begin = group * config.batch.contrastive + world.rank * step.group_part
        rows = [slice(i, i + step.micro) for i in range(begin, begin + step.group_part, step.micro)]
        groups.append([(video[r], ids[r], torch.zeros(step.micro)) for r in rows])
    metrics = step.gradients(groups, first + world.rank * step.group_part)
    return metrics, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.fixture(scope="module")
def one_batch():
    return gradients(make_config("batch.micro=8"))


@pytest.mark.parametrize("micro", [1, 4])
def test_micro_batches_give_the_gradients_of_one_batch(one_batch, micro):
    _assert_same(gradients(make_config(f"batch.micro={micro}")), one_batch)


def test_compiled_update_is_the_plain_one():
    settings = "batch.micro=8", "model.layers=1"  # compiling takes seconds for each layer
    plain = gradients(make_config(*settings))
    _assert_same(gradients(make_config(*settings, "compile=default")), plain)


def test_update_is_the_mean_of_the_model_s_losses_over_its_groups(one_batch):
    config = make_config("batch.micro=8")
    model, (video, ids) = make_model(config), make_pairs()
    step, total = PairStep(model, config, SpecialTokens(), World(torch.device("cpu"))), 0
    for group in range(2):
        rows = slice(8 * group, 8 * group + 8)
        part = step.mask(video[rows], ids[rows], 16 + 8 * group)
        mask = torch.zeros(8, config.model.tubelets, dtype=torch.bool)
        mask.scatter_(1, part.masked.long(), True)
        negatives = torch.tensor(random_mismatches(config.seed, 16 + 8 * group, 8, 0, 8))
        labels = part.words.labels
        texts = ids[rows], part.attention, part.masked_ids, labels
        total = total + model(video[rows], mask, *texts, negatives).loss / 2
    total.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            one_batch[1][name], parameter.grad, rtol=1e-4, atol=2e-6, msg=name
        )
    means = dict(zip(METRICS, one_batch[0].tolist(), strict=True))
    weighted = ("pixel_loss", "word_loss", "contrastive_loss", "match_loss")
    assert sum(means[name] for name in weighted) == pytest.approx(float(total.detach()), rel=1e-5)


def test_masks_follow_from_the_number_of_a_pair():
    config = make_config("batch.micro=8")
    video, ids = make_pairs()
    step = PairStep(make_model(config), config, SpecialTokens(), World(torch.device("cpu")))
    whole, later = step.mask(video, ids, 40), step.mask(video[5:], ids[5:], 45)
    for name in ("visible", "masked", "masked_ids", "attention"):
        assert torch.equal(getattr(whole, name)[5:], getattr(later, name)), name
    T, H, W = config.model.grid
    hidden = int(0.75 * H * W)
    assert whole.masked.shape == (16, T * hidden)
    assert whole.visible.shape == (16, T * (H * W - hidden))
    cells = whole.visible.view(16, T, -1) % (H * W)
    assert torch.equal(cells, cells[:, :1].expand_as(cells))  # the same in every time step
    special = (ids == 0) | (ids == 2) | (ids == 3)
    assert not (whole.masked_ids != ids)[special].any()
    share = (whole.masked_ids == 4)[~special].float().mean()
    assert 0.6 < share < 0.9
    assert torch.equal(whole.masked_ids == 4, whole.words.labels != -100)


@pytest.mark.parametrize("part", ["pixels", "words", "match", "contrast"])
def test_a_loss_of_weight_0_is_not_computed_and_trains_nothing(one_batch, part):
    metrics, found = gradients(make_config("batch.micro=4", f"loss.{part}=0"))
    index = {"pixels": 0, "words": 1, "contrast": 3, "match": 4}[part]
    assert metrics[index] == 0
    others = [i for i in (0, 1, 3, 4) if i != index]
    torch.testing.assert_close(metrics[others], one_batch[0][others])
    own = {"pixels": "decoder.", "words": "word_head.", "match": "match_head."}.get(part)
    missing = one_batch[1].keys() - found.keys()
    assert missing == {name for name in one_batch[1] if own and name.startswith(own)}


def test_hard_mismatches_are_likelier_the_more_alike_they_are():
    similarity = torch.zeros(4000, 4000)
    similarity[:, 7] = 6.0
    similarity[torch.arange(4000), torch.arange(4000)] = 100.0  # itself, which is never taken
    few = similarity[:200]
    chosen = hard_mismatches(few, 0, 0, 0)
    assert all(place != i for i, place in enumerate(chosen))
    share = sum(place == 7 for place in chosen) / 200
    assert 0.04 < share < 0.2  # e^6 against 3998 others: 0.09
    assert chosen == hard_mismatches(few, 0, 0, 0)
    assert chosen[100:] == hard_mismatches(similarity[100:200], 0, 0, 100)


def test_random_mismatches_are_all_other_places():
    chosen = [random_mismatches(0, first, 4, 0, 4) for first in range(0, 400, 4)]
    for place in range(4):
        assert {row[place] for row in chosen} == {0, 1, 2, 3} - {place}


def test_hard_mismatches_do_not_depend_on_micro_batches():
    settings = "vtm.negatives=hard", "text.dropout=0"
    whole = gradients(make_config("batch.micro=8", *settings))
    _assert_same(gradients(make_config("batch.micro=2", *settings)), whole)


@pytest.mark.parametrize(
    "settings",
    [("parallel=ddp",), ("parallel=fsdp", "vtm.negatives=hard")],
    ids=" ".join,
)
def test_two_ranks_give_the_gradients_of_one(tmp_path, one_batch, settings):
    config = ["batch.micro=2", *settings]
    code = (
        "import torch\n"
        "from tests.vimpac.simvtp.test_step import gradients, make_config\n"
        "from vimpac.train.distributed import join_world\n"
        "from vimpac.train.parallel import whole\n"
        "torch.set_num_threads(1)\n"
        f"config = make_config(*{config!r})\n"
        "with join_world('cpu', 60) as world:\n"
        "    metrics, found = gradients(config, world)\n"
        "    metrics, found = world.mean(metrics), whole(found)\n"
        f"    torch.save((metrics, found), f'{tmp_path}/{{world.rank}}.pt')\n"
    )
    (tmp_path / "ranks.py").write_text(code)
    subprocess.run(
        [*ON_TWO_RANKS, tmp_path / "ranks.py"],
        env={**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[3])},
        check=True,
    )
    expected = one_batch
    if "vtm.negatives=hard" in settings:
        expected = gradients(make_config("batch.micro=8", "vtm.negatives=hard"))
    for rank in range(2):
        metrics, found = torch.load(tmp_path / f"{rank}.pt")
        _assert_same((metrics, found), expected)


def test_every_setting_of_a_preset_is_legal():
    for name in ("base", "tiny"):
        load_config(SimVTPConfig, name).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("batch.contrastive=1 batch.videos=4 batch.micro=1", "leaves a caption no other video"),
        ("batch.contrastive=6", "must be a multiple of batch.contrastive=6"),
        ("mask.ratio=0.01", "hides 0 of the 16 cells"),
        ("mask.ratio=1", "hides 16 of the 16 cells"),
        ("text.length=33", r"text.length=33 must lie in \[3, 32\]"),
        ("loss.pixels=0 loss.words=0 loss.contrast=0 loss.match=0", "trains nothing"),
        ("text.ratio=0", "the word loss trains nothing"),
        ("vtm.negatives=hard loss.match=0", "there is no match loss"),
        ("optim.min_lr=1", "optim.min_lr=1 must not exceed optim.lr=0.002"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(Exception, match=message):
        make_config(*settings.split())
