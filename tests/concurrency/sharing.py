"""Workers that load one .vmx share its weights: their proportional set sizes add up to the weights once."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

import pyvm
from pyvm.exec_builder import ExecBuilder
from pyvm.vm import VirtualMachine
from tests import ROOT
from vmcore.types import DataType, Shape


def weights_file(path: Path, megabytes: int) -> np.ndarray:
    """A program with one constant matrix of about that size, saved; a result of it to compare with."""
    n, k = 1000, megabytes * 250
    weights = np.random.default_rng(0).standard_normal((k, n)).astype(np.float32)
    b = ExecBuilder()
    with b.function("main", num_inputs=1):
        b.emit_call("vm.builtin.alloc_storage", [b.vm_state(), Shape((4 * n,)), 0, DataType("uint8")], dst=b.r(1))
        b.emit_call("vm.builtin.alloc_tensor", [b.r(1), 0, Shape((1, n)), DataType("float32")], dst=b.r(2))
        b.emit_call("kernel.matmul", [b.r(0), b.convert_constant(weights), b.r(2)])
        b.emit_ret(b.r(2))
    executable = b.get()
    executable.save(path)
    return VirtualMachine(executable)["main"](np.ones((1, k), np.float32)).numpy().copy()


def mapped(path: Path) -> tuple[int, int]:
    """(Rss, Pss) in bytes of this process's mappings of `path`, from /proc/self/smaps."""
    sums = {"Rss": 0, "Pss": 0}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, _, rest = line.partition(":")
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and head in sums:
            sums[head] += int(rest.split()[0]) * 1024
    return sums["Rss"], sums["Pss"]


def _worker(path: str, expected: bytes, pipe: Connection) -> None:
    vm = VirtualMachine(pyvm.load_executable(path))
    k = int(pipe.recv())
    ok = vm["main"](np.ones((1, k), np.float32)).numpy().tobytes() == expected
    pipe.send(ok)
    pipe.recv()  # all have touched the weights
    pipe.send(mapped(Path(path)))
    pipe.recv()  # all have measured


def share(folder: Path, method: str, n_workers: int, megabytes: int) -> list[tuple[int, int]]:
    """(Rss, Pss) of the weights in each of `n_workers` processes started by `method`, all alive at once."""
    path = folder / "weights.vmx"
    expected = weights_file(path, megabytes)
    context = multiprocessing.get_context(method)
    pipes, workers = [], []
    before = list(sys.path)
    sys.path.append(str(ROOT))  # spawned workers look for this file there; last, so that they find pyvm where we did
    try:
        for _ in range(n_workers):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_worker, args=(str(path), expected.tobytes(), theirs))
            worker.start()
            pipes.append(ours)
            workers.append(worker)
    finally:
        sys.path[:] = before
    for pipe in pipes:
        pipe.send(megabytes * 250)
    assert all([pipe.recv() for pipe in pipes]), "a worker computed something else"
    for pipe in pipes:
        pipe.send(None)
    measured = [pipe.recv() for pipe in pipes]
    for pipe in pipes:
        pipe.send(None)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * n_workers
    os.unlink(path)
    return measured
