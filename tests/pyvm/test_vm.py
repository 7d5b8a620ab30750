"""VirtualMachine: calls, saved functions, the stateful interface, instruments, timing, devices, errors, deadlines."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.monitor import VMInstrumentReturnKind
from pyvm.vm import VirtualMachine

PROGRAM = """
func @add(%0 x, %1 y) regs=3
  call @t.vm.add (%0, %1) -> %2
  ret %2
func @nested(%0 x) regs=3
  call @vm.builtin.make_tuple (%0, 1) -> %1
  call @vm.builtin.make_tuple (%1, "text", %void) -> %2
  ret %2
func @twice(%0 x) regs=2
  call @add (%0, %0) -> %1
  ret %1
func @failing(%0 x) regs=2
  call @t.vm.fail (%0) -> %1
  ret %1
func @outer(%0 x) regs=2
  call @failing (%0) -> %1
  ret %1
func @nothing() regs=1
  ret %void
func @capture(%0 x) regs=2
  call @vm.builtin.make_closure (@add, %0) -> %1
  ret %1
func @recurse(%0 n) regs=2
  if %0, done
  call @t.vm.add (%0, -1) -> %1
  call @recurse (%1) -> %1
  ret %1
done:
  ret %0
"""


def fail(x: Any) -> None:
    raise KeyError(x)


@pytest.fixture(autouse=True)
def functions() -> Iterator[None]:
    pyvm.register_func("t.vm.add", lambda a, b: a + b if isinstance(a, int) else a.numpy() + b.numpy(), override=True)
    pyvm.register_func("t.vm.fail", fail, override=True)
    yield
    pyvm.remove_global_func("t.vm.add")
    pyvm.remove_global_func("t.vm.fail")


@pytest.fixture
def vm() -> VirtualMachine:
    return VirtualMachine(assemble(PROGRAM))


# ---- calls


def test_positional_and_keyword_arguments(vm: VirtualMachine) -> None:
    add = vm["add"]
    assert add(1, 2) == add(1, y=2) == add(y=2, x=1) == 3
    assert add is vm["add"] and add.__name__ == "add" and add.param_names == ("x", "y")
    assert repr(add) == "<pyvm function add(x, y)>"
    for args, kwargs, text in [
        ((1,), {}, r"expected 2 arguments \(x, y\), got 1"),
        ((1, 2, 3), {}, "expected 2 arguments"),
        ((1,), {"z": 2}, "no parameter is called 'z'"),
        ((1,), {"x": 2}, "'y' is missing or given twice"),
    ]:
        with pytest.raises(errors.ArgumentTypeError, match=text):
            add(*args, **kwargs)
    assert add(1, 2) == 3


def test_unknown_function(vm: VirtualMachine) -> None:
    with pytest.raises(errors.FunctionNotFoundError, match="no function 'sub'; it has: add, nested"):
        vm["sub"]
    with pytest.raises(LookupError):
        vm["t.vm.add"]
    assert "add" in vm.function_names() and "t.vm.add" not in vm.function_names()
    assert repr(vm).startswith("VirtualMachine(add, nested")


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -(2**63), 0.5, "text", "", pyvm.Shape((2, 3)), pyvm.DataType("int8"), pyvm.cpu(), (),
        (1, ("a", None)), len,
    ],
)  # fmt: skip
def test_every_kind_of_value_goes_through(vm: VirtualMachine, value: Any) -> None:
    ((got, one), text, nothing) = vm["nested"](value)
    assert got == value and type(got) is type(value) and (one, text, nothing) == (1, "text", None)


def test_arrays_are_borrowed_and_results_are_views(vm: VirtualMachine) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    ((tensor, _), _, _) = vm["nested"](x)
    assert isinstance(tensor, pyvm.Tensor) and np.shares_memory(tensor.numpy(), x)
    ((tensor, _), _, _) = vm["nested"](x.T)
    assert not np.shares_memory(tensor.numpy(), x)
    np.testing.assert_array_equal(tensor, x.T)
    np.testing.assert_array_equal(vm["add"](x, pyvm.tensor(x)), 2 * x)


def test_arguments_that_have_no_value(vm: VirtualMachine) -> None:
    with pytest.raises(OverflowError) as caught:
        vm["add"](1, 2**63)
    assert caught.value.__notes__ == ["in argument 'y' of add"]
    with pytest.raises(TypeError) as caught2:
        vm["add"](np.array(["text"]), 1)
    assert caught2.value.__notes__ == ["in argument 'x' of add"]
    assert vm["add"](1, 2) == 3


def test_invoke_closure(vm: VirtualMachine) -> None:
    closure = vm["capture"](10)
    assert vm.invoke_closure(closure, 5) == closure(5) == 15
    with pytest.raises(errors.ArgumentTypeError, match="expected a closure, got int"):
        vm.invoke_closure(5, 5)  # type: ignore[arg-type]


# ---- saved functions


def test_save_function(vm: VirtualMachine) -> None:
    vm.save_function("add", "three", 1, y=2)
    vm.save_function("add", "quiet", 1, 2, include_return=False)
    assert vm["three"]() == 3 and vm["quiet"]() is None and "three" in repr(vm["three"])
    assert vm.function_names()[-2:] == ["three", "quiet"]
    assert vm.time_evaluator("three", number=2)().mean > 0
    with pytest.raises(TypeError):
        vm["three"](1)
    with pytest.raises(errors.ArgumentValueError, match="'three' is taken"):
        vm.save_function("add", "three", 1, 2)
    with pytest.raises(errors.ArgumentValueError, match="'add' is taken"):
        vm.save_function("add", "add", 1, 2)
    with pytest.raises(errors.FunctionNotFoundError):
        vm.save_function("nobody", "x")
    with pytest.raises(errors.ArgumentTypeError, match="expected 2 arguments"):
        vm.save_function("add", "x", 1)
    with pytest.raises(errors.ArgumentTypeError, match="got 1 positional and z"):
        vm.save_function("add", "x", 1, z=1)


# ---- stateful interface


def test_stateful_interface(vm: VirtualMachine) -> None:
    x = np.arange(3.0)
    vm.set_input("nested", x)
    vm.set_input("add", 1, y=2)
    vm.invoke_stateful("nested")
    vm.invoke_stateful("add")
    ((tensor, one), text, nothing) = vm.get_outputs("nested")
    np.testing.assert_array_equal(tensor, x)
    assert (one, text, nothing) == (1, "text", None)
    assert vm.get_outputs("add") == 3 == vm.get_outputs("add")
    vm.set_input("add", 5, 6)
    assert vm.get_outputs("add") == 3, "inputs alone change nothing"
    vm.invoke_stateful("add")
    assert vm.get_outputs("add") == 11


def test_stateful_failures(vm: VirtualMachine) -> None:
    with pytest.raises(errors.ArgumentValueError, match="call set_input first"):
        vm.invoke_stateful("add")
    with pytest.raises(errors.ArgumentValueError, match="call invoke_stateful first"):
        vm.get_outputs("add")
    for call in (
        lambda: vm.set_input("nobody", 1),
        lambda: vm.invoke_stateful("nobody"),
        lambda: vm.get_outputs("nobody"),
    ):
        with pytest.raises(errors.FunctionNotFoundError):
            call()
    with pytest.raises(errors.ArgumentTypeError, match="expected 2 arguments"):
        vm.set_input("add", 1)
    vm.set_input("add", 1, 2)
    vm.invoke_stateful("add")
    vm.set_input("add", 1, "two")
    with pytest.raises(TypeError):
        vm.invoke_stateful("add")
    with pytest.raises(errors.ArgumentValueError):  # the result before is not taken for the result of this call
        vm.get_outputs("add")
    vm.set_input("nothing")
    vm.invoke_stateful("nothing")
    assert vm.get_outputs("nothing") is None


# ---- instruments


def test_instrument_sees_every_call(vm: VirtualMachine) -> None:
    seen = []
    vm.set_instrument(lambda func, name, before, ret, *args: seen.append((callable(func), name, before, ret, args)))
    assert vm["twice"](3) == 6
    assert seen == [
        (True, "add", True, None, (3, 3)),
        (True, "t.vm.add", True, None, (3, 3)),
        (True, "t.vm.add", False, 6, (3, 3)),
        (True, "add", False, 6, (3, 3)),
    ]
    vm.set_instrument(None)
    assert vm["twice"](3) == 6 and len(seen) == 4


def test_instrument_gets_the_callee(vm: VirtualMachine) -> None:
    callees = {}
    vm.set_instrument(lambda func, name, *rest: callees.update({name: func}))
    vm["twice"](3)
    vm["nested"](3)
    vm.set_instrument(None)
    assert callees["add"] is vm["add"] and callees["add"](1, 1) == 2
    assert callees["t.vm.add"](4, 5) == 9
    assert callees["vm.builtin.make_tuple"](1, 2) == (1, 2)


def test_instrument_can_skip(vm: VirtualMachine) -> None:
    vm.set_instrument(
        lambda func, name, before, *rest: VMInstrumentReturnKind.SKIP_RUN if name == "t.vm.fail" else None
    )
    assert vm["outer"](1) is None
    vm.set_instrument(lambda func, name, before, *rest: VMInstrumentReturnKind.NO_OP)
    with pytest.raises(KeyError):
        vm["outer"](1)


@pytest.mark.parametrize("when", [True, False])
def test_exception_in_an_instrument_ends_the_run(vm: VirtualMachine, when: bool) -> None:
    def instrument(func: Any, name: str, before: bool, ret: Any, *args: Any) -> None:
        if before is when and name == "t.vm.add":
            raise RuntimeError("enough")

    vm.set_instrument(instrument)
    with pytest.raises(RuntimeError, match="enough") as caught:
        vm["twice"](3)
    assert [note.split(",")[0] for note in caught.value.__notes__] == ["in @add", "in @twice"]
    vm.set_instrument(None)
    assert vm["twice"](3) == 6


def test_an_instrument_does_not_keep_its_machine(vm: VirtualMachine) -> None:
    watched = VirtualMachine(assemble(PROGRAM))
    watched.set_instrument(lambda *args: None)
    watched["twice"](1)
    gone = weakref.ref(watched)
    del watched
    gc.collect()
    assert gone() is None


# ---- timing


def test_time_evaluator(vm: VirtualMachine) -> None:
    calls = []
    pyvm.register_func("t.vm.add", lambda a, b: calls.append(1), override=True)
    result = VirtualMachine(assemble(PROGRAM)).time_evaluator("add", number=3, repeat=4)(1, 2)
    assert len(calls) == 1 + 3 * 4 and len(result.results) == 4
    assert result.min <= result.median <= result.max and result.min <= result.mean <= result.max and result.std >= 0
    assert repr(result).startswith("TimeResult(4 measurements: mean ") and "median" in str(result)
    slow = vm.time_evaluator("add", number=1, repeat=1, min_repeat_ms=20)
    begin = time.perf_counter()
    slow(1, 2)
    assert time.perf_counter() - begin >= 0.02
    for number, repeat in ((0, 1), (1, 0)):
        with pytest.raises(errors.ArgumentValueError, match="must be at least 1"):
            vm.time_evaluator("add", number, repeat)(1, 2)
    with pytest.raises(errors.FunctionNotFoundError):
        vm.time_evaluator("nobody")


# ---- devices, memory


def test_devices() -> None:
    executable = assemble(PROGRAM)
    for device in (None, pyvm.cpu(), [pyvm.cpu()], [pyvm.cpu(), pyvm.cpu()]):
        assert VirtualMachine(executable, device)["add"](1, 2) == 3
    for bad, text in (
        (pyvm.Device(2, 0), r"cuda\(0\)"),
        ([pyvm.cpu(), pyvm.Device(7, 1)], r"vulkan\(1\)"),
        (pyvm.cpu(1), r"cpu\(1\)"),
    ):
        with pytest.raises(ValueError, match=text):
            VirtualMachine(executable, bad)
    for other in ("cpu", ["cuda"]):
        with pytest.raises(TypeError, match="expected a Device"):
            VirtualMachine(executable, other)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'lavish'"):
        VirtualMachine(executable, memory_cfg="lavish")
    with pytest.raises(ValueError, match="gil"):
        VirtualMachine(executable, gil="sometimes")


# ---- errors


def test_a_callee_s_exception_arrives_unchanged_with_the_full_trace(vm: VirtualMachine) -> None:
    with pytest.raises(KeyError) as caught:
        vm["outer"]("key")
    error = caught.value
    assert type(error) is KeyError and error.args == ("key",)
    assert [note.split(":")[0] for note in error.__notes__] == ["in @failing, pc 7", "in @outer, pc 9"]
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert frames[-1] == "fail" and frames[0] == "test_a_callee_s_exception_arrives_unchanged_with_the_full_trace"


def test_registers_are_released_after_a_failure(vm: VirtualMachine) -> None:
    class Marked(np.ndarray):
        pass

    array = np.zeros(4).view(Marked)
    gone = weakref.ref(array)
    with pytest.raises(KeyError):
        vm["outer"]((array, (array,)))
    del array
    gc.collect()
    assert gone() is None
    assert vm["add"](1, 2) == 3


CHECKED = """
func @model(%0 x, %1 n) regs=4
  call @vm.builtin.check_tensor_info (%0, 2, dtype(float32), "ErrorContext(fn=model, loc=param[0], param=x) ")
  call @vm.builtin.alloc_shape_heap (%vm, 1) -> %2
  call @vm.builtin.match_shape (%0, %2, 2, 1, 0, 0, 4, "ErrorContext(fn=model, loc=param[0], param=x) ")
  call @vm.builtin.check_prim_value_info (%1, dtype(int64), "ErrorContext(fn=model, loc=param[1], param=n) ")
  ret %0
"""


@pytest.mark.parametrize(
    ("x", "n", "kind", "parts"),
    [
        (np.zeros((2, 4), np.int8), 1, errors.DTypeMismatchError, ["param=x", "float32", "int8"]),
        (np.zeros(4, np.float32), 1, errors.ShapeMismatchError, ["param=x", "ndim 2", "get 1"]),
        (np.zeros((2, 5), np.float32), 1, errors.ShapeMismatchError, ["param=x", "shape[1]", "expected 4", "got 5"]),
        (3, 1, errors.ArgumentTypeError, ["param=x", "expect a Tensor", "get int"]),
        (np.zeros((2, 4), np.float32), 0.5, errors.ArgumentTypeError, ["param=n", "int64", "get float"]),
    ],
)
def test_mismatch_messages(x: Any, n: Any, kind: type[Exception], parts: list[str]) -> None:
    vm = VirtualMachine(assemble(CHECKED))
    with pytest.raises(kind) as caught:
        vm["model"](x, n)
    assert all(part in str(caught.value) for part in ["fn=model", *parts]), str(caught.value)
    vm["model"](np.zeros((2, 4), np.float32), 1)


# ---- deadlines


def late_ms(run: Callable[[], Any], seconds: float) -> float:
    """How late after the deadline `run` raised."""
    begin = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded), pyvm.deadline(seconds):
        run()
    return (time.monotonic() - begin - seconds) * 1e3


def soonest(run: Callable[[], Any]) -> float:
    """The best of a few tries: other processes may take the processor for longer than what is measured."""
    return min(late_ms(run, 0.03) for _ in range(5))


def test_deadline_in_a_runaway_loop() -> None:
    vm = VirtualMachine(assemble("func @main() regs=1\nagain:\n  call @vm.builtin.copy (0) -> %0\n  goto again"))
    assert soonest(vm["main"]) < 5


def test_deadline_in_deep_recursion() -> None:
    vm = VirtualMachine(
        assemble(
            "func @main(%0) regs=2\nagain:\n  call @deep (0) -> %1\n  goto again\n"
            "func @deep(%0) regs=2\n  call @vm.builtin.copy (1) -> %1\n  if %1, stop\n  call @leaf (%0) -> %1\n"
            "  call @leaf (%0) -> %1\n  ret %1\nstop:\n  ret %0\nfunc @leaf(%0) regs=1\n  ret %0"
        )
    )
    assert soonest(lambda: vm["main"](0)) < 5


def test_deadline_in_straight_line_programs() -> None:
    """Without a loop: between kernels, and between callbacks that take a millisecond each."""
    pyvm.register_func("t.vm.nap", lambda: time.sleep(0.001), override=True)
    try:
        naps = VirtualMachine(assemble("func @main() regs=1\n" + "  call @t.vm.nap ()\n" * 400 + "  ret %void"))
        assert soonest(naps["main"]) < 5
        kernels = "  call @kernel.exp (%0, %1)\n" * 3000
        vm = VirtualMachine(assemble(f"func @main(%0, %1) regs=2\n{kernels}  ret %void"))
        x, out = np.zeros(400_000, np.float32), np.zeros(400_000, np.float32)
        assert soonest(lambda: vm["main"](x, out)) < 5
        vm["main"](x[:4], out[:4])
    finally:
        pyvm.remove_global_func("t.vm.nap")


def test_recursion_limit_names_itself(vm: VirtualMachine) -> None:
    with pytest.raises(errors.RecursionLimitError, match="deeper than 10000"):
        vm["recurse"](1 << 40)
    assert vm["recurse"](5) == 0
