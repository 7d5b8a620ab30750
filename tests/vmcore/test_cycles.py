"""Machines in reference cycles: found by the garbage collector, or freed at once where there is no cycle."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import pyvm
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine

PROGRAM = """
func @main(%0) regs=2
  call @cycle.callback (%0) -> %1
  ret %1
func @again(%0) regs=2
  call @cycle.callback (%0) -> %1
  call @cycle.callback (%1) -> %1
  ret %1
func @closure(%0) regs=2
  call @vm.builtin.make_closure (@inner, %0) -> %1
  ret %1
func @inner(%0) regs=2
  call @vm.builtin.copy (%0) -> %1
  ret %1
func @pass(%0) regs=2
  call @vm.builtin.make_tuple (@cycle.callback, %0) -> %1
  ret %1
"""


@pytest.fixture(autouse=True)
def no_automatic_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Owner:
    """Something that owns a machine, and can be watched."""

    vm: VirtualMachine


def bind(function: Callable[..., Any], held: Any) -> Callable[..., Any]:
    """`function` with `held` as its first argument."""
    return lambda *args: function(held, *args)


def make(callback: Callable[..., Any] | None = None) -> Owner:
    owner = Owner()
    pyvm.register_func("cycle.callback", callback or (lambda x: x), override=True)
    owner.vm = VirtualMachine(assemble(PROGRAM))
    pyvm.remove_global_func("cycle.callback")
    return owner


def test_without_a_cycle_a_machine_goes_at_once() -> None:
    owner = make()
    machine = weakref.ref(owner.vm._machine)
    function = owner.vm["main"]
    assert function(3) == 3 and owner.vm["pass"](1)[1] == 1
    del owner
    assert machine() is None
    assert function(4) == 4  # keeps what it needs


def test_an_instrument_that_refers_to_its_machine() -> None:
    owner = make()
    owner.vm.set_instrument(bind(lambda held, *call: held.vm and None, owner))
    assert owner.vm["main"](3) == 3
    watch, machine = weakref.ref(owner), weakref.ref(owner.vm._machine)
    del owner
    assert watch() is not None
    gc.collect()
    assert watch() is None and machine() is None


def test_a_callback_that_refers_to_its_machine() -> None:
    holder: list[Owner] = []
    owner = make(bind(lambda held, x: x if x > 5 else held[0].vm["main"](x + 1), holder))
    holder.append(owner)
    assert owner.vm["main"](1) == 6 and owner.vm["again"](1) == 6
    watch = weakref.ref(owner)
    del owner
    gc.collect()
    assert watch() is not None  # holder keeps it
    assert holder[0].vm["main"](2) == 6
    del holder
    gc.collect()
    assert watch() is None


def test_a_callback_that_holds_a_function_of_the_machine() -> None:
    class Callback:
        function: Any = None

        def __call__(self, x: int) -> int:
            return x if x > 5 else self.function(x + 1)

    callback = Callback()
    owner = make(callback)
    callback.function = owner.vm["main"]
    assert owner.vm["main"](1) == 6
    watch = weakref.ref(callback)
    function = owner.vm["again"]
    del owner, callback
    gc.collect()
    assert watch() is not None and function(1) == 6  # a function keeps all of it
    del function
    gc.collect()
    assert watch() is None


def test_a_function_outside_keeps_the_instrument() -> None:
    seen: list[Any] = []
    owner = make()
    instrument = Owner()
    owner.vm.set_instrument(bind(lambda held, *call: held[0].append(call), (seen, owner, instrument)))
    function = owner.vm["main"]
    watch = weakref.ref(instrument)
    del instrument
    gc.collect()
    assert function(1) == 1 and len(seen) == 2
    del owner, function, seen
    gc.collect()
    assert watch() is None


def test_a_closure_keeps_the_program_but_not_its_hooks() -> None:
    owner = make()
    seen: list[Any] = []
    owner.vm.set_instrument(lambda *call: seen.append(call) and None)
    closure = owner.vm["closure"](7)
    assert closure() == 7 and len(seen) == 2 + 2
    del owner
    gc.collect()
    assert closure() == 7 and len(seen) == 4


def test_a_closure_keeps_the_callbacks() -> None:
    class Callback:
        vm: Any = None

        def __call__(self, x: int) -> int:
            return x

    callback = Callback()
    owner = make(callback)
    callback.vm = owner.vm
    closure = owner.vm["closure"](7)
    watch = weakref.ref(callback)
    del owner, callback
    gc.collect()
    assert watch() is not None and closure() == 7
    assert watch().vm["main"](3) == 3
    del closure
    gc.collect()
    assert watch() is None


def test_a_registered_callback_is_never_collected() -> None:
    holder: list[VirtualMachine] = []
    pyvm.register_func("cycle.callback", bind(lambda held, x: held and x, holder), override=True)
    holder.append(VirtualMachine(assemble(PROGRAM)))
    watch = weakref.ref(holder[0])
    del holder
    gc.collect()
    assert watch() is not None and watch()["main"](2) == 2
    pyvm.remove_global_func("cycle.callback")
    gc.collect()
    assert watch() is None


def test_a_function_value_that_left_the_machine_keeps_its_callback() -> None:
    class Callback:
        vm: Any = None

        def __call__(self, x: int) -> int:
            return x + 1

    callback = Callback()
    owner = make(callback)
    callback.vm = owner.vm
    kept = owner.vm["pass"](1)[0]
    del owner, callback
    gc.collect()
    assert kept(3) == 4 and kept.vm["main"](1) == 2


def test_collections_while_threads_run_and_make_closures() -> None:
    """What a running call needs is never collected, whatever references it makes meanwhile without the GIL."""
    owner = make(lambda x: x)
    owner.vm.set_instrument(bind(lambda held, *call: None, owner))
    stop = threading.Event()
    problems: list[BaseException] = []

    def work(vm: VirtualMachine) -> None:
        x = np.ones(4, np.float32)
        try:
            while not stop.is_set():
                assert vm["closure"](x)().shape == (4,)
                assert vm["pass"](5)[0](3) == 3
                assert vm["again"](5) == 5
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(owner.vm,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(15):
        gc.collect()
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    watch = weakref.ref(owner)
    del owner, threads, thread
    gc.collect()
    assert watch() is None
