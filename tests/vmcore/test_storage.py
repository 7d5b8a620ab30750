"""Allocation of storages: reuse, books, trimming, and what a context keeps for its allocation sites."""

from __future__ import annotations

import numpy as np
import pytest

from pyvm.asm import assemble
from pyvm.vm import VirtualMachine
from vmcore.types import Shape

STATIC = """
func @main(%0) regs=3
  call @vm.builtin.alloc_storage (%vm, shape(4000), 0, dtype(uint8), "global") -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(10, 100), dtype(float32)) -> %2
  call @kernel.fill (%0, %2)
  ret %2
func @scratch(%0) regs=5
  call @vm.builtin.alloc_storage (%vm, shape(8000), 0, dtype(uint8), "global") -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(1000), dtype(float32)) -> %2
  call @vm.builtin.alloc_tensor (%1, 4000, shape(1000), dtype(float32)) -> %3
  call @kernel.fill (%0, %2)
  call @kernel.relu (%2, %3)
  call @vm.builtin.alloc_storage (%vm, shape(4), 0, dtype(uint8), "global") -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(), dtype(float32)) -> %4
  call @kernel.reduce_sum (%3, shape(0), %4)
  ret %4
func @dynamic(%0) regs=3
  call @vm.builtin.alloc_storage (%vm, %0, 0, dtype(uint8), "global") -> %1
  call @vm.builtin.alloc_tensor (%1, 0, %0, dtype(uint8)) -> %2
  ret %2
func @views(%0) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(4000), 0, dtype(uint8), "global") -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(1000), dtype(float32)) -> %2
  call @kernel.fill (%0, %2)
  call @vm.builtin.reshape (%2, shape(20, 50)) -> %3
  ret %3
"""


@pytest.fixture(params=["pooled", "naive"])
def vm(request):
    return VirtualMachine(assemble(STATIC), memory_cfg=request.param)


def test_results_that_are_kept_never_change(vm):
    kept = [vm["main"](i) for i in range(20)]
    assert [float(t.numpy().max()) for t in kept] == list(range(20))
    assert [float(t.numpy().min()) for t in kept] == list(range(20))
    views = [vm["views"](i) for i in range(20)]
    assert [float(t.numpy().sum()) for t in views] == [1000.0 * i for i in range(20)]


def test_results_keep_their_bytes_after_the_machine_is_gone():
    vm = VirtualMachine(assemble(STATIC))
    results = [vm["main"](7), vm["views"](8)]
    arrays = [t.numpy() for t in results]
    vm.trim()
    del vm, results
    assert arrays[0].sum() == 7000.0 and arrays[1].sum() == 8000.0


def test_a_result_that_is_dropped_gives_its_storage_to_the_next_call():
    vm = VirtualMachine(assemble(STATIC))
    addresses = set()
    for i in range(10):
        t = vm["main"](i)
        addresses.add(t.numpy().ctypes.data)
        del t
    assert len(addresses) == 1
    kept = vm["main"](1)
    assert vm["main"](2).numpy().ctypes.data != kept.numpy().ctypes.data


def test_scratch_memory_is_the_same_every_call(vm):
    assert [float(vm["scratch"](i)) for i in range(5)] == [1000.0 * i for i in range(5)]
    before = vm.memory_report()["peak_bytes"]
    for i in range(100):
        assert float(vm["scratch"](i)) == 1000.0 * i
    assert vm.memory_report()["peak_bytes"] == before


def test_data_is_64_byte_aligned(vm):
    for n in (1, 3, 100, 4097):
        assert vm["dynamic"](Shape((n,))).numpy().ctypes.data % 64 == 0


def test_books_balance_and_trim_empties_the_pool():
    vm = VirtualMachine(assemble(STATIC))
    held = [vm["dynamic"](Shape((n,))) for n in (10, 1000, 100_000, 3_000_000)]
    report = vm.memory_report()
    assert report["n_allocations"] == 4 and report["live_bytes"] >= 3_101_010
    assert report["live_bytes"] <= 1.25 * 3_101_010 + 4 * 64 and report["peak_bytes"] == report["live_bytes"]
    del held
    report = vm.memory_report()
    assert report["live_bytes"] == 0 and 0 < report["pooled_bytes"] <= 1.5 * report["peak_bytes"]
    again = vm["dynamic"](Shape((3_000_000,)))
    assert vm.memory_report()["n_pool_hits"] == 1
    del again
    assert vm.trim() > 0
    report = vm.memory_report()
    assert report["pooled_bytes"] == 0 and report["live_bytes"] == 0


def test_the_naive_allocator_keeps_nothing():
    vm = VirtualMachine(assemble(STATIC), memory_cfg="naive")
    for i in range(5):
        vm["main"](i), vm["scratch"](i)
    report = vm.memory_report()
    assert report["pooled_bytes"] == 0 and report["n_pool_hits"] == 0 and report["live_bytes"] == 0


def test_many_sizes_do_not_pile_up():
    vm = VirtualMachine(assemble(STATIC))
    for n in range(100_000, 3_000_000, 50_000):
        vm["dynamic"](Shape((n,)))
        report = vm.memory_report()
        assert report["live_bytes"] + report["pooled_bytes"] <= 1.5 * report["peak_bytes"]


@pytest.mark.parametrize("shape", [(-1,), (2**62, 4), (2**46,), (2**63 - 1,)])
def test_impossible_sizes_are_refused(vm, shape):
    with pytest.raises((MemoryError, ValueError), match="alloc_storage"):
        vm["dynamic"](Shape(shape))
    assert vm["dynamic"](Shape((3,))).shape == (3,)


def test_zero_bytes(vm):
    assert vm["dynamic"](Shape((0, 5))).numpy().tolist() == np.zeros((0, 5)).tolist()


def test_unknown_configuration_is_refused_by_name():
    with pytest.raises(ValueError, match="'arena'"):
        VirtualMachine(assemble(STATIC), memory_cfg="arena")
