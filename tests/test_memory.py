"""The memory contract: a limit that names who broke it, a report, and many input lengths near the peak."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

import pyvm
from pyvm.asm import assemble
from pyvm.monitor import MemoryReport
from pyvm.vm import VirtualMachine
from tests import ROOT
from tests.lengths import RUNS
from vmcore.types import Shape

PROGRAM = """
func @dynamic(%0 shape) regs=3
  call @vm.builtin.alloc_storage (%vm, %0, 0, dtype(uint8)) -> %1
  call @vm.builtin.alloc_tensor (%1, 0, %0, dtype(uint8)) -> %2
  ret %2
func @outer(%0 shape) regs=2
  call @dynamic (%0) -> %1            ; "model.layer7"
  ret %1
func @fixed(%0) regs=3
  call @vm.builtin.alloc_storage (%vm, shape(60000), 0, dtype(uint8)) -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(10, 100), dtype(float32)) -> %2
  call @kernel.fill (%0, %2)
  ret %2
func @heap(%0 n) regs=2
  call @vm.builtin.alloc_shape_heap (%vm, %0) -> %1
  ret %1
func @to_device(%0 x) regs=2
  call @vm.builtin.to_device (%0, 1, 0) -> %1
  ret %1
func @to_tensor(%0 shape) regs=2
  call @pyvm.builtin.shape_to_tensor (%0) -> %1
  ret %1
"""
LIMIT = 1 << 20


def machine(**options: object) -> VirtualMachine:
    executable = assemble(PROGRAM)
    executable.debug = pyvm.executable.DebugInfo(f"op{pc}" for pc in range(len(executable.instr_offset)))
    return VirtualMachine(executable, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("memory_cfg", ["pooled", "naive"])
def test_the_limit_names_who_asked_for_what(memory_cfg: str) -> None:
    vm = machine(memory_limit=LIMIT, memory_cfg=memory_cfg)
    held = vm["dynamic"](Shape((500_000,)))
    with pytest.raises(pyvm.errors.AllocationError) as caught:
        vm["outer"](Shape((600_000,)))
    assert str(caught.value) == (
        "alloc_storage: no memory for 600000 bytes (a block of 655360): 524288 bytes are in use, and the virtual "
        "machine's memory limit is 1048576 bytes"
    )
    notes = caught.value.__notes__
    assert notes[0].startswith("in @dynamic, pc 0: call @vm.builtin.alloc_storage") and notes[0].endswith("[op0]")
    assert notes[1].startswith("in @outer, pc 3: call @dynamic") and notes[1].endswith("[op3]")
    assert caught.value.vm_frames == [("outer", 3), ("dynamic", 0)]
    assert isinstance(caught.value, MemoryError)
    assert held.shape == (500_000,)
    assert vm["outer"](Shape((400_000,))).shape == (400_000,)  # usable at once


def test_kept_memory_is_given_back_before_a_request_is_refused() -> None:
    vm = machine(memory_limit=LIMIT)
    for n in (1000, 100_000, 300_000, 500_000):
        vm["dynamic"](Shape((n,)))
    vm["fixed"](1.0)
    assert vm.memory_report()["pooled_bytes"] > 0 and vm.memory_report()["idle_bytes"] == 60_000
    assert vm["dynamic"](Shape((LIMIT,))).nbytes == LIMIT  # all of it
    report = vm.memory_report()
    assert report["idle_bytes"] == 0 and report["pooled_bytes"] + report["live_bytes"] <= LIMIT
    assert vm["fixed"](2.0).numpy().max() == 2.0


def test_what_other_contexts_keep_is_given_back_too() -> None:
    vm = machine(memory_limit=LIMIT)
    barrier = threading.Barrier(3)

    def wait() -> None:
        barrier.wait()
        vm["fixed"](1.0)

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vm["dynamic"](Shape((LIMIT,))).nbytes == LIMIT


@pytest.mark.parametrize("memory_cfg", ["pooled", "naive"])
def test_live_and_kept_bytes_never_exceed_the_limit(memory_cfg: str) -> None:
    vm = machine(memory_limit=LIMIT, memory_cfg=memory_cfg)
    rng = np.random.default_rng(0)
    held = []
    refused = 0
    for _ in range(3000):
        action = rng.integers(4)
        try:
            if action == 0 and held:
                held.pop(rng.integers(len(held)))
            elif action == 1:
                held.append(vm["fixed"](1.0))
            else:
                held.append(vm["dynamic"](Shape((int(rng.integers(1, 400_000)),))))
        except pyvm.errors.AllocationError:
            refused += 1
            held = held[: len(held) // 2]
        report = vm.memory_report()
        assert report["live_bytes"] + report["pooled_bytes"] <= LIMIT
        assert report["live_bytes"] == sum(size * live for size, live, _ in report["classes"])
        assert report["pooled_bytes"] == sum(size * kept for size, _, kept in report["classes"])
        assert report["peak_bytes"] <= LIMIT
    assert refused > 50
    del held
    vm.trim()
    report = vm.memory_report()
    assert report["live_bytes"] == report["pooled_bytes"] == 0 and report["classes"] == []


def test_threads_share_the_limit() -> None:
    vm = machine(memory_limit=LIMIT)
    refused, highest = [0] * 4, [0] * 4

    def work(k: int) -> None:
        for i in range(300):
            try:
                held = [vm["dynamic"](Shape((100_000 + 1000 * (i % 7),))) for _ in range(4)]
                report = vm.memory_report()
                highest[k] = max(highest[k], report["live_bytes"] + report["pooled_bytes"])
                del held
            except pyvm.errors.AllocationError:
                refused[k] += 1

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(highest) <= LIMIT
    vm.trim()
    assert vm.memory_report()["live_bytes"] == 0


@pytest.mark.parametrize(
    ("name", "argument"),
    [("heap", LIMIT // 8 + 1), ("to_device", np.zeros(LIMIT + 1, np.uint8)), ("to_tensor", None)],
)
def test_every_builtin_that_allocates_keeps_the_limit(name: str, argument: object) -> None:
    vm = machine(memory_limit=LIMIT)
    held = None
    if name == "to_tensor":
        held, argument = vm["dynamic"](Shape((LIMIT,))), Shape((1, 2, 3))
    with pytest.raises(pyvm.errors.AllocationError, match="memory limit is 1048576"):
        vm[name](argument)
    del held
    vm["dynamic"](Shape((LIMIT // 2,)))
    if name == "to_tensor":
        assert vm[name](argument).numpy().tolist() == [1, 2, 3]


def test_with_hooks_and_from_compiled_results() -> None:
    vm = machine(memory_limit=LIMIT)
    calls = []
    vm.set_instrument(lambda func, name, before, ret, *args: calls.append(name))
    with pytest.raises(pyvm.errors.AllocationError, match="memory limit"):
        vm["outer"](Shape((LIMIT + 1,)))
    vm.set_instrument(None)
    assert calls[:2] == ["dynamic", "vm.builtin.alloc_storage"]
    assert vm["outer"](Shape((LIMIT,))).nbytes == LIMIT


@pytest.mark.parametrize("limit", [0, -1, 2**63])
def test_limits_that_make_no_sense(limit: int) -> None:
    with pytest.raises(ValueError, match="memory_limit must be a positive number"):
        machine(memory_limit=limit)


def test_a_limit_is_a_whole_number() -> None:
    with pytest.raises(TypeError):
        machine(memory_limit=1.5)
    assert machine(memory_limit=np.int64(5000)).memory_report()["limit_bytes"] == 5000


def test_report() -> None:
    vm = machine()
    empty = vm.memory_report()
    assert isinstance(empty, MemoryReport)
    assert empty["limit_bytes"] is None and empty["classes"] == [] and empty["peak_bytes"] == 0
    held = vm["dynamic"](Shape((1000,)))
    vm["dynamic"](Shape((1000,)))
    vm["dynamic"](Shape((100,)))
    vm["fixed"](0.0)
    report = vm.memory_report()
    # Eighths of a power of two: 1000 -> 1024, 100 -> 112, 60000 -> 65536.
    assert report["classes"] == [(112, 0, 1), (1024, 1, 1), (65536, 1, 0)]
    assert report["live_bytes"] == 1024 + 65536 and report["idle_bytes"] == 60_000
    assert report["pooled_bytes"] == 112 + 1024
    assert report["total_bytes"] == 1000 + 1000 + 100 + 60_000 and report["n_allocations"] == 4
    assert report["n_pool_hits"] == 0 and report["peak_bytes"] == 1024 + 65536
    text = str(report)
    assert "in use                       66,560 bytes  of which idle calls keep 60,000" in text
    assert "none" in text and "65,536" in text
    assert "limit                         5,000 bytes" in str(machine(memory_limit=5000).memory_report())
    del held
    assert vm.trim() == 112 + 2 * 1024 + 65536


@pytest.mark.parametrize(("order", "memory_cfg"), RUNS)
def test_four_hundred_lengths(order: str, memory_cfg: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.lengths", order, memory_cfg], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    highest, after, kept, given_back = map(float, done.stdout.split())
    assert highest <= 1.5 and after <= 1.5, done.stdout
    assert given_back >= 0.95 or kept * (1 - given_back) < 1 << 20, done.stdout
    if memory_cfg == "naive":
        assert kept == 0
