"""Counts the launches of one pre-training update.

    python -m tests.vimpac.count_launches [key=value ...]

The update of the small model runs on small clips, since launches do not grow with them, the CUDA
kernels on the emulator. Of PyTorch's operators those that compute count once each, though some
launch more than one kernel; of the library's, every kernel, and every operator around it.
"""

import ctypes
import sys
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.emulator import build

bodies: dict[str, Any] = {}  # of the library's operators, within which a mode sees nothing
register = torch.library.Library.impl


def _keep(library: torch.library.Library, name: str, body: Any, *rest: Any, **options: Any) -> Any:
    bodies[name] = body
    return register(library, name, body, *rest, **options)


torch.library.Library.impl = _keep

from tests.vimpac.capture import as_on_a_device  # noqa: E402 (the patch comes first)
from vimpac import Vimpac  # noqa: E402 (the patch comes first)
from vimpac.config import PretrainConfig  # noqa: E402 (the patch comes first)
from vimpac.settings import load_config  # noqa: E402 (the patch comes first)
from vimpac.train.distributed import World  # noqa: E402 (the patch comes first)
from vimpac.train.optim import make_optimizer  # noqa: E402 (the patch comes first)
from vimpac.train.pretrain_step import PretrainStep  # noqa: E402 (the patch comes first)
from vimpac.train.update import Update  # noqa: E402 (the patch comes first)
from vimpac_kernels.runtime import registry  # noqa: E402 (the patch comes first)

SETTINGS = ("batch.videos=2", "batch.contrastive=2", "batch.micro=2")
GRID = (5, 4, 4)
FREE = ("empty", "new_empty", "detach", "_unsafe_view", "alias", "profiler")  # launch nothing


class Counted(TorchDispatchMode):
    """Counts operators by name, and the kernels of ours by operator."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__()
        self.library, self.counts = library, Counter[str]()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name, keywords = function.name().partition("::")[2].partition(".")[0], keywords or {}
        if function.namespace == "vimpac_kernels":
            before = self.library.emulator_launches()
            with self:
                result = bodies[name](*arguments, **keywords)
            launches = self.library.emulator_launches() - before
            self.counts[f"{name} (ours)"] += max(launches, 1)  # 1: not emulated
            return result
        if not function.is_view and not name.startswith(FREE):
            self.counts[name] += 1
        return function(*arguments, **keywords)


def main() -> None:
    """Prints the counts of the third update: by then everything is allocated."""
    config = load_config(PretrainConfig, "small", [*SETTINGS, *sys.argv[1:]])
    model = Vimpac.from_preset("small", layout=config.model.layout, grid=GRID)
    world = World(torch.device("cpu"))
    step = PretrainStep(model, config, world, has_padding=False)
    step._read_count = False
    update = Update(step, model, make_optimizer(model, config.optim), config.optim, world)
    parts = torch.randint(0, 8192, (step.group_part, 2, *GRID)).split(step.micro)
    module = build.load()
    counted = Counted(ctypes.CDLL(str(module.__file__)))
    with registry.override_extension("cuda", module):
        for number in range(3):
            counted.counts.clear()
            with as_on_a_device(), counted:
                update([parts] * step.groups, number, 1e-3)
    for name, count in counted.counts.most_common():
        print(f"{count:5} {name}")
    print(f"{counted.counts.total():5} in all")


if __name__ == "__main__":
    main()
