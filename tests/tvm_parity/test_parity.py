"""The same programs on TVM's Relax VM and on ours: results and kinds of error."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm.asm import assemble
from pyvm.executable import VMExecutable
from pyvm.vm import VirtualMachine
from tests.property.differential import ENDS_TVM
from tests.tvm_parity.cases import BUILTINS, NONE, PROGRAMS, Case
from tests.tvm_parity.functions import FUNCTIONS
from vmcore.objects import Function, Tensor
from vmcore.types import DataType, Shape

HERE = Path(__file__).parent
CASES = BUILTINS | PROGRAMS | {f"{name} of None": case for name, case in NONE.items()}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tvm") is None, reason="apache-tvm is not installed")


def read_outcomes(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        while file.peek(1):
            yield pickle.load(file)


@pytest.fixture(scope="module")
def tvm_outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Any]]:
    folder = tmp_path_factory.mktemp("parity")
    cases = [(assemble(case.program).to_bytes(), case.function, case.args) for case in CASES.values()]
    (folder / "cases.pickle").write_bytes(pickle.dumps(cases))
    outcomes: list[tuple[str, Any]] = []
    while len(outcomes) < len(cases):
        command = [sys.executable, str(HERE / "child.py"), str(folder), str(len(outcomes))]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        before = len(outcomes)
        outcomes = list(read_outcomes(folder / "outcomes.pickle"))
        if done.returncode == 0:
            break
        assert len(outcomes) > before or "Traceback" not in done.stderr, done.stderr
        with (folder / "outcomes.pickle").open("ab") as file:
            pickle.dump(("crash", None), file)  # TVM ended the process in this case
        outcomes.append(("crash", None))
    return dict(zip(CASES, outcomes, strict=True))


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    for name, function in FUNCTIONS.items():
        pyvm.register_func(name, function, override=True)
    yield
    for name in FUNCTIONS:
        pyvm.remove_global_func(name)


def to_ours(value: Any) -> Any:
    if isinstance(value, tuple):
        return Shape(value[1]) if value[:1] == ("shape",) else tuple(map(to_ours, value))
    return value


def from_ours(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, Shape):
        return ("shape", tuple(value))
    if isinstance(value, tuple):
        return tuple(map(from_ours, value))
    if isinstance(value, DataType):
        return ("dtype", str(value))
    if isinstance(value, Function) or callable(value):
        return ("object", "Function")
    return value


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def run_ours(case: Case) -> Any:
    executable = VMExecutable.from_bytes(assemble(case.program).to_bytes())
    return from_ours(VirtualMachine(executable)[case.function](*map(to_ours, case.args)))


# Where we raise another kind of error than TVM's InternalError, on purpose: what Python programmers expect.
OURS = {
    "closure arity": TypeError,
    "too few arguments": TypeError,
    "unknown function": LookupError,
}
BASES = {kind.__name__: kind for kind in (TypeError, ValueError, IndexError, RuntimeError)}


@pytest.mark.parametrize("name", CASES)
def test_both_machines_agree(name: str, tvm_outcomes: dict[str, tuple[str, Any]]) -> None:
    status, expected = tvm_outcomes[name]
    if status == "value":
        assert same(run_ours(CASES[name]), expected), expected
        return
    # Where TVM crashes, an error of any kind will do.
    with pytest.raises(OURS.get(name) or BASES.get(expected, Exception)):
        run_ours(CASES[name])


def test_most_cases_ran(tvm_outcomes: dict[str, tuple[str, Any]]) -> None:
    crashes = [name for name, (status, _) in tvm_outcomes.items() if status == "crash"]
    assert len(crashes) < 20, crashes


def test_none_ends_tvms_process_where_random_programs_keep_it_from_tvm(
    tvm_outcomes: dict[str, tuple[str, Any]],
) -> None:
    assert tuple(NONE) == ENDS_TVM
    for name, case in NONE.items():
        assert tvm_outcomes[f"{name} of None"] == ("crash", None)
        with pytest.raises(TypeError):
            run_ours(case)
