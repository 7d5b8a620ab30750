"""Latency of whole networks at one and two threads, next to ONNX Runtime in the same process."""

from __future__ import annotations

import gc
import os
import sys
import time
from functools import partial
from typing import Any

import numpy as np

import pyvm
from tests.bench.networks import NETWORKS, Network, onnx_file
from tests.bench.report import Row, Section, Target, cost
from tests.bench.timing import Call, alternate, pinned

# Idle workers of a thread pool may spin for a while and take the processor from the other side.
SETTLE_S = 0.03
SECONDS = 3.0  # per side, network and number of threads


def run(quick: bool, only: str | None = None) -> Section:
    """Two rows per network, one per number of threads; a remark for each that cannot be had."""
    section = Section("models", "latency of one call, numpy -> numpy, ms (minimum; medians in the note)")
    try:
        import onnxruntime
    except ImportError as error:
        section.remarks.append(f"skipped: no ONNX Runtime here: {error}")
        return section
    for net in NETWORKS:
        if only and only not in net.name:
            continue
        try:
            path = onnx_file(net)
        except (FileNotFoundError, ImportError) as error:
            section.remarks.append(f"{net.name} skipped: {error}")
            continue
        print(f"  {net.name} ...", file=sys.stderr, flush=True)
        try:
            section.rows.extend(_rows(net, str(path), onnxruntime, quick))
        except (pyvm.errors.VMError, MemoryError) as error:
            section.remarks.append(f"{net.name} FAILED: {error}")
        gc.collect()
    section.remarks.append(
        "ratio: pyvm / ONNX Runtime of the minima; diff: largest difference of the outputs, by the largest output; "
        "threads: pyvm.set_num_threads (BLAS included) and intra_op_num_threads, pinned to as many processors"
    )
    return section


def _rows(net: Network, path: str, onnxruntime: Any, quick: bool) -> list[Row]:
    x = net.input()
    begin = time.perf_counter()
    executable = pyvm.compile(path)
    compile_s = time.perf_counter() - begin
    function = pyvm.VirtualMachine(executable)["main"]
    rows = []
    for threads in (1, 2):
        if threads > len(os.sched_getaffinity(0)):
            break
        # The pools of both sides start with the processors of the thread that makes them.
        with pinned(threads):
            pyvm.set_num_threads(threads)
            session = ort_session(onnxruntime, path, threads)
            feeds = {session.get_inputs()[0].name: x}
            calls: dict[str, Call] = {
                "pyvm": lambda: arrays(function(x)),
                "ONNX Runtime": partial(session.run, None, feeds),
            }
            begin = time.perf_counter()
            ours, theirs = arrays(function(x)), session.run(None, feeds)
            for call in calls.values():
                call()
            pair_s = (time.perf_counter() - begin) / 2
            number = 1 if quick else max(1, min(20, int(0.1 / pair_s)))
            rounds = 2 if quick else max(4, int(SECONDS / pair_s / number))
            times = alternate(calls, min(rounds, 200), number, SETTLE_S if threads > 1 else 0.0)
            del session, calls
        scale = max(float(np.abs(value).max()) for value in theirs)
        pairs = zip(ours, theirs, strict=True)
        difference = max(float(np.abs(a - b).max()) for a, b in pairs) / max(scale, 1e-30)
        best = {side: values.min() / 1e6 for side, values in times.items()}
        middle = {side: float(np.median(values)) / 1e6 for side, values in times.items()}
        medians = middle["pyvm"], middle["ONNX Runtime"]
        note = f"median {medians[0]:.4g} / {medians[1]:.4g} = {medians[0] / medians[1]:.2f}, diff {difference:.1e}"
        rows.append(
            cost(
                f"{net.name} {'x'.join(map(str, net.shape))}, {threads} thread{'s' if threads > 1 else ''}",
                "ms",
                best["pyvm"],
                "ONNX Runtime",
                best["ONNX Runtime"],
                Target(1.0, 1.6, at_least=False),
                note=note,
                details={"median_ms": middle, "difference": difference, "compile_s": compile_s, "threads": threads},
            )
        )
    pyvm.set_num_threads(1)
    return rows


def arrays(result: Any) -> list[np.ndarray]:
    """The outputs of a call as numpy arrays, which is what ONNX Runtime returns."""
    return [value.numpy() for value in result] if isinstance(result, tuple) else [result.numpy()]


def ort_session(onnxruntime: Any, path: str, threads: int) -> Any:
    """A session with all its optimizations, whose workers stop to spin when a run ends: we run right after it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
