"""VIMPAC: model, data, trainer and command line on top of `vimpac_kernels`."""
