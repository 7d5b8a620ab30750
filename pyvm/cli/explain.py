"""Explain a program: every instruction with its operator, shapes, costs, memory, and why it is as it is.

Prints tables, or writes a page with pictures of the memory plan and of the graph:

    pyvm explain model.onnx -o model.html
    pyvm explain model.vmx --dim n=64 --text

Sizes that depend on symbolic dimensions are expressions; --dim gives numbers. With --profile the function runs on
random inputs (or those of --input), and every instruction gets its time and the rates that follow from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pyvm.cli.common import (
    Progress,
    UsageError,
    add_input_arguments,
    add_model_argument,
    bytes_text,
    load_model,
    make_inputs,
    parse_dims,
    positive_int,
    signature_of,
    symbols_of,
)

if TYPE_CHECKING:
    from pyvm.executable import VMExecutable
    from pyvm.profile import Profile

HELP = "explain instructions, costs and memory"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_model_argument(parser)
    add_input_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write a page here (FILE.html), or FILE.json or FILE.txt"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--text", action="store_true", help="print every instruction, not only those that compute")
    form.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--profile", action="store_true", help="run the function and add measured times")
    parser.add_argument(
        "--repeat", type=positive_int, default=5, metavar="N", help="runs of --profile; the fastest counts (default: 5)"
    )


def run(args: argparse.Namespace) -> int:
    """Explain, then print or write."""
    if args.output is not None and args.output.suffix.lower() not in (".html", ".htm", ".json", ".txt"):
        raise UsageError(f"--output {args.output}: expected a file that ends in .html, .json or .txt")
    executable = load_model(args.model)
    dims = parse_dims(args.dim)
    profile = None
    if args.profile:
        known = symbols_of(signature_of(executable, args.function).params)
        profile = _profile(executable, args)
        dims = {name: 1 for name in known} | dims  # what random inputs have where --dim is silent
    explanation = executable.explain(dims, profile, name=args.model.name)
    unknown = [name for name in dims if name not in explanation.symbols]
    if unknown and not args.profile:
        known = explanation.symbols
        raise UsageError(f"--dim {unknown[0]}: no such symbolic dimension; there is {', '.join(known) or 'none'}")
    if args.output is not None:
        explanation.save(args.output)
        print(f"wrote {args.output} ({bytes_text(args.output.stat().st_size)})")
    elif args.json:
        print(explanation.to_json())
    else:
        print(explanation.to_text(all_instructions=args.text))
    return 0


def _profile(executable: VMExecutable, args: argparse.Namespace) -> Profile:
    """The fastest of some profiled runs."""
    import pyvm

    if args.threads is not None:
        pyvm.set_num_threads(args.threads)
    _, inputs = make_inputs(executable, args)
    vm = pyvm.VirtualMachine(executable)
    vm[args.function](*inputs)  # first-call allocations
    with Progress(f"profiling {args.function}"):
        runs = [vm.profile(args.function, *inputs) for _ in range(args.repeat)]
    return min(runs, key=lambda profile: profile.total_ns)
