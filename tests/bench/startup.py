"""Whole processes: time from the start of the interpreter to the first output, and the most memory it ever had.

Peak memory is VmHWM of the process itself: `ru_maxrss` would count what the parent had when it forked.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests import LOCATION, ROOT
from tests.bench.networks import Network, network, onnx_file, vmx_file
from tests.bench.report import Row, Section, Target, cost

# Programs of the children. They print one line as soon as the first output is there, and are asked for memory after it.
_INPUT = """
import sys
import numpy as np
x = (np.arange({size}, dtype=np.float32) % 17 / 17 - 0.5).reshape({shape})
"""
_OURS = """
import pyvm
pyvm.set_num_threads(1)
run = pyvm.VirtualMachine({path!r})["main"]
def call():
    y = run(x)
    return (y[0] if isinstance(y, tuple) else y).numpy()
"""
_THEIRS = """
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession({path!r}, options, providers=["CPUExecutionProvider"])
feeds = {{session.get_inputs()[0].name: x}}
def call():
    return session.run(None, feeds)[0]
"""
_FIRST_OUTPUT = """
import time
y = call()
print(float(np.abs(y).sum()), 0.0, time.process_time(), flush=True)
for _ in range({more}):
    call()
"""
_MEMORY = """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(status["VmHWM"].split()[0], status["VmRSS"].split()[0], flush=True)
"""
# What the runtime adds to a process that has imported numpy. The clocks run from there to the first output.
_BARE = """
import numpy
print(0.0, 0.0, 0.0, flush=True)
"""
_ADDED = """
import time
import numpy
a, x = numpy.ones((128, 128), numpy.float32), numpy.ones((128, 1), numpy.float32)
begin, cpu_begin = time.perf_counter(), time.thread_time()
{what}
print(0.0, time.perf_counter() - begin, time.thread_time() - cpu_begin, flush=True)
"""
_ADDITIONS = {
    "import of the runtime": "import pyvm; pyvm.VirtualMachine, pyvm.set_num_threads",
    "import of the runtime and of all kernels": "import pyvm; pyvm.VirtualMachine, pyvm.list_global_func_names()",
    "runtime, a .vmx loaded, BLAS bound, first call (two products)": (
        "import pyvm; y = pyvm.VirtualMachine({path!r})['main'](a, x).numpy()"
    ),
}
_BUDGETED = "runtime, a .vmx loaded, BLAS bound, first call (two products)"
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


def run(quick: bool, only: str | None = None) -> Section:
    """Cold start and peak memory next to ONNX Runtime's, and what importing the runtime costs."""
    section = Section("startup", "process start -> first output; peak memory; 1 thread each")
    has_ort = importlib.util.find_spec("onnxruntime") is not None
    if not has_ort:
        section.remarks.append("no ONNX Runtime here: only our own figures")
    for name in ("oww_embedding", "light_squeezenet", "light_resnet50"):
        if only and only not in name:
            continue
        net = network(name)
        try:
            sources = {"pyvm": _source(_OURS, net, vmx_file(net))}
            if has_ort:
                sources["ONNX Runtime"] = _source(_THEIRS, net, onnx_file(net))
        except (FileNotFoundError, ImportError) as error:
            section.remarks.append(f"{name} skipped: {error}")
            continue
        section.rows.extend(_network_rows(name, sources, 3 if quick else 11 if name == "light_resnet50" else 21))
    section.rows.extend(_added_rows(3 if quick else 41))
    section.remarks.append("cold starts: the note has medians; files are in the page cache")
    section.remarks.append(
        "above python + numpy: median wall time from `import numpy` being done to the first output, in processes of "
        "their own; OpenBLAS has one thread unless the row says else: numpy's starts one per processor, which spin for "
        "a while. In the note, whole processes, exit not included, against bare ones that alternate with them"
    )
    return section


def _source(load: str, net: Network, path: Path) -> str:
    size = 1
    for dim in net.shape:
        size *= dim
    return (
        _INPUT.format(size=size, shape=net.shape) + load.format(path=str(path)) + _FIRST_OUTPUT.format(more=3) + _MEMORY
    )


def _network_rows(name: str, sources: dict[str, str], rounds: int) -> list[Row]:
    results = _measure(sources, rounds)
    sums = {side: result.first for side, result in results.items()}
    if len({f"{value:.3g}" for value in sums.values()}) != 1:
        raise AssertionError(f"{name}: the sums of the outputs differ: {sums}")
    rows = []
    for what, unit, figures in (
        ("cold start", "ms", {side: result.seconds for side, result in results.items()}),
        ("peak memory", "MB", {side: result.peak_mb for side, result in results.items()}),
    ):
        scale = 1e3 if unit == "ms" else 1.0
        best = {side: min(values) * scale for side, values in figures.items()}
        middle = {side: statistics.median(values) * scale for side, values in figures.items()}
        note = "median " + " / ".join(f"{value:.4g}" for value in middle.values())
        target = Target(1.0, 1.0 if unit == "ms" else 1.3, at_least=False)
        if len(best) == 1:
            rows.append(Row(f"{name}: {what}", unit, best["pyvm"], note=note))
        else:
            rows.append(
                cost(
                    f"{name}: {what}",
                    unit,
                    best["pyvm"],
                    "ONNX Runtime",
                    best["ONNX Runtime"],
                    target,
                    note=note,
                    details={"median": middle},
                )
            )
    return rows


def _added_rows(rounds: int) -> list[Row]:
    """What the runtime adds to an interpreter that has imported numpy."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "products.vmx"
        _products().save(path)
        sources = {"numpy": _BARE + _MEMORY}
        for what, code in _ADDITIONS.items():
            sources[what] = _ADDED.format(what=code.format(path=str(path))) + _MEMORY
        results = _measure(sources, rounds, _ONE_THREAD)
        usual = _measure({side: sources[side] for side in ("numpy", _BUDGETED)}, rounds)
    for what in _ADDITIONS:
        budgeted = what == _BUDGETED
        note = _added_note(results[what], results["numpy"])
        milliseconds = statistics.median(results[what].inner_seconds) * 1e3
        # Resident pages are a property of the program, but for what the kernel maps around a fault: the least is it.
        megabytes = min(results[what].resident_mb) - min(results["numpy"].resident_mb)
        for name, unit, value, budget in (("time", "ms", milliseconds, 10), ("memory", "MB", megabytes, 8)):
            target = Target(budget, at_least=False, of="ours") if budgeted else None
            text = note if unit == "ms" else ""
            rows.append(Row(f"{what}: {name} above python + numpy", unit, value, target=target, note=text))
    milliseconds = statistics.median(usual[_BUDGETED].inner_seconds) * 1e3
    note = _added_note(usual[_BUDGETED], usual["numpy"])
    rows.append(Row("the same, OpenBLAS of numpy with its usual threads: time", "ms", milliseconds, note=note))
    return rows


def _added_note(result: _Result, bare: _Result) -> str:
    """The least time, processor time of the main thread, and what whole processes took longer than bare ones."""
    differences = [one - other for one, other in zip(result.seconds, bare.seconds, strict=True)]
    return (
        f"least {min(result.inner_seconds) * 1e3:.1f}, processor {statistics.median(result.cpu_seconds) * 1e3:.1f}; "
        f"processes: median of pairs {statistics.median(differences) * 1e3:.1f}, "
        f"of minima {(min(result.seconds) - min(bare.seconds)) * 1e3:.1f}, bare {min(bare.seconds) * 1e3:.0f}"
    )


def _products() -> Any:
    """`main(a, x) = w @ a @ x` with weights w: a product of matrices, and one with a vector, which is BLAS's."""
    import pyvm

    b = pyvm.ExecBuilder()
    scope, dtype = "global", pyvm.DataType("float32")
    weights = np.ones((128, 128), np.float32)
    with b.function("main", num_inputs=2):
        size = pyvm.Shape((131072,))
        b.emit_call("vm.builtin.alloc_storage", [b.vm_state(), size, 0, pyvm.DataType("uint8"), scope], dst=b.r(2))
        b.emit_call("vm.builtin.alloc_tensor", [b.r(2), 0, pyvm.Shape((128, 128)), dtype], dst=b.r(3))
        b.emit_call("vm.builtin.alloc_tensor", [b.r(2), 65536, pyvm.Shape((128, 1)), dtype], dst=b.r(4))
        b.emit_call("kernel.matmul", [b.convert_constant(weights), b.r(0), b.r(3)])
        b.emit_call("kernel.matmul", [b.r(3), b.r(1), b.r(4)])
        b.emit_ret(b.r(4))
    return b.get()


class _Result:
    """Figures of the runs of one child program."""

    def __init__(self) -> None:
        self.first = 0.0
        self.seconds: list[float] = []
        self.inner_seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.peak_mb: list[float] = []
        self.resident_mb: list[float] = []


def _measure(sources: dict[str, str], rounds: int, variables: dict[str, str] | None = None) -> dict[str, _Result]:
    """Runs the children in turn, after one round that only fills the caches."""
    results = {side: _Result() for side in sources}
    for i in range(rounds + 1):
        for side, source in sources.items():
            seconds, line, memory = _run_child(source, variables or {})
            if i:
                first, inner_seconds, cpu_seconds = map(float, line.split())
                peak_kb, resident_kb = map(int, memory.split())
                results[side].first = first
                results[side].seconds.append(seconds)
                results[side].inner_seconds.append(inner_seconds)
                results[side].cpu_seconds.append(cpu_seconds)
                results[side].peak_mb.append(peak_kb / 1024)
                results[side].resident_mb.append(resident_kb / 1024)
    return results


def _run_child(source: str, variables: dict[str, str]) -> tuple[float, bytes, bytes]:
    """Seconds to the first line, this line (a sum, two figures in seconds), and the second: peak and resident KiB."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | variables
    if LOCATION == ROOT:
        environment["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-c", source],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            cwd=tempfile.gettempdir(),
        )
        assert child.stdout is not None
        line = child.stdout.readline()
        seconds = time.perf_counter() - begin
        rest = child.stdout.read()
        if child.wait() != 0 or not line:
            errors.seek(0)
            raise RuntimeError(f"a child process failed:\n{errors.read().decode(errors='replace')}")
    return seconds, line, rest
