"""The table of programs: numpy, the reference interpreter and the machine agree for all batches, compiled once."""

from __future__ import annotations

import pytest

from tests.programs import PROGRAMS, check_program


def test_there_are_enough() -> None:
    assert len(PROGRAMS) >= 40


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str) -> None:
    check_program(PROGRAMS[name])
