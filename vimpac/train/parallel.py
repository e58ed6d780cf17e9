"""Several processes, one set of gradients: DDP holds all parameters in each, FSDP2 a share.

Checkpoints do not show it: they hold whole tensors, so a run continues with another number of
processes, or the other way round. To load one, the model is filled whole and then sharded.

What is compiled is compiled in place: parameters keep their names. FSDP2 gathers a layer's
parameters in hooks around the layer, so there every layer is a graph, whose code all layers but
the last, which computes fewer rows, share. Elsewhere one graph holds everything, and fuses more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from vimpac.train.distributed import World
from vimpac.train_config import TrainConfig


def parallelise(
    module: nn.Module,
    config: TrainConfig,
    world: World,
    *,
    layers: Sequence[nn.Module],
    kept: Sequence[nn.Module] = (),
    apart: Sequence[nn.Module] = (),
    methods: Sequence[str] = (),
) -> Any:
    """Compiles a module if asked to, and makes backward average the gradients over the processes.

    Args:
        module: What a training step calls.
        config: The run.
        world: The processes.
        layers: Its largest parts, whose parameters FSDP2 gathers one after the other.
        kept: Of them, whose parameters are read after their forward, too; FSDP2 keeps those
            gathered until their backward.
        apart: Modules outside of it that the step calls by themselves. FSDP2 shards them; with DDP
            the step averages their gradients.
        methods: Of `module`, that the step calls beside `forward`.

    Returns:
        What to call in place of `module`.
    """
    sharded = config.parallel == "fsdp" and world.size > 1
    if config.compile != "none":
        for part in layers if sharded else [module]:
            _compile(part, config.compile)
    if world.size == 1:
        return module
    if not sharded:
        return DistributedDataParallel(module)
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy()
    if config.precision == "bf16" and world.device.type == "cuda":
        # Autocast computes the layers in bf16 anyway; embeddings and heads stay fp32, as without.
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        is_kept = any(layer is other for other in kept)
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=not is_kept)
    fully_shard(module, mesh=mesh)
    for method in methods:
        register_fsdp_forward_method(module, method)
    for other in apart:
        fully_shard(other, mesh=mesh)
    return module


def _compile(module: nn.Module, mode: str) -> None:
    """Compiles a module in place, whose dropout stays that of eager PyTorch.

    The pass that caches [CLS] may run eagerly; with the compiler's own random numbers the pass
    that is differentiated would drop other elements, and d[CLS] would be of another function.
    """
    options = {**torch._inductor.list_mode_options(mode), "fallback_random": True}
    # Gradients stay from one micro-batch to the next, in memory that its graphs would overwrite.
    options["triton.cudagraphs"] = False
    module.compile(fullgraph=True, dynamic=False, options=options)


def averaging(module: nn.Module, average: bool) -> AbstractContextManager:
    """Whether the backward passes inside average the gradients, or keep them for later."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(average)
    elif isinstance(module, DistributedDataParallel) and not average:
        return module.no_sync()
    return nullcontext()


def whole(state: Any) -> Any:
    """A state dict with whole tensors in place of shards; every process must call it."""
    return tree_map(lambda x: x.full_tensor() if isinstance(x, DTensor) else x, state)


def load_whole(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads an optimiser's whole state dict, of which each process keeps its shards.

    Args:
        optimizer: Of the sharded parameters.
        state: From the `state_dict()` of an optimiser of the same parameters, before sharding.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shards = {
        number: {name: share_like(parameters[number], x) for name, x in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shards})


def share_like(parameter: Tensor, value: Tensor) -> Tensor:
    """This process's share of a whole tensor, divided as a parameter of its shape is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value  # one process, or the number of updates
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)
