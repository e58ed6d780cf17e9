"""Tests of what belongs to the whole: imports, the build, the pages, the benchmarks."""
