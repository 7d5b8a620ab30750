"""A small version of `python -m tests.concurrency --threads 8 --calls 100000`."""

from __future__ import annotations

import pyvm
from tests.concurrency.stress import stress


def test_stress() -> None:
    before = pyvm.get_num_threads()
    try:
        counts = stress(8, 150)
    finally:
        pyvm.set_num_threads(before)
    assert counts.pop("calls") == 8 * 150
    assert all(count > 0 for count in counts.values())
