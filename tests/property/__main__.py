"""python -m tests.property --programs N [--seed S] [--jobs J] [--tvm]: random programs give the same on all machines.

Each program runs on the reference interpreter and on the loop, without instruments, with one, and after it was cleared.
With --tvm, where apache-tvm is installed, every other one runs on TVM's VM too. Those are made without calls of VM
functions whose result is dropped, which TVM takes for an error. Programs that hand None to a builtin that ends TVM's
process with it are counted and not given to it. Exit code 1 if anything differed, or TVM's process ended otherwise.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter

from tests.property.differential import check_chunk

CHUNK = 2_000


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.property", description="random programs on several machines")
    parser.add_argument("--programs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tvm", action="store_true", help="every other program on TVM's VM too")
    options = parser.parse_args()
    begin, end = time.monotonic(), options.seed + options.programs
    tasks = [(first, min(CHUNK, end - first), options.tvm) for first in range(options.seed, end, CHUNK)]
    counts: Counter[str] = Counter()
    differences: list[str] = []
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for found, differing in pool.imap_unordered(check_chunk, tasks):
            counts += found
            differences += differing
    for line in differences:
        print(line, file=sys.stderr)
    print(", ".join(f"{name} {n}" for name, n in counts.most_common()))
    print(f"{options.programs} programs in {time.monotonic() - begin:.0f} s, {len(differences)} differences")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
