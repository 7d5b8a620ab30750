"""python -m tests.soak --calls N: calls over every kind of value and every path of an error keep resident memory flat.

Each round makes each of the calls below once. Memory is read after a warm-up and at the end; what grew is reported as
bytes per call. Also counted: Python objects, and the allocator's live bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import pyvm
from pyvm.asm import assemble
from pyvm.executable import VMExecutable
from pyvm.vm import VirtualMachine, deadline
from vmcore.types import DataType, Shape, cpu

PROGRAM = """
func @same(%0) regs=2
  call @vm.builtin.copy (%0) -> %1
  ret %1
func @through_python(%0) regs=2
  call @soak.identity (%0) -> %1
  ret %1
func @tuples(%0) regs=4
  call @vm.builtin.make_tuple (%0, 1, 2.5, "text", shape(2, 3), dtype(float32), @same, c[0]) -> %1
  call @vm.builtin.make_tuple (%1, %1, %0) -> %2
  call @vm.builtin.tuple_getitem (%2, 0) -> %3
  ret %2
func @closures(%0) regs=4
  call @vm.builtin.make_closure (@second, %0) -> %1
  call @vm.builtin.make_closure (%1, %0) -> %2
  call @vm.builtin.invoke_closure (%vm, %2) -> %3
  call @vm.builtin.call_tir_dyn (%1, %0, shape()) -> %3
  ret %1
func @second(%0 a, %1 b) regs=3
  ret %1
func @tensors(%0 x) regs=8
  call @vm.builtin.alloc_storage (%vm, shape(256), 0, dtype(uint8)) -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(4, 4), dtype(float32)) -> %2
  call @vm.builtin.alloc_tensor (%1, 64, shape(2, 2, 2, 2, 1, 1, 1), dtype(float32)) -> %3
  call @kernel.add (%0, %0, %2)
  call @vm.builtin.shape_of (%2) -> %4
  call @vm.builtin.reshape (%2, shape(16)) -> %5
  call @pyvm.builtin.shape_to_tensor (%4) -> %6
  call @vm.builtin.alloc_shape_heap (%vm, 4) -> %7
  call @vm.builtin.match_shape (%2, %7, 2, 1, 0, 1, 1, "x: ")
  call @vm.builtin.make_shape (%7, 2, 1, 0, 1, 1) -> %7
  call @vm.builtin.make_tuple (%2, %3, %4, %5, %6, %7) -> %7
  ret %7
func @sized(%0 x) regs=5
  call @vm.builtin.shape_of (%0) -> %1
  call @vm.builtin.alloc_storage (%vm, %1, 0, dtype(float32)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, %1, dtype(float32)) -> %3
  call @kernel.relu (%0, %3)
  ret %3
func @kernel_error(%0 x) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(256), 0, dtype(uint8)) -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(5), dtype(float32)) -> %2
  call @kernel.add (%0, %0, %2)
  ret %2
func @builtin_error(%0) regs=3
  call @vm.builtin.make_tuple (%0, %0) -> %1
  call @vm.builtin.tuple_getitem (%1, 7) -> %2
  ret %2
func @nested_error(%0) regs=3
  call @vm.builtin.make_closure (@builtin_error) -> %1
  call @vm.builtin.call_tir_dyn (%1, %0, shape()) -> %2
  ret %2
func @python_error(%0) regs=3
  call @vm.builtin.make_tuple (%0, %0) -> %1
  call @soak.fail (%1) -> %2
  ret %2
func @alloc_error(%0) regs=2
  call @vm.builtin.alloc_storage (%vm, shape(70368744177664), 0, dtype(uint8)) -> %1
  ret %1
func @bad_return(%0) regs=2
  call @soak.nonsense (%0) -> %1
  ret %1
func @vm_value(%0) regs=2
  call @returns (%vm) -> %1
  ret %1
func @returns(%0) regs=1
  ret %0
func @deep(%0) regs=2
  call @deep (%0) -> %1
  ret %1
func @forever(%0) regs=2
again:
  call @vm.builtin.copy (%0) -> %1
  goto again
c[0] = tensor float32 (2) [1, 2]
"""

Work = Callable[[], Any]


class _Thing:
    """A Python object without a native face."""


class _SoakError(Exception):
    pass


def _fail(*args: Any) -> None:
    raise _SoakError("on purpose")


@contextmanager
def registered() -> Iterator[None]:
    """The callbacks of the program."""
    functions: dict[str, Any] = {
        "soak.identity": lambda x: x,
        "soak.fail": _fail,
        "soak.nonsense": lambda x: np.array(["text"]),
    }
    for name, function in functions.items():
        pyvm.register_func(name, function, override=True)
    yield
    for name in functions:
        pyvm.remove_global_func(name)


def works(vm: VirtualMachine) -> dict[str, tuple[Work, tuple[type[BaseException], ...]]]:
    """Name -> what is called, and the exceptions that it must end in."""
    x = np.ones((4, 4), np.float32)
    t = pyvm.tensor(x)
    values = {
        "none": None, "int": 7, "bool": True, "float": 2.5, "str": "seven", "long str": "s" * 100,
        "dtype": DataType("float32"), "device": cpu(), "shape": Shape((2, 3)), "tuple": (1, (2.5, "x")),
        "list": [x, t], "array": x, "strided": x[::2, ::2], "int array": np.arange(4), "scalar": np.float32(2),
        "tensor": t, "object": _Thing(), "callable": len, "function": pyvm.get_global_func("kernel.add"),
        "closure": vm["closures"](1), "big-endian": np.arange(3, dtype=">f4"),
    }  # fmt: skip
    found: dict[str, tuple[Work, tuple[type[BaseException], ...]]] = {}
    for name, value in values.items():
        for function in ("same", "through_python", "tuples", "closures"):
            found[f"{function}({name})"] = (lambda f=vm[function], v=value: f(v), ())
    for function in ("tensors", "sized"):
        found[function] = (lambda f=vm[function]: f(x), ())
    lengths = iter(range(10**12))
    found["sized, varying"] = (lambda f=vm["sized"]: f(np.ones(1 + next(lengths) % 97, np.float32)), ())
    found["results as arrays"] = (lambda f=vm["tensors"]: [np.asarray(v) for v in f(x)], ())
    found["dlpack"] = (lambda f=vm["sized"]: np.from_dlpack(f(x)), ())
    found["buffer"] = (lambda f=vm["sized"]: memoryview(f(x)).tobytes(), ())
    found["keywords"] = (lambda f=vm["second"]: f(a=1, b=x), ())
    errors = pyvm.errors
    for function, kind in {
        "kernel_error": errors.ShapeMismatchError, "builtin_error": errors.IndexRangeError,
        "nested_error": errors.IndexRangeError, "python_error": _SoakError, "alloc_error": errors.AllocationError,
        "bad_return": TypeError, "vm_value": TypeError,
    }.items():  # fmt: skip
        found[function] = (lambda f=vm[function]: f(x), (kind,))
    found["wrong count"] = (lambda f=vm["second"]: f(x), (errors.ArgumentTypeError,))
    found["wrong keyword"] = (lambda f=vm["second"]: f(x, c=1), (errors.ArgumentTypeError,))
    found["bad argument"] = (lambda f=vm["second"]: f(x, np.array(["text"])), (TypeError,))
    endless = _endless()
    found["self-containing list"] = (lambda f=vm["same"]: f(endless), (RecursionError,))
    return found


def _endless() -> list[Any]:
    one: list[Any] = []
    one.append(one)
    return one


def slow_works(vm: VirtualMachine) -> dict[str, tuple[Work, tuple[type[BaseException], ...]]]:
    """What takes longer, made once in a while."""
    data = vm.executable.to_bytes()
    errors = pyvm.errors

    def expire() -> None:
        with deadline(0.001):
            vm["forever"](1)

    def hooks() -> None:
        vm.set_instrument(lambda *call: None)
        vm["tensors"](np.ones((4, 4), np.float32))
        vm.set_instrument(None)

    def machine() -> None:
        VirtualMachine(VMExecutable.from_bytes(data))["tensors"](np.ones((4, 4), np.float32))

    return {
        "deep": (lambda: vm["deep"](1), (errors.RecursionLimitError,)),
        "deadline": (expire, (errors.DeadlineExceeded,)),
        "hooks": (hooks, ()),
        "profile": (lambda: vm.profile("tensors", np.ones((4, 4), np.float32)), ()),
        "machine": (machine, ()),
        "trim": (vm.trim, ()),
    }


def call(work: Work, expected: tuple[type[BaseException], ...]) -> None:
    """Makes one call, which must end as expected."""
    try:
        work()
    except expected:
        return
    assert not expected, f"expected {expected}"


def resident_bytes() -> int:
    """Resident memory after everything that can be given back was."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def soak(calls: int, report: Callable[[str], None] = print) -> tuple[int, int]:
    """Makes about `calls` calls; returns (bytes, Python objects) that memory grew by after the warm-up."""
    with registered():
        vm = VirtualMachine(assemble(PROGRAM))
        quick, slow = works(vm), slow_works(vm)
        rounds = max(20, calls // len(quick))
        warm = max(10, rounds // 5)
        base = objects = 0
        for turn in range(rounds):
            if turn == warm:
                vm.trim()
                base, objects = resident_bytes(), len(gc.get_objects())
            for work, expected in quick.values():
                call(work, expected)
            if turn % 100 == 0 or turn < 5:
                for work, expected in slow.values():
                    call(work, expected)
            if turn % 1000 == 999:
                report(f"{(turn + 1) * len(quick)} calls, {resident_bytes() >> 10} KB")
        vm.trim()
        grown = resident_bytes() - base
        more = len(gc.get_objects()) - objects
        report(f"{rounds * len(quick)} calls of {len(quick)} kinds: {grown >> 10} KB, {more} objects since the warm-up")
        del quick, slow, work, expected
        gc.collect()
        live = vm.memory_report()["live_bytes"]
        report(f"live bytes of the allocator: {live}")
        assert live == 0, live
    return grown, more


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--calls", type=int, default=1_000_000)
    grown_bytes, grown_objects = soak(parser.parse_args().calls)
    sys.exit(grown_bytes > 4 << 20 or grown_objects > 500)
