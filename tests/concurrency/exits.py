"""Programs that end with machines alive and threads running; each must end silently, with status 0, and soon."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests import LOCATION, ROOT

COMMON = """
import os, sys, threading, time, warnings
warnings.simplefilter("ignore")  # of forks while threads run
import numpy as np
import pyvm
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine

PROGRAM = '''
func @main(%0 x, %1 w) regs=6
  call @vm.builtin.alloc_storage (%vm, shape(1048576), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(256, 256), dtype(float32)) -> %3
  call @kernel.matmul (%0, %1, %3)
  call @callback (%3) -> %4
  ret %3
func @vector(%0 x, %1 w) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(4096), 0, dtype(uint8)) -> %2
  call @vm.builtin.alloc_tensor (%2, 0, shape(1, 256), dtype(float32)) -> %3
  call @kernel.matmul (%0, %1, %3)
  ret %3
func @spin(%0) regs=2
again:
  call @vm.builtin.copy (%0) -> %1
  goto again
'''
pyvm.set_num_threads(2)
pyvm.register_func("callback", lambda t: None)
vm = VirtualMachine(assemble(PROGRAM))
x = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
row = x[:1].copy()

def forever(name, *args):
    while True:
        vm[name](*args)

def some(name, *args):
    for _ in range(30):
        vm[name](*args)

def background(target, *args, daemon=True):
    threading.Thread(target=target, args=args, daemon=daemon).start()
"""

SCRIPTS = {
    "daemon threads in kernels": """
for _ in range(4): background(forever, "main", x, x)
time.sleep(0.1)
""",
    "daemon threads in BLAS": """
for _ in range(4): background(forever, "vector", row, x)
time.sleep(0.1)
""",
    "daemon threads in BLAS products": """
for _ in range(4): background(forever, "main", x, x)
time.sleep(0.1)
""",
    "daemon thread in a loop": """
background(vm["spin"], 1)
time.sleep(0.05)
""",
    "threads that finish": """
for _ in range(4): background(some, "main", x, x, daemon=False)
background(some, "vector", row, x, daemon=False)
""",
    "pool awake": """
vm["main"](x, x)
""",
    "fork, both end": """
vm["main"](x, x); vm["vector"](row, x)
pid = os.fork()
vm["main"](x, x); vm["vector"](row, x)
background(forever, "main", x, x)
if pid:
    assert os.waitpid(pid, 0)[1] == 0
""",
    "fork beside running threads": """
for _ in range(2): background(forever, "main", x, x)
time.sleep(0.05)
pid = os.fork()
if pid == 0:
    vm["main"](x, x)
else:
    assert os.waitpid(pid, 0)[1] == 0
""",
    "machine called by destructors": """
class Late:
    def __del__(self): vm["main"](x, x)
late, f = Late(), vm["main"]
cycle = [vm, f]; cycle.append(cycle)
background(forever, "main", x, x)
vm["main"](x, x)
""",
    "os._exit": """
for _ in range(2): background(forever, "main", x, x)
time.sleep(0.05)
os._exit(0)
""",
}
ENVIRONMENT = {"daemon threads in BLAS products": {"PYVM_BLAS": "numpy"}}


def run_exit(name: str, folder: str, timeout: float = 60.0) -> float:
    """Runs one of SCRIPTS; seconds it took. AssertionError with what it printed if it did not end well."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYVM_"))}
    if LOCATION == ROOT:
        environment["PYTHONPATH"] = str(ROOT)
    environment.update(ENVIRONMENT.get(name, {}))
    begin = time.perf_counter()
    command = [sys.executable, "-X", "faulthandler", "-c", COMMON + SCRIPTS[name]]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    got = result.returncode, result.stdout, result.stderr
    assert got == (0, "", ""), f"{name}: status {got[0]}\n{got[1]}{got[2]}"
    return time.perf_counter() - begin
