"""Launchers of the C++ kernels: one module per op, from tensors to raw pointers."""
