"""A CUDA graph where there is no device: the operators of one call, recorded and run again.

While a function is recorded, what a capture would refuse is refused: waiting for the device,
copies from the memory of the host, draws from PyTorch's generator, and operators that the call
before did not make, whose code would be loaded now. A replay then runs the operators on the same
memory, without the Python around them: what it reads must lie in tensors.
"""

import contextlib
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from vimpac.model import encoder, masked_rows
from vimpac.train.cuda_graph import Graphed
from vimpac_kernels.runtime import transforms


class Tape(TorchDispatchMode):
    """The operators of a call, which may not wait for a device, nor copy from the host."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple] = []  # each with its arguments and its result

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name, keywords = function.name().partition("::")[2].partition(".")[0], keywords or {}
        masks = [x for x in arguments[1:2] if name == "index" for x in x if x is not None]
        if name.startswith(self.READS) or any(x.dtype == torch.bool for x in masks):
            raise AssertionError(f"{name} waits for the device")
        if name == "lift_fresh":  # of torch.tensor
            raise AssertionError("a number is copied from the host")
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise AssertionError(f"{name} draws from PyTorch's generator")
        result = function(*arguments, **keywords)
        if function.namespace != "profiler":
            self.operators.append((function, arguments, keywords, result))
        return result

    def launches(self) -> list[tuple]:
        """What decides which code an operator runs: name, numbers, kinds of tensors, alignment."""

        def kind(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.shape, x.stride(), x.dtype, x.data_ptr() % 16  # Triton's code differs by it

        called = ((f.name(), tree_flatten((a, k))) for f, a, k, _ in self.operators)
        return [(name, [kind(x) for x in leaves], str(tree)) for name, (leaves, tree) in called]

    @torch.no_grad()
    def replay(self) -> None:
        """Runs the operators again on the same memory, results included, and no Python."""
        for function, arguments, keywords, result in self.operators:
            again = function(*arguments, **keywords)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class _NoReadsFromPython(TorchFunctionMode):
    """The same for Python's own conversions, which read a CPU tensor without an operator."""

    READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if getattr(function, "__name__", "") in self.READS:
            raise AssertionError(f"{function.__name__} waits for the device")
        return function(*arguments, **(keywords or {}))


@contextlib.contextmanager
def as_on_a_device():
    """Nobody looks at the values of tensors to check them, as looking would wait for a device."""
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.object(transforms, "hides_values", lambda: True))
        for module in (encoder, masked_rows):
            patches.enter_context(mock.patch.object(module, "may_look", lambda tensor: False))
        yield


@contextlib.contextmanager
def capturing():
    """Yields the `Tape` of the operators inside."""
    with as_on_a_device(), Tape() as tape, _NoReadsFromPython():
        yield tape


class Replayed(Graphed):
    """`Graphed` with a tape in place of a CUDA graph, whose replays it counts."""

    replays = 0

    def _warm_up(self) -> Tensor:
        with capturing() as self.before:
            return self._function(*self._inputs)

    def _record(self):
        with capturing() as tape:
            result = self._function(*self._inputs)
        for old, new in zip(self.before.launches(), tape.launches(), strict=True):
            assert old == new, f"{new} is recorded, the call before made {old}"
        done = [True]  # unlike a device, recording has done the work of the first replay

        def replay() -> Tensor:
            self.replays += 1
            if not done:
                tape.replay()
            done.clear()
            return result

        return replay
