"""Throughput of two Python threads over one, both calling the same function of one virtual machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.bench.report import Row, Section, Target
from tests.bench.timing import no_collection

SECONDS = 0.4  # per measurement
TRIALS = 5


def run(quick: bool) -> Section:
    """One row per program: the best ratio of several trials, because other work on the machine only lowers it."""
    import pyvm

    section = Section("threads", "calls per second of 2 threads over 1, best of 5; 1 thread inside kernels and BLAS")
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        section.remarks.append("skipped: this process may use one processor only")
        return section
    pyvm.set_num_threads(1)
    seconds, trials = (0.1, 2) if quick else (SECONDS, TRIALS)
    for name, function, argument, floor in _programs():
        begin = time.perf_counter()
        calls = 0
        while time.perf_counter() - begin < 0.02:
            function(argument)
            calls += 1
        latency_us = (time.perf_counter() - begin) / calls * 1e6
        number = max(3, int(seconds * 1e6 / latency_us))
        with no_collection():
            pairs = [
                (throughput(function, argument, cpus[:1], number), throughput(function, argument, cpus[:2], number))
                for _ in range(trials)
            ]
        ratios = [two / one for one, two in pairs]
        best = int(np.argmax(ratios))
        section.rows.append(
            Row(
                name,
                "calls/s",
                pairs[best][1],
                "1 thread",
                pairs[best][0],
                ratios[best],
                Target(1.7, floor),
                note=f"{latency_us:.0f} us per call; all: {', '.join(f'{ratio:.2f}' for ratio in ratios)}",
                details={"ratios": ratios, "latency_us": latency_us},
            )
        )
    return section


def throughput(function: Callable[[Any], Any], argument: Any, cpus: Sequence[int], number: int) -> float:
    """Calls per second while one thread on each of `cpus` makes `number` calls."""
    barrier = threading.Barrier(len(cpus) + 1)
    ends = []

    def work(cpu: int) -> None:
        os.sched_setaffinity(0, [cpu])  # of this thread
        function(argument)
        barrier.wait()
        for _ in range(number):
            function(argument)
        ends.append(time.perf_counter())

    threads = [threading.Thread(target=work, args=(cpu,)) for cpu in cpus]
    for thread in threads:
        thread.start()
    barrier.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    return number * len(cpus) / (max(ends) - begin)


def _programs() -> list[tuple[str, Callable[[Any], Any], Any, float | None]]:
    square = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32) / 16
    small = np.arange(16, dtype=np.float32)
    programs: list[tuple[str, Callable[[Any], Any], Any, float | None]] = [
        ("16 products of 256 x 256 matrices", _chain("kernel.matmul", square, 16), square, 1.7),
        ("tanh of 65536 elements, 16 times", _chain("kernel.tanh", square, 16), square, 1.7),
        ("2000 additions of 16 elements", _chain("kernel.add", small, 2000), small, None),
        ("20000 additions of 16 elements", _chain("kernel.add", small, 20000), small, None),
    ]
    return programs


def _chain(kernel: str, like: np.ndarray, n: int) -> Callable[[Any], Any]:
    """`n` times `x := kernel(x [, constant])`, each result in a tensor of its own, in the halves of one storage."""
    import pyvm

    b = pyvm.ExecBuilder()
    nbytes = -(-like.nbytes // 64) * 64
    shape, dtype = b.convert_constant(pyvm.Shape(like.shape)), b.convert_constant(pyvm.DataType("float32"))
    constant = [] if kernel == "kernel.tanh" else [b.convert_constant(like * 0.5)]
    with b.function("main", num_inputs=1):
        size = pyvm.Shape((2 * nbytes,))
        b.emit_call("vm.builtin.alloc_storage", [b.vm_state(), size, 0, pyvm.DataType("uint8"), "global"], dst=b.r(1))
        b.emit_call("vm.builtin.copy", [b.r(0)], dst=b.r(2))
        for i in range(n):
            b.emit_call("vm.builtin.alloc_tensor", [b.r(1), i % 2 * nbytes, shape, dtype], dst=b.r(3))
            b.emit_call(kernel, [b.r(2), *constant, b.r(3)])
            b.emit_call("vm.builtin.copy", [b.r(3)], dst=b.r(2))
            b.emit_call("vm.builtin.null_value", [], dst=b.r(3))
        b.emit_ret(b.r(2))
    return pyvm.VirtualMachine(b.get())["main"]
