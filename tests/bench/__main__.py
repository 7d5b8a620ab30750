"""`python -m tests.bench [names] [--quick] [--markdown] [--json FILE] [--models FOLDER]`: all benchmarks, or some.

dispatch      ns per instruction, call and entry, next to TVM
instructions  machine instructions of the same programs
tiny          latency of tiny models at one and two threads, next to ONNX Runtime
fusion        chains of elementwise operators on a million elements, next to numpy and numexpr
models        latency of real networks, next to ONNX Runtime
startup       cold start, peak memory, cost of the import
files         loading a large .vmx, sharing its pages, size of the wheel
threads       throughput of two threads over one
memory        planned arenas, next to what is alive at once
compile       seconds from a model to its .vmx file

`pip install '.[bench]'` brings the peers; without them only our own figures are shown. Run it on a quiet machine:
ratios are taken side by side, but short disturbances hit only one side.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from tests.bench.report import machine, markdown, save

NAMES = ("dispatch", "instructions", "tiny", "fusion", "models", "startup", "files", "threads", "memory", "compile")
MODULES = {"compile": "compiling"}  # where the module is not called like the benchmark


def main() -> int:
    """Runs what was asked for and prints one table per benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it works, not to quote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument(
        "--markdown", action="store_true", help="at the end, all rows that have a budget as one Markdown table"
    )
    parser.add_argument(
        "--models",
        type=Path,
        metavar="FOLDER",
        help="where the models of tests/models/fetch.py are and built ones are kept (default: $PYVM_MODELS)",
    )
    parser.add_argument("--only", metavar="TEXT", help="only models whose name contains TEXT")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(NAMES)}")
    if arguments.models is not None:
        os.environ["PYVM_MODELS"] = str(arguments.models.resolve())
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print()
    sections = []
    for name in arguments.names or NAMES:
        module = importlib.import_module(f"tests.bench.{MODULES.get(name, name)}")
        begin = time.perf_counter()
        options = {"only": arguments.only} if name in ("models", "startup", "memory", "compile") else {}
        section = module.run(arguments.quick, **options)
        section.remarks.append(f"{time.perf_counter() - begin:.0f} s{', --quick' if arguments.quick else ''}")
        print(section.text(), flush=True)
        sections.append(section)
    if arguments.markdown:
        print(markdown(sections))
    if arguments.json is not None:
        save(arguments.json, about, sections)
    return 0


if __name__ == "__main__":
    sys.exit(main())
