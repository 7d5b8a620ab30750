"""python -m tests.fuzz --cases N [--seed S] [--first K] [--jobs J] [--format F] [--resume FILE] [--seconds T]

Mutated inputs, loaded and run.

Formats: programs in memory, calls of kernels, `.vmx` files, TVM's bytes, assembler text, the IR's text, ONNX models,
and what shared libraries return and pass. Case number K of seed S is always the same: `--first K --cases 1` runs it
again.

Exit code 1 and one text per finding if anything came out but a result or a typed error, if a case took seconds, more
memory than its size explains, or the process with it. Inputs of findings are saved in build/fuzz/. With --resume, a run
that was ended goes on, provided that no source or module changed; exit code 3 says that --seconds ended it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests import ROOT
from tests.fuzz.run import Supervisor

# As in tests.fuzz.cases, which children import: this process only watches them.
FORMATS = ("program", "kernel", "vmx", "tvm", "asm", "ir", "onnx", "foreign")

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="mutated inputs, loaded and run")
parser.add_argument("--cases", type=int, default=1_000_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--first", type=int, default=0)
parser.add_argument("--jobs", type=int, default=2, help="child processes at the same time")
parser.add_argument("--format", choices=FORMATS, default=None, help="only this format")
parser.add_argument("--resume", type=Path, default=None, metavar="FILE", help="keeps what is done, to go on from there")
parser.add_argument("--seconds", type=float, default=None, help="stop after so long; --resume goes on another time")
options = parser.parse_args()
supervisor = Supervisor(
    options.seed, options.format, lambda line: print(line, flush=True), ROOT / "build" / "fuzz" / "findings"
)
if options.resume is not None:
    supervisor.resume(options.resume)
whole = supervisor.run(options.first, options.cases, options.jobs, options.seconds)
for finding in supervisor.findings:
    print(finding, file=sys.stderr)
print(supervisor.table())
print(
    f"{supervisor.done} cases in {supervisor.elapsed():.0f} s, {len(supervisor.findings)} findings, "
    f"peak {supervisor.peak} MB"
)
if not whole:
    print(f"{options.cases - supervisor.done} cases are left")
sys.exit(3 if not whole else bool(supervisor.findings))
