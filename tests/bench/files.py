"""Files: loading a large `.vmx`, what several processes that use it need together, and the size of the wheel."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np

from tests import LOCATION, ROOT
from tests.bench.report import Row, Section, Target

WEIGHTS_MB = 500
PROCESSES = 3
PACKED = (".py", ".pyi", ".so", ".npz", ".typed", ".md", ".pxd")  # what a wheel has of the two packages

# Loads, sums all weights, says so; waits until the others have; then tells what the mapping takes.
_CHILD = """
import sys
import pyvm
executable = pyvm.load_executable(sys.argv[1])
vm = pyvm.VirtualMachine(executable)
print(float(executable.constants[0].sum()), flush=True)
sys.stdin.readline()
pss = dirty = 0
inside = False
for line in open("/proc/self/smaps"):
    if "-" in line.split(None, 1)[0] and not line[0].isupper():
        inside = line.rstrip().endswith(sys.argv[1])
    elif inside and line.startswith("Pss:"):
        pss += int(line.split()[1])
    elif inside and line.startswith("Private_Dirty:"):
        dirty += int(line.split()[1])
print(pss, dirty, flush=True)
"""


def run(quick: bool) -> Section:
    """Rows for loading, sharing and the wheel."""
    section = Section("files", f"a .vmx with {WEIGHTS_MB} MB of weights; the wheel")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.vmx"
        nbytes = _write_large(path)
        section.rows += _load_rows(path, 5 if quick else 20)
        section.rows.append(_shared_row(path, nbytes))
    section.rows.append(_wheel_row(section))
    return section


def _write_large(path: Path) -> int:
    """Saves the executable; bytes of its weights."""
    import pyvm

    b = pyvm.ExecBuilder()
    weights = np.zeros(WEIGHTS_MB * 250_000, np.float32)
    with b.function("main", num_inputs=0):
        b.emit_call("vm.builtin.copy", [b.convert_constant(weights)], dst=b.r(0))
        b.emit_ret(b.r(0))
    b.get().save(path)
    return weights.nbytes


def _load_rows(path: Path, rounds: int) -> list[Row]:
    import pyvm

    loads, machines = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        executable = pyvm.load_executable(path)
        loads.append(time.perf_counter() - begin)
        vm = pyvm.VirtualMachine(executable)
        machines.append(time.perf_counter() - begin)
        del vm, executable
    return [
        Row("load_executable", "ms", min(loads) * 1e3, target=Target(20, at_least=False, of="ours")),
        Row("load_executable and VirtualMachine", "ms", min(machines) * 1e3, note=f"slowest {max(machines) * 1e3:.2f}"),
    ]


def _shared_row(path: Path, nbytes: int) -> Row:
    """Memory of all processes for the weights (proportional set size), in files: 1 is once for all of them."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if LOCATION == ROOT:
        environment["PYTHONPATH"] = str(ROOT)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=path.parent,
        )
        for _ in range(PROCESSES)
    ]
    pss_kb = dirty_kb = 0
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        for child in children:  # one after the other: each counts while all still map the file
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            fields = child.stdout.readline().split()
            pss_kb += int(fields[0])
            dirty_kb += int(fields[1])
            child.stdin = None
    finally:
        for child in children:
            child.kill()
            child.wait()
    return Row(
        f"weights in memory, {PROCESSES} processes that read them all",
        "files",
        pss_kb * 1024 / nbytes,
        target=Target(1.05, at_least=False, of="ours"),
        note=f"private and dirty: {dirty_kb} KB",
    )


def _wheel_row(section: Section) -> Row:
    """What a wheel of this build takes: the files of both packages, compressed as pip does."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / "pyvm.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for package in ("vmcore", "pyvm"):
                for path in sorted((LOCATION / package).rglob("*")):
                    if path.suffix in PACKED and "__pycache__" not in path.parts:
                        archive.write(path, path.relative_to(LOCATION))
        size = wheel.stat().st_size
    peers = []
    for name in ("onnxruntime", "apache-tvm"):
        try:
            files = importlib.metadata.distribution(name).files or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        unpacked = sum(path.stat().st_size for f in files if (path := Path(str(f.locate()))).is_file())
        peers.append(f"{name} unpacked {unpacked / 1e6:.0f} MB")
    return Row("wheel", "MB", size / 1e6, target=Target(3, at_least=False, of="ours"), note=", ".join(peers))
