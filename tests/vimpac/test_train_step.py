"""The options of the training step change its speed and memory, never its gradients."""

import math

import pytest
import torch

from vimpac import MASK_TOKEN, PAD_TOKEN, Vimpac, preset
from vimpac.config import PretrainConfig
from vimpac.model.masked_rows import cls_rows
from vimpac.settings import load_config
from vimpac.tokens import NUM_TOKENS
from vimpac.train.distributed import World
from vimpac.train.dropout_seeds import SEEDS
from vimpac.train.pretrain_step import PretrainStep, expected_ratio, max_masked
from vimpac_kernels import mask_tokens

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = (2, 4, 4)
SETTINGS = ("batch.videos=4", "batch.contrastive=4", "batch.micro=2", "precision=fp32")


def _encode(layout: str, cls: str, activation_checkpointing: bool) -> tuple[list, int]:
    """The encoder's gradients, with dropout, and the bytes that its forward kept for them."""
    torch.manual_seed(0)
    encoder = Vimpac.from_preset("tiny", layout=layout, cls=cls, grid=GRID, dropout=0.3).encoder
    encoder.activation_checkpointing = activation_checkpointing
    tokens = torch.randint(0, 8192, (2, *GRID))
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return x

    def keep_input(_: torch.nn.Module, arguments: tuple) -> None:
        keep(arguments[0])

    for p in encoder.parameters():
        kept[p.untyped_storage().data_ptr()] = 0  # is there anyway
    for layer in encoder.layers:  # what checkpointing keeps, which no hook for saved tensors sees
        layer.register_forward_pre_hook(keep_input)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = encoder(tokens)
    hidden.square().mean().backward()
    return [p.grad for p in encoder.parameters()], sum(kept.values())


@pytest.mark.parametrize(
    ("layout", "cls"), [("T,H|W", "released"), ("T,HW", "released"), ("T,H,W", "paper")]
)
def test_activation_checkpointing_keeps_less_and_every_bit_of_the_gradients(layout, cls):
    """The paper's [CLS] draws dropout from the generator, the others from seeds."""
    expected, whole = _encode(layout, cls, activation_checkpointing=False)
    gradients, kept = _encode(layout, cls, activation_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
    assert kept < whole / 3


def _make_step(*more: str, **network_settings: str) -> PretrainStep:
    """A step whose groups are two micro-batches of two videos."""
    config = load_config(PretrainConfig, "tiny", [*SETTINGS, *more])
    torch.manual_seed(0)
    network = preset("tiny", layers=1, grid=GRID, dropout=0.3, **network_settings)
    return PretrainStep(Vimpac(network, config.loss), config, World(torch.device("cpu")))


def _group(step: PretrainStep, number: int = 0) -> torch.Tensor:
    """The metrics of one group of videos; its gradients are added."""
    generator = torch.Generator().manual_seed(number)
    videos = torch.randint(0, 8192, (step.group_part, 2, *GRID), generator=generator)
    return step.group(videos.split(step.micro), 2 * step.group_part * number, is_last=True)


def _gradients(step: PretrainStep) -> list[torch.Tensor]:
    """The metrics and the gradients of one group."""
    return [_group(step), *(p.grad for p in step.model.parameters())]


def _encodings(step: PretrainStep) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The tokens, the rows and the result of every call of the encoder from now on."""
    calls = []

    def note(_: torch.nn.Module, arguments: tuple, options: dict, states: torch.Tensor) -> None:
        calls.append((arguments[0], options["rows"], states.detach()))

    step.model.encoder.register_forward_hook(note, with_kwargs=True)
    return calls


def _assert_mean(step: PretrainStep, *others: PretrainStep) -> None:
    """The fp64 gradients of a step are the mean of those of others."""
    models = (one.model for one in (step, *others))
    for parameter, *rest in zip(*(model.parameters() for model in models), strict=True):
        mean = torch.stack([other.grad for other in rest]).mean(0)
        torch.testing.assert_close(parameter.grad, mean, rtol=1e-10, atol=1e-13)


def test_update_of_two_groups_is_the_mean_of_two_updates():
    whole, *halves = _make_step("batch.videos=8"), _make_step(), _make_step()
    for step in (whole, *halves):
        step.model.double()
    for number, half in enumerate(halves):
        _group(whole, number)
        _group(half, number)
    _assert_mean(whole, *halves)


@pytest.mark.parametrize("micro", [4, 2], ids=["one-pass", "cached"])
def test_alpha_weighs_the_contrastive_loss(micro):
    steps = [_make_step(f"batch.micro={micro}", f"loss.alpha={alpha}") for alpha in (0.5, 0, 1)]
    for step in steps:
        step.model.double()
        _group(step)
    (whole, without, full) = steps
    assert without.model.contrastive_head is None
    models = [dict(step.model.named_parameters()) for step in steps]
    for name, parameter in models[0].items():
        grads = [model[name].grad if name in model else 0.0 for model in models[1:]]
        torch.testing.assert_close(parameter.grad, sum(grads) / 2, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("micro", [4, 2], ids=["one-pass", "cached"])
def test_mask_weighs_the_token_loss(micro):
    words = (f"batch.micro={micro}", "model.dropout=0")
    steps = [_make_step(*words, f"loss.mask={mask}") for mask in (0.5, 0, 1)]
    for step in steps:
        step.model.double()
        _group(step)
    _assert_mean(*steps)
    head = steps[1].model.token_head.dense
    assert not head.weight.grad.any()


@pytest.mark.parametrize("micro", [4, 2], ids=["one-pass", "cached"])
def test_contrast_of_whole_clips_reads_a_pass_of_its_own(micro):
    words = (f"batch.micro={micro}", "mask.contrast=whole")
    unmasked = ("loss.mask=0", "mask.strategy=iid", "mask.ratio=0")
    both, tokens, contrast = (
        _make_step(*words),
        _make_step(f"batch.micro={micro}", "loss.alpha=0"),
        _make_step(f"batch.micro={micro}", *unmasked),
    )
    metrics = []
    for step in (both, tokens, contrast):
        step.model.double()
        metrics.append(_group(step))
    torch.testing.assert_close(metrics[0][:2], metrics[1][:2])
    torch.testing.assert_close(metrics[0][2], metrics[2][2])
    models = [dict(step.model.named_parameters()) for step in (both, tokens, contrast)]
    for name, parameter in models[0].items():
        grads = [model[name].grad for model in models[1:] if name in model]
        torch.testing.assert_close(parameter.grad, sum(grads), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("cls", ["released", "paper"])
def test_contrast_of_whole_clips_drops_the_same_elements_twice(cls):
    """The paper's [CLS] draws dropout from the generator, the released one from seeds."""
    steps = [
        _make_step("mask.contrast=whole", f"loss.mask={mask}", layout="T,H,W", cls=cls)
        for mask in (1e-30, 0)
    ]
    for step in steps:
        step.model.double()
        _group(step)
    _assert_mean(*steps)


def test_contrast_of_whole_clips_alone_is_one_pass_that_hides_nothing():
    step = _make_step("batch.micro=4", "mask.contrast=whole", "loss.mask=0")
    calls = _encodings(step)
    assert _group(step)[2] > 0
    ((inputs, rows, _),) = calls
    assert not (inputs == MASK_TOKEN).any()
    assert torch.equal(rows[: len(inputs)], cls_rows(inputs))


@pytest.mark.parametrize("micro", [4, 2], ids=["one-pass", "cached"])
def test_temperature_levels_the_contrastive_loss(micro):
    loss = _group(_make_step(f"batch.micro={micro}", "loss.temperature=1e6"))[2]
    assert loss.item() == pytest.approx(0.4 * math.log(2 * 4 - 1), rel=1e-4)


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (
            ("mask.blocks=2", "mask.noise=[0.8, 0.1, 0.1]", "mask.noise_unit=block"),
            dict(num_blocks=2, noise=(0.8, 0.1, 0.1), noise_unit="block"),
        ),
        (("mask.strategy=iid", "mask.ratio=0.4"), dict(strategy="iid", ratio=0.4)),
    ],
    ids=["block", "iid"],
)
def test_masks_are_those_of_the_settings_and_the_clip(words, options):
    tokens = torch.randint(0, NUM_TOKENS, (4, *GRID))
    tokens[0, 1] = PAD_TOKEN
    options |= dict(mask_token=MASK_TOKEN, pad_token=PAD_TOKEN, vocab_size=NUM_TOKENS)
    expected = mask_tokens(tokens, **options, seed=3, clip_offset=6, row_offset=1)
    step = _make_step("seed=3", "batch.videos=2", "batch.contrastive=2", *words)
    calls = _encodings(step)
    step.group([tokens.unflatten(0, (2, 2))], 6, is_last=True)
    ((inputs, rows, _),) = calls
    assert torch.equal(inputs, expected.inputs)
    read = torch.cat((cls_rows(tokens), expected.positions[: expected.count]))
    assert torch.equal(rows[: len(read)], read)  # behind them are slots of no masked token


@pytest.mark.parametrize("words", [(), ("mask.blocks=8",), ("mask.strategy=tube",)], ids=str)
def test_bound_on_masked_tokens_is_kept_and_near(words):
    mask = load_config(PretrainConfig, "tiny", [*SETTINGS, *words]).mask
    grid, clips = (5, 16, 16), 2048
    options = dict(strategy=mask.strategy, num_blocks=mask.blocks, ratio=mask.ratio, seed=0)
    tokens = torch.zeros((clips, *grid), dtype=torch.int32)
    masked = mask_tokens(tokens, mask_token=MASK_TOKEN, **options).mask.flatten(1)
    counts = masked.sum(1)
    assert abs(masked.float().mean() - expected_ratio(mask, grid)) < 0.01
    assert counts.view(-1, 8).sum(1).max() <= max_masked(mask, (8, *grid))
    assert counts.sum() <= max_masked(mask, (clips, *grid)) < 1.2 * counts.sum()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_precision_is_that_of_every_hidden_state(precision, dtype):
    step, seen = _make_step(f"precision={precision}"), []
    layer = step.model.encoder.layers[0]
    layer.register_forward_hook(lambda _, arguments, states: seen.append(states[0].dtype))
    _group(step)
    assert seen == 4 * [dtype]  # two micro-batches, whose [CLS] is cached first


def test_step_with_activation_checkpointing_is_the_plain_step():
    step = _make_step("activation_checkpointing=true")
    assert step.model.encoder.activation_checkpointing
    torch.testing.assert_close(_gradients(step), _gradients(_make_step()), rtol=0, atol=0)


def test_compiled_step_is_the_plain_step(monkeypatch):
    """In one graph, and with the dropout of the pass that caches [CLS], which is not compiled."""
    real, options = torch.compile, {}

    def without_inductor(module: torch.nn.Module, *, fullgraph: bool, dynamic: bool, **more):
        options.update(more["options"])
        return real(module, fullgraph=fullgraph, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_inductor)
    compiled = _gradients(_make_step("compile=max-autotune"))
    assert options["fallback_random"] and options["max_autotune"]
    assert not options["triton.cudagraphs"]  # gradients outlive a call
    torch.testing.assert_close(compiled, _gradients(_make_step()), rtol=1e-4, atol=1e-6)


def test_pass_that_caches_cls_has_the_dropout_of_the_pass_that_learns():
    """The one reads [CLS] alone, the other [CLS] and the masked tokens."""
    step = _make_step()
    calls = _encodings(step)
    _group(step)
    assert len(calls) == 4  # two micro-batches, each of which is encoded twice
    for (tokens, first, cached), (same, rows, states) in zip(calls[:2], calls[2:], strict=True):
        assert torch.equal(tokens, same) and torch.equal(first, cls_rows(tokens))
        clips = len(first)
        assert len(rows) > clips and torch.equal(rows[:clips], first)
        torch.testing.assert_close(cached, states[:clips])


def test_masks_and_dropout_follow_from_the_clip_wherever_its_number_lies():
    """On the host, or on the device, where a graph reads it."""
    steps = [_make_step() for _ in range(3)]
    videos = torch.randint(0, 8192, (steps[0].group_part, 2, *GRID))
    for step, clip in zip(steps, (6, torch.tensor(6), 8), strict=True):
        step.group(videos.split(step.micro), clip, is_last=True)
    first, same, other = ([p.grad for p in step.model.parameters()] for step in steps)
    torch.testing.assert_close(same, first, rtol=0, atol=0)
    assert not any(torch.equal(x, y) for x, y in zip(first, other, strict=True) if x.any())


def test_clips_share_no_seed_of_dropout():
    model = Vimpac.from_preset("12x512", layout="T,H,W", grid=GRID)
    seeds = 1 + 2 * sum(len(layer.branches()) for layer in model.encoder.layers)
    assert seeds <= _make_step().seed(5) - _make_step().seed(torch.tensor(4)) == SEEDS
