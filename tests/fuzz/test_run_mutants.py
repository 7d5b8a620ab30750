"""Some thousand mutants of real executables, run: typed errors only, no crash, no hang, bounded memory."""

from __future__ import annotations

from tests.fuzz.run import supervise


def test_mutants_end_in_results_or_typed_errors() -> None:
    findings = supervise(3000, seed=1, report=lambda line: None)
    assert not findings, "\n".join(findings[:5])
