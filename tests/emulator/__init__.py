"""Runs the CUDA kernels of csrc on the CPU, for tests; see `build.py` and `emulator.hpp`."""
