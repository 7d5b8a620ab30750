"""Assemble a text program (as `pyvm dis --asm` prints it) into an executable file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pyvm.cli.common import UsageError, bytes_text

HELP = "assemble a text program into a .vmx executable"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("source", type=Path, metavar="FILE", help="the program; - reads standard input")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where to write the executable (default: FILE with .vmx)"
    )


def run(args: argparse.Namespace) -> int:
    """Assemble, verify and write."""
    from pyvm.asm import assemble

    from_stdin = str(args.source) == "-"
    if from_stdin and args.output is None:
        raise UsageError("reading standard input: say where to write with -o")
    try:
        text = sys.stdin.read() if from_stdin else args.source.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{args.source}: not a text file") from None
    executable = assemble(text)
    executable.verify()
    output = args.output or args.source.with_suffix(".vmx")
    executable.save(output)
    size = bytes_text(output.stat().st_size)
    print(f"{args.source} -> {output} ({size}, {len(executable.instr_offset)} instructions)")
    return 0
