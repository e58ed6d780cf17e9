"""Fused kernels for VIMPAC: axial attention with [CLS], tied cross-entropy, block masks."""
