"""Lets Triton compile for a GPU that is not there."""

from __future__ import annotations

from typing import Any


def offline_driver() -> Any:
    """A Triton driver for a GPU that is not there; `architecture` chooses it."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.driver import DriverBase

    class OfflineDriver(DriverBase):
        """Answers what Triton asks before it would launch."""

        architecture = 80

        @classmethod
        def is_active(cls) -> bool:
            return True

        def map_python_to_cpp_type(self, ty: str) -> str:
            raise NotImplementedError

        def get_benchmarker(self) -> Any:
            raise NotImplementedError

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", self.architecture, 32)

        def get_current_device(self) -> int:
            return self.architecture  # a cache of kernels for each

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("meta")

    driver = OfflineDriver()
    triton.runtime.driver.set_active(driver)
    return driver
