"""Every test of ours that stands for one of TVM's exists."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.tvm_parity.counterparts import COMPILED, COUNTERPARTS, Absent

ROOT = Path(__file__).resolve().parents[2]


def test_every_counterpart_exists() -> None:
    named = {name for tests in COUNTERPARTS.values() for found in tests.values() if not isinstance(found, Absent)
             for name in found} | {*COMPILED}  # fmt: skip
    files = sorted({name.split("::")[0] for name in named})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    there = {line for line in done.stdout.splitlines() if "::" in line}
    there |= {line.split("[")[0] for line in there} | {line.split("::")[0] for line in there}
    assert not named - there, f"named in counterparts.py, and gone: {sorted(named - there)}"
