"""No nonsense that a public function can be given ends in an error of Python's own, or the process."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

import pyvm
from pyvm import errors
from tests.front_door import VALUES, Probe, findings, probes

PROBES = list(probes())
SHARE = 6  # of the values that each callable meets here; `python -m tests.front_door` tries them all
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_nonsense_is_a_typed_error(part: int) -> None:
    found = []
    for number, probe in list(enumerate(PROBES))[part::PARTS]:
        found += findings(probe, tuple(VALUES)[number // PARTS % SHARE :: SHARE])
    assert not found, "\n".join(found)


def test_what_is_public_is_probed() -> None:
    names = {probe.name for probe in PROBES}
    public = {name for name in pyvm.__all__ if callable(getattr(pyvm, name))}
    assert public - {name.removeprefix("pyvm.") for name in names} == {"VMInstrumentReturnKind"}  # an enum
    for name in ("pyvm.VirtualMachine.save_function", "pyvm.VMExecutable.metadata", "vmcore.objects.Function.__call__"):
        assert name in names


def _asserts(value: Any) -> None:
    assert value is None


def _is_typed(value: Any) -> None:
    if value is not None:
        raise errors.ArgumentTypeError("not None")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda value: value + 1, "TypeError"),
        (_asserts, "AssertionError"),
        (lambda value: os.abort(), "ENDS THE PROCESS: signal 6"),
        (lambda value: os._exit(3), "ENDS THE PROCESS: exit 3"),
        (_is_typed, ""),
        (lambda value: value, ""),
    ],
)
def test_the_probe_sees(function: Callable[[Any], Any], expected: str) -> None:
    found = findings(Probe("f", lambda: (function, [None], {}), 1, ()), ("'x'", "{}"))
    assert len(found) == (2 if expected else 0)
    assert all(expected in line for line in found)
