"""Eight threads on one virtual machine give what one thread gives, whatever other threads do to it meanwhile."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.executable import VMExecutable, load_executable
from pyvm.vm import VirtualMachine
from tests.concurrency.harness import in_threads

# y = 2x + n * x elementwise, through calls, a loop, a closure, storage from the pool and a callback.
PROGRAM = """
func @main(%0 x, %1 n) regs=8
  call @vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(16), dtype(float32)) -> %3
  call @kernel.add (%0, %0, %3)
  call @vm.builtin.make_closure (@plus, %0) -> %4
again:
  if %1, done
  call @vm.builtin.invoke_closure (%vm, %4, %3) -> %3
  call @ct.minus_one (%1) -> %1
  goto again
done:
  ret %3
func @plus(%0 a, %1 b) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(16), dtype(float32)) -> %3
  call @kernel.add (%0, %1, %3)
  ret %3
func @fails(%0 x) regs=2
  call @ct.fail (%0) -> %1
  ret %1
func @reenter(%0 x, %1 n) regs=3
  call @ct.reenter (%0, %1) -> %2
  ret %2
func @keep(%0 x) regs=2
  call @vm.builtin.make_closure (@plus, %0) -> %1
  ret %1
func @mismatch(%0 x) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(64), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(4, 4), dtype(float32)) -> %3
  call @kernel.relu (%0, %3)
  ret %3
"""


class CallbackError(Exception):
    """Raised by a callback on purpose."""


def fail(x: Any) -> None:
    raise CallbackError(float(np.asarray(x)[0]))


@pytest.fixture(autouse=True)
def callbacks() -> Iterator[None]:
    pyvm.register_func("ct.minus_one", lambda n: n - 1, override=True)
    pyvm.register_func("ct.fail", fail, override=True)
    pyvm.register_func("ct.reenter", lambda x, n: x, override=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)  # many more switches than usual
    yield
    sys.setswitchinterval(interval)
    for name in ("ct.minus_one", "ct.fail", "ct.reenter"):
        pyvm.remove_global_func(name)


@pytest.mark.parametrize("gil", ["auto", "release", "hold"])
@pytest.mark.parametrize("memory_cfg", ["pooled", "naive"])
def test_small_program(gil: str, memory_cfg: str) -> None:
    vm = VirtualMachine(assemble(PROGRAM), memory_cfg=memory_cfg, gil=gil)
    main = vm["main"]

    def work(index: int) -> None:
        x = np.full(16, index + 1, np.float32)
        kept = []
        for turn in range(150):
            y = main(x, turn % 4)
            assert y.numpy().tolist() == [(2 + turn % 4) * (index + 1)] * 16
            kept.append((y, turn % 4))
        for y, n in kept:  # nobody else wrote into what was returned
            assert y.numpy().tolist() == [(2 + n) * (index + 1)] * 16

    in_threads(work, vm.trim)


def test_compiled_model() -> None:
    onnx = pytest.importorskip("onnx")
    from tests.digits_onnx import digits_onnx

    assert onnx
    vm = VirtualMachine(pyvm.compile(digits_onnx()))
    rng = np.random.default_rng(3)
    images = [rng.standard_normal((n, 1, 8, 8)).astype(np.float32) for n in (1, 2, 3, 5, 8, 1, 2, 3)]
    expected = [vm["main"](x).numpy().tobytes() for x in images]

    def work(index: int) -> None:
        for turn in range(40):
            k = (index + turn) % len(images)
            assert vm["main"](images[k]).numpy().tobytes() == expected[k]

    in_threads(work, vm.trim)


def test_errors_in_some_threads() -> None:
    vm = VirtualMachine(assemble(PROGRAM))

    def work(index: int) -> None:
        x = np.full(16, index, np.float32)
        for _ in range(100):
            if index % 4 == 1:
                with pytest.raises(CallbackError) as caught:
                    vm["fails"](x)
                assert caught.value.args == (float(index),)
            elif index % 4 == 2:
                with pytest.raises(errors.ShapeMismatchError, match="relu"):
                    vm["mismatch"](x)
            elif index % 4 == 3:
                with pytest.raises(errors.ArgumentTypeError):
                    vm["main"](x)
            else:
                assert vm["main"](x, 1).numpy()[0] == 3 * index

    in_threads(work)


def test_while_everything_else_happens() -> None:
    executable = assemble(PROGRAM)
    vm = VirtualMachine(executable)
    data = executable.to_bytes()
    serial = iter(range(10**9))
    seen = []

    def work(index: int) -> None:
        x = np.full(16, index + 1, np.float32)
        for turn in range(150):
            assert vm["main"](x, turn % 3).numpy().tolist() == [(2 + turn % 3) * (index + 1)] * 16

    def registry() -> None:
        name = f"ct.function{next(serial)}"
        pyvm.register_func(name, lambda *args: None)
        pyvm.get_global_func(name)
        pyvm.list_global_func_names()
        pyvm.remove_global_func(name)

    def instruments() -> None:
        vm.set_instrument(lambda func, name, before, ret, *args: seen.append(name))
        vm["main"](np.ones(16, np.float32), 1)
        vm.set_instrument(None)

    def profiles() -> None:
        vm.profile("main", np.ones(16, np.float32), 1)

    def saved() -> None:
        name = f"saved{next(serial)}"
        vm.save_function("main", name, np.ones(16, np.float32), 0)
        assert vm[name]().numpy()[0] == 2

    def executables() -> None:
        other = VirtualMachine(VMExecutable.from_bytes(data))
        assert other["main"](np.ones(16, np.float32), 1).numpy()[0] == 3
        load_executable(data)

    def memory() -> None:
        vm.trim()
        vm.memory_report()
        gc.collect()

    in_threads(work, registry, instruments, profiles, saved, executables, memory)
    assert "kernel.add" in seen
    assert vm._machine.set_instrument(None) is None
    assert vm._machine.set_profiler(None) is None


def test_instruments_are_dropped() -> None:
    class Instrument:
        def __call__(self, *args: Any) -> None:
            return None

    vm = VirtualMachine(assemble(PROGRAM))
    instruments = [Instrument() for _ in range(20)]
    references = [weakref.ref(one) for one in instruments]
    todo = iter(instruments * 20)

    def work(index: int) -> None:
        for _ in range(30):
            vm["main"](np.ones(16, np.float32), 2)

    def swap() -> None:
        vm.set_instrument(next(todo, None))

    in_threads(work, swap, swap)
    vm.set_instrument(None)
    instruments.clear()
    todo = iter(())
    gc.collect()
    assert not any(reference() for reference in references)


def test_reentrant_calls() -> None:
    vm = VirtualMachine(assemble(PROGRAM))
    pyvm.register_func("ct.reenter", lambda x, n: vm["reenter"](x, n - 1) if n else vm["main"](x, 2), override=True)
    vm = VirtualMachine(assemble(PROGRAM))

    def work(index: int) -> None:
        x = np.full(16, index + 1, np.float32)
        for _ in range(20):
            assert vm["reenter"](x, 5).numpy()[0] == 4 * (index + 1)

    in_threads(work, vm.trim)


def test_recursion_without_end_through_callbacks_and_native_code() -> None:
    pyvm.register_func("ct.reenter", lambda x, n: x, override=True)
    program = """
    func @direct(%0) regs=2
      call @ct.loop (%0) -> %1
      ret %1
    func @native(%0) regs=2
      call @vm.builtin.call_tir_dyn (@native, %0, shape()) -> %1
      ret %1
    """
    loop: dict[str, Any] = {}
    pyvm.register_func("ct.loop", lambda x: loop["f"](x), override=True)
    vm = VirtualMachine(assemble(program))
    loop["f"] = vm["direct"]

    def work(index: int) -> None:
        for name in ("direct", "native"):
            with pytest.raises(RecursionError):
                vm[name](np.ones(4, np.float32))

    work(0)
    pyvm.register_func("ct.loop", vm["direct"], override=True)  # no Python frame in between
    vm = VirtualMachine(assemble(program))
    pyvm.register_func("ct.loop", vm["direct"], override=True)
    in_threads(work, n=2)
    vm.set_instrument(lambda *args: None)
    work(0)
    pyvm.remove_global_func("ct.loop")


def test_closures_and_tensors_outlive_everything() -> None:
    vm = VirtualMachine(assemble(PROGRAM))
    x = np.full(16, 3, np.float32)
    closure, y = vm["keep"](x), vm["main"](x, 1)
    view = y.numpy()
    del vm, x, y
    gc.collect()
    in_threads(lambda index: [closure(np.ones(16, np.float32)).numpy() for _ in range(20)] and None)
    assert closure(np.ones(16, np.float32)).numpy()[0] == 4
    closure = None
    gc.collect()
    np.empty(16, np.float32).fill(0)
    assert view.tolist() == [9] * 16


def test_a_tensor_of_a_dead_machine_in_a_callback() -> None:
    """Its header is not taken for one of the machine that runs, though that may live at the same address."""
    small = """
    func @main(%0) regs=6
      call @ct.give () -> %1
      call @vm.builtin.null_value () -> %1
      call @vm.builtin.alloc_storage (%vm, shape(262144), 0, dtype(uint8)) -> %2
      call @vm.builtin.alloc_tensor (%2, 0, shape(65536), dtype(float32)) -> %3
      call @kernel.add (%0, %0, %3)
      ret %3
    """
    stock: list[Any] = []
    pyvm.register_func("ct.give", lambda: stock.pop() if stock else None, override=True)
    x = np.ones(65536, np.float32)
    for _ in range(20):
        first = VirtualMachine(assemble(PROGRAM))
        stock.append(first["main"](np.ones(16, np.float32), 0))
        del first
        second = VirtualMachine(assemble(small))
        for _ in range(3):
            assert second["main"](x).numpy()[-1] == 2
    pyvm.remove_global_func("ct.give")


def test_destructors_that_call_machines_leave_the_error_alone() -> None:
    vm = VirtualMachine(assemble(PROGRAM))

    class Bomb:
        def __del__(self) -> None:
            with pytest.raises(errors.ShapeMismatchError):
                vm["mismatch"](np.ones(16, np.float32))

    program = """
    func @main() regs=2
      call @ct.bomb () -> %0
      call @ct.fail2 (%0) -> %1
      ret %1
    func @native() regs=2
      call @ct.bomb () -> %0
      call @vm.builtin.tuple_getitem (%0, 1) -> %1
      ret %1
    """

    def fail2(bomb: Any) -> None:
        raise CallbackError("as it was")

    pyvm.register_func("ct.bomb", lambda: (Bomb(),), override=True)
    pyvm.register_func("ct.fail2", fail2, override=True)
    other = VirtualMachine(assemble(program))
    for _ in range(10):
        with pytest.raises(CallbackError, match="as it was"):
            other["main"]()
        with pytest.raises(errors.IndexRangeError, match="1 is outside a tuple of 1"):
            other["native"]()
    for name in ("ct.bomb", "ct.fail2"):
        pyvm.remove_global_func(name)


SMALL_STACK = """
import sys, threading
import numpy as np
import pyvm
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine

pyvm.register_func("call_back", lambda f, x: f(f, x))
pyvm.register_func("call_machine", lambda x: vm["machine"](x))
vm = VirtualMachine(assemble('''
func @itself(%0) regs=2
  call @itself (%0) -> %1
  ret %1
func @back(%0 function, %1 value) regs=3
  call @call_back (%0, %1) -> %2
  ret %2
func @closures(%0) regs=3
  call @vm.builtin.make_closure (@back) -> %1
  call @call_back (%1, %0) -> %2
  ret %2
func @machine(%0) regs=2
  call @call_machine (%0) -> %1
  ret %1
func @copy(%0) regs=2
  call @vm.builtin.copy (%0) -> %1
  ret %1
'''))
hooked = VirtualMachine(vm.executable)
hooked.set_instrument(lambda *_: None)

class Producer:
    def __dlpack_device__(self):
        return 1, 0
    def __dlpack__(self, **_):
        return vm["copy"](self)

def body():
    for machine, name, value in ((vm, "itself", 1), (hooked, "itself", 1), (vm, "closures", 1), (vm, "machine", 1),
                                 (vm, "copy", Producer())):
        for _ in range(3):
            try:
                machine[name](value)
            except RecursionError as error:
                kinds.append(type(error).__name__)
    x = np.ones((64, 64), np.float32)
    assert vm["copy"](x).shape == (64, 64)  # usable again

kinds = []
sys.setrecursionlimit(100_000)
threading.stack_size(int(sys.argv[1]) << 10)
thread = threading.Thread(target=body)
thread.start()
thread.join()
assert not thread.is_alive() and kinds == ["RecursionLimitError"] * 15, kinds
"""


@pytest.mark.parametrize("kilobytes", [64, 128, 256])
def test_recursion_without_end_on_a_small_stack(
    run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, kilobytes: int
) -> None:
    """Threads may have any stack that Python can start them with; the depth that fits is what counts."""
    done = run_python("-c", SMALL_STACK, str(kilobytes), cwd=tmp_path)
    assert done.returncode == 0, (done.returncode, done.stderr)
