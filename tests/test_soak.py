"""The soak of tests/soak.py, short: its own process, so that other tests' memory is not in the way."""

from __future__ import annotations

import subprocess
import sys

from tests import ROOT


def test_memory_stays_flat() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.soak", "--calls", "40000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
