"""What every op needs to run: the kernels of each backend by name."""
