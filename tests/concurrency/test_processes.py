"""Ends of processes with machines alive and threads running, and forks after use."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.concurrency.exits import SCRIPTS, run_exit
from tests.concurrency.sharing import share

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


ASAN = "libasan" in os.environ.get("LD_PRELOAD", "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_exits(tmp_path: Path, name: str) -> None:
    """Two of the fifty that `python -m tests.concurrency --exits 50` runs."""
    if ASAN and "fork" in name:
        pytest.skip("libasan's own allocator does not survive a fork beside running threads")
    for _ in range(2):
        run_exit(name, str(tmp_path))


@pytest.mark.skipif(ASAN, reason="libasan's own allocator does not survive it")
@pytest.mark.parametrize("blas", ["auto", "numpy"])
def test_fork_beside_kernels(run_python: RunPython, tmp_path: Path, blas: str) -> None:
    """Kernels and BLAS run on two threads of other Python threads while this one forks."""
    script = """
import warnings
warnings.simplefilter("ignore")
pyvm.set_num_threads(2)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        check()
        pyvm.set_num_threads(2)
        check()
        os._exit(0)
    check()
    assert os.waitpid(pid, 0)[1] == 0
print("forked")
"""
    result = run_python("-c", COMMON + script, cwd=tmp_path, env={} if blas == "auto" else {"PYVM_BLAS": blas})
    assert (result.returncode, result.stdout, result.stderr) == (0, "forked\n", "")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers(run_python: RunPython, tmp_path: Path, method: str) -> None:
    """Workers of multiprocessing run what the parent has run before."""
    (tmp_path / "serve.py").write_text(
        COMMON
        + f"""
import multiprocessing, warnings
def answer(n):
    return float(vm["main"](x * n, x).numpy().sum())
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    pyvm.set_num_threads(2)
    wanted = [answer(n) for n in range(6)]
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        assert pool.map(answer, range(6)) == wanted
    print("served")
"""
    )
    result = run_python("serve.py", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "served\n", "")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps here")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_share_weights(tmp_path: Path, method: str) -> None:
    n_bytes = 20_000_000
    measured = share(tmp_path, method, 3, 20)
    for rss, _ in measured:
        assert rss >= 0.99 * n_bytes
    assert sum(pss for _, pss in measured) <= 1.1 * n_bytes
