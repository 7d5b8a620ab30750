"""Ends of processes with machines alive and threads running, and forks after use."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

COMMON = """
import os, sys, threading, time
import numpy as np
import pyvm
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine

PROGRAM = '''
func @main(%0 x, %1 w) regs=5
  call @vm.builtin.alloc_storage (%vm, shape(1048576), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(256, 256), dtype(float32)) -> %3
  call @kernel.matmul (%0, %1, %3)
  call @callback (%3) -> %4
  ret %3
func @spin(%0) regs=2
again:
  call @vm.builtin.copy (%0) -> %1
  goto again
'''
pyvm.register_func("callback", lambda t: None)
vm = VirtualMachine(assemble(PROGRAM))
x = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
expected = vm["main"](x, x).numpy().copy()

def work():
    while True:
        vm["main"](x, x)

def check():
    for _ in range(5):
        assert np.array_equal(vm["main"](x, x).numpy(), expected)
"""

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


def ends_silently(run_python: RunPython, folder: Path, script: str, output: str = "") -> None:
    result = run_python("-c", COMMON + script, cwd=folder, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, output, "")


@pytest.mark.parametrize("threads", [1, 2])
def test_exit_with_daemon_threads(run_python: RunPython, tmp_path: Path, threads: int) -> None:
    script = f"""
pyvm.set_num_threads({threads})
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
threading.Thread(target=lambda: vm["spin"](1), daemon=True).start()
time.sleep(0.3)
closure_holder = vm["main"]
"""
    for _ in range(3):
        ends_silently(run_python, tmp_path, script)


def test_exit_inside_a_callback(run_python: RunPython, tmp_path: Path) -> None:
    ends_silently(
        run_python,
        tmp_path,
        """
pyvm.register_func("callback", lambda t: sys.exit(0), override=True)
VirtualMachine(assemble(PROGRAM))["main"](x, x)
""",
    )


def test_exit_with_values_in_globals(run_python: RunPython, tmp_path: Path) -> None:
    ends_silently(
        run_python,
        tmp_path,
        """
class Late:
    def __del__(self):
        vm["main"](x, x)
late, y, f = Late(), vm["main"](x, x), vm["main"]
cycle = [vm]; cycle.append(cycle)
vm.set_instrument(lambda *call: vm and None)
sys.modules["keeper"] = [y, f, y.numpy(), memoryview(y), late]
""",
    )


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_fork_after_use(run_python: RunPython, tmp_path: Path, threads: int) -> None:
    """As gunicorn --preload does: the parent has run, children run."""
    script = f"""
import warnings
warnings.simplefilter("ignore")  # of forks while threads run
pyvm.set_num_threads({threads})
check()
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        check()
        pid2 = os.fork()
        if pid2 == 0:
            check()
            os._exit(0)
        os._exit(os.waitpid(pid2, 0)[1])
    check()
    assert os.waitpid(pid, 0)[1] == 0
print("forked")
"""
    ends_silently(run_python, tmp_path, script, "forked\n")


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="libasan's own allocator does not survive it")
def test_fork_while_threads_run(run_python: RunPython, tmp_path: Path) -> None:
    script = """
import warnings
warnings.simplefilter("ignore")
small = VirtualMachine(assemble('''
func @main(%0) regs=4
  call @vm.builtin.alloc_shape_heap (%vm, 8) -> %1
  call @vm.builtin.alloc_shape_heap (%vm, 100) -> %2
  ret %1
'''), gil="release")
def churn():
    while True:
        small["main"](1)
pyvm.set_num_threads(2)
for _ in range(2):
    threading.Thread(target=churn, daemon=True).start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        for _ in range(50):
            small["main"](1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
print("forked")
"""
    ends_silently(run_python, tmp_path, script, "forked\n")
