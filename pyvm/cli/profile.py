"""Run a function of a model once and show what each of its instructions took: time, calls, bytes, shapes.

--json writes every call in the order they ended, --trace a file for Chrome's about:tracing or ui.perfetto.dev, where
calls between functions nest. Inputs that are not given are random, made from the model's signature.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pyvm.cli.common import add_input_arguments, add_model_argument, load_model, make_inputs, positive_int

HELP = "show what each instruction of a run takes"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_model_argument(parser)
    add_input_arguments(parser)
    parser.add_argument("--limit", type=positive_int, default=20, metavar="N", help="rows of the table (default: 20)")
    parser.add_argument("--warmup", type=positive_int, default=3, metavar="N", help="runs before it (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all calls as JSON")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write the run as a Chrome trace")


def run(args: argparse.Namespace) -> int:
    """Profile one run after the warm-up, print the table, write the files."""
    import pyvm

    if args.threads is not None:
        pyvm.set_num_threads(args.threads)
    executable = load_model(args.model)
    _, inputs = make_inputs(executable, args)
    vm = pyvm.VirtualMachine(executable)
    for _ in range(args.warmup):
        vm[args.function](*inputs)
    profile = vm.profile(args.function, *inputs)
    if args.json is not None:
        args.json.write_text(profile.as_json() + "\n", encoding="utf-8")
    if args.trace is not None:
        args.trace.write_text(profile.as_chrome_trace() + "\n", encoding="utf-8")
    profile.show(args.limit)
    return 0
