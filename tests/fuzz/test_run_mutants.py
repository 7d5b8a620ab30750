"""Some thousand mutants of each format, run: typed errors only, no crash, no hang, bounded memory."""

from __future__ import annotations

import pytest

from tests.fuzz.cases import FORMATS
from tests.fuzz.run import Supervisor


@pytest.mark.parametrize(
    ("name", "cases"),
    [("program", 1500), ("kernel", 3000), ("vmx", 2000), ("tvm", 2000), ("asm", 2000), ("ir", 1000), ("onnx", 1000),
     ("foreign", 2000)],
)  # fmt: skip
def test_mutants_end_in_results_or_typed_errors(name: str, cases: int) -> None:
    supervisor = Supervisor(seed=1, only=name, report=lambda line: None)
    supervisor.run(0, cases)
    assert not supervisor.findings, "\n".join(supervisor.findings[:5])
    assert sum(supervisor.outcomes.values()) == cases and len(supervisor.outcomes) > 1


def test_every_format_is_tested() -> None:
    parameters = test_mutants_end_in_results_or_typed_errors.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert [name for name, _ in parameters] == list(FORMATS)
    assert sum(f.weight for f in FORMATS.values()) == 100
