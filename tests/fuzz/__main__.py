"""python -m tests.fuzz --cases N [--seed S] [--first K] [--jobs J] [--format F]: mutated inputs, loaded and run.

Formats: programs in memory, calls of kernels, `.vmx` files, TVM's bytes, assembler text, the IR's text, ONNX models,
and what shared libraries return and pass. Case number K of seed S is always the same: `--first K --cases 1` runs it
again.

Exit code 1 and one text per finding if anything came out but a result or a typed error, if a case took seconds, more
memory than its size explains, or the process with it. Inputs of findings are saved in build/fuzz/.
"""

from __future__ import annotations

import argparse
import sys
import time

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
options = parser.parse_args()
begin = time.monotonic()
supervisor = Supervisor(
    options.seed, options.format, lambda line: print(line, flush=True), ROOT / "build" / "fuzz" / "findings"
)
supervisor.run(options.first, options.cases, options.jobs)
for finding in supervisor.findings:
    print(finding, file=sys.stderr)
print(supervisor.table())
print(
    f"{options.cases} cases in {time.monotonic() - begin:.0f} s, {len(supervisor.findings)} findings, "
    f"peak {supervisor.peak} MB"
)
sys.exit(bool(supervisor.findings))
