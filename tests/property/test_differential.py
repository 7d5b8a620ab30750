"""Some thousand random programs: the loop gives what the reference interpreter gives, and TVM's VM where installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.property.differential import check_programs


def test_random_programs_on_reference_and_loop() -> None:
    counts, differences = check_programs(0, 1500)
    assert not differences, "\n".join(differences[:5])
    assert counts["value"] > 200 and counts["TypeError"] > 50 and counts["IndexError"] > 10, counts


@pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="apache-tvm is not installed")
def test_random_programs_on_tvm(tmp_path: Path) -> None:
    counts, differences = check_programs(100_000, 300, tmp_path)
    assert not differences, "\n".join(differences[:5])
    assert counts["TVM value"] > 20 and counts["TVM error"] > 20 and counts["TVM crash"] < 20, counts
