"""Random programs on several machines: the reference interpreter, the loop with and without instruments, TVM's VM."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pyvm
from pyvm.executable import VMExecutable
from pyvm.vm import VirtualMachine
from tests.random_programs import FUNCTIONS, TooMuch, random_program
from tests.reference_vm import BUILTINS, from_value, run, to_value
from vmcore.objects import Tensor
from vmcore.types import DataType, Shape

KINDS = (IndexError, ZeroDivisionError, TypeError, ValueError, RecursionError, RuntimeError)
_MAX_CALLS = 5_000
_MAX_LEAVES = 2_000
# TVM reads these first arguments through a null pointer where they are None, which ends its process; we raise
# TypeError. tests/tvm_parity shows that it does.
ENDS_TVM = ("vm.builtin.shape_of", "vm.builtin.reshape", "vm.builtin.read_if_cond", "vm.builtin.check_tuple_info")

Outcome = tuple[str, Any]  # ("value", a comparable form of it) or ("error", name of a builtin exception)


class Checked(NamedTuple):
    """A program, its arguments, what all our ways of running it came to, and why TVM cannot be asked, if so."""

    executable: VMExecutable
    args: list[Any]
    outcome: Outcome
    ends_tvm: str


def comparable(value: Any) -> Any:
    """A value with its kind, to be compared with ==."""
    if isinstance(value, (np.ndarray, Tensor)):
        array = np.asarray(value)
        return ("tensor", str(array.dtype), array.shape, array.tobytes())
    if isinstance(value, Shape):
        return ("shape", tuple(value))
    if isinstance(value, (tuple, list)):
        return ("tuple", tuple(map(comparable, value)))
    if isinstance(value, DataType):
        return ("dtype", str(value))
    if callable(value):
        return ("function",)
    return (type(value).__name__, repr(value) if isinstance(value, float) else value)


def outcome(call: Callable[[], Any]) -> Outcome:
    """What a call came to. TooMuch is passed on."""
    try:
        return "value", comparable(call())
    except TooMuch:
        raise
    except Exception as error:
        kind = next((kind.__name__ for kind in KINDS if isinstance(error, kind)), None)
        if kind is None:
            raise
        return "error", kind


class Oracle:
    """The reference interpreter, with bounds on the number of calls and on the size of values."""

    def __init__(self) -> None:
        self.calls = 0
        self.functions = {name: self._counted(function) for name, function in FUNCTIONS.items()}
        self.functions["vm.builtin.make_tuple"] = self._make_tuple

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.calls += 1
            if self.calls > _MAX_CALLS:
                raise TooMuch
            return to_value(function(*(from_value(x) if isinstance(x, list) else x for x in args)))

        return call

    def _make_tuple(self, *items: Any) -> list[Any]:
        made = BUILTINS["vm.builtin.make_tuple"](*items)
        if _leaves(made, _MAX_LEAVES) <= 0:
            raise TooMuch
        return made

    def __call__(self, executable: VMExecutable, args: Sequence[Any]) -> Outcome:
        self.calls = 0
        return outcome(lambda: run(executable, "main", args, self.functions))


def _leaves(value: Any, left: int) -> int:
    """`left` less what is in `value`, counted until nothing is left."""
    left -= 1
    if isinstance(value, list):
        for item in value:
            if left <= 0:
                break
            left = _leaves(item, left)
    return left


def register() -> None:
    """Makes the functions of random programs known."""
    for name, function in FUNCTIONS.items():
        pyvm.register_func(name, function, override=True)


def check_program(seed: int, oracle: Oracle, drops: bool = True) -> Checked | None:
    """Runs a program on the reference and on the loop; None if it is too much for the reference.

    Raises
    ------
    AssertionError
        If they differ; names the seed and the way of running.
    """
    executable, args = random_program(random.Random(seed), drops)
    executable.verify()
    try:
        expected = oracle(executable, args)
    except TooMuch:
        return None
    vm = VirtualMachine(executable, memory_cfg="naive" if seed % 5 == 0 else "pooled")
    last: tuple[str, tuple[Any, ...]] = ("", ())

    def hook(func: Any, name: str, before: bool, ret: Any, *values: Any) -> None:
        nonlocal last
        last = (name, values) if before else ("", ())

    for how, instrument in (("plain", None), ("with an instrument", hook), ("after instruments", None)):
        vm.set_instrument(instrument)
        got = outcome(lambda: vm["main"](*args))
        assert got == expected, f"seed {seed}, drops={drops}, {how}: {got}, the reference gives {expected}"
    name, values = last
    is_null = name in ENDS_TVM and [i for i, value in enumerate(values) if value is None] == [0]
    return Checked(executable, args, expected, name if is_null else "")


# ---- TVM's VM


def on_tvm(cases: Sequence[tuple[VMExecutable, Sequence[Any]]], folder: Path) -> list[Outcome]:
    """The outcomes of programs on TVM's VM, in a child process; ("crash", None) where it ended the process."""
    wire = [(executable.to_bytes(), [_wired(arg) for arg in args]) for executable, args in cases]
    (folder / "cases.pickle").write_bytes(pickle.dumps(wire))
    found = folder / "outcomes.pickle"
    found.write_bytes(b"")
    while True:
        done = _read(found)
        if len(done) == len(cases):
            return done
        child = Path(__file__).with_name("tvm_child.py")
        root = Path(__file__).resolve().parents[2]
        process = subprocess.run(
            [sys.executable, str(child), str(folder), str(len(done))],
            cwd=folder, capture_output=True, text=True, timeout=600, env={"PYTHONPATH": str(root)},
        )  # fmt: skip
        if process.returncode == 0:
            continue
        if len(_read(found)) == len(done) and "Traceback" in process.stderr:
            raise RuntimeError(process.stderr)
        with found.open("ab") as file:
            pickle.dump(("crash", None), file)


def _wired(value: Any) -> Any:
    if isinstance(value, Shape):
        return ("shape", tuple(value))
    return tuple(map(_wired, value)) if isinstance(value, tuple) else value


def _read(path: Path) -> list[Outcome]:
    found = []
    with path.open("rb") as file:
        while file.peek(1):
            found.append(pickle.load(file))
    return found


def agrees_with_tvm(ours: Outcome, theirs: Outcome) -> bool:
    """TVM has one kind of error, InternalError, where we tell several apart."""
    if ours[0] == "error" and theirs[0] == "error":
        return theirs[1] in (ours[1], "RuntimeError")
    return ours == theirs


def check_programs(first: int, count: int, tvm_folder: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Checks programs by their seeds: counts of what they came to, and the differences."""
    register()
    oracle, counts, differences = Oracle(), Counter[str](), []
    cases: list[tuple[int, Checked]] = []
    for seed in range(first, first + count):
        try:
            checked = check_program(seed, oracle, drops=tvm_folder is None or seed % 2 == 0)
        except Exception as error:
            differences.append(f"seed {seed}: {type(error).__name__}: {error}")
            continue
        if checked is None:
            counts["too much for the reference"] += 1
            continue
        counts[checked.outcome[1] if checked.outcome[0] == "error" else "value"] += 1
        if tvm_folder is None or seed % 2 == 0:
            continue
        if checked.ends_tvm:
            counts[f"not on TVM: None ends it in {checked.ends_tvm}"] += 1
        else:
            cases.append((seed, checked))
    if tvm_folder is not None and cases:
        theirs = on_tvm([(checked.executable, checked.args) for _, checked in cases], tvm_folder)
        for (seed, checked), other in zip(cases, theirs, strict=True):
            counts[f"TVM {other[0]}"] += 1
            if other[0] == "crash":
                differences.append(f"seed {seed}: TVM ended its process, we give {checked.outcome}")
            elif not agrees_with_tvm(checked.outcome, other):
                differences.append(f"seed {seed}: TVM gives {other}, we give {checked.outcome}")
    return counts, differences


def check_chunk(task: tuple[int, int, bool]) -> tuple[Counter[str], list[str]]:
    """First seed, number of programs, whether TVM takes part."""
    first, count, with_tvm = task
    if not with_tvm:
        return check_programs(first, count)
    with tempfile.TemporaryDirectory() as folder:
        return check_programs(first, count, Path(folder))
