"""Decides which pyvm the tests see, and starts child interpreters that see the same one.

pytest runs in importlib mode and puts nothing on `sys.path`, so a checkout tests the installed package. Where nothing
is installed, the checkout itself is used if its extension modules were built in place (developers do that).
"""

from __future__ import annotations

import importlib.machinery
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _choose_package() -> Path:
    """Make `import vmcore` find the installed package, else an in-place build; the folder that holds it."""
    others = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != ROOT]
    spec = importlib.machinery.PathFinder.find_spec("vmcore", others)
    if spec is not None and spec.origin is not None:
        sys.path[:] = others
        return Path(spec.origin).parent.parent
    if os.environ.get("PYVM_TEST_INSTALLED") == "1":
        pytest.exit("PYVM_TEST_INSTALLED=1, but pyvm is not installed in this environment", returncode=4)
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    if not any((ROOT / "vmcore").glob(f"*{suffix}")):
        pytest.exit("pyvm is neither installed (pip install '.[test]') nor built in place", returncode=4)
    if sys.path[0] != str(ROOT):
        sys.path[:] = [str(ROOT), *others]
    return ROOT


LOCATION = _choose_package()


def pytest_report_header() -> str:
    """One line that says which package is under test."""
    return f"pyvm: {'built in place, ' if LOCATION == ROOT else 'installed in '}{LOCATION}"


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_python(*args, cwd, **options)`: a child interpreter that imports the package under test."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYVM_"))}
    if LOCATION == ROOT:
        environment["PYTHONPATH"] = str(ROOT)

    def run(
        *args: str, cwd: Path, timeout: float = 120.0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *args],
            cwd=cwd,
            env={**environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
