"""Machine instructions per unit of the dispatch programs, counted by callgrind: free of noise, blind to stalls.

The counted process runs each program twice, a few and some more times; the difference is free of everything that
happens once. It marks the borders with `os.getppid`, before which callgrind is told to write its counters out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests import ROOT
from tests.bench.programs import PROGRAMS, WITH_TVM_KERNEL, PyvmKit, TvmKit, add_program, build, entry_program
from tests.bench.report import Row, Section

CALLS = 2000
FEW, MORE = 1, 3
ENTRY = "Python -> VM entry and return, tensor (with a Python loop around it)"
ARRAYS = "1-operator model on 16 floats, numpy -> numpy (with a Python loop around it)"


def run(quick: bool) -> Section:
    """One row per program; none, with a remark, where there is no valgrind."""
    section = Section("instructions", "callgrind, instructions per unit, callees included")
    if shutil.which("valgrind") is None:
        section.remarks.append("skipped: valgrind is not installed")
        return section
    names = [program.name for program in PROGRAMS] + [ENTRY, ARRAYS]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        library = []  # the kernel that TVM compiled, if it can
        try:
            library = [str(TvmKit().export(folder))]
            names.append(WITH_TVM_KERNEL.name)
        except ImportError as error:
            section.remarks.append(f"no TVM here: {error}")
        command = ["valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={out}"]
        done = subprocess.run(
            [*command, sys.executable, "-m", "tests.bench.instructions", *library],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        dumps = [Path(f"{out}.{i}") for i in range(1, 2 * len(names) + 2)]
        if done.returncode or not all(path.exists() for path in dumps):
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            section.remarks.append(f"skipped: the counted process failed: {last}")
            return section
        totals = [int(re.search(r"^totals: (\d+)", path.read_text(), re.M)[1]) for path in dumps]  # type: ignore[index]
    for i, name in enumerate(names):
        few, more = totals[2 * i + 1], totals[2 * i + 2]
        section.rows.append(Row(name, "instructions", (more - few) / ((MORE - FEW) * CALLS)))
    section.remarks.append("valgrind shows programs a processor without AVX-512: kernels run their AVX2 version")
    return section


def _child(library: Path | None) -> None:
    kit = PyvmKit()
    runs: list[tuple[Callable[[Any], Any], Any, int]] = []
    for program in PROGRAMS:
        function, argument = build(program, kit, CALLS)
        runs.append((function, argument, 1))
    runs.append((entry_program(kit), runs[1][1], CALLS))
    add = add_program(kit)
    runs.append((lambda value: add(value).numpy(), np.arange(16, dtype=np.float32), CALLS))
    if library is not None:
        function, argument = build(WITH_TVM_KERNEL, PyvmKit(library), CALLS)
        runs.append((function, argument, 1))
    for function, argument, n in runs:
        for _ in range(n):
            function(argument)
    for function, argument, n in runs:
        for times in (FEW, MORE):
            os.getppid()
            for _ in range(times * n):
                function(argument)
    os.getppid()


if __name__ == "__main__":
    _child(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
