"""python -m tests.lengths: 400 input lengths through one virtual machine; resident memory, and what trim gives back.

The program computes relu(x) + x * x: three tensors of the input's size are alive at once, and one of them is returned.
Lengths reach 4 Mi floats, 16 MiB. Each line is a process of its own, in which the lengths come upwards, downwards or
mixed:

    highest, after   resident memory while it ran and at the end, over the peak of live bytes (48 MiB); at most 1.5
    kept             bytes that are free and kept for reuse at the end
    given back       part of `kept` by which trim lowers resident memory; at least 0.95
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import numpy as np

from pyvm.asm import assemble
from pyvm.vm import VirtualMachine

PROGRAM = """
func @main(%0 x) regs=8
  call @vm.builtin.shape_of (%0) -> %1
  call @vm.builtin.alloc_storage (%vm, %1, 0, dtype(float32)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, %1, dtype(float32)) -> %3
  call @kernel.relu (%0, %3)
  call @vm.builtin.alloc_storage (%vm, %1, 0, dtype(float32)) -> %4
  call @vm.builtin.alloc_tensor (%4, 0, %1, dtype(float32)) -> %5
  call @kernel.mul (%0, %0, %5)
  call @vm.builtin.alloc_storage (%vm, %1, 0, dtype(float32)) -> %6
  call @vm.builtin.alloc_tensor (%6, 0, %1, dtype(float32)) -> %7
  call @kernel.add (%3, %5, %7)
  ret %7
"""
LARGEST = 16 << 20
PEAK = 3 * LARGEST
RUNS = (("up", "pooled"), ("down", "pooled"), ("mixed", "pooled"), ("mixed", "naive"))


def resident_bytes() -> int:
    """Resident memory of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def measure(order: str, memory_cfg: str) -> tuple[float, float, int, float]:
    """(highest, after, kept, given back) as in the module's docstring."""
    vm = VirtualMachine(assemble(PROGRAM), memory_cfg=memory_cfg)
    main = vm["main"]
    data = np.ones(LARGEST // 4, np.float32)
    main(data[:16])
    lengths = np.linspace(16, LARGEST // 4, 400).astype(int)
    if order == "down":
        lengths = lengths[::-1]
    elif order == "mixed":
        lengths = np.random.default_rng(0).permutation(lengths)
    gc.collect()
    base = resident_bytes()
    highest = 0
    for n in lengths:
        y = main(data[:n])
        highest = max(highest, resident_bytes() - base)
        del y
    after = resident_bytes() - base
    kept = vm.memory_report()["pooled_bytes"]
    before = resident_bytes()
    freed = vm.trim()
    assert freed == kept, (freed, kept)
    assert vm.memory_report()["live_bytes"] == vm.memory_report()["pooled_bytes"] == 0
    given_back = (before - resident_bytes()) / kept if kept else 1.0
    return highest / PEAK, after / PEAK, kept, given_back


def main() -> int:
    """1 if a line is outside the contract."""
    if len(sys.argv) == 3:
        print(*measure(*sys.argv[1:]))
        return 0
    print(f"{'lengths':<8}{'allocator':<10}{'highest':>8}{'after':>8}{'kept, MiB':>11}{'given back':>12}")
    failed = False
    for order, memory_cfg in RUNS:
        done = subprocess.run(
            [sys.executable, "-m", "tests.lengths", order, memory_cfg], capture_output=True, text=True, check=True
        )
        highest, after, kept, given_back = map(float, done.stdout.split())
        failed |= highest > 1.5 or after > 1.5 or given_back < 0.95
        print(f"{order:<8}{memory_cfg:<10}{highest:>8.2f}{after:>8.2f}{kept / 2**20:>11.1f}{given_back:>12.3f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
