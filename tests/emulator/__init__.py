"""Runs the CUDA kernels of csrc/cuda on the CPU, for tests; see `build.py` and `emulator.hpp`."""
