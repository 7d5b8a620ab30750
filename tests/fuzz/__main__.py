"""python -m tests.fuzz --cases N [--seed S] [--first K]: mutants of real executables, loaded and run.

Exit code 1 and one text per finding if anything but a typed error came out; `--first K --cases 1` runs one case again.
"""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.run import supervise

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="mutants of executables, loaded and run")
parser.add_argument("--cases", type=int, default=1_000_000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--first", type=int, default=0)
options = parser.parse_args()
findings = supervise(options.cases, options.seed, options.first, lambda line: print(line, flush=True))
for finding in findings:
    print(finding, file=sys.stderr)
print(f"{options.cases} cases, {len(findings)} findings")
sys.exit(bool(findings))
