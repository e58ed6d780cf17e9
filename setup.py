"""Entry of the build: `pip install -e .` or `python setup.py build_ext --inplace`.

The metadata is in pyproject.toml, the compilers' part in build_support/. Torch is not needed to
build, so pip's isolated build stays small. VIMPAC_KERNELS_CPU_ONLY=1 leaves the CUDA part out.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # an isolated build does not run from the source folder

from build_support.command import MODULES, BuildKernels  # noqa: E402 (needs that path)

setup(
    ext_modules=[Extension(f"vimpac_kernels.{module}", sources=[]) for module in MODULES],
    cmdclass={"build_ext": BuildKernels},
)
