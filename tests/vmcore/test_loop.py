"""The dispatch loop against the reference interpreter, and what only it promises: depth, size, errors, interrupts."""

from __future__ import annotations

import operator
import random
import signal
import threading
import time

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.exec_builder import ExecBuilder
from pyvm.vm import VirtualMachine

FUNCTIONS = {
    "t.add": operator.add,
    "t.sub": operator.sub,
    "t.less": operator.lt,
    "t.identity": lambda x: x,
    "t.fail": lambda *args: 1 / 0,
}


@pytest.fixture(scope="module", autouse=True)
def registered():
    for name, function in FUNCTIONS.items():
        pyvm.register_func(name, function, override=True)
    yield
    for name in FUNCTIONS:
        pyvm.remove_global_func(name)


LOOP = """
func @main(%0) regs=3
  call @vm.builtin.copy (0) -> %1
again:
  call @t.less (%1, %0) -> %2
  if %2, done
  call @t.add (%1, 1) -> %1
  goto again
done:
  ret %1
func @forever() regs=1
again:
  call @vm.builtin.copy (0) -> %0
  goto again
"""


def test_a_long_loop_runs_in_constant_depth():
    assert VirtualMachine(assemble(LOOP))["main"](200_000) == 200_000


def test_a_million_backward_jumps():
    # Jumps back and forth: 1,000,000 times through a goto, counted down by a native builtin on the shape heap.
    program = """
    func @main(%0) regs=4
      call @vm.builtin.alloc_shape_heap (%vm, 1) -> %1
      call @pyvm.builtin.store_dim (%1, 0, %0)
    again:
      call @pyvm.builtin.eval_shape_expr (%1, 0, shape(1, 0, 0, 1, 3, 0))
      call @vm.builtin.make_prim_value (%1, 1, 0) -> %2
      if %2, done
      goto again
    done:
      ret %2
    """
    assert VirtualMachine(assemble(program))["main"](1_000_000) == 0


def nested(depth: int) -> str:
    return f"""
    func @main(%0) regs=3
      call @t.less (%0, {depth}) -> %1
      if %1, done
      call @t.add (%0, 1) -> %2
      call @main (%2) -> %2
      ret %2
    done:
      ret %0
    """


def test_ten_thousand_nested_calls_and_not_more():
    assert VirtualMachine(assemble(nested(9_999)))["main"](0) == 9_999
    vm = VirtualMachine(assemble(nested(20_000)))
    with pytest.raises(errors.RecursionLimitError, match="10000") as caught:
        vm["main"](0)
    assert any("more frames" in note for note in caught.value.__notes__)
    assert isinstance(caught.value, RecursionError)
    with pytest.raises(errors.RecursionLimitError):
        vm["main"](0)
    assert vm["main"](19_990) == 20_000


def test_a_thousand_arguments_and_five_thousand_registers():
    n = 5000
    b = ExecBuilder()
    with b.function("main", num_inputs=1):
        for i in range(1, n):
            b.emit_call("vm.builtin.copy", [b.r(i - 1)], dst=b.r(i))
        b.emit_call("vm.builtin.make_tuple", [b.r(i) for i in range(1000)], dst=b.r(n))
        b.emit_ret(b.r(n))
    vm = VirtualMachine(b.get())
    for _ in range(3):
        assert vm["main"]("x") == ("x",) * 1000


def test_a_hundred_thousand_instructions():
    b = ExecBuilder()
    with b.function("main", num_inputs=1):
        for _ in range(50_000):
            b.emit_call("vm.builtin.copy", [b.r(0)], dst=b.r(1))
            b.emit_call("vm.builtin.copy", [b.r(1)], dst=b.r(0))
        b.emit_ret(b.r(0))
    assert VirtualMachine(b.get())["main"]((1, "a")) == (1, "a")


def test_many_blocks_with_many_registers_are_cleared_at_every_ret():
    rng = random.Random(3)
    b = ExecBuilder()
    with b.function("main", num_inputs=2):
        for i in range(2, 300):
            b.emit_call("vm.builtin.copy", [b.r(0)], dst=b.r(i))
        for _ in range(200):
            skip = b.label()
            b.emit_if(b.r(1), skip)
            b.emit_call("vm.builtin.null_value", [], dst=b.r(rng.randrange(2, 300)))
            b.emit_ret(b.r(rng.randrange(2, 300)))
            b.place(skip)
            b.emit_call("vm.builtin.copy", [b.r(0)], dst=b.r(rng.randrange(2, 300)))
        b.emit_ret(b.r(2))
    vm = VirtualMachine(b.get())
    array = np.zeros(3)
    for flag in (0, 1, 0, 1):
        vm["main"](array, flag)
    vm.trim()
    del vm
    import sys

    assert sys.getrefcount(array) == 2


def test_deeply_nested_tuples_and_closures_are_freed_without_recursion():
    program = """
    func @tuples(%0) regs=4
      call @vm.builtin.copy (0) -> %1
      call @vm.builtin.copy (0) -> %2
    again:
      call @t.less (%2, %0) -> %3
      if %3, done
      call @vm.builtin.make_tuple (%1) -> %1
      call @t.add (%2, 1) -> %2
      goto again
    done:
      ret %2
    func @closures(%0) regs=4
      call @vm.builtin.copy (0) -> %1
      call @vm.builtin.copy (0) -> %2
    again:
      call @t.less (%2, %0) -> %3
      if %3, done
      call @vm.builtin.make_closure (@tuples, %1) -> %1
      call @t.add (%2, 1) -> %2
      goto again
    done:
      ret %2
    """
    vm = VirtualMachine(assemble(program))
    assert vm["tuples"](200_000) == 200_000 and vm["closures"](200_000) == 200_000


ERRORS = """
func @outer(%0) regs=2
  call @middle (%0) -> %1  ! "layer (Middle-1)"
  ret %1
func @middle(%0) regs=2
  call @t.identity (%0) -> %1
  call @inner (%1) -> %1
  ret %1
func @inner(%0) regs=2
  call @vm.builtin.tuple_getitem (%0, 3) -> %1
  call @t.fail (%1) -> %1
  ret %1
"""


def test_the_traceback_names_every_frame():
    vm = VirtualMachine(assemble(ERRORS))
    with pytest.raises(errors.IndexRangeError, match=r"index 3 is outside a tuple of 2") as caught:
        vm["outer"]((1, 2))
    notes = caught.value.__notes__
    assert [note.split(":")[0] for note in notes] == ["in @inner, pc 5", "in @middle, pc 3", "in @outer, pc 0"]
    assert "tuple_getitem (%0, 3) -> %1" in notes[0] and notes[2].endswith("[layer (Middle-1)]")
    assert caught.value.vm_frames == [("outer", 0), ("middle", 3), ("inner", 5)]
    with pytest.raises(ZeroDivisionError) as caught:
        vm["outer"]((1, 2, 3, 4))
    assert "in @inner, pc 6" in caught.value.__notes__[0]
    with pytest.raises(errors.IndexRangeError):
        vm["outer"]((1, 2))


IF_PROGRAM = """
func @main(%0) regs=1
  if %0, out
  ret %0
out:
  ret %void
"""


@pytest.mark.parametrize(
    ("program", "args", "error", "text"),
    [
        (IF_PROGRAM, ["x"], TypeError, "got string"),
        (IF_PROGRAM, [None], TypeError, "got None"),
        ("func @main(%0) regs=2\n  call @vm.builtin.tuple_getitem (%0, 0) -> %1\n  ret %1", [3], TypeError, "got int"),
        (
            "func @main(%0) regs=2\n  call @vm.builtin.alloc_tensor (%0, 0, shape(2), dtype(float32)) -> %1\n  ret %1",
            [3],
            TypeError,
            "expected Storage, got int",
        ),
        (
            "func @main() regs=2\n  call @vm.builtin.alloc_storage (%vm, shape(4), 0, dtype(uint8)) -> %0\n"
            "  call @vm.builtin.alloc_tensor (%0, 0, shape(2), dtype(float32)) -> %1\n  ret %1",
            [],
            errors.InternalError,
            "allocate 8 at offset 0 in region that is 4",
        ),
        (
            "func @main() regs=1\n  call @vm.builtin.alloc_storage (%vm, shape(1152921504606846976), 0, dtype(float32))"
            " -> %0\n  ret %0",
            [],
            MemoryError,
            "no memory",
        ),
        (
            "func @main(%0) regs=2\n  call @vm.builtin.invoke_closure (%vm, %0, 1) -> %1\n  ret %1",
            [3],
            TypeError,
            "expected a function or closure, got int",
        ),
        ("func @main(%0) regs=1\n  call @vm.builtin.copy (%0, %0) -> %0\n  ret %0", [3], TypeError, "expected 1"),
        ("func @main(%0) regs=1\n  call @kernel.relu (%0, %0)\n  ret %0", [3], TypeError, "relu"),
    ],
)
def test_wrong_values_are_refused_where_they_are_used(program, args, error, text):
    vm = VirtualMachine(assemble(program))
    for _ in range(2):
        with pytest.raises(error, match=text) as caught:
            vm["main"](*args)
        assert "in @main, pc" in caught.value.__notes__[0]


def test_closures_capture_trailing_arguments():
    program = """
    func @show(%0, %1, %2, %3) regs=5
      call @vm.builtin.make_tuple (%0, %1, %2, %3) -> %4
      ret %4
    func @make(%0, %1) regs=4
      call @vm.builtin.make_closure (@show, %0) -> %2
      call @vm.builtin.make_closure (%2, %1, "b") -> %3
      ret %3
    func @main(%0, %1, %2) regs=5
      call @make (%0, %1) -> %3
      call @vm.builtin.invoke_closure (%vm, %3, %2) -> %4
      ret %4
    func @apply(%0, %1) regs=3
      call @vm.builtin.invoke_closure (%vm, %0, %1) -> %2
      ret %2
    func @through(%0) regs=3
      call @vm.builtin.make_closure (@show, 1, 2, 3) -> %1
      call @apply (%1, %0) -> %2
      ret %2
    func @direct(%0) regs=2
      call @apply (@identity, %0) -> %1
      ret %1
    func @identity(%0) regs=1
      ret %0
    """
    vm = VirtualMachine(assemble(program))
    assert vm["main"](1, 2, 3) == (3, 2, "b", 1)
    assert vm["through"]("x") == ("x", 1, 2, 3)
    assert vm["direct"](5) == 5
    closure = vm["make"]("s1", "s2")
    assert vm.invoke_closure(closure, "a") == ("a", "s2", "b", "s1") == closure("a")
    assert vm["apply"](closure, 7)[0] == 7 and vm["apply"](lambda x: x + 1, 7) == 8
    other = VirtualMachine(assemble(program))
    assert other["apply"](closure, 9) == (9, "s2", "b", "s1"), "a closure of another virtual machine"
    del vm, other
    assert closure("late") == ("late", "s2", "b", "s1"), "a closure outlives its virtual machine"
    with pytest.raises(TypeError, match="takes 4 arguments, got 2 and 3 captured"):
        closure(1, 2)


def test_reentrant_calls_from_callbacks():
    program = "func @main(%0) regs=2\n  call @t.callback (%0) -> %1\n  ret %1"
    pyvm.register_func("t.callback", lambda n: vm["main"](n - 1) + 1 if n else 0, override=True)
    vm = VirtualMachine(assemble(program))
    assert vm["main"](50) == 50
    with pytest.raises(RecursionError):
        vm["main"](100_000)
    assert vm["main"](5) == 5


def test_a_deadline_stops_a_runaway_loop():
    vm = VirtualMachine(assemble(LOOP))
    begin = time.perf_counter()
    with pytest.raises(errors.DeadlineExceeded), pyvm.deadline(0.05):
        vm["forever"]()
    assert time.perf_counter() - begin < 5.0
    with pytest.raises(TimeoutError), pyvm.deadline(60), pyvm.deadline(0):
        vm["main"](3)
    assert vm["main"](3) == 3
    with pytest.raises(ValueError):
        pyvm.deadline(-1)


def test_ctrl_c_interrupts_a_runaway_loop():
    vm = VirtualMachine(assemble(LOOP))
    timer = threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        vm["forever"]()
    timer.join()
    assert vm["main"](3) == 3
