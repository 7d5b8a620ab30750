"""Signals that come while a virtual machine runs, and deadlines around callbacks that take their time."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import numpy as np
import pytest

import pyvm
from pyvm import errors
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine, deadline

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

PROGRAM = """
func @spin(%0) regs=2
again:
  call @vm.builtin.copy (%0) -> %1
  goto again
func @multiply(%0 x) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(262144), 0, dtype(uint8)) -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(256, 256), dtype(float32)) -> %2
again:
  call @kernel.matmul (%0, %0, %2)
  goto again
func @sleepy(%0 x) regs=2
  call @signals.sleep (%0) -> %1
  call @signals.after (%0) -> %1
  ret %1
func @quick(%0 x) regs=2
  call @vm.builtin.copy (%0) -> %1
  ret %1
"""
after: list[float] = []  # what the callback after the slow one has seen
X = np.ones((256, 256), np.float32)


class Alarm(Exception):
    """Raised by a handler."""


@pytest.fixture
def vm() -> Iterator[VirtualMachine]:
    pyvm.register_func("signals.sleep", time.sleep, override=True)
    pyvm.register_func("signals.after", after.append, override=True)
    after.clear()
    yield VirtualMachine(assemble(PROGRAM))
    pyvm.remove_global_func("signals.sleep")
    pyvm.remove_global_func("signals.after")


@pytest.fixture
def alarm() -> Iterator[None]:
    def handler(number: int, frame: FrameType | None) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("name", "argument"), [("spin", 1), ("multiply", X), ("sleepy", 30)])
def test_ctrl_c_in_the_main_thread(vm: VirtualMachine, name: str, argument: object) -> None:
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        vm[name](argument)
    timer.join()
    assert time.monotonic() - begin < 10
    assert vm["quick"](7) == 7


@pytest.mark.parametrize(("name", "argument"), [("spin", 1), ("multiply", X), ("sleepy", 30)])
def test_a_handler_that_raises(vm: VirtualMachine, alarm: None, name: str, argument: object) -> None:
    with pytest.raises(Alarm):
        vm[name](argument)
    assert vm["quick"](7) == 7


def test_a_handler_that_calls_the_machine(vm: VirtualMachine) -> None:
    seen: list[object] = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(vm["quick"](5))
        if len(seen) == 3:
            raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        with pytest.raises(Alarm):
            vm["spin"](1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == [5, 5, 5]


@pytest.mark.parametrize("name", ["spin", "multiply"])
def test_the_main_thread_waits_for_a_worker(vm: VirtualMachine, alarm: None, name: str) -> None:
    """The signal reaches the waiting main thread; the worker, which no signal interrupts, ends by its deadline."""
    outcome: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            with deadline(1.0):
                vm[name](1 if name == "spin" else X)
        except BaseException as error:  # noqa: BLE001
            outcome.append(error)
        done.set()

    thread = threading.Thread(target=work)
    begin = time.monotonic()
    thread.start()
    with pytest.raises(Alarm):
        thread.join()
    assert time.monotonic() - begin < 0.9
    assert done.wait(10)  # a join that was interrupted takes the thread for ended (Python 3.11)
    assert len(outcome) == 1 and isinstance(outcome[0], errors.DeadlineExceeded)
    assert vm["quick"](7) == 7


@pytest.mark.parametrize("name", ["spin", "multiply"])
def test_terminate_ends_the_process(run_python: RunPython, tmp_path: Path, name: str) -> None:
    script = f"""
import os, signal, threading
import numpy as np
import pyvm
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine
pyvm.set_num_threads(2)
for name in ("signals.sleep", "signals.after"):
    pyvm.register_func(name, abs)
vm = VirtualMachine(assemble({PROGRAM!r})) 
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
vm[{name!r}](1 if {name!r} == "spin" else np.ones((256, 256), np.float32))
"""
    result = run_python("-c", script, cwd=tmp_path, timeout=30)
    assert (result.returncode, result.stderr) == (-signal.SIGTERM, "")


def test_deadlines_around_slow_callbacks(vm: VirtualMachine) -> None:
    """A callback is never cut off; after the deadline the next one does not start, and the next call is free of it."""
    begin = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded), deadline(0.1):
        vm["sleepy"](0.5)
    assert 0.5 <= time.monotonic() - begin < 5
    assert after == []
    vm["sleepy"](0.01)
    with deadline(30):
        vm["sleepy"](0.2)
    assert after == [0.01, 0.2]
    with pytest.raises(errors.DeadlineExceeded), deadline(0):
        vm["sleepy"](5)
    assert time.monotonic() - begin < 5
