"""Print the bytecode of an executable (or of what an ONNX model compiles to).

The default layout is that of TVM's as_text; --asm prints text that `pyvm asm` turns back into the same executable, and
--python a program that rebuilds it with ExecBuilder.
"""

from __future__ import annotations

import argparse

from pyvm.cli.common import add_model_argument, load_model

HELP = "print the bytecode of an executable"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add_model_argument(parser)
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--asm", action="store_true", help="assembler text, which `pyvm asm` reads")
    layout.add_argument("--python", action="store_true", help="a Python program that rebuilds the executable")
    layout.add_argument("--stats", action="store_true", help="sizes and counts instead of instructions")


def run(args: argparse.Namespace) -> int:
    """Print the text."""
    executable = load_model(args.model)
    if args.asm:
        text = executable.as_asm()
    elif args.python:
        text = executable.as_python()
    elif args.stats:
        text = executable.stats()
    else:
        text = executable.as_text()
    print(text.rstrip("\n"))
    return 0
