"""`python -m vimpac` is the `vimpac` command."""

import sys

from vimpac.cli import main

sys.exit(main())
