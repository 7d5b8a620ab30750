"""The programs that are measured mean what they should; nothing is timed here."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.programs import PROGRAMS, Program, PyvmKit, add_program, build, entry_program
from tests.bench.report import Row, Section, Target, markdown, speedup


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_program_returns_its_argument(program: Program) -> None:
    function, argument = build(program, PyvmKit(), calls=3)
    result = function(argument)
    if program.argument == "tensor":
        np.testing.assert_array_equal(result.numpy(), np.arange(16, dtype=np.float32))
    else:
        assert result == argument


def test_the_programs_that_cross_from_python() -> None:
    kit = PyvmKit()
    x = np.arange(16, dtype=np.float32)
    np.testing.assert_array_equal(entry_program(kit)(x).numpy(), x)
    np.testing.assert_array_equal(add_program(kit)(x).numpy(), x + x)


@pytest.mark.parametrize(
    "theirs, target, verdict",
    [
        (100.0, Target(10, 4), "ok"),
        (50.0, Target(10, 4), "below"),
        (30.0, Target(10, 4), "MISS"),
        (30.0, Target(10), "MISS"),
        (30.0, Target(12, at_least=False, of="ours"), "ok"),
        (30.0, None, ""),
    ],
)
def test_verdicts(theirs: float, target: Target | None, verdict: str) -> None:
    assert speedup("row", "ns", 10.0, "peer", theirs, target).verdict() == verdict


def test_a_table_has_one_line_per_row_and_remark() -> None:
    section = Section("name", "title", [speedup("a", "ns", 1.0, "peer", 2.0), Row("b", "ns", 3.0)], ["remark"])
    lines = section.text().splitlines()
    assert [line.split()[0] for line in lines] == ["==", "row", "a", "b", "remark"]


def test_the_markdown_table_has_the_rows_with_a_budget() -> None:
    rows = [
        speedup("a", "ns", 1.0, "peer", 20.0, Target(10, 4)),
        Row("b", "ms", 30.0, target=Target(20, at_least=False, of="ours")),
        Row("c", "ns", 3.0, target=Target(10)),
        Row("d", "ns", 3.0),
    ]
    assert markdown([Section("name", "title", rows)]).splitlines()[2:] == [
        "| a | 20 ns (peer) | 1 ns | 20.00 | >= 10x | yes |",
        "| b |  | 30 ms |  | <= 20 ms | no |",
        "| c |  | 3 ns |  | >= 10x | not measured |",
    ]
