"""Tests of the ops, of the layers, and of what all kernels go through."""
