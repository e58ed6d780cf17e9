"""The ops, one folder each: contract, specification, operators, kernels in Triton."""
