"""The thread count: its default, its limits, and a pool that survives forks and concurrent callers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vmcore import threads
from vmcore.kernels import workspace
from vmcore.kernels.direct import call_kernel
from vmcore.types import Shape

Run = Callable[..., subprocess.CompletedProcess]


def convolve(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    out = np.zeros((x.shape[0], w.shape[0], *x.shape[2:]), np.float32)
    one = Shape((1, 1))
    call_kernel("conv", x, w, None, one, Shape((1, 1, 1, 1)), one, 1, 0, out)
    return out


@pytest.fixture
def layer() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.standard_normal((1, 32, 40, 40), np.float32), rng.standard_normal((32, 32, 3, 3), np.float32)


@pytest.fixture
def two_threads() -> object:
    before = threads.get_num_threads()
    threads.set_num_threads(2)
    yield
    threads.set_num_threads(before)


def test_count_is_checked() -> None:
    before = threads.get_num_threads()
    for bad in (0, -1, 257, 2**70):
        with pytest.raises(ValueError, match="set_num_threads"):
            threads.set_num_threads(bad)
    for bad in (1.5, "2", None, True):
        with pytest.raises(TypeError, match="set_num_threads"):
            threads.set_num_threads(bad)  # type: ignore[arg-type]
    assert threads.get_num_threads() == before
    threads.set_num_threads(np.int64(before))


def test_environment_sets_the_default(run_python: Run, tmp_path: Path) -> None:
    code = "from vmcore import threads; print(threads.get_num_threads())"
    assert run_python("-c", code, cwd=tmp_path, env={"PYVM_NUM_THREADS": "3"}).stdout.split() == ["3"]
    bad = run_python("-c", code, cwd=tmp_path, env={"PYVM_NUM_THREADS": "many"})
    assert int(bad.stdout) >= 1
    assert "PYVM_NUM_THREADS is 'many'" in bad.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_affinity_limits_the_default(run_python: Run, tmp_path: Path) -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from vmcore import threads; print(threads.get_num_threads())"
    )
    assert run_python("-c", code, cwd=tmp_path).stdout.split() == ["1"]


def test_control_group_quotas(tmp_path: Path) -> None:
    """cpu.max of version 2 and the CFS quota of version 1, on the group or an ancestor."""
    membership = tmp_path / "cgroup"

    def put(path: str, text: str) -> None:
        file = tmp_path / "fs" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def cpus() -> float:
        return threads._cgroup_cpus(str(tmp_path / "fs"), str(membership))

    assert cpus() == float("inf")
    membership.write_text("0::/a/b\n")
    put("a/b/cpu.max", "max 100000\n")
    assert cpus() == float("inf")
    put("a/cpu.max", "150000 100000\n")
    assert cpus() == 1.5
    put("a/b/cpu.max", "nonsense\n")
    assert cpus() == 1.5
    membership.write_text("4:cpu,cpuacct:/x\n0::/none\n")
    put("cpu/x/cpu.cfs_quota_us", "-1\n")
    put("cpu/x/cpu.cfs_period_us", "100000\n")
    assert cpus() == float("inf")
    put("cpu/x/cpu.cfs_quota_us", "300000\n")
    assert cpus() == 3.0


def test_concurrent_callers(layer: tuple[np.ndarray, np.ndarray], two_threads: None) -> None:
    """Eight Python threads share the pool; every one gets the single caller's bits."""
    expected = convolve(*layer)
    failures: list[int] = []

    def work(i: int) -> None:
        for _ in range(10):
            if not np.array_equal(convolve(*layer), expected):
                failures.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_resets_the_pool(run_python: Run, tmp_path: Path) -> None:
    """A child of a process whose pool has run starts a pool of its own."""
    code = (
        "import os, sys, numpy as np; from vmcore import threads; from vmcore.kernels.direct import call_kernel\n"
        "threads.set_num_threads(3); a = np.ones((300, 300), np.float32); out = np.zeros_like(a)\n"
        "call_kernel('matmul', a, a, out); pid = os.fork()\n"
        "call_kernel('matmul', a, a, out); ok = bool((out == 300).all())\n"
        "if pid == 0: os._exit(0 if ok else 3)\n"
        "print(ok, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    result = run_python("-c", code, cwd=tmp_path)
    assert result.stdout.split() == ["True", "0"], result.stderr


def test_more_threads_than_processors(layer: tuple[np.ndarray, np.ndarray]) -> None:
    before = threads.get_num_threads()
    try:
        threads.set_num_threads(1)
        expected = convolve(*layer)
        threads.set_num_threads(16)
        assert np.array_equal(convolve(*layer), expected)
    finally:
        threads.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workspace_is_reused_and_returned(layer: tuple[np.ndarray, np.ndarray]) -> None:
    """A second call needs no new scratch memory; an ended thread and trim_workspace give theirs back."""
    before = threads.get_num_threads()
    try:
        threads.set_num_threads(1)
        convolve(*layer)
        held = workspace.workspace_bytes()
        assert held > 0
        convolve(*layer)
        assert workspace.workspace_bytes() == held
        worker = threading.Thread(target=convolve, args=layer)
        worker.start()
        worker.join()
        for _ in range(1000):  # the destructor runs after join returns
            if workspace.workspace_bytes() == held:
                break
            threading.Event().wait(0.002)
        assert workspace.workspace_bytes() == held
        workspace.trim_workspace()
        assert workspace.workspace_bytes() < held
    finally:
        threads.set_num_threads(before)
