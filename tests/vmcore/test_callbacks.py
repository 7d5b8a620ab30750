"""Python functions in the middle of a program: what they raise, return, call and delay; signals while it runs."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine

PROGRAM = """
func @main(%0 x) regs=4
  call @vm.builtin.make_tuple (%0, %0) -> %1
  call @callback (%0) -> %2
  call @vm.builtin.make_tuple (%2, %1) -> %3
  ret %2
func @outer(%0 x) regs=2
  call @main (%0) -> %1
  ret %1
func @same(%0) regs=1
  ret %0
func @forever(%0) regs=2
again:
  call @vm.builtin.copy (%0) -> %1
  goto again
func @calls_forever(%0) regs=2
again:
  call @same (%0) -> %1
  goto again
func @callbacks_forever(%0) regs=2
again:
  call @callback (%0) -> %1
  goto again
func @work(%0 x, %1 n) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(16000000), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(2000, 2000), dtype(float32)) -> %3
again:
  call @kernel.matmul (%0, %0, %3)
  goto again
"""


class Callback:
    """What the program calls as @callback: replace `function`."""

    function: Callable[..., Any] = staticmethod(lambda x: x)

    def __call__(self, x: Any) -> Any:
        return self.function(x)


@pytest.fixture
def callback() -> Iterator[Callback]:
    one = Callback()
    pyvm.register_func("callback", one, override=True)
    yield one
    pyvm.remove_global_func("callback")


@pytest.fixture
def vm(callback: Callback) -> VirtualMachine:
    return VirtualMachine(assemble(PROGRAM))


def usable(vm: VirtualMachine, callback: Callback) -> bool:
    callback.function = lambda x: x
    return vm["outer"](5) == 5 and vm["same"]("x") == "x"


# ---- raising


class Slotted(Exception):
    __slots__ = ()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class NoNotes(Exception):
    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes")


RAISED = (ValueError, Slotted, Unprintable, NoNotes, StopIteration, GeneratorExit, SystemExit, KeyboardInterrupt)


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("hooked", [False, True])
def test_any_exception_arrives_as_it_is(
    vm: VirtualMachine, callback: Callback, kind: type[BaseException], hooked: bool
) -> None:
    raised = kind("on purpose")

    def fail(x: Any) -> None:
        raise raised

    if hooked:
        vm.set_instrument(lambda *call: None)
    for _ in range(3):
        callback.function = fail
        with pytest.raises(kind) as caught:
            vm["outer"](np.ones(3))
        assert caught.value is raised
        if kind is not NoNotes:
            assert any("@main, pc 1" in note for note in raised.__notes__)
        assert usable(vm, callback)


def test_an_exception_while_another_is_handled(vm: VirtualMachine, callback: Callback) -> None:
    def fail(x: Any) -> None:
        try:
            vm["outer"]()
        except pyvm.errors.ArgumentTypeError:
            raise KeyError("second") from None

    callback.function = fail
    with pytest.raises(KeyError, match="second"):
        vm["outer"](1)
    assert usable(vm, callback)


def test_errors_of_the_machine_that_a_callback_handles(vm: VirtualMachine, callback: Callback) -> None:
    """The error slot of the thread is free again: the outer call succeeds."""

    def survive(x: Any) -> Any:
        for _ in range(3):
            with pytest.raises(pyvm.errors.ArgumentTypeError):
                vm["outer"](1, 2, 3)
            with pytest.raises(TypeError):
                pyvm.get_global_func("kernel.add")(1, 2, 3)
        return x

    callback.function = survive
    assert vm["outer"](7) == 7


# ---- nonsense


def endless() -> list[Any]:
    one: list[Any] = []
    one.append(one)
    return one


NONSENSE: list[tuple[Callable[[], Any], type[Exception]]] = [
    (lambda: np.array(["text"]), TypeError),
    (lambda: np.array([object()]), TypeError),
    (lambda: np.array(["2020-01-01"], "M8[D]"), TypeError),
    (lambda: 2**63, OverflowError),
    (lambda: -(2**70), OverflowError),
    (lambda: "\ud800", pyvm.errors.ArgumentValueError),
    (endless, RecursionError),
    (lambda: (1, [2, 2**64]), OverflowError),
    (lambda: np.zeros((1,) * 32, "V3"), TypeError),
]


@pytest.mark.parametrize(("make", "kind"), NONSENSE)
@pytest.mark.parametrize("hooked", [False, True])
def test_nonsense_is_refused(
    vm: VirtualMachine, callback: Callback, make: Callable[[], Any], kind: type[Exception], hooked: bool
) -> None:
    callback.function = lambda x: make()
    if hooked:
        vm.set_instrument(lambda *call: None)
    for _ in range(3):
        with pytest.raises(kind) as caught:
            vm["outer"](1)
        assert any("@main, pc 1" in note for note in caught.value.__notes__)
    assert usable(vm, callback)


def test_what_cannot_become_a_value_is_not_kept(vm: VirtualMachine, callback: Callback) -> None:
    result = (np.zeros(2, "datetime64[s]"), 1)
    before = sys.getrefcount(result)
    callback.function = lambda x: result
    for _ in range(5):
        with pytest.raises(TypeError, match="no tensor element type"):
            vm["outer"](1)
    assert sys.getrefcount(result) == before
    assert usable(vm, callback)


@pytest.mark.parametrize("value", [object(), {"a": 1}, {1}, iter([]), type, Ellipsis, 1j, b"bytes", lambda: 3])
def test_what_has_no_native_form_passes_through(vm: VirtualMachine, callback: Callback, value: Any) -> None:
    callback.function = lambda x: value
    result = vm["outer"](1)
    assert result is value
    assert usable(vm, callback)


def test_arguments_that_change_while_they_are_converted(vm: VirtualMachine, callback: Callback) -> None:
    class Shrinking(list):
        def __len__(self) -> int:
            return 10**6

        def __iter__(self) -> Iterator[int]:
            yield from (1, 2, 3)

    callback.function = lambda x: Shrinking()
    assert vm["outer"](1) == (1, 2, 3)


# ---- calling back


def test_re_entrant_calls(vm: VirtualMachine, callback: Callback) -> None:
    callback.function = lambda n: n if n == 0 else vm["outer"](n - 1) + 1
    assert vm["outer"](50) == 50
    with pytest.raises(RecursionError):
        vm["outer"](100_000)
    assert usable(vm, callback)


def test_a_callback_that_changes_its_machine(vm: VirtualMachine, callback: Callback) -> None:
    seen: list[str] = []

    def meddle(x: Any) -> Any:
        vm.trim()
        vm.memory_report()
        vm.set_instrument(lambda func, name, *rest: seen.append(name))
        assert vm["same"](x) is not None
        vm.set_input("same", x)
        vm.invoke_stateful("same")
        vm.profile("same", 1)
        vm.set_instrument(None)
        vm.trim()
        gc.collect()
        return vm.get_outputs("same")

    callback.function = meddle
    x = np.arange(3.0)
    for _ in range(3):
        assert vm["outer"](x).numpy().tolist() == [0, 1, 2]
    assert usable(vm, callback)


def test_a_callback_that_drops_its_machine(callback: Callback) -> None:
    machines = [VirtualMachine(assemble(PROGRAM))]
    main = machines[0]["outer"]

    def drop(x: Any) -> Any:
        machines.clear()
        gc.collect()
        return x

    callback.function = drop
    assert main(np.ones(3)).shape == (3,)
    holder = [VirtualMachine(assemble(PROGRAM))["outer"]]
    callback.function = lambda x: (holder.clear(), gc.collect(), x)[2]
    assert holder[0]("text") == "text"


def test_a_callback_that_replaces_itself(vm: VirtualMachine, callback: Callback) -> None:
    def replace(x: Any) -> Any:
        pyvm.register_func("callback", lambda x: "new", override=True)
        gc.collect()
        return "old"

    callback.function = replace
    assert vm["outer"](1) == "old" and vm["outer"](1) == "old"  # a machine keeps what it was linked to
    assert VirtualMachine(assemble(PROGRAM))["outer"](1) == "new"


def test_a_callback_that_waits_for_another_thread_in_the_machine(vm: VirtualMachine, callback: Callback) -> None:
    def wait(x: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return x
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(vm["outer"](x + 1)))
        thread.start()
        thread.join(20)
        return found[0]

    callback.function = wait
    assert vm["outer"](1) == 2


# ---- taking long


def test_a_slow_callback_holds_nobody_up(vm: VirtualMachine, callback: Callback) -> None:
    callback.function = lambda x: time.sleep(0.5) or x
    done: list[Any] = []
    slow = threading.Thread(target=lambda: done.append(vm["outer"]("slow")))
    slow.start()
    time.sleep(0.05)
    n, end = 0, time.monotonic() + 0.2
    while time.monotonic() < end:
        assert vm["same"](n) == n
        n += 1
    assert n > 500 and not done
    slow.join()
    assert done == ["slow"]


def test_a_deadline_ends_a_run_after_its_slow_callback(vm: VirtualMachine, callback: Callback) -> None:
    calls = []
    callback.function = lambda x: calls.append(1) or time.sleep(0.1)
    started = time.monotonic()
    with pytest.raises(pyvm.errors.DeadlineExceeded), pyvm.deadline(0.15):
        vm["callbacks_forever"](1)
    assert len(calls) == 2 and time.monotonic() - started < 2  # the one that runs is not interrupted
    assert usable(vm, callback)


# ---- signals


class Alarm(Exception):
    pass


@pytest.fixture
def alarm() -> Iterator[Callable[..., None]]:
    """alarm(seconds, handler, every=0): SIGALRM, whose handler raises Alarm unless another is given."""

    def raise_alarm(*args: Any) -> None:
        raise Alarm

    before = signal.getsignal(signal.SIGALRM)

    def start(seconds: float, handler: Callable[..., Any] = raise_alarm, every: float = 0) -> None:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds, every)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["forever", "calls_forever", "callbacks_forever", "work"])
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("gil", ["auto", "release", "hold"])
def test_a_handler_that_raises(
    callback: Callback, alarm: Callable[..., None], name: str, hooked: bool, gil: str
) -> None:
    vm = VirtualMachine(assemble(PROGRAM), gil=gil)
    args = (np.ones((2000, 2000), np.float32), 1) if name == "work" else (1,)
    if hooked:
        vm.set_instrument(lambda *call: None)
    alarm(0.05)
    started = time.monotonic()
    with pytest.raises(Alarm) as caught:
        vm[name](*args)
    assert time.monotonic() - started < 10
    # Inside the callback it is Python that looks for signals; then the exception is the callback's.
    assert any(f"@{name}, pc" in note for note in caught.value.__notes__)
    vm.set_instrument(None)
    assert usable(vm, callback)


def test_alarm_in_a_callback_that_sleeps(vm: VirtualMachine, callback: Callback, alarm: Callable[..., None]) -> None:
    callback.function = lambda x: time.sleep(20)
    alarm(0.05)
    started = time.monotonic()
    with pytest.raises(Alarm):
        vm["outer"](1)
    assert time.monotonic() - started < 10
    assert usable(vm, callback)


def test_interrupt_in_a_sleeping_callback(vm: VirtualMachine, callback: Callback, alarm: Callable[..., None]) -> None:
    callback.function = lambda x: time.sleep(20)
    alarm(0.05, lambda *args: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        vm["outer"](1)
    assert usable(vm, callback)


def test_a_handler_that_returns_lets_the_run_go_on(vm: VirtualMachine, alarm: Callable[..., None]) -> None:
    fired = []
    alarm(0.02, lambda *args: fired.append(1), every=0.02)
    with pytest.raises(pyvm.errors.DeadlineExceeded), pyvm.deadline(0.5):
        vm["forever"](1)
    assert len(fired) >= 5


def test_a_handler_that_uses_the_machine(vm: VirtualMachine, alarm: Callable[..., None]) -> None:
    found = []

    def handler(*args: Any) -> None:
        found.append(vm["outer"](len(found)))
        with pytest.raises(pyvm.errors.ArgumentTypeError):
            vm["outer"]()
        vm.trim()

    alarm(0.02, handler, every=0.02)
    with pytest.raises(pyvm.errors.DeadlineExceeded), pyvm.deadline(0.5):
        vm["calls_forever"](1)
    assert len(found) >= 3 and found == list(range(len(found)))


def test_signals_go_to_the_main_thread_only(vm: VirtualMachine, alarm: Callable[..., None]) -> None:
    """A run of another thread is not interrupted; the handler runs in the main thread."""
    where, ended = [], []

    def run() -> None:
        with pytest.raises(pyvm.errors.DeadlineExceeded), pyvm.deadline(0.4):
            vm["forever"](1)
        ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    alarm(0.05, lambda *args: where.append(threading.current_thread()))
    thread.join()
    assert ended == [True] and where == [threading.main_thread()]
