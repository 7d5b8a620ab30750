"""Threads that have nothing to do use no processor, and threads stay where the process may run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vmcore import threads

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]

COMMON = """
import os, time, threading
import numpy as np
import pyvm
from pyvm.asm import assemble
from pyvm.vm import VirtualMachine
vm = VirtualMachine(assemble('''
func @main(%0 x) regs=4
  call @vm.builtin.alloc_storage (%vm, shape(1048576), 0, dtype(uint8)) -> %1
  call @vm.builtin.alloc_tensor (%1, 0, shape(512, 512), dtype(float32)) -> %2
  call @kernel.matmul (%0, %0, %2)
  ret %2
'''))
x = np.ones((512, 512), np.float32)
def tasks():
    return {int(t): os.sched_getaffinity(int(t)) for t in os.listdir("/proc/self/task")}
"""
linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is set on Linux only")
several = pytest.mark.skipif(threads.default_num_threads() < 2, reason="needs two processors")


def run(run_python: RunPython, folder: Path, script: str, **env: str) -> list[str]:
    result = run_python("-c", COMMON + script, cwd=folder, env=env)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.parametrize("blas", ["auto", "numpy"])
def test_an_idle_machine_uses_no_processor(run_python: RunPython, tmp_path: Path, blas: str) -> None:
    script = """
pyvm.set_num_threads(2)
for _ in range(20):
    vm["main"](x)
time.sleep(0.2)
before = time.process_time()
time.sleep(2)
print(time.process_time() - before)
"""
    (used,) = run(run_python, tmp_path, script, **({} if blas == "auto" else {"PYVM_BLAS": blas}))
    assert float(used) <= 0.01  # one tick


@linux
def test_affinity_before_the_import_is_the_count(run_python: RunPython, tmp_path: Path) -> None:
    one = min(os.sched_getaffinity(0))
    script = f"import os; os.sched_setaffinity(0, [{one}])\n" + COMMON + "print(pyvm.get_num_threads(), len(tasks()))\n"
    script += "vm['main'](x); print(len(tasks()))"
    result = run_python("-c", script, cwd=tmp_path, env={"OPENBLAS_NUM_THREADS": "1"})
    assert (result.stdout.split(), result.stderr) == (["1", "1", "1"], "")


@linux
@several
def test_affinity_after_use_is_followed(run_python: RunPython, tmp_path: Path) -> None:
    """On one processor the work stays with its caller; with the processors back, workers may run on all of them."""
    script = """
pyvm.set_num_threads(2)
every = os.sched_getaffinity(0)
vm["main"](x); before = set(tasks())
one = {min(every)}
os.sched_setaffinity(0, one)
time.sleep(0.05)
used = {t: sum(map(int, open(f"/proc/self/task/{t}/stat").read().rsplit(")", 1)[1].split()[11:13])) for t in before}
for _ in range(20):
    vm["main"](x)
time.sleep(0.05)
for t in before - {os.getpid()}:
    now = sum(map(int, open(f"/proc/self/task/{t}/stat").read().rsplit(")", 1)[1].split()[11:13]))
    assert now - used[t] <= 1, (t, now - used[t])
os.sched_setaffinity(0, every)
for _ in range(20):
    vm["main"](x)
    time.sleep(0.01)
assert set(tasks()) == before
print(pyvm.get_num_threads())
"""
    assert run(run_python, tmp_path, script) == ["2"]


@linux
@several
def test_no_thread_leaves_the_processors_of_its_caller(run_python: RunPython, tmp_path: Path) -> None:
    script = """
pyvm.set_num_threads(4)
for _ in range(5):
    vm["main"](x)
    time.sleep(0.005)
allowed = os.sched_getaffinity(0)
assert all(cpus <= allowed for cpus in tasks().values())
print(len(tasks()) > 1 or len(allowed) == 1)
"""
    assert run(run_python, tmp_path, script) == ["True"]


def test_the_count_reaches_blas(run_python: RunPython, tmp_path: Path) -> None:
    script = """
import ctypes
from vmcore import blas
blas.ensure_bound() if hasattr(blas, "ensure_bound") else blas.provider()
path = blas.details().rsplit("(", 1)[-1].rstrip(")")
counts = []
for n in (1, 2):
    pyvm.set_num_threads(n)
    library = ctypes.CDLL(path)
    for name in ("scipy_openblas_get_num_threads64_", "scipy_openblas_get_num_threads", "openblas_get_num_threads"):
        if hasattr(library, name):
            counts.append(getattr(library, name)())
            break
print(*counts)
"""
    result = run_python("-c", COMMON + script, cwd=tmp_path, env={"PYVM_BLAS": "numpy", "OPENBLAS_NUM_THREADS": "2"})
    if not result.stdout.strip():
        pytest.skip("no OpenBLAS with numpy here")
    assert (result.stdout.split(), result.stderr) == (["1", "2"], "")


# ---- control groups: folders as the kernel shows them


def groups(root: Path, files: dict[str, str]) -> float:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return threads._cgroup_cpus(str(root / "cg"), str(root / "self"))


def test_version_2(tmp_path: Path) -> None:
    assert groups(tmp_path, {"self": "0::/a/b\n", "cg/a/b/cpu.max": "150000 100000\n"}) == 1.5
    assert groups(tmp_path, {"cg/a/cpu.max": "100000 200000\n"}) == 0.5  # an ancestor's limit holds too
    assert groups(tmp_path, {"cg/a/cpu.max": "max 100000\n", "cg/a/b/cpu.max": "max 100000\n"}) == float("inf")


def test_inside_a_container(tmp_path: Path) -> None:
    """The group of the process is the root of what is mounted."""
    assert groups(tmp_path, {"self": "0::/\n", "cg/cpu.max": "300000 100000\n"}) == 3
    assert groups(tmp_path, {"self": "0::/../../other\n"}) == 3  # seen from another cgroup namespace


def test_version_1(tmp_path: Path) -> None:
    files = {
        "self": "5:cpuset:/\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/\n0::/\n",
        "cg/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "250000\n",
        "cg/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
    }
    assert groups(tmp_path, files) == 2.5
    assert groups(tmp_path, {"cg/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "-1\n"}) == float("inf")


def test_both_versions_mounted(tmp_path: Path) -> None:
    """The hybrid layout has version 2 in a folder of its own."""
    files = {"self": "1:cpu:/x\n0::/x\n", "cg/unified/x/cpu.max": "200000 100000\n"}
    assert groups(tmp_path, files) == 2


@pytest.mark.parametrize("text", ["", "max", "a b", "100000 0", "-5 100000", "nan 100000", "100000 nan", "\xff\xfe"])
def test_nonsense_is_no_limit(tmp_path: Path, text: str) -> None:
    assert groups(tmp_path, {"self": "0::/\nnonsense\n:::\n", "cg/cpu.max": text}) == float("inf")


def test_a_real_quota(run_python: RunPython, tmp_path: Path) -> None:
    """Where this process may make control groups, a child that starts in one with a quota of one processor sees it."""
    root = Path("/sys/fs/cgroup")
    v1, v2 = root / "cpu" / f"pyvm-test-{os.getpid()}", root / f"pyvm-test-{os.getpid()}"
    group = v1 if v1.parent.joinpath("cpu.cfs_quota_us").exists() or (root / "cpu" / "tasks").exists() else v2
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        try:
            if group == v1:
                (group / "cpu.cfs_period_us").write_text("100000")
                (group / "cpu.cfs_quota_us").write_text("100000")
            else:
                (group / "cpu.max").write_text("100000 100000")
        except OSError as error:
            pytest.skip(f"no quota can be set here: {error.strerror}")
        code = f"open('{group}/cgroup.procs', 'w').write('0')\nimport pyvm; print(pyvm.get_num_threads())"
        result = run_python("-c", code, cwd=tmp_path)
        assert (result.stdout, result.stderr) == ("1\n", "")
    finally:
        group.rmdir()
