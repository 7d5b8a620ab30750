"""ONNX's own backend tests through pyvm: loading the cases, running one, and what became of each.

A case is excluded for a reason that follows from the model (an operator without a converter, a type that the IR does
not have), or because `exclusions.py` names it, with a reason. A named case that passes is a failure: the entry must go.
"""

from __future__ import annotations

import fnmatch
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from pyvm.errors import FrontendError, UnsupportedOpError
from tests.conformance.exclusions import EXCLUSIONS

KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted", "real")
# Takes a model and the inputs in order; returns the outputs in order.
Engine = Callable[[onnx.ModelProto], Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]]


@dataclass
class Case:
    """One test of the suite."""

    name: str
    kind: str
    model: onnx.ModelProto
    data_sets: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float

    def op_types(self) -> set[str]:
        """Operators that the model uses, `domain.Name` for those of another domain."""
        return {f"{node.domain}.{node.op_type}".lstrip(".") for node in self.model.graph.node}


@dataclass
class Outcome:
    """What became of a case: "passed", "excluded" or "failed", and why."""

    case: str
    status: str
    reason: str = ""
    op_types: frozenset[str] = frozenset()


@dataclass
class Report:
    """Outcomes of a run."""

    outcomes: list[Outcome] = field(default_factory=list)

    def count(self, status: str) -> int:
        """Cases with this status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    def of(self, status: str) -> list[Outcome]:
        """Outcomes with this status."""
        return [outcome for outcome in self.outcomes if outcome.status == status]


# --- cases


def load_cases(kinds: Sequence[str] = KINDS) -> Iterator[Case]:
    """All cases of some kinds, one at a time."""
    for kind in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the generators of the suite overflow and divide by zero on purpose
            tests = load_model_tests(kind=kind)
        for test in tests:
            yield _load(test, kind)


def _load(test: Any, kind: str) -> Case:
    if kind == "node":
        return Case(test.name, kind, test.model, test.data_sets, test.rtol, test.atol)
    if kind == "real":
        return _load_light(test)
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    constants = {tensor.name for tensor in model.graph.initializer}
    data_sets = []
    for data in sorted(folder.glob("test_data_set*")):
        inputs = [
            _read(data / f"input_{i}.pb", value)
            for i, value in enumerate(model.graph.input)
            if value.name not in constants
        ]
        outputs = [_read(data / f"output_{i}.pb", value) for i, value in enumerate(model.graph.output)]
        data_sets.append((inputs, outputs))
    return Case(test.name, kind, model, data_sets, test.rtol, test.atol)


def _load_light(test: Any) -> Case:
    """A network with constant weights, the input 0, 1/n, 2/n ... and the output that ships beside it."""
    path = Path(onnx.backend.test.__file__).parent / "data" / "light" / os.path.basename(test.url)
    model = onnx.load(path)
    constants = {tensor.name for tensor in model.graph.initializer}
    (value,) = (value for value in model.graph.input if value.name not in constants)
    shape = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    n = int(np.prod(shape))
    ramp = (np.arange(n).reshape(shape) / n).astype(np.float32)
    expected = _read(path.with_name(f"{path.stem}_output_0.pb"), model.graph.output[0])
    return Case(test.name, "real", model, [([ramp], [expected])], test.rtol, test.atol)


def _read(path: Path, value: onnx.ValueInfoProto) -> Any:
    data = path.read_bytes()
    if value.type.HasField("sequence_type"):
        sequence = onnx.SequenceProto()
        sequence.ParseFromString(data)
        return numpy_helper.to_list(sequence)
    tensor = onnx.TensorProto()
    tensor.ParseFromString(data)
    return numpy_helper.to_array(tensor)


# --- running


def compiled(model: onnx.ModelProto) -> Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]:
    """The engine under test: compile, load, run in the virtual machine."""
    import pyvm

    return _runner(pyvm.VirtualMachine(pyvm.compile(model))["main"])


def through_text(model: onnx.ModelProto) -> Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]:
    """Like `compiled`, but the module is written and read as text before the first pass and after each one."""
    import pyvm
    from pyvm.codegen import generate
    from pyvm.frontend.onnx import from_onnx
    from pyvm.ir import parse
    from pyvm.transform import DEFAULT_PIPELINE

    module = parse(from_onnx(model).script())
    for transform in DEFAULT_PIPELINE:
        module = parse(transform(module).script())
    return _runner(pyvm.VirtualMachine(generate(module))["main"])


def _runner(main: Callable[..., Any]) -> Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]:
    def run(inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        result = main(*inputs)
        return [value.numpy() for value in (result if isinstance(result, tuple) else (result,))]

    return run


def evaluated(model: onnx.ModelProto) -> Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]:
    """Only the frontend: the imported module run by the numpy references of its operators."""
    from pyvm.frontend.onnx import from_onnx
    from tests.ir_evaluator import run_module

    module = from_onnx(model)
    names = [param.name for param in module["main"].params]
    return lambda inputs: run_module(module, dict(zip(names, inputs, strict=True)))


def run_case(case: Case, engine: Engine) -> Outcome:
    """Runs a case and says what became of it."""
    status, reason = _status(case, engine)
    return Outcome(case.name, status, reason, frozenset(case.op_types()))


def _status(case: Case, engine: Engine) -> tuple[str, str]:
    why = next((reason for pattern, reason in EXCLUSIONS.items() if fnmatch.fnmatchcase(case.name, pattern)), None)
    try:
        _run(case, engine)
    except UnsupportedOpError as error:
        return "excluded", f"operator: {_operators(str(error))}"
    except FrontendError as error:
        if why is not None:
            return "excluded", why
        kind = _missing_type(str(error))
        return ("excluded", kind) if kind else ("failed", _brief(error))
    except Exception as error:
        if why is not None:
            return "excluded", why
        return "failed", _brief(error)
    if why is not None:
        return "failed", f"passes, but exclusions.py says: {why}"
    return "passed", ""


def _run(case: Case, engine: Engine) -> None:
    run = engine(case.model)
    with np.errstate(all="ignore"):
        for inputs, expected in case.data_sets:
            outputs = run([_array(x) for x in inputs])
            if len(outputs) != len(expected):
                raise AssertionError(f"{len(outputs)} outputs, expected {len(expected)}")
            for output, reference in zip(outputs, expected, strict=True):
                _compare(output, _array(reference), case.rtol, case.atol)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value)


def _compare(output: np.ndarray, reference: np.ndarray, rtol: float, atol: float) -> None:
    if output.shape != reference.shape or output.dtype != reference.dtype:
        got, wanted = (f"{array.dtype}{array.shape}" for array in (output, reference))
        raise AssertionError(f"the output is {got}, expected {wanted}")
    two_units = {"float16": 2**-9, "bfloat16": 2**-6}.get(output.dtype.name)
    if two_units is not None:
        # Two units in the last place, as the suite's own runner has it for bfloat16. References round every step to
        # 16 bits; a kernel that sums in float32 rounds once, and may differ by more than the suite's 1e-3.
        output, reference, rtol = output.astype(np.float32), reference.astype(np.float32), max(rtol, two_units)
    np.testing.assert_allclose(output, reference, rtol=rtol, atol=atol)


def _operators(message: str) -> str:
    """The operators that an UnsupportedOpError lists, without their nodes."""
    listed = message.partition("operators: ")[2].split("; ")
    return ", ".join(item.partition(" (opset")[0] for item in listed)


def _missing_type(message: str) -> str | None:
    """The reason, if what stops the frontend is a type that the IR does not have."""
    if " has element type " in message:
        return f"element type: {message.partition(' has element type ')[2].split(';')[0]}"
    if " is not a tensor (" in message:
        return f"type of an input: {message.partition(' is not a tensor (')[2].rstrip(')')}"
    return None


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def run_suite(engine: Engine, kinds: Sequence[str] = KINDS, pattern: str = "*") -> Report:
    """Runs all cases of some kinds whose names match."""
    report = Report()
    for case in load_cases(kinds):
        if fnmatch.fnmatchcase(case.name, pattern):
            report.outcomes.append(run_case(case, engine))
    return report
