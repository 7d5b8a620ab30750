"""What tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vmcore.kernels import gemm


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn that this processor has; it is in use meanwhile."""
    before = gemm.instruction_set()
    try:
        gemm._use_instruction_set(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    gemm._use_instruction_set(before)
