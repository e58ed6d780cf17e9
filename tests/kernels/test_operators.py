"""What all operators share: their tensors' device is current, and it can run the kernels."""

import contextlib

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from vimpac_kernels import (
    axial_attention,
    bias_gelu,
    dropout_add_layer_norm,
    embed_tokens,
    linear_cross_entropy,
    mask_tokens,
    tubelet_embed,
    tubelet_mse,
)
from vimpac_kernels.runtime import compiling, native, registry


def _tubelet_embed(x: Tensor, impl: str = "auto") -> Tensor:
    """Of weights from x (5, 16)."""
    video = torch.arange(96, device=x.device).view(1, 2, 4, 4, 3).to(torch.uint8)
    tubelets = torch.tensor([[3, 0, 7]], dtype=torch.int32, device=x.device)
    weight, bias = x.flatten()[:48].view(8, 3, 1, 1, 2).repeat(1, 1, 1, 2, 1), x[0, :8]
    table = torch.ones(8, 8, device=x.device)
    return tubelet_embed(video, tubelets, weight, bias, table, impl=impl)


def run_every_operator(device: str, impl: str) -> list[Tensor]:
    """Outputs and gradients of every op."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    qkv, x, residual, weight = draw(2, 13, 3, 2, 32), draw(5, 16), draw(5, 16), draw(16)
    classes, target = draw(9, 16), torch.arange(5, device=device)
    tokens = torch.zeros(2, 2, 3, 4, dtype=torch.int64, device=device)
    video, first = tokens[..., None].byte().expand(-1, -1, -1, -1, 3), tokens[:, :1, 0, 0].int()
    pred = draw(2, 1, 6)
    outputs = [
        axial_attention(qkv, (2, 2, 3), "T|W", dropout_p=0.5, seed=1, impl=impl),
        dropout_add_layer_norm(x, residual, weight, weight, dropout_p=0.5, seed=1, impl=impl),
        linear_cross_entropy(x, classes, target, impl=impl),
        bias_gelu(x, weight, impl=impl),
        embed_tokens(tokens, classes, (x[:2], x[:3], x[:4]), dropout_p=0.5, seed=1, impl=impl),
        _tubelet_embed(x, impl),
        tubelet_mse(pred, video, first, tubelet=(2, 1), impl=impl),
    ]
    leaves = [qkv, x, residual, weight, classes, pred]
    gradients = torch.autograd.grad([y.sum() for y in outputs], leaves)
    return [*outputs, *gradients, *mask_tokens(tokens, mask_token=1, seed=1, impl=impl)]


@pytest.mark.impls("cuda")
def test_every_kernel_starts_where_its_tensors_are(impl, monkeypatch):
    current, started = [], {}

    @contextlib.contextmanager
    def guard(tensor):
        current.append(tensor.device)
        yield
        current.pop()

    class Watched:
        def __getattr__(self, name):
            function = getattr(compiled, name)
            if not name.endswith(("_fwd", "_bwd")):
                return function
            return lambda *call: started.update({name: list(current)}) or function(*call)

    compiled = registry.extension("cuda")
    monkeypatch.setattr(native, "device_guard", guard)
    with registry.override_extension("cuda", Watched(), impl.device):
        run_every_operator(impl.device, "cuda")
    assert {operator.rpartition("_")[0] for operator in started} == set(registry.OPS)
    assert all(len(devices) == 1 for devices in started.values())


def _axial_attention(x: Tensor) -> Tensor:
    return axial_attention(x[:, :12].view(1, 5, 3, 1, 4), (1, 1, 5))


def _dropout_add_layer_norm(x: Tensor) -> Tensor:
    return dropout_add_layer_norm(x, x, x[0], x[0])


def _linear_cross_entropy(x: Tensor) -> Tensor:
    return linear_cross_entropy(x, x, torch.arange(5))


def _bias_gelu(x: Tensor) -> Tensor:
    return bias_gelu(x, x[0])


def _embed_tokens(x: Tensor) -> Tensor:
    return embed_tokens(torch.zeros(2, 5, dtype=torch.int64), x, [x])


def _tubelet_mse(x: Tensor) -> Tensor:
    video, tubelets = torch.zeros(1, 1, 4, 4, 3, dtype=torch.uint8), torch.zeros(1, 5).int()
    return tubelet_mse(x[None, :, :12], video, tubelets, tubelet=(1, 2))


DIFFERENTIABLE = [
    *(_axial_attention, _dropout_add_layer_norm, _linear_cross_entropy, _bias_gelu),
    *(_embed_tokens, _tubelet_embed),
    *(_embed_tokens, _tubelet_mse),
]


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_second_derivatives_are_refused(op):
    """Also where the incoming gradient is a constant, and a penalty would lose its terms."""
    x = torch.randn(5, 16, requires_grad=True)
    with pytest.raises(RuntimeError, match=f"{op.__name__[1:]}: .* use impl='reference'"):
        torch.autograd.grad(op(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_forward_mode_is_refused(op):
    """Where no gradient is wanted, too: the bare operators would return a tangent of zero."""
    x, tangent = torch.randn(2, 5, 16).unbind()
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(op, (x,), (tangent,))
    with torch.autograd.forward_ad.dual_level():
        assert op(x).isfinite().all()
        with pytest.raises(RuntimeError, match=rf"{op.__name__[1:]}: .*\(jvp\): use impl="):
            op(torch.autograd.forward_ad.make_dual(x, tangent))


def test_graphs_serve_every_batch_and_grid():
    """torch.compile(dynamic=True) compiles once, not for every number of rows."""
    weight, bias, classes = torch.ones(24, requires_grad=True), torch.zeros(24), torch.randn(9, 24)

    def step(x: Tensor) -> Tensor:
        n = x.shape[0]
        tokens = torch.zeros(1, n, 4, 4, dtype=torch.int64)
        masked = mask_tokens(tokens, mask_token=1, seed=1)
        x = dropout_add_layer_norm(x, x * 2, weight, bias, dropout_p=0.1, seed=1)
        x = bias_gelu(x, bias)
        x = x + embed_tokens(tokens[..., 0, 0], classes, [x], weight, bias)[0]
        x = x + axial_attention(x.view(1, n, 3, 1, 8), (n, 1, 1)).view(n, 8).repeat(1, 3)
        target, positions = masked.inputs[0, :, 0, 0], torch.arange(n, dtype=torch.int32)
        return linear_cross_entropy(x, classes, target, positions=positions)

    counter, graphs = CompileCounterWithBackend("aot_eager"), []
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=counter)
    for n in (5, 7):
        x = torch.randn(n, 24)
        expected, actual = (torch.autograd.grad(f(x), weight)[0] for f in (step, compiled))
        torch.testing.assert_close(actual, expected)
        graphs.append(counter.frame_count)
    assert len(set(graphs)) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("impl_name", ["triton", "cuda"])
def test_operators_run_on_a_device_that_is_not_current(impl_name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    results = [run_every_operator(device, impl_name) for device in ("cuda:0", "cuda:1")]
    for a, b in zip(*results, strict=True):
        assert b.device.index == 1 and torch.equal(a.cpu(), b.cpu())


@pytest.fixture
def _forget():
    """What is known of the machine is found out anew, before and after."""
    for known in (registry._gpu_problem, registry._launch_problem):
        known.cache_clear()
    yield
    for known in (registry._gpu_problem, registry._launch_problem):
        known.cache_clear()


@pytest.mark.usefixtures("_forget")
@pytest.mark.parametrize("version, refused", [((7, 5), True), ((8, 0), False), ((12, 0), False)])
def test_kernels_refuse_a_gpu_that_is_too_old(monkeypatch, version, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: version)
    reason = registry.backend_problem("triton", "mask_tokens", "cuda")
    assert reason == ("it needs compute capability 8.0, this GPU has 7.5" if refused else None)


@pytest.mark.usefixtures("_forget")
def test_triton_is_refused_where_it_could_not_launch(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install gcc" in registry.backend_problem("triton", "mask_tokens", "cuda")


def test_a_constant_of_graphs_is_marked_as_torch_marks_it():
    theirs, ours = (
        mark(lambda: None)
        for mark in (torch.compiler.assume_constant_result, compiling.constant_in_graphs)
    )
    assert vars(theirs) == vars(ours) != {}
