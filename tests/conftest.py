"""What all tests share: the line that says which pyvm is tested, and child interpreters that see the same one."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import LOCATION, ROOT

# A shell starts background jobs with Ctrl-C ignored, and Python leaves it so; tests of interrupts need the handler.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """One line that says which package is under test."""
    return f"pyvm: {'built in place, ' if LOCATION == ROOT else 'installed in '}{LOCATION}"


IS_CHECKED = importlib.util.find_spec("vmcore.checked") is not None
_known_functions: set[str] = set()


def pytest_sessionstart() -> None:
    """In a checked build: remembers what is registered before the tests."""
    if IS_CHECKED:
        from vmcore.registry import list_global_func_names

        _known_functions.update(list_global_func_names())


def pytest_sessionfinish() -> None:
    """In a checked build: what tests registered is forgotten, so that the books show what is really lost."""
    if IS_CHECKED:
        from vmcore.registry import list_global_func_names, remove_global_func

        for name in set(list_global_func_names()) - _known_functions:
            remove_global_func(name)


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
