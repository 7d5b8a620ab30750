"""Decides which pyvm the tests see: under pytest, and for `python -m tests.conformance` and its like.

A checkout tests the installed package. Python puts the current folder on `sys.path` for `-m`, where the sources would
be found first, so the checkout is taken off; pytest runs in importlib mode and puts nothing there. Where nothing is
installed, the checkout itself is used if its extension modules were built in place (developers do that).
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _choose_package() -> Path:
    """Make `import vmcore` find the installed package, else an in-place build; the folder that holds it."""
    others = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != ROOT]
    spec = importlib.machinery.PathFinder.find_spec("vmcore", others)
    if spec is not None and spec.origin is not None:
        sys.path[:] = others
        return Path(spec.origin).parent.parent
    if os.environ.get("PYVM_TEST_INSTALLED") == "1":
        sys.exit("PYVM_TEST_INSTALLED=1, but pyvm is not installed in this environment")
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    if not any((ROOT / "vmcore").glob(f"*{suffix}")):
        sys.exit("pyvm is neither installed (pip install '.[test]') nor built in place")
    if sys.path[0] != str(ROOT):
        sys.path[:] = [str(ROOT), *others]
    return ROOT


LOCATION = _choose_package()
