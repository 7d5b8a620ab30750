"""Every builtin: results as the reference interpreter has them, kinds of error as TVM raises them.

The programs are those of the comparison with TVM (tests/tvm_parity); `golden/builtin_errors.json` has what TVM 0.27
raised for each of them ("crash" where it ended the process), so that this runs where TVM is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine
from tests.reference_vm import BUILTINS as REFERENCE
from tests.reference_vm import run
from tests.tvm_parity.cases import BUILTINS, Case, after, floats, one
from tests.tvm_parity.functions import DEBUGGED, FUNCTIONS
from vmcore.objects import Tensor
from vmcore.types import Shape

ERRORS = json.loads((Path(__file__).parent.parent / "golden" / "builtin_errors.json").read_text())
KINDS = {
    "TypeError": TypeError,
    "ValueError": ValueError,
    "IndexError": IndexError,
    "RuntimeError": RuntimeError,
    "crash": errors.VMError,
}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    for name, function in FUNCTIONS.items():
        pyvm.register_func(name, function, override=True)
    yield
    for name in FUNCTIONS:
        pyvm.remove_global_func(name)
    pyvm.get_global_func("vm.builtin.clear_py_func_registry")()


def convert(value: Any) -> Any:
    if isinstance(value, tuple):
        return Shape(value[1]) if value[:1] == ("shape",) else tuple(map(convert, value))
    return value


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a.numpy(), b) and a.shape == b.shape
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and type(a) is type(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def outcome_is_right(case: Case, kind: type[Exception] | None) -> None:
    executable = assemble(case.program)
    vm = VirtualMachine(executable)
    args = tuple(map(convert, case.args))
    if kind is not None:
        for _ in range(2):
            with pytest.raises(kind) as caught:
                vm[case.function](*args)
            assert caught.value.__notes__
        return
    result = vm[case.function](*args)
    if all(info.name in REFERENCE or info.kind != 0 or info.name in FUNCTIONS for info in executable.functions):
        expected = run(executable, case.function, args, FUNCTIONS)
        assert callable(result) if callable(expected) else same(result, expected), (result, expected)


@pytest.mark.parametrize("name", BUILTINS)
def test_as_in_tvm(name: str) -> None:
    outcome_is_right(BUILTINS[name], KINDS[ERRORS[name]] if name in ERRORS else None)


HEAP = "vm.builtin.alloc_shape_heap (%vm, 4)"


def expression(*words: int) -> Case:
    """A heap with 7 in slot 1; slot 0 := the expression; its value."""
    text = ", ".join(map(str, words))
    return Case(
        f"func @main() regs=2\n  call @{HEAP} -> %0\n  call @pyvm.builtin.store_dim (%0, 1, 7)\n"
        f"  call @pyvm.builtin.eval_shape_expr (%0, 0, shape({text}))\n"
        "  call @vm.builtin.make_prim_value (%0, 1, 0) -> %1\n  ret %1"
    )


def bounded(value: int) -> Case:
    """A heap with `value` in slot 1, of which at most 7 is allowed."""
    return Case(
        f"func @main() regs=1\n  call @{HEAP} -> %0\n  call @pyvm.builtin.store_dim (%0, 1, {value})\n"
        '  call @pyvm.builtin.check_upper_bound (%0, 1, 7, "n", "where ")\n  ret %void'
    )


PUSH = "pyvm.builtin.stack_push (%0, %1, %2, %void, 0)"
BIG_COUNT = 2**62
BIG = 2**62
OURS: dict[str, tuple[Case, type[Exception] | None]] = {
    "immediate": (expression(0, 5), None),
    "cell": (expression(1, 1), None),
    "add": (expression(1, 1, 0, 5, 2, 0), None),
    "sub": (expression(1, 1, 0, 9, 3, 0), None),
    "mul": (expression(1, 1, 1, 1, 4, 0), None),
    "floordiv": (expression(0, -7, 0, 2, 5, 0), None),
    "floordiv by minus one": (expression(0, -7, 0, -1, 5, 0), None),
    "floormod": (expression(0, -7, 0, 3, 6, 0), None),
    "floormod of negative": (expression(0, 7, 0, -3, 6, 0), None),
    "min": (expression(0, 7, 0, -3, 7, 0), None),
    "max": (expression(0, 7, 0, -3, 8, 0), None),
    "division by zero": (expression(0, 7, 0, 0, 5, 0), ValueError),
    "remainder by zero": (expression(0, 7, 0, 0, 6, 0), ValueError),
    "overflow": (expression(0, BIG, 0, BIG, 2, 0), ValueError),
    "product overflow": (expression(0, BIG, 0, BIG, 4, 0), ValueError),
    "quotient overflow": (expression(0, -(2**63), 0, -1, 5, 0), ValueError),
    "unknown opcode": (expression(0, 1, 0, 1, 9, 0), ValueError),
    "stack underflow": (expression(0, 1, 2, 0), ValueError),
    "two values left": (expression(0, 1, 0, 1), ValueError),
    "no values": (expression(), ValueError),
    "odd words": (expression(0, 1, 2), ValueError),
    "too deep": (expression(*(0, 1) * 65), ValueError),
    "cell outside": (expression(1, 4), IndexError),
    "result outside": (after(HEAP, "pyvm.builtin.eval_shape_expr (%0, 4, shape(0, 1))"), IndexError),
    "no heap": (one("pyvm.builtin.eval_shape_expr (%0, 0, shape(0, 1))", floats(4)), TypeError),
    "store outside": (after(HEAP, "pyvm.builtin.store_dim (%0, -1, 1)"), IndexError),
    "store text": (after(HEAP, 'pyvm.builtin.store_dim (%0, 0, "1")'), TypeError),
    "shape_to_tensor": (one("pyvm.builtin.shape_to_tensor (%0)", ("shape", (3, 0, -1))), None),
    "shape_to_tensor empty": (one("pyvm.builtin.shape_to_tensor (%0)", ("shape", ())), None),
    "shape_to_tensor int": (one("pyvm.builtin.shape_to_tensor (%0)", 3), TypeError),
    "tensor_scalar two": (one("pyvm.builtin.tensor_scalar (%0)", np.array([1, 2])), ValueError),
    "tensor_scalar float": (one("pyvm.builtin.tensor_scalar (%0)", np.array([1.5])), ValueError),
    "tensor_scalar int": (one("pyvm.builtin.tensor_scalar (%0)", 3), TypeError),
    "heap index": (after(HEAP, "vm.builtin.make_prim_value (%0, 1, 4)"), IndexError),
    "heap index of a shape": (after(HEAP, "vm.builtin.make_shape (%0, 1, 1, -1)"), IndexError),
    "alloc_shape_heap negative": (one("vm.builtin.alloc_shape_heap (%vm, -1)"), ValueError),
    "alloc_shape_heap huge": (one("vm.builtin.alloc_shape_heap (%vm, 36028797018963967)"), MemoryError),
    "alloc_storage huge": (
        one("vm.builtin.alloc_storage (%vm, %0, 0, dtype(uint8))", ("shape", (BIG, BIG))),
        MemoryError,
    ),
    "alloc_storage negative": (
        one("vm.builtin.alloc_storage (%vm, %0, 0, dtype(uint8))", ("shape", (-1,))),
        ValueError,
    ),
    "match_shape without heap": (one('vm.builtin.match_shape (%0, %void, 1, 1, 0, "where ")', floats(2)), ValueError),
    "to_device index": (one("vm.builtin.to_device (%0, 1, 1)", floats(2)), RuntimeError),
    "read_if_cond empty": (one("vm.builtin.read_if_cond (%0)", np.zeros(0, bool)), ValueError),
    "push first": (one(PUSH, floats(0, 2), np.array(0), floats(2)), None),
    "push and grow": (one(PUSH, floats(1, 2), np.array(1), floats(2)), None),
    "push beyond": (one(PUSH, floats(1, 2), np.array(2), floats(2)), IndexError),
    "push before": (one(PUSH, floats(1, 2), np.array(-1), floats(2)), IndexError),
    "push other row": (one(PUSH, floats(0, 2), np.array(0), floats(3)), ValueError),
    "push other dtype": (one(PUSH, floats(0, 2), np.array(0), floats(2).astype(np.float64)), ValueError),
    "push other rank": (one(PUSH, floats(0, 2), np.array(0), floats(2, 1)), ValueError),
    "push on scalar": (one(PUSH, floats(), np.array(0), floats()), TypeError),
    "push float count": (one(PUSH, floats(0, 2), np.array(0.5), floats(2)), TypeError),
    "push too many": (
        one("pyvm.builtin.stack_push (%0, %1, %2, %3, 1)", floats(0, 2), np.array(0), floats(2), np.array(BIG_COUNT)),
        ValueError,
    ),
    "push text": (one('pyvm.builtin.stack_push (%0, %0, %0, "3", 1)', floats(0)), TypeError),
    "push nothing": (one("pyvm.builtin.stack_push ()"), TypeError),
    "rows": (one("pyvm.builtin.stack_rows (%0, %1, 0)", floats(3, 2), np.array(2)), None),
    "all rows": (one("pyvm.builtin.stack_rows (%0, %1, 0)", floats(3, 2), np.array(3)), None),
    "few rows": (one("pyvm.builtin.stack_rows (%0, %1, 0)", floats(9, 2), np.array(1)), None),
    "no rows": (one("pyvm.builtin.stack_rows (%0, %1, 1)", floats(3, 2), np.array(0)), None),
    "rows backwards": (one("pyvm.builtin.stack_rows (%0, %1, 1)", floats(3, 2), np.array(3)), None),
    "rows beyond": (one("pyvm.builtin.stack_rows (%0, %1, 0)", floats(3, 2), np.array(4)), IndexError),
    "rows of text": (one('pyvm.builtin.stack_rows ("a", %0, 0)', np.array(0)), TypeError),
    "rows text": (one('pyvm.builtin.stack_rows (%0, %1, "a")', floats(3, 2), np.array(1)), TypeError),
    "plan_arena": (one("pyvm.builtin.plan_arena (shape(0, 2, 0, 1, 3, 1, 3, 4, 0), %0, 200)", 100), None),
    "plan_arena of nothing": (one("pyvm.builtin.plan_arena (%0)", ("shape", ())), None),
    "plan_arena negative size": (one("pyvm.builtin.plan_arena (shape(0, 2, 0, 1, 3, 1), %0, 64)", -5), None),
    "plan_arena no table": (one("pyvm.builtin.plan_arena ()"), TypeError),
    "plan_arena odd table": (one("pyvm.builtin.plan_arena (shape(0, 1), 4)"), ValueError),
    "plan_arena out of order": (one("pyvm.builtin.plan_arena (shape(2, 2, 0, 1, 1, 0), 4)"), ValueError),
    "plan_arena size outside": (one("pyvm.builtin.plan_arena (shape(0, 1, 1), 4)"), IndexError),
    "plan_arena text": (one('pyvm.builtin.plan_arena (shape(0, 1, 0), "4")'), TypeError),
    "plan_arena huge": (one("pyvm.builtin.plan_arena (shape(0, 1, 0, 0, 1, 0), %0)", BIG), MemoryError),
    "plan_arena beyond huge": (one("pyvm.builtin.plan_arena (shape(0, 1, 0), %0)", BIG + 1), MemoryError),
    "plan_arena too many": (one("pyvm.builtin.plan_arena (%0, 4)", ("shape", (0, 1, 0) * 16385)), ValueError),
    "at its bound": (bounded(7), None),
    "above its bound": (bounded(8), ValueError),
    "bound outside": (after(HEAP, 'pyvm.builtin.check_upper_bound (%0, 4, 7, "n", "where ")'), IndexError),
    "bound of text": (after(HEAP, 'pyvm.builtin.check_upper_bound (%0, 1, "7", "n", "where ")'), TypeError),
    "bound without name": (after(HEAP, 'pyvm.builtin.check_upper_bound (%0, 1, 7, %void, "where ")'), TypeError),
    "bound in no heap": (one('pyvm.builtin.check_upper_bound (%0, 1, 7, "n", "where ")', floats(4)), TypeError),
    "call_tir_dyn many": (
        one(f"vm.builtin.call_tir_dyn (@parity.count, shape({', '.join('1' * 129)}))"),
        ValueError,
    ),
}
for dtype in ("bool", "int8", "uint8", "int16", "int32", "uint32", "int64"):
    OURS[f"tensor_scalar {dtype}"] = (one("pyvm.builtin.tensor_scalar (%0)", np.array([[1]], dtype)), None)


@pytest.mark.parametrize("name", OURS)
def test_ours(name: str) -> None:
    outcome_is_right(*OURS[name])


def offset_tensor(offset: int, dtype: str) -> Case:
    storage = 'vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8), "global")'
    return after(storage, f"vm.builtin.alloc_tensor (%0, {offset}, shape(2), dtype({dtype}))")


@pytest.mark.parametrize(
    ("offset", "dtype", "kind"),
    [
        (56, "float32", None), (57, "int8", None), (60, "float32", RuntimeError), (2, "float32", ValueError),
        (-4, "float32", RuntimeError), (0, "int4", errors.DTypeMismatchError), (0, "int24", errors.DTypeMismatchError),
    ],
)  # fmt: skip
def test_alloc_tensor_offsets(offset: int, dtype: str, kind: type[Exception] | None) -> None:
    vm = VirtualMachine(assemble(offset_tensor(offset, dtype).program))
    if kind is None:
        assert vm["main"]().shape == (2,)
        return
    with pytest.raises(kind):
        vm["main"]()


def test_views_share_bytes_and_keep_them() -> None:
    program = assemble("func @main(%0) regs=2\n  call @vm.builtin.reshape (%0, shape(3, 2)) -> %1\n  ret %1")
    x = floats(2, 3)
    view = VirtualMachine(program)["main"](x)
    assert np.shares_memory(view.numpy(), x)
    del x
    np.testing.assert_array_equal(view, floats(3, 2))


def test_to_device_copies() -> None:
    x = floats(4)
    copy = VirtualMachine(assemble(one("vm.builtin.to_device (%0, 1, 0)", x).program))["main"](x)
    assert not np.shares_memory(copy.numpy(), x)


def test_reset_of_a_shared_tuple_is_refused() -> None:
    """TVM changes the tuple under all its holders; here another thread could be reading it."""
    program = (
        "func @main(%0) regs=3\n  call @vm.builtin.make_tuple (%0) -> %1\n  call @vm.builtin.copy (%1) -> %2\n"
        "  call @vm.builtin.tuple_reset_item (%1, 0)\n  ret %2"
    )
    with pytest.raises(ValueError, match="shared"):
        VirtualMachine(assemble(program))["main"](1)


def test_debug_functions_get_line_and_arguments() -> None:
    DEBUGGED.clear()
    case = BUILTINS["invoke_debug_func"]
    assert VirtualMachine(assemble(case.program))["main"](*case.args) is None
    assert DEBUGGED == [3]
    with pytest.raises(IndexError, match="asked to fail"):
        VirtualMachine(assemble(BUILTINS["invoke_debug_func fails"].program))["main"](None)


def test_functions_of_the_py_func_registry_keep_their_exceptions() -> None:
    program = (
        "func @main(%0) regs=2\n  call @vm.builtin.call_py_func (%0) -> %1\n  ret %1\n"
        "func @enter(%0, %1) regs=2\n  call @vm.builtin.register_py_func (%0, %1)\n  ret %void"
    )
    vm = VirtualMachine(assemble(program))
    vm["enter"]("test_div", lambda a, b: a // b)
    assert vm["main"](("test_div", (7, 2))) == 3
    with pytest.raises(ZeroDivisionError):
        vm["main"](("test_div", (7, 0)))
    vm["enter"]("test_div", lambda a, b: b)
    assert vm["main"](("test_div", (7, 0))) == 0
    with pytest.raises(TypeError, match="must be callable"):
        vm["enter"]("test_div", 3)
    with pytest.raises(TypeError, match="name must be a string"):
        vm["enter"](3, len)


@pytest.mark.parametrize("name", ["register_py_func", "get_py_func", "clear_py_func_registry"])
def test_wrong_number_of_arguments_of_builtins_written_in_python(name: str) -> None:
    program = f"func @main(%0) regs=2\n  call @vm.builtin.{name} (%0, %0, %0) -> %1\n  ret %1"
    with pytest.raises(errors.ArgumentTypeError, match=rf"vm.builtin.{name}: expected \d arguments, got 3") as caught:
        VirtualMachine(assemble(program))["main"](1)
    assert caught.value.__notes__


def test_every_builtin_is_covered() -> None:
    used = {info.name for case in BUILTINS.values() for info in assemble(case.program).functions}
    used |= {info.name for case, _ in OURS.values() for info in assemble(case.program).functions}
    known = {name for name in pyvm.list_global_func_names() if ".builtin." in name}
    assert known <= used, known - used
