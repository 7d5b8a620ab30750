"""python -m tests.concurrency: threads, ends of processes, and memory that workers share, at full length.

  --threads 8 --calls 100000   so many threads make so many calls each while others change everything around them
  --exits 50                   each program that ends with threads running, so many times
  --workers 4                  so many processes share the weights of one file
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.concurrency.exits import SCRIPTS, run_exit
from tests.concurrency.sharing import share
from tests.concurrency.stress import stress


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.concurrency", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=0, help="calls per thread")
    parser.add_argument("--exits", type=int, default=0, help="repetitions of each program")
    parser.add_argument("--only", default="", help="of the programs, those whose name contains this")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--megabytes", type=int, default=100, help="of weights that the workers share")
    args = parser.parse_args()
    if not (args.calls or args.exits or args.workers):
        args.calls, args.exits, args.workers = 100000, 50, 4
    with tempfile.TemporaryDirectory() as folder:
        if args.calls:
            begin = time.perf_counter()
            counts = stress(args.threads, args.calls)
            print(f"{args.threads} threads x {args.calls} calls: all bits as from one thread", end="")
            print(f" ({time.perf_counter() - begin:.0f} s); beside them: ", end="")
            print(", ".join(f"{name} {count}" for name, count in counts.items()), flush=True)
        for name in SCRIPTS if args.exits else ():
            if args.only in name:
                longest = max(run_exit(name, folder) for _ in range(args.exits))
                print(f"{args.exits} x {name}: status 0, silent, {longest:.2f} s at most", flush=True)
        for method in ("fork", "forkserver", "spawn") if args.workers else ():
            measured = share(Path(folder), method, args.workers, args.megabytes)
            rss, pss = (sum(column) / 1e6 for column in zip(*measured, strict=True))
            print(f"{args.workers} workers by {method}, {args.megabytes} MB of weights:", end=" ")
            print(f"their mappings add up to Rss {rss:.1f} MB, Pss {pss:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
