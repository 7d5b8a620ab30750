"""Many threads call one virtual machine, bit for bit as one thread does, while others change everything around it."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.executable import VMExecutable
from pyvm.vm import VirtualMachine
from tests.concurrency.harness import in_threads

PROGRAM = """
func @layer(%0 x, %1 w) regs=6
  call @vm.builtin.alloc_storage (%vm, shape(4096), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(8, 128), dtype(float32)) -> %3
  call @kernel.matmul (%0, %1, %3)
  call @vm.builtin.alloc_tensor (%2, 0, shape(8, 128), dtype(float32)) -> %4
  call @kernel.tanh (%3, %4)
  ret %4
func @deep(%0 x, %1 w, %2 n) regs=6
again:
  if %2, done
  call @layer (%0, %1) -> %0
  call @stress.minus_one (%2) -> %2
  goto again
done:
  ret %0
func @curry(%0 w) regs=2
  call @vm.builtin.make_closure (@layer, %0) -> %1
  ret %1
func @pair(%0 x, %1 w) regs=4
  call @layer (%0, %1) -> %2
  call @vm.builtin.make_tuple (%0, %2, shape(1, 2)) -> %3
  ret %3
func @fails(%0 x) regs=2
  call @stress.fail (%0) -> %1
  ret %1
func @mismatch(%0 x, %1 w) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(4096), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(8, 64), dtype(float32)) -> %3
  call @kernel.matmul (%0, %1, %3)
  ret %3
func @reenter(%0 x, %1 w) regs=3
  call @stress.reenter (%0, %1) -> %2
  ret %2
"""
KINDS = ("layer", "deep", "closure", "pair", "reenter", "fails", "mismatch")


class StressError(Exception):
    """Raised by a callback on purpose."""


def _fail(x: Any) -> None:
    raise StressError("on purpose")


@contextmanager
def callbacks() -> Iterator[None]:
    """The functions that PROGRAM calls, in the registry; many more switches of threads than usual."""
    interval = sys.getswitchinterval()
    pyvm.register_func("stress.minus_one", lambda n: n - 1, override=True)
    pyvm.register_func("stress.fail", _fail, override=True)
    pyvm.register_func("stress.reenter", lambda x, w: x, override=True)
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        for name in ("stress.minus_one", "stress.fail", "stress.reenter"):
            pyvm.remove_global_func(name)


class Caller:
    """One kind of call after another, each compared with what a single thread computed."""

    def __init__(self, vm: VirtualMachine, index: int) -> None:
        rng = np.random.default_rng(index)
        self.x = rng.standard_normal((8, 128)).astype(np.float32)
        self.w = (rng.standard_normal((128, 128)) / 8).astype(np.float32)
        self.vm = vm
        self.closure = vm["curry"](self.w)
        self.expected: dict[str, bytes] = {}
        self.kept: list[tuple[Any, bytes]] = []

    def call(self, kind: str, n: int = 3) -> bytes:
        if kind == "deep":
            return self._bytes(self.vm["deep"](self.x, self.w, n))
        if kind == "closure":
            return self._bytes(self.closure(self.x))
        if kind == "pair":
            x, y, shape = self.vm["pair"](self.x, self.w)
            assert x.numpy().tobytes() == self.x.tobytes() and tuple(shape) == (1, 2)
            return self._bytes(y)
        if kind == "fails":
            try:
                self.vm["fails"](self.x)
            except StressError as error:
                return str(error).encode()
        if kind == "mismatch":
            try:
                self.vm["mismatch"](self.x, self.w)
            except errors.ShapeMismatchError as error:
                return str(error).partition("\n")[0].encode()
        return self._bytes(self.vm[kind](self.x, self.w))

    def _bytes(self, tensor: Any) -> bytes:
        value = bytes(tensor.numpy().tobytes())
        self.kept.append((tensor, value))
        if len(self.kept) > 50:  # nobody else wrote into what was returned a while ago
            for old, before in self.kept[::7]:
                assert old.numpy().tobytes() == before
            self.kept.clear()
        return value


def stress(n_threads: int, n_calls: int, seed: int = 0) -> dict[str, int]:
    """`n_threads` threads make `n_calls` calls each beside nine disturbing ones; how often each thing happened.

    Raises the first failure of any thread; AssertionError if a result differs from the single-threaded one.
    """
    with callbacks():
        executable = assemble(PROGRAM)
        data = executable.to_bytes()
        pyvm.register_func("stress.reenter", lambda x, w: vm["layer"](x, w), override=True)
        vm = VirtualMachine(executable)
        callers = [Caller(vm, seed + index) for index in range(n_threads)]
        for caller in callers:
            caller.expected = {kind: caller.call(kind) for kind in KINDS}

        def work(index: int) -> None:
            caller = callers[index]
            for turn in range(n_calls):
                kind = KINDS[(turn + index) % len(KINDS)]
                assert caller.call(kind) == caller.expected[kind], kind

        counts = in_threads(work, *_disturbers(vm, data, callers[0]), n=n_threads, pause_s=0.002)
        return {"calls": n_threads * n_calls, **counts}


def _disturbers(vm: VirtualMachine, data: bytes, caller: Caller) -> tuple[Callable[[], None], ...]:
    serial = itertools.count()
    x, w = np.ones((8, 128), np.float32), np.eye(128, dtype=np.float32)
    expected = np.tanh(x)

    def check(y: Any) -> None:
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6)

    def registry() -> None:
        name = f"stress.function{next(serial)}"
        pyvm.register_func(name, lambda *args: None)
        pyvm.get_global_func(name)
        pyvm.list_global_func_names()
        pyvm.remove_global_func(name)

    def instrument() -> None:
        seen: list[str] = []
        vm.set_instrument(lambda func, name, before, ret, *args: seen.append(name))
        vm["layer"](x, w)
        vm.set_instrument(None)

    def profile() -> None:
        assert vm.profile("layer", x, w).records

    def save() -> None:
        name = f"saved{next(serial)}"
        vm.save_function("layer", name, x, w)
        check(vm[name]())

    def load() -> None:
        other = VirtualMachine(VMExecutable.from_bytes(data))
        check(other["layer"](x, w))

    def outlive() -> None:
        closure = VirtualMachine(VMExecutable.from_bytes(data))["curry"](w)
        gc.collect()
        y = closure(x)
        view = y.numpy()
        del closure, y
        np.testing.assert_allclose(view, expected, rtol=1e-6)

    def threads() -> None:
        pyvm.set_num_threads(1 + next(serial) % 3)

    def trim() -> None:
        vm.trim()

    def report() -> None:
        vm.memory_report()

    return (registry, instrument, profile, save, load, outlive, threads, trim, report)
