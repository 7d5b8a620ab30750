"""The memory contract: many input lengths through one machine stay near the peak of what is alive; trim works."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, gc, sys
import numpy as np
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine

# relu(x) + x * x: three tensors of the input's size are alive at once, one of them returned.
PROGRAM = '''
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
'''

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

order, memory_cfg = sys.argv[1:]
vm = VirtualMachine(assemble(PROGRAM), memory_cfg=memory_cfg)
LARGEST = 16 << 20
data = np.ones(LARGEST // 4, np.float32)
vm["main"](data[:16])
lengths = np.linspace(16, LARGEST // 4, 400).astype(int)
if order == "down":
    lengths = lengths[::-1]
elif order == "mixed":
    lengths = np.random.default_rng(0).permutation(lengths)
gc.collect()
base = rss()
highest = 0
for n in lengths:
    y = vm["main"](data[:n])
    highest = max(highest, rss() - base)
    del y
after = rss() - base
live_peak = 3 * LARGEST
pooled = vm.memory_report()["pooled_bytes"]
before = rss()
freed = vm.trim()
given_back = before - rss()
assert freed == pooled, (freed, pooled)
print(highest / live_peak, after / live_peak, pooled, given_back)
"""


@pytest.mark.parametrize(
    ("order", "memory_cfg"), [("up", "pooled"), ("down", "pooled"), ("mixed", "pooled"), ("mixed", "naive")]
)
def test_four_hundred_lengths(
    order: str, memory_cfg: str, run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    result = run_python("-c", SCRIPT, order, memory_cfg, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    highest, after, pooled, given_back = map(float, result.stdout.split())
    assert highest <= 1.5, result.stdout
    assert after <= 1.5, result.stdout
    assert given_back >= 0.95 * pooled - (1 << 20), result.stdout
    if memory_cfg == "naive":
        assert pooled == 0
