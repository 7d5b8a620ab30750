"""`python -m tests.golden [PASS ...]`: writes golden files anew (all of them by default)."""

from __future__ import annotations

import sys

from . import pass_names, write

for pass_name in sys.argv[1:] or pass_names():
    write(pass_name)
    print(f"tests/golden/passes/{pass_name}.pyvm")
