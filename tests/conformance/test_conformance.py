"""The ONNX backend suite through compiler and virtual machine; `python -m tests.conformance` prints the counts."""

from __future__ import annotations

import pytest

from tests.conformance.suite import Report, compiled, run_suite

# Operators whose own cases must pass, all of them.
REQUIRED = """
    Add AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv Div Dropout Erf Exp Expand Flatten
    Gather Gemm GlobalAveragePool HardSigmoid Identity LRN LayerNormalization LeakyRelu LogSoftmax MatMul MaxPool Mul
    PRelu Pad Pow ReduceMax ReduceMean ReduceSum Relu Reshape Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sub Sum
    Tanh Transpose Unsqueeze Where
""".split()


@pytest.fixture(scope="module")
def report() -> Report:
    """One run of the suite; the networks of kind "real" are compared with ONNX Runtime in tests/models."""
    return run_suite(compiled, kinds=("node", "simple", "pytorch-operator", "pytorch-converted"))


def test_every_case_passes_or_is_excluded(report: Report) -> None:
    assert [f"{outcome.case}: {outcome.reason}" for outcome in report.of("failed")] == []
    assert all(outcome.reason for outcome in report.of("excluded"))
    assert report.count("passed") > 1500


@pytest.mark.parametrize("op_type", REQUIRED)
def test_required_operator(report: Report, op_type: str) -> None:
    """Every case of only this operator passes, but for types that the IR lacks and training."""
    own = [outcome for outcome in report.outcomes if outcome.op_types == {op_type}]
    assert own, f"the suite has no case of {op_type}"
    not_passed = [outcome for outcome in own if outcome.status != "passed"]
    allowed = ("element type: ", "type of an input: ", "Dropout in training mode ")
    assert [outcome for outcome in not_passed if not outcome.reason.startswith(allowed)] == []
