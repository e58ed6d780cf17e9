"""How the compiled kernels are built: find compilers, write one build.ninja, run ninja."""
